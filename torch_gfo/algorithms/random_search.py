"""Random search with a radius that adapts to its successes.

* L. A. Rastrigin, "The convergence of the random search method in the extremal control of a many-parameter system",
  1963, Automation and Remote Control 24: random search with many trials a step.
* M. A. Schumer, K. Steiglitz, "Adaptive step size random search", 1968, https://doi.org/10.1109/TAC.1968.1098903, and
  I. Rechenberg, "Evolutionsstrategie", 1973, the "1/5 rule": (4).
* F. J. Solis, R. J.-B. Wets, "Minimization by random search techniques", 1981, https://doi.org/10.1287/moor.6.1.19:
  proposals that remember where the last successes lay. Here (1), (6), in the form of J. Poland, A. Zell, "Main vector
  adaptation: a CMA variant with linear time and space complexity", 2001, GECCO.
* A. Ostermeier, A. Gawelczyk, N. Hansen, "A derandomized approach to self-adaptation of evolution strategies", 1994,
  https://doi.org/10.1162/evco.1994.2.4.369: a scale for each coordinate from the winning proposal: (5).

Differences from the papers: ``popsize`` proposals in parallel; the sum of those that succeeded is one more proposal,
(2); half of the successes on a minibatch are luck, so that the radius aims at twice as many there.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from torch_gfo.adaptation import learned_lengths
from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.options import CommonOptions, check_choice, check_flag, check_integer, check_number
from torch_gfo.search import Search

__all__ = ["RandomSearch"]

_PROPOSALS = ("gaussian", "uniform")
_MEMORY = 0.9  # of the path: successes of the last ten steps
_MOST = 5.0  # of an entry that s and p learn from: p is part of g and would feed on itself


class RandomSearch(GradientFreeOptimizer):
    """Random search: proposals around the best known point, within a radius that adapts to their successes.

    Use it as the baseline that any other method has to beat, and where memory is short: it remembers four vectors. In
    a network's 10^5 dimensions it is a good method. In few dimensions, others need far fewer evaluations.

    In every step, x the best point, f its loss, d the number of coordinates, N standard normal, i = 1, ..., popsize::

        g_i = N_i + n_i p,  x_i = x + r s g_i                   N_i a vector, n_i a number                      (1)
        g_0 = a sum of the g_i with f_i < f,  x_0 = x + r s g_0         a: as long as the g of the best x_i     (2)
        x = the best of them, g its direction, if it is better than x                                           (3)
        r = r exp(share of the x_i with f_i < f, less success_rate)                                             (4)
        s = s exp(0.05 (|u| - E|N|) / d), then divided by its geometric mean; after a success                   (5)
        p = 0.9 p + sqrt(1 - 0.9^2) u / sqrt(d)  after a success, else 0.9 p                                    (6)

    where u is g, clipped to [-5, 5].

    Sum (2) is what makes it work in many dimensions: steps that succeed agree in little but the way down. When the
    radius has shrunk to rounding errors, search begins anew, from a random point if the objective is always the same;
    the model stays at the best point.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Multiplies every displacement. Default: 1.
        sigma: First radius r in parameter units. Default: None, 0.3 standard deviations of each tensor's initial
            values.
        popsize: Number of proposals i, at least 1. Few find a minimum of few dimensions faster; fewer than 16 train
            networks worse. Default: 32.
        proposal: ``"gaussian"``, as above; ``"uniform"``, anywhere within ``bounds``: pure random search.
        success_rate: Share of successes to aim at, in (0, 1). More make steps smaller and safer. Default: None, 0.2,
            and 0.4 when the objective has changed since the last step (another minibatch).
        restarts: Whether to begin anew when the radius has shrunk to nothing. Default: True.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range, or for uniform proposals without finite bounds.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
        >>> optimizer = torch_gfo.RandomSearch([x], seed=0)
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
        popsize: int = 32,
        proposal: str = "gaussian",
        success_rate: float | None = None,
        restarts: bool = True,
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "popsize": popsize, "proposal": proposal}
        own |= {"success_rate": success_rate, "restarts": restarts}
        check_integer("popsize", popsize, 1)
        check_choice("proposal", proposal, _PROPOSALS)
        check_number("success_rate", success_rate, "(0, 1)", optional=True)
        check_flag("restarts", restarts)
        super().__init__(params, own, common)

    def _n_stored(self, dim: int) -> int:
        return 4 * int(self.param_groups[0]["popsize"]) * dim

    def _init_state(self, search: Search) -> dict[str, Any]:
        group = self.param_groups[0]
        if group["proposal"] == "uniform":
            for each in self.param_groups:
                if each["bounds"] is None or group["subspace"] or not all(map(math.isfinite, each["bounds"])):
                    raise ValueError(
                        f"proposal='uniform' with bounds={each['bounds']}, subspace={group['subspace']}: it draws from "
                        "a box in the space of the parameters. Give finite bounds=(low, high) and no subspace, or take "
                        "proposal='gaussian'."
                    )
        return {**_beginning(search.point.clone()), "center_loss": math.nan}  # nan: it is the model's point

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        group, d = self.param_groups[0], search.dim
        if group["proposal"] == "uniform":
            z = _uniform(search, group["popsize"])
            f_z = yield z
            best = f_z.argmin()
            return (z[best].clone(), f_z[best]) if f_z[best] < search.loss else (search.point, search.loss)

        x, f = state["center"], search.loss.new_tensor(state["center_loss"])
        if search.changed or torch.isnan(f):
            x, f = search.point, search.loss
        r, s, p = state["radius"], state["scales"], state["path"]
        g = search.normal(group["popsize"], d).addcmul_(search.normal(group["popsize"], 1), p)
        z = search.reflect((g * (r * s)).add_(x))  # (1)
        f_z = yield z
        success, best = f_z < f, f_z.argmin()
        x_best, f_best, g_best = z[best].clone(), f_z[best], g[best]
        if success.sum() > 1:
            g_0 = success.to(g.dtype) @ g
            g_0 = g_0 * (g_best.norm() / g_0.norm())
            x_0 = search.reflect(x + r * s * g_0)  # (2)
            f_0 = (yield x_0[None])[0]
            if f_0 < f_best:
                x_best, f_best, g_best = x_0, f_0, g_0

        path = _MEMORY * p
        if f_best < f:
            x, f = x_best, f_best  # (3)
            u = g_best.clamp(-_MOST, _MOST)
            state["scales"] = learned_lengths(s, u)  # (5)
            path = path + math.sqrt((1 - _MEMORY**2) / d) * u  # (6)
        aim = group["success_rate"] or (0.4 if search.changed else 0.2)
        r = r * math.exp(float(success.to(g.dtype).mean()) - aim)  # (4)
        state.update(center=x, center_loss=float(f), radius=r, path=path)
        point, loss = (x, f) if f < search.loss else (search.point, search.loss)
        if group["restarts"] and r * float(state["scales"].max()) < torch.finfo(search.dtype).eps ** 0.75:
            state.update(_beginning(point if search.changed else search.anywhere(1)[0]))
            state["center_loss"] = math.nan if search.changed else math.inf
        return point, loss


def _beginning(center: Tensor) -> dict[str, Any]:
    """The state at the start of a search from ``center``."""
    return {"center": center, "radius": 1.0, "scales": torch.ones_like(center), "path": torch.zeros_like(center)}


def _uniform(search: Search, n: int) -> Tensor:
    """Draws ``(n, dim)`` points from the box; a coordinate that is frozen, and so has no sides, stays."""
    lower, upper = (search.point if side is None else side for side in (search.lower, search.upper))
    z = torch.lerp(lower, upper, search.uniform(n, search.dim))
    return torch.where(torch.isfinite(z), z, search.point)
