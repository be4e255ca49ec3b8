"""Simultaneous perturbation stochastic approximation.

* J. C. Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient approximation", 1992,
  https://doi.org/10.1109/9.119632: (1), (2).
* J. C. Spall, "Implementation of the simultaneous perturbation algorithm for stochastic optimization", 1998,
  https://doi.org/10.1109/7.705889: the gains (3), (4), and their constants.
* J. C. Spall, "Introduction to stochastic search and optimization", 2003, https://doi.org/10.1002/0471722138: averaged
  gradients, blocking.
* The weights of (2) are known as 1.5-SPSA, from fine-tuning language models.

Differences from the papers: all averaged gradients come from one batch; a is found from the gradients of the first ten
steps, (5); a step is never longer than at first; parameters are measured in units of their ``sigma``; a loss that is
not finite counts as the worst finite one of its step; near a wall the two points of a pair move inwards together.
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
from torch_gfo.options import CommonOptions, check_integer, check_number, check_perturbation
from torch_gfo.perturbation import Population, n_drawn, perturbed
from torch_gfo.search import Search

__all__ = ["SPSA"]

_N_MEASURED = 10  # steps whose gradients decide about a


class SPSA(GradientFreeOptimizer):
    """SPSA: steps along a gradient that is estimated from pairs of points, all parameters perturbed at once.

    Use it on networks, also large ones, where a few evaluations a step must do, and on noisy losses: it remembers two
    numbers. Do not use it on badly scaled losses of few dimensions, where others need far fewer evaluations, nor on
    losses with many local minima.

    In step k = 0, 1, ..., z the parameters in units of sigma, Delta_i vectors of random signs, i = 1, ..., n_probes::

        L+_i = L(z + c_k Delta_i),  L-_i = L(z - c_k Delta_i)                                                   (1)
        g = mean of  w_i (L+_i - L-_i) / (2 c_k) Delta_i,  w_i = 1 / max(reg, |L+_i + L-_i - 2 L(z)|^curvature) (2)
        z = z - lr a_k g,  a_k = a / (k + 1 + A)^alpha                                                          (3)
        c_k = 1 / (k + 1)^gamma                                                                                 (4)
        a = (1 + A)^alpha / mean |g| of the first ten steps                                                     (5)

    So the first steps move each parameter by ``lr * sigma`` on average, whatever the scale of the loss, and later ones
    no farther.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Multiplies every step, and nothing else: candidates stay ``sigma`` away. It works on top of the decay (3);
            ``alpha=0`` leaves the decay to a scheduler. Default: 1.
        sigma: Size of the perturbation of each parameter, Spall's c. Default: None, 0.15 standard deviations of each
            tensor's initial values.
        n_probes: Number of pairs in a step, at least 1. Default: 8.
        stability: A, at least 0: for about so many steps the gain hardly decays; a tenth of all steps is usual.
            Default: 100.
        alpha: Exponent of the steps' decay, at least 0. Default: 0.602.
        gamma: Exponent of the perturbation's decay, at least 0. Default: 0.101.
        curvature: Exponent of the weights in (2), at least 0: pairs along which the loss is curved count less. 0.1 is
            usual. Default: 0, all count the same.
        reg: Least denominator of a weight, above 0. Default: 1e-3.
        blocking: Gives up a step that raises the loss, on the same minibatch, by more than ``blocking`` times the mean
            ``|L+ - L-|``, at the price of one more evaluation. Default: None, every step is taken.
        perturbation: ``"dense"``; ``"low_rank"``, where the signs of a matrix are products of a sign for each row and
            one for each column, see ``EGGROLL``; or ``"seeded"``, many points in the memory of few: each is held as a
            seed, and drawn whenever it is needed. Default: ``"dense"``.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
        >>> optimizer = torch_gfo.SPSA([x], seed=0)
        >>> for _ in range(100):
        ...     loss = optimizer.step(lambda: ((x - 3) ** 2).sum())
        >>> bool(loss < 1e-6)
        True
    """

    _auto_sigma: ClassVar[float] = 0.15
    _lr_is_step: ClassVar[bool] = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        n_probes: int = 8,
        stability: float = 100.0,
        alpha: float = 0.602,
        gamma: float = 0.101,
        curvature: float = 0.0,
        reg: float = 1e-3,
        blocking: float | None = None,
        perturbation: str = "dense",
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "n_probes": n_probes}
        own |= {"stability": stability, "alpha": alpha, "gamma": gamma}
        own |= {"curvature": curvature, "reg": reg, "blocking": blocking, "perturbation": perturbation}
        check_integer("n_probes", n_probes, 1)
        for name in ("stability", "alpha", "gamma", "curvature"):
            check_number(name, own[name], "[0, inf)")
        check_number("reg", reg, "(0, inf)")
        check_number("blocking", blocking, "[0, inf)", " to take every step", optional=True)
        check_perturbation(perturbation)
        super().__init__(params, own, common)

    def _n_stored(self, dim: int) -> int:
        return 6 * (int(self.param_groups[0]["n_probes"]) * n_drawn(dim, self.param_groups) + dim)

    def _init_state(self, search: Search) -> dict[str, Any]:
        return {"k": 0, "magnitude": 0.0}  # of the first gradients' entries

    def _iterate(
        self, state: dict[str, Any], search: Search
    ) -> Generator[Tensor | Population, Tensor, tuple[Tensor, Tensor]]:
        group, k = self.param_groups[0], state["k"]
        n = group["n_probes"]
        center, c = _pairs(search, (k + 1) ** -group["gamma"])  # (4)
        z = perturbed(search, 2 * n, group["perturbation"], mirrored=True, signs=True, center=center, scale=c)
        losses = yield z  # (1)

        known = torch.cat([search.loss[None], losses])
        finite = torch.isfinite(known)
        if not bool(finite.any()):
            return search.point, search.loss
        known = known.clamp(max=known[finite].max())  # what is not finite is as bad as the worst
        halves = known[1 : n + 1] / 2 - known[n + 1 :] / 2  # a difference might overflow
        largest = float(halves.abs().max())
        slopes = halves / (largest or 1.0)
        if group["curvature"]:
            bend = (known[1 : n + 1] + known[n + 1 :] - 2 * known[0]).abs()
            slopes = slopes / bend.pow(group["curvature"]).clamp(min=group["reg"])
        g = z.weighted_sum(torch.cat([slopes, -slopes])) / (2 * n * c)  # (2), divided by the largest difference
        if not bool(g.any()):
            return search.point, search.loss  # flat
        state["k"] = k + 1
        size = float(g.abs().mean())
        u = g * (-self._length(state, k, largest * size) / size) * search.unit
        if group["blocking"] is None:
            return search.point + u, torch.full_like(search.loss, math.nan)

        loss = (yield (search.point + search.stride * u)[None])[0]
        most = float(search.loss) + group["blocking"] * 2 * float(halves.abs().mean())
        if float(loss) <= most and math.isfinite(loss):
            return search.point + u, loss
        return search.point, search.loss

    def _length(self, state: dict[str, Any], k: int, magnitude: float) -> float:
        """How far a step along a gradient of some mean magnitude goes on average: a_k times it, at most 1."""
        if k < _N_MEASURED:
            state["magnitude"] += (magnitude - state["magnitude"]) / (k + 1)
        group = self.param_groups[0]
        decay = ((1 + group["stability"]) / (k + 1 + group["stability"])) ** group["alpha"]
        return float(min(decay * magnitude / state["magnitude"], 1.0))  # (3), (5)


def _pairs(search: Search, c: float) -> tuple[Tensor, Tensor]:
    """The middle of the pairs and the radius of each coordinate, such that all points lie inside the box."""
    if search.lower is None or search.upper is None:
        return search.point, search.point.new_tensor(c)
    radius = ((search.upper - search.lower) / 2).clamp(max=c)
    return torch.clamp(search.point, search.lower + radius, search.upper - radius), radius
