"""Particle swarm optimization.

* SPSO-2011: M. Clerc, "Standard particle swarm optimisation", 2012, https://hal.science/hal-00764996: (1) to (3).
* Constriction: M. Clerc, J. Kennedy, "The particle swarm: explosion, stability, and convergence in a multidimensional
  complex space", 2002, https://doi.org/10.1109/4235.985692: (5).

Differences from the papers:

* SPSO-2011 draws a point from a sphere around G, which treats all directions alike and is slow where the loss does not.
  Here only the directions that the swarm does not span are drawn so; in those that it spans, the noise is a random
  combination of differences of personal bests (4). A swarm with ``popsize > dim`` thus adapts to the scales and
  dependences of the coordinates; one in a network's space is SPSO-2011.
* G is the mean of three points also for a particle that is its own best informant; informants are drawn in every step.
* Walls mirror a particle and reverse half its velocity. Memory across minibatches: see ``PSO``.
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
from torch_gfo.options import CommonOptions, check_choice, check_number, invalid
from torch_gfo.search import Search
from torch_gfo.velocities import VELOCITIES

__all__ = ["PSO"]

_TOPOLOGIES = ("random", "ring", "global")
_CHI = 2 / (2.1 + math.sqrt(4.1**2 - 4 * 4.1))  # constriction for phi_1 = phi_2 = 2.05
_CONSTANTS = {  # (w, c)
    "spso2011": (1 / (2 * math.log(2)), 0.5 + math.log(2)),
    "constriction": (_CHI, 2.05 * _CHI),
}


class PSO(GradientFreeOptimizer):
    """Particle swarm optimization: points that fly towards the best points that they and their informants know.

    Use it on losses without a useful gradient, rugged or badly scaled, in a few dimensions or in a network's 10^5. Do
    not use it where the loss is smooth and an evolution strategy, or a gradient, is at hand: those need less.

    In every step, for each particle i: p_i is the best point that it has seen, l_i the best that it or its informants
    have seen, U uniform in [0, 1), N and Xi standard normal, n = popsize::

        G_i = x_i + c (p_i + l_i - 2 x_i) / 3                                                                   (1)
        v_i = w v_i + G_i - x_i + s_i + b_i,  x_i = x_i + v_i                                                   (2)
        s_i = sqrt(1 - m) U |G_i - x_i| N / sqrt(dim),  m = min(1, (n - 1) / dim)                               (3)
        b_i = sqrt(m / 2) sum_k Xi_ik (p_k - mean(p)) / sqrt(n)                                                 (4)

    On a network, where ``m < 0.1``, (4) is ``b_i = sqrt(m) (p_j - p_k) / 2`` with j and k drawn from the swarm: of the
    same covariance, without the product that takes as long as the model's evaluation.

    With ``variant="constriction"``, U_1 and U_2 for each coordinate::

        v_i = w v_i + c U_1 (p_i - x_i) + c U_2 (l_i - x_i),  x_i = x_i + v_i                                   (5)

    The model moves to a particle that is better than itself on the same minibatch. When the minibatch changes, the best
    quarter of the personal bests is evaluated again, and the losses of the others are shifted by as much as theirs
    have risen on average: luck is found out, or ages. The mean of the best quarter is one more point to move to.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Multiplies every displacement. Default: 1.
        sigma: Radius of the initial swarm in parameter units; it adapts itself. Default: None, 0.3 standard deviations
            of each tensor's initial values.
        popsize: Number of particles, at least 2. Above ``dim``, (4) finds narrow valleys; on networks 16 to 64 train
            about equally well at equal evaluations. Default: None, ``8 + 2 dim``, at most 32.
        variant: ``"spso2011"``, or ``"constriction"``, which trains networks badly.
        topology: Who informs a particle: ``"random"``, ``informants`` particles drawn in every step; ``"ring"``, its
            two neighbours; ``"global"``, all of them: fast, and soon stuck.
        informants: Their number with ``topology="random"``, at least 1; more are faster and less thorough. Default: 3.
        inertia: w, in (0, 1). Default: None, the variant's 0.721 or 0.730. With 0.5 the swarm collapses on networks.
        acceleration: c, above 0. Default: None, the variant's 1.193 or 1.496. With 1 the swarm collapses on networks.
        velocity_limit: Largest velocity of a coordinate in units of the initial radius, above 0. Default: None.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
        >>> optimizer = torch_gfo.PSO([x], seed=0)
        >>> for _ in range(200):
        ...     loss = optimizer.step(lambda: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)
        >>> bool(loss < 1e-6)
        True
    """

    _auto_sigma: ClassVar[float] = 0.3

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        popsize: int | None = None,
        variant: str = "spso2011",
        topology: str = "random",
        informants: int = 3,
        inertia: float | None = None,
        acceleration: float | None = None,
        velocity_limit: float | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "popsize": popsize, "variant": variant, "topology": topology}
        own |= {"informants": informants, "velocity_limit": velocity_limit}
        for name, least in (("popsize", 2), ("informants", 1)):
            if not (isinstance(own[name], int) and own[name] >= least) and (name, own[name]) != ("popsize", None):
                raise invalid(name, own[name], f"an integer of at least {least}")
        for name, choices in (("variant", _CONSTANTS), ("topology", _TOPOLOGIES)):
            check_choice(name, own[name], choices)
        w, c = _CONSTANTS[variant]
        own["inertia"] = w if inertia is None else inertia
        own["acceleration"] = c if acceleration is None else acceleration
        for name, interval in (("inertia", "(0, 1)"), ("acceleration", "(0, inf)"), ("velocity_limit", "(0, inf)")):
            check_number(name, own[name], interval, optional=True)
        super().__init__(params, own, common)

    def _n_stored(self, dim: int) -> int:
        return 10 * self._popsize(dim) * dim

    def _popsize(self, dim: int) -> int:
        return int(self.param_groups[0]["popsize"] or min(32, 8 + 2 * dim))

    def _init_state(self, search: Search) -> dict[str, Any]:
        n, w = self._popsize(search.dim), self.param_groups[0]["inertia"]
        start = search.point.expand(n, -1)
        return {
            "positions": start.clone(),
            "velocities": search.normal(n, search.dim) / w,  # the first step, times w: to radius 1 about the model
            "best_positions": start.clone(),
            "best_losses": start.new_full((n,), math.inf),
        }

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        group, x, v = self.param_groups[0], state["positions"], state["velocities"]
        p, f, n = state["best_positions"], state["best_losses"], len(x)
        n_elite = 0 if not search.changed or bool(torch.isinf(f).all()) else max(2, n // 4)
        if not n_elite:
            f = search.renewed(f)
        best, w, c = self._best_informants(f, search), float(group["inertia"]), float(group["acceleration"])
        v = VELOCITIES[group["variant"]](x, v, p, best, w, c, search)
        if group["velocity_limit"] is not None:
            v = v.clamp(-group["velocity_limit"], group["velocity_limit"])
        x = torch.add(x, v, out=search.empty(n, search.dim))
        if search.lower is not None:
            beyond, x = x, search.reflect(x)
            v = torch.where(beyond == x, v, -0.5 * v)  # or it would run into the wall again
        elite = f.argsort(stable=True)[:n_elite]

        losses = yield x

        if n_elite:
            f_elite = yield p[elite]
            rise = (f_elite - f[elite])[torch.isfinite(f_elite - f[elite])]
            f = (f + rise.sum() / max(1, len(rise))).index_copy(0, elite, f_elite)
        better = losses < f
        state["positions"], state["velocities"] = x, v
        state["best_positions"] = p = torch.where(better[:, None], x, p, out=search.empty(n, search.dim))
        state["best_losses"] = f = torch.where(better, losses, f)
        best = losses.argmin()
        point, loss = x[best].clone(), losses[best]
        if n_elite:
            mean = p[f.argsort(stable=True)[:n_elite]].mean(0)
            loss_of_mean = (yield mean[None])[0]
            if loss_of_mean < loss:
                point, loss = mean, loss_of_mean
        return (point, loss) if loss < search.loss else (search.point, search.loss)

    def _best_informants(self, f: Tensor, search: Search) -> Tensor:
        """The particle, itself included, with the best personal best among those that inform each one, ``(n,)``."""
        n, group = len(f), self.param_groups[0]
        if group["topology"] == "global":
            return f.argmin().expand(n)
        own = torch.arange(n, device=f.device)[None]
        if group["topology"] == "ring":
            others = torch.cat([own - 1, own + 1]) % n
        else:
            others = search.integers(n, group["informants"], n)
        known = torch.cat([own, others])
        return known.gather(0, f[known].argmin(0, keepdim=True))[0]
