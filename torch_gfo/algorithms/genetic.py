"""A real-coded genetic algorithm with elites and self-adaptive mutation.

* Self-adaptive mutation radii (SAMR): a child inherits its parents' radius, perturbed (3). As in A. Kumar, B. Liu,
  R. Miikkulainen, P. Stone, "Effective mutation rate adaptation through group elite selection", 2022,
  https://arxiv.org/abs/2204.04817.
* Crossover ``"centroid"``: UNDX-m of H. Kita, I. Ono, S. Kobayashi, "Multi-parental extension of the unimodal normal
  distribution crossover for real-coded genetic algorithms", 1999, https://doi.org/10.1109/CEC.1999.782672: children are
  normal around a centroid; part of it is a random combination of parents' differences (2), the rest isotropic (1).
* Crossover ``"sbx"``: K. Deb, R. B. Agrawal, "Simulated binary crossover for continuous search space", 1995,
  https://www.complex-systems.com/abstracts/v09_i02_a02.
* Crossover ``"blend"``: BLX-0.5 of L. J. Eshelman, J. D. Schaffer, "Real-coded genetic algorithms and
  interval-schemata", 1993, https://doi.org/10.1016/B978-0-08-094832-4.50018-0.

Differences from the papers: in UNDX-m the same parents make the centroid and the differences, and the isotropic part is
in proportion to their distance; here the elites make the centroid, all members the differences, and the isotropic part
is the self-adaptive mutation. SBX keeps one of its two children. Memory across minibatches: see ``GA``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.options import CommonOptions, check_choice, check_flag, check_integer, check_number
from torch_gfo.search import Search

__all__ = ["GA"]

_EXPANSION = 1.6  # of the differences, for what selection takes from the members' variance
_SBX_ETA = 15.0
_RADII = (1e-30, 10.0)


def _uniform(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """Each coordinate from one of the parents."""
    return torch.where(u < 0.5, a, b)


def _blend(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """BLX-0.5: each coordinate uniform in the parents' interval, extended by half of it at both ends."""
    return torch.lerp(a, b, 2 * u - 0.5)


def _sbx(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """Simulated binary crossover: near one of the parents, the nearer the greater ``_SBX_ETA``."""
    beta = torch.where(u <= 0.5, 2 * u, 0.5 / (1 - u)) ** (1 / (_SBX_ETA + 1))
    return torch.lerp(a, b, 0.5 - 0.5 * beta)


def _spanned(n: int, dim: int) -> float:
    """The share of the variance that comes from differences of members: all of it from about 4 members a dimension."""
    return min(1.0, (n - 1) / (4 * dim))  # fewer members alone lose directions and stall


_OF_TWO: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"uniform": _uniform, "sbx": _sbx, "blend": _blend}
_CROSSOVERS = ("centroid", *_OF_TWO, None)
_SELECTIONS = ("truncation", "tournament")


class GA(GradientFreeOptimizer):
    """Real-coded genetic algorithm: children of the best points found so far compete with them for their places.

    Use it on losses without a useful gradient, in a few dimensions or in a network's 10^5, when evaluations are few. Do
    not use it with the small default population on very rugged losses, or in narrow valleys of more than 6 dimensions,
    nor where an evolution strategy with a large population, or a gradient, is at hand.

    In every step, for each child i: x_k are the members, N and Xi standard normal, U uniform in [-1, 1), n = popsize::

        child_i = mean of the elites + b_i + sqrt(1 - m) r_i N,  m = min(1, (n - 1) / (4 dim))                  (1)
        b_i = 1.6 sqrt(m) sum_k Xi_ik (x_k - mean(x)) / sqrt(n - 1)                                             (2)
        r_i = geometric mean of the elites' radii * meta^U                                                      (3)

    The best n of members and children are the next members. The other crossovers replace the first two terms of (1) by
    something between two parents or by one parent, with m = 0, and take these parents' radii in (3).

    The model moves to a child whose loss is lower than its own on the same minibatch. Members are not evaluated again:
    when the minibatch changes, their losses are shifted by the change of the model's own, which every step evaluates
    anyway. So luck that all points share does not count as progress.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Multiplies every displacement. Default: 1.
        sigma: Radius of the first mutations in parameter units. Default: None, 0.2 standard deviations of each tensor's
            initial values. It adapts itself.
        popsize: Number of members, and of children (evaluations) in a step, at least 2. Small ones make more steps of
            the same evaluations; narrow valleys need about 4 members a dimension. Default: 24.
        elite: Share of the members that may be parents, in (0, 1]; at least two are. Default: 0.25.
        selection: ``"truncation"``: parents are the elites, all of them or at random; ``"tournament"``: each parent is
            the better of two random members.
        crossover: ``"centroid"``, the rule above; ``"uniform"``, each coordinate from one of two parents; ``"sbx"`` or
            ``"blend"``, near or around two parents; None, a copy of one.
        self_adaptive: Whether each member carries its own mutation radius (3); otherwise all keep the first, ``sigma``.
            Default: True.
        meta: Largest factor between a child's radius and its parents', at least 1. Default: 2.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
        >>> optimizer = torch_gfo.GA([x], seed=0)
        >>> for _ in range(100):
        ...     loss = optimizer.step(lambda: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)
        >>> bool(loss < 1e-6)
        True
    """

    _auto_sigma: ClassVar[float] = 0.2

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        popsize: int = 24,
        elite: float = 0.25,
        selection: str = "truncation",
        crossover: str | None = "centroid",
        self_adaptive: bool = True,
        meta: float = 2.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "popsize": popsize, "elite": elite, "selection": selection}
        own |= {"crossover": crossover, "self_adaptive": self_adaptive, "meta": meta}
        check_integer("popsize", popsize, 2)
        check_number("elite", elite, "(0, 1]", ", a share of the population")
        for name, choices in (("selection", _SELECTIONS), ("crossover", _CROSSOVERS)):
            check_choice(name, own[name], choices)
        check_number("meta", meta, "[1, inf)")
        check_flag("self_adaptive", self_adaptive)
        super().__init__(params, own, common)

    def _n_stored(self, dim: int) -> int:
        return 10 * int(self.param_groups[0]["popsize"]) * dim

    def _init_state(self, search: Search) -> dict[str, Any]:
        n = self.param_groups[0]["popsize"]
        m = _spanned(n, search.dim)
        x = search.normal(n, search.dim) * math.sqrt(m)  # the part of a unit radius that the members span
        x[0] = search.point
        return {"members": x, "radii": x.new_ones(n), "losses": x.new_full((n,), math.inf)}

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        group = self.param_groups[0]
        x, r = state["members"], state["radii"]
        f = search.renewed(state["losses"])
        parents = self._parents(search)
        u = search.uniform(len(x)) * 2 - 1
        log_meta = math.log(group["meta"]) if group["self_adaptive"] else 0.0
        r_children = torch.exp(r.log()[parents].mean(1) + log_meta * u).clamp(*_RADII)  # (3)
        children = search.reflect(self._children(x, parents, r_children[:, None], search))

        losses = yield children

        f, rank = torch.cat([f, losses]).sort(stable=True)
        rank = rank[: len(x)]
        state["losses"] = f[: len(x)]
        state["members"] = torch.cat([x, children])[rank]
        state["radii"] = torch.cat([r, r_children])[rank]
        best = losses.argmin()
        if losses[best] < search.loss:
            return children[best].clone(), losses[best]
        return search.point, search.loss

    def _parents(self, search: Search) -> Tensor:
        """The members that are each child's parents, ``(n, number of parents)``; members are sorted by loss."""
        group = self.param_groups[0]
        n = group["popsize"]
        n_elite = max(2, round(group["elite"] * n))
        n_parents = {None: 1, "centroid": n_elite}.get(group["crossover"], 2)
        if group["selection"] == "tournament":
            return search.integers(n, n, n_parents, 2).amin(-1)
        return search.uniform(n, n_elite).argsort(1)[:, :n_parents]

    def _children(self, x: Tensor, parents: Tensor, r: Tensor, search: Search) -> Tensor:
        n, dim = x.shape
        crossover = self.param_groups[0]["crossover"]
        if crossover != "centroid":
            a, b = x[parents[:, 0]], x[parents[:, -1]]
            e = a if crossover is None else _OF_TWO[crossover](a, b, search.uniform(n, dim))
            return torch.addcmul(e, r, search.normal(n, dim))  # (1) with m = 0
        m = _spanned(n, dim)
        share = torch.zeros(n, n, dtype=x.dtype, device=x.device)
        share.scatter_add_(1, parents, share.new_full(parents.shape, 1 / parents.shape[1]))
        xi = search.normal(n, n) * (_EXPANSION * math.sqrt(m / (n - 1)))
        weights = share + xi - xi.mean(1, keepdim=True)  # weights of the members: centroid, and differences (2)
        return torch.addcmul(weights @ x, math.sqrt(1 - m) * r, search.normal(n, dim))  # (1)
