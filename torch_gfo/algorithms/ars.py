"""Augmented random search: finite differences along random directions, scaled by the spread of the losses.

* H. Mania, A. Guy, B. Recht, "Simple random search provides a competitive approach to reinforcement learning", 2018,
  https://arxiv.org/abs/1803.07055: V1, and V1-t with ``n_top``. V2 normalises what a policy sees, which is not an
  optimizer's business: ``examples/rl_ars.py`` does so.

Differences from the paper: the step has the unit of ``sigma``, (4), so that one learning rate serves weights of all
scales: the paper's step size is ``lr * sigma``. Exactly ``n_top`` directions are kept, also among equally good ones. A
loss that is not finite counts as worse than the worst of the others, by their range.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.options import CommonOptions, check_integer, check_perturbation, invalid
from torch_gfo.perturbation import Population, n_drawn, perturbed
from torch_gfo.ranking import z_scores
from torch_gfo.search import Search

__all__ = ["ARS"]


class ARS(GradientFreeOptimizer):
    """Augmented random search: the model moves along random directions in proportion to the losses at their two ends.

    Use it on policies of few parameters, such as linear ones, in reinforcement learning, where it is hard to beat for
    its simplicity; it trains networks too, somewhat worse than ``OpenAIES``. Do not use it where losses have outliers,
    nor to find a minimum exactly.

    In every step, for the directions k = 1, ..., N = n_directions: x is the model, delta_k standard normal, b = n_top,
    and f the losses::

        z+_k = x + sigma delta_k,  z-_k = x - sigma delta_k                                                     (1)
        keep the b directions with the lowest min(f+_k, f-_k)                                                   (2)
        sigma_R = standard deviation of the 2 b losses of the directions that are kept                          (3)
        x = x - lr sigma / (b sigma_R) * sum over them of (f+_k - f-_k) delta_k                                 (4)

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Length of the model's steps, in units of ``sigma``. Default: 0.5.
        sigma: Radius of the candidates about the model, in parameter units. Default: None, 0.25 standard deviations of
            each tensor's initial values. Give it where all parameters begin at zero, as those of a linear policy may.
        n_directions: Number of directions, at least 1; each takes two evaluations. Default: 16.
        n_top: Number of directions that are kept, at most ``n_directions``. Default: None, all of them.
        perturbation: ``"dense"``; ``"low_rank"``, with products of thin matrices in place of normal matrices, see
            ``EGGROLL``; or ``"seeded"``, many candidates in the memory of few: each is held as a seed, and drawn when
            it is needed. Default: ``"dense"``.
        rank: Of the products of ``"low_rank"``, at least 1. Default: 1.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
        >>> optimizer = torch_gfo.ARS([x], seed=0)
        >>> schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
        >>> for _ in range(200):
        ...     loss = optimizer.step(lambda: (x - 1).square().sum())
        ...     schedule.step()
        >>> bool(loss < 1e-4)
        True
    """

    _auto_sigma: ClassVar[float] = 0.25
    _lr_is_step: ClassVar[bool] = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.5,
        sigma: float | None = None,
        n_directions: int = 16,
        n_top: int | None = None,
        perturbation: str = "dense",
        rank: int = 1,
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "n_directions": n_directions, "n_top": n_top}
        own |= {"perturbation": perturbation, "rank": rank}
        check_integer("n_directions", n_directions, 1)
        if own["n_top"] is not None and (not isinstance(own["n_top"], int) or not 1 <= own["n_top"] <= n_directions):
            raise invalid("n_top", n_top, f"None or an integer from 1 to n_directions={n_directions}")
        check_perturbation(perturbation, rank)
        super().__init__(params, own, common)

    def _n_stored(self, dim: int) -> int:
        return 6 * (int(self.param_groups[0]["n_directions"]) * n_drawn(dim, self.param_groups) + dim)

    def _init_state(self, search: Search) -> dict[str, Any]:
        return {}

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Population, Tensor, tuple[Tensor, Tensor]]:
        group = self.param_groups[0]
        n, b = group["n_directions"], group["n_top"] or group["n_directions"]
        z = perturbed(search, 2 * n, group["perturbation"], group["rank"], mirrored=True)  # (1)
        f = (yield z).view(2, n)
        top = f.amin(0).argsort(stable=True)[:b]  # (2)
        f_plus, f_minus = z_scores(f[:, top].flatten()).view(2, b)  # (3): divided by sigma_R
        w = torch.zeros_like(f)
        w[:, top] = torch.stack([f_minus - f_plus, f_plus - f_minus]) / (2 * b)  # delta: half of what lies between ends
        return search.point + search.unit * z.weighted_sum(w.flatten()), torch.full_like(search.loss, math.nan)  # (4)
