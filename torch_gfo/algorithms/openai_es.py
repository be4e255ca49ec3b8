"""The evolution strategy of OpenAI: an estimate of the gradient from the ranks of samples.

* T. Salimans, J. Ho, X. Chen, S. Sidor, I. Sutskever, "Evolution strategies as a scalable alternative to reinforcement
  learning", 2017, https://arxiv.org/abs/1703.03864.

Differences from the paper: the step has the unit of ``sigma``, (3), that of the natural gradient, so that one learning
rate serves weights of all scales. Samples are independent unless ``mirrored=True``: on losses that are smooth within
``sigma``, as those of networks, n of them tell the slope in n directions, n / 2 mirrored pairs in half as many. Weight
decay is a penalty on each candidate's loss, see ``CommonOptions``. The radius may follow the share of the candidates
that are better than the model (5); the steps keep their unit.
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
from torch_gfo.options import CommonOptions, check_flag, check_integer, check_number, check_perturbation, invalid
from torch_gfo.perturbation import Population, n_drawn, perturbed
from torch_gfo.ranking import centred_ranks
from torch_gfo.search import Search
from torch_gfo.updates import check_update, descend, memory

__all__ = ["OpenAIES"]

_SUCCESSES = 0.15  # the share of better candidates


class OpenAIES(GradientFreeOptimizer):
    """Evolution strategy of OpenAI: steps along a gradient that is estimated from the ranks of a population's losses.

    Use it on networks, where it is the method to begin with: it remembers no losses, so minibatches do it no harm, and
    its steps do not depend on the scale of the losses. Do not use it to find a minimum of few variables exactly: the
    radius stays as it is.

    In every step, for the candidates i = 1, ..., n = popsize; x is the model, N standard normal, and rank_i goes from
    -1/2 for the lowest loss to 1/2 for the highest, equal losses sharing the mean::

        z_i = x + s sigma N_i                               mirrored: half of the N_i, the others their opposites (1)
        g = (rank_1 N_1 + ... + rank_n N_n) / n                                                                   (2)
        x = x + lr_t sigma u                                u the update's step against g                         (3)
        lr_t = lr / sqrt(1 + lr_decay t)                    in step t = 0, 1, ...                                 (4)
        s = min(1, s exp(sigma_lr (p - 0.15)))              at first 1; p of the candidates are better than x     (5)

    The update is ``"adam"``; ``"clipup"``, steps of about twice the learning rate whatever the size of g; or ``"sgd"``,
    with momentum; see ``torch_gfo.updates``.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Length of the model's first steps, in units of ``sigma``. Longer steps train faster, shorter ones to a lower
            loss. Good values are about 10 times less for ``"clipup"``, three times as much for ``"sgd"``. Default: 0.5.
        sigma: Radius of the candidates about the model, in parameter units. Default: None, 0.25 standard deviations of
            each tensor's initial values.
        popsize: Number of candidates, at least 2; even where they are mirrored. With more of them, steps are better but
            fewer for the same evaluations; take more on noisy losses. Default: 32.
        update: ``"adam"``, ``"clipup"`` or ``"sgd"``.
        momentum: Share of its velocity that the model keeps from step to step, in [0, 1). Default: 0.9.
        lr_decay: Rate of the decay (4), at least 0; with 0, steps keep their length. Default: 0.02.
        mirrored: Whether candidates come in pairs on opposite sides of the model. Better on losses that are rugged
            within ``sigma``; they need about twice the evaluations on smooth ones. Default: False.
        perturbation: ``"dense"``; ``"low_rank"``, with products of thin matrices in place of normal matrices, see
            ``EGGROLL``; or ``"seeded"``, many candidates in the memory of few: each is held as a seed, and drawn when
            it is needed. Default: ``"dense"``.
        rank: Of the products of ``"low_rank"``, at least 1. Default: 1.
        input_span: Number of directions in which ``"low_rank"`` perturbs the inputs' side of a linear layer, see
            ``EGGROLL``, at least 1; None for all. Default: None.
        sigma_lr: Rate at which candidates draw nearer to the model while fewer than 0.15 of them are better than it,
            and go back, at least 0 (5). Default: 0, they keep their distance.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
        >>> optimizer = torch_gfo.OpenAIES([x], seed=0)
        >>> schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
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
        popsize: int = 32,
        update: str = "adam",
        momentum: float = 0.9,
        lr_decay: float = 0.02,
        mirrored: bool = False,
        perturbation: str = "dense",
        rank: int = 1,
        input_span: int | None = None,
        sigma_lr: float = 0.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "popsize": popsize, "update": update, "momentum": momentum}
        own |= {"lr_decay": lr_decay, "mirrored": mirrored, "perturbation": perturbation}
        own |= {"rank": rank, "input_span": input_span, "sigma_lr": sigma_lr}
        if not isinstance(own["popsize"], int) or popsize < 2 or (mirrored and popsize % 2):
            raise invalid("popsize", popsize, "an integer of at least 2, even where candidates are mirrored")
        check_update(update, momentum, lr_decay)
        check_flag("mirrored", mirrored)
        check_perturbation(perturbation, rank)
        if input_span is not None:
            check_integer("input_span", input_span, 1)
        check_number("sigma_lr", sigma_lr, "[0, inf)", "; 0 keeps the radius")
        super().__init__(params, own, common)

    def _n_stored(self, dim: int) -> int:
        group = self.param_groups[0]
        return 4 * (int(group["popsize"]) * n_drawn(dim, self.param_groups) + dim)

    def _init_state(self, search: Search) -> dict[str, Any]:
        return memory(self.param_groups[0]["update"], search.point) | {"spread": 1.0}

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Population, Tensor, tuple[Tensor, Tensor]]:
        group, s = self.param_groups[0], state["spread"]
        scale = search.point.new_tensor(s) if s < 1 else None
        kind, rank, mirrored = group["perturbation"], group["rank"], group["mirrored"]
        z = perturbed(search, group["popsize"], kind, rank, mirrored=mirrored, scale=scale)  # (1)
        losses = yield z
        g = z.weighted_sum(centred_ranks(losses)) / len(z)  # (2)
        u = descend(group["update"], state, g, group["momentum"], group["lr_decay"])  # (4)
        if group["sigma_lr"]:
            twice = int((losses < search.loss).sum() + (losses <= search.loss).sum())  # those of equal loss count once
            p = twice / (2 * len(losses))
            state["spread"] = min(1.0, s * math.exp(group["sigma_lr"] * (p - _SUCCESSES)))  # (5)
        return search.point + search.unit * u, torch.full_like(search.loss, math.nan)  # (3)
