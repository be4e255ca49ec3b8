"""Simulated annealing in continuous space.

* N. Metropolis, A. W. Rosenbluth, M. N. Rosenbluth, A. H. Teller, E. Teller, "Equation of state calculations by fast
  computing machines", 1953, https://doi.org/10.1063/1.1699114: (3).
* S. Kirkpatrick, C. D. Gelatt, M. P. Vecchi, "Optimization by simulated annealing", 1983,
  https://doi.org/10.1126/science.220.4598.671: (7).
* A. Corana, M. Marchesi, C. Martini, S. Ridella, "Minimizing multimodal functions of continuous variables with the
  'simulated annealing' algorithm", 1987, https://doi.org/10.1145/29380.29864: steps that keep the share of accepted
  proposals, and a length for each coordinate.
* D. S. Johnson, C. R. Aragon, L. A. McGeoch, C. Schevon, "Optimization by simulated annealing: an experimental
  evaluation; part I, graph partitioning", 1989, https://doi.org/10.1287/opre.37.6.865: the first temperature from a
  share of accepted proposals. Here (1), from the mean rise.

Differences from the papers: ``popsize`` proposals at each temperature, all of them from the same point, of which the
best accepted one is taken (with one proposal this is Metropolis' rule); all coordinates move at once, and their lengths
learn from the moves that are made, (6); the radius adapts at every temperature, (5).
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
from torch_gfo.options import CommonOptions, check_flag, check_integer, check_number
from torch_gfo.search import Search

__all__ = ["SimulatedAnnealing"]

_LARGEST_RADIUS = 10.0  # where everything is accepted, r would grow without end


class SimulatedAnnealing(GradientFreeOptimizer):
    """Simulated annealing: moves that may lead uphill, and less and less so as a temperature falls.

    Use it on rugged losses whose minima lie close to each other, and for comparison. To find the best of minima far
    apart, ``DE`` and ``CMAES`` need fewer evaluations, and on smooth losses almost any other does. When it is cold it
    is a search much like ``RandomSearch``.

    In every step, x the current point, f its loss, d the number of coordinates, N standard normal, U uniform in [0, 1),
    i = 1, ..., popsize::

        T = the mean of those first f_i - f that are positive, over log 5; or temperature                       (1)
        x_i = x + r s N_i                                                                                       (2)
        accept x_i  if f_i < f  or U_i < exp(-(f_i - f) / T)                                                    (3)
        x = the best x_i accepted, if there are any                                                             (4)
        r = r exp(share of the x_i accepted, less acceptance), at most 10                                       (5)
        s = s exp(0.05 (|N_i| - E|N|) / d), then divided by its geometric mean; if x_i was taken                (6)
        T = cooling T                                                                                           (7)

    At the first temperature a mean rise is thus accepted one time in five. The model is the current point, whose loss
    on the minibatch every step evaluates anyway; with ``deterministic=True`` it is the best point known. When r, or T
    and all differences of losses, have shrunk to rounding errors, r is 1 again; with ``deterministic=True`` all begins
    anew, from a random point.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Multiplies every displacement. Default: 1.
        sigma: First radius r in parameter units. Default: None, 0.3 standard deviations of each tensor's initial
            values.
        popsize: Number of proposals at each temperature, at least 1. More of them make the search greedier. Default: 8.
        temperature: First T, above 0, in units of the loss. Default: None, measured, (1).
        cooling: Factor of the temperature in (0, 1]; 1 keeps it, ``q ** (1 / n)`` has multiplied it by q after n steps.
            Nearer to 1 is slower and finds better minima. Default: 0.95.
        acceptance: Share of proposals to be accepted, in (0, 1). More make steps smaller. Default: None, 0.2, and 0.4
            when the objective has changed since the last step (another minibatch), where half of it is luck.
        restarts: Whether to begin anew, or to widen the radius, when nothing can be gained any more. Default: True.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([1.5, -1.0]))  # the minimum is at 0, with others every 0.5 on the way
        >>> optimizer = torch_gfo.SimulatedAnnealing([x], seed=0, sigma=0.5)
        >>> for _ in range(300):
        ...     loss = optimizer.step(lambda: (x**2 + 0.2 * (1 - torch.cos(12 * x))).sum())
        >>> bool(loss < 1e-6)
        True
    """

    _auto_sigma: ClassVar[float] = 0.3

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        popsize: int = 8,
        temperature: float | None = None,
        cooling: float = 0.95,
        acceptance: float | None = None,
        restarts: bool = True,
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "popsize": popsize, "temperature": temperature}
        own |= {"cooling": cooling, "acceptance": acceptance, "restarts": restarts}
        check_integer("popsize", popsize, 1)
        check_number("temperature", temperature, "(0, inf)", optional=True)
        check_number("cooling", cooling, "(0, 1]")
        check_number("acceptance", acceptance, "(0, 1)", optional=True)
        check_flag("restarts", restarts)
        super().__init__(params, own, common)

    def _n_stored(self, dim: int) -> int:
        return 4 * int(self.param_groups[0]["popsize"]) * dim

    def _init_state(self, search: Search) -> dict[str, Any]:
        x = search.point.clone()
        unknown = {"current_loss": math.nan, "temperature": math.nan}
        return {"current": x, "radius": 1.0, "lengths": torch.ones_like(x), **unknown}

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        group = self.param_groups[0]
        x, f = state["current"], search.loss.new_tensor(state["current_loss"])
        if search.changed or torch.isnan(f):
            x, f = search.point, search.loss
        r, s, t = state["radius"], state["lengths"], state["temperature"]
        noise = search.normal(group["popsize"], search.dim)
        z = search.reflect(torch.addcmul(x, noise, r * s))  # (2)

        f_z = yield z

        rise = f_z - f
        if math.isnan(t):  # and remains so where nothing rises
            t = group["temperature"] or float(rise[(rise > 0) & torch.isfinite(rise)].mean()) / math.log(5)  # (1)
        accepted = (rise < 0) | (search.uniform(len(z)) < torch.exp(-rise / t))  # (3)
        if bool(accepted.any()):
            i = torch.where(accepted, f_z, math.inf).argmin()
            x, f = z[i].clone(), f_z[i]  # (4)
            s = learned_lengths(s, noise[i])  # (6)
        aim = group["acceptance"] or (0.4 if search.changed else 0.2)
        r = min(r * math.exp(float(accepted.to(z.dtype).mean()) - aim), _LARGEST_RADIUS)  # (5)
        t = group["cooling"] * t  # (7)
        state.update(current=x, current_loss=float(f), radius=r, lengths=s, temperature=t)
        point, loss = search.recommend(x, z, f_z) if search.deterministic else (x, f)
        epsilon = torch.finfo(search.dtype).eps
        rounding = epsilon**0.85 * abs(float(f))
        frozen = t <= rounding and float(rise.abs().max()) <= rounding
        if group["restarts"] and (frozen or r * float(s.max()) < epsilon**0.75):
            state.update(radius=1.0, lengths=torch.ones_like(s))
            if search.deterministic:
                state.update(current=search.anywhere(1)[0], current_loss=math.inf, temperature=math.nan)
        return point, loss
