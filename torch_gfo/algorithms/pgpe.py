"""Policy gradients with parameter-based exploration: a gradient of the mean and of the standard deviations.

* F. Sehnke, C. Osendorfer, T. Rückstiess, A. Graves, J. Peters, J. Schmidhuber, "Parameter-exploring policy gradients",
  2010, https://doi.org/10.1016/j.neunet.2009.12.004: symmetric samples, (1) to (4).
* N. E. Toklu, P. Liskowski, R. K. Srivastava, "ClipUp: a simple and powerful optimizer for distribution-based policy
  evolution", 2020, https://arxiv.org/abs/2008.02387: the limit of (4), centred ranks, and the update ``"clipup"``.

Differences from the papers: steps have the unit of the standard deviations, (3), as the first paper's, but with every
update. Weights sum to zero, so that (4) needs no baseline; it takes deviations relative to s, as the first paper.
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
from torch_gfo.options import CommonOptions, check_choice, check_number, check_perturbation, invalid
from torch_gfo.perturbation import Population, n_drawn, perturbed, unit_scale
from torch_gfo.ranking import centred_ranks, z_scores
from torch_gfo.search import Search
from torch_gfo.updates import check_update, descend, memory

__all__ = ["PGPE"]

_SHAPINGS = {"centered_rank": centred_ranks, "z_score": z_scores}
_MOST = 0.2  # relative change of a standard deviation in a step


class PGPE(GradientFreeOptimizer):
    """Policy gradients with parameter-based exploration: a gradient of the mean and of the standard deviations.

    Use it like ``OpenAIES``, on networks and policies, where the radius should adapt: each parameter has its own, which
    grows along valleys and shrinks at a minimum, so that it also converges in few dimensions, along the axes. Do not
    use it in narrow valleys that lie aslant.

    In every step, for mirrored pairs i = 1, ..., n / 2, n = popsize: x is the model, s the standard deviations in units
    of ``sigma``, at first 1, N standard normal, w+ and w- the weights of the losses of the pair's points::

        z+_i = x + sigma s N_i,  z-_i = x - sigma s N_i                                                         (1)
        g = sum_i (w+_i - w-_i) N_i / n                                                                         (2)
        x = x + lr_t sigma s u                                      u the update's step against g               (3)
        s = s (1 - sigma_lr sum_i (w+_i + w-_i) (N_i^2 - 1) / n)    by at most 20 %                             (4)
        lr_t = lr / sqrt(1 + lr_decay t)                            in step t = 0, 1, ...                       (5)

    Weights are the ranks of the losses, from -1/2 for the lowest to 1/2 for the highest, or their z-scores. Updates are
    those of ``OpenAIES``, see ``torch_gfo.updates``.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Length of the model's first steps, in units of the standard deviations. Good values are about 10 times less
            for ``"clipup"``, three times as much for ``"sgd"``. Default: 0.5.
        sigma: First standard deviations in parameter units. Default: None, half the standard deviation of each tensor's
            initial values.
        popsize: Number of candidates, an even number. Default: 32.
        update: ``"adam"``, ``"clipup"`` or ``"sgd"``.
        momentum: Share of its velocity that the model keeps from step to step, in [0, 1). Default: 0.9.
        lr_decay: Rate of the decay (5), at least 0; with 0, steps keep their length. Default: 0.02.
        shaping: ``"centered_rank"``, blind to the scale of losses and to outliers; or ``"z_score"``, their distance
            from the mean in standard deviations.
        sigma_lr: Rate at which standard deviations adapt, 0 for never. Faster converges faster, and is caught in
            valleys. Default: 0.1.
        perturbation: ``"dense"``; ``"low_rank"``, with products of two normal vectors in place of normal matrices, see
            ``EGGROLL``, whose rows and columns have the standard deviations that (4) adapts; or ``"seeded"``, many
            candidates in the memory of few: each is held as a seed, and drawn when it is needed. Default: ``"dense"``.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
        >>> optimizer = torch_gfo.PGPE([x], seed=0)
        >>> for _ in range(300):
        ...     loss = optimizer.step(lambda: x[0] ** 2 + 100 * (x[1] - 1) ** 2)
        >>> bool(loss < 1e-6)
        True
    """

    _auto_sigma: ClassVar[float] = 0.5
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
        shaping: str = "centered_rank",
        sigma_lr: float = 0.1,
        perturbation: str = "dense",
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "popsize": popsize, "update": update, "momentum": momentum}
        own |= {"lr_decay": lr_decay, "shaping": shaping, "sigma_lr": sigma_lr, "perturbation": perturbation}
        if not isinstance(own["popsize"], int) or popsize < 2 or popsize % 2:
            raise invalid("popsize", popsize, "an even integer of at least 2: samples come in mirrored pairs")
        check_update(update, momentum, lr_decay)
        check_choice("shaping", shaping, tuple(_SHAPINGS))
        check_number("sigma_lr", sigma_lr, "[0, inf)", "; 0 keeps the standard deviations")
        check_perturbation(perturbation)
        super().__init__(params, own, common)

    def _n_stored(self, dim: int) -> int:
        return 4 * (int(self.param_groups[0]["popsize"]) * n_drawn(dim, self.param_groups) + dim)

    def _init_state(self, search: Search) -> dict[str, Any]:
        group = self.param_groups[0]
        return {**memory(group["update"], search.point), "scales": unit_scale(search, group["perturbation"])}

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Population, Tensor, tuple[Tensor, Tensor]]:
        group, x, s = self.param_groups[0], search.point, state["scales"]
        z = perturbed(search, group["popsize"], group["perturbation"], mirrored=True, scale=s)  # (1)
        losses = yield z
        g, squares = z.moments(_SHAPINGS[group["shaping"]](losses))  # of the N of both points, mirrored at the bounds
        u = descend(group["update"], state, g / len(z), group["momentum"], group["lr_decay"])  # (2), (5)
        change = group["sigma_lr"] * squares / len(z)
        state["scales"] = s * (1 - change.clamp(-_MOST, _MOST))  # (4): weights sum to zero, so that the 1 drops out
        return x + search.unit * z.spread * u, torch.full_like(search.loss, math.nan)  # (3)
