"""Evolution strategy with covariance matrix adaptation (CMA-ES), with restarts.

* N. Hansen, "The CMA evolution strategy: a tutorial", 2016, https://arxiv.org/abs/1604.00772: equation numbers are its.
* N. Hansen, S. D. Müller, P. Koumoutsakos, "Reducing the time complexity of the derandomized evolution strategy with
  covariance matrix adaptation (CMA-ES)", 2003, https://doi.org/10.1162/106365603321828970.
* A. Auger, N. Hansen, "A restart CMA evolution strategy with increasing population size", 2005,
  https://doi.org/10.1109/CEC.2005.1554902: ``restarts="ipop"``.
* N. Hansen, "Benchmarking a BI-population CMA-ES on the BBOB-2009 function testbed", 2009,
  https://doi.org/10.1145/1570256.1570333: ``restarts="bipop"``.
* N. Hansen et al., pycma, https://github.com/CMA-ES/pycma: the rates, and the criteria that end a run.

Differences from the papers:

* y is the symmetric root of C times z, not B D z: the same distribution, and the root does not depend on the order or
  the signs of eigenvectors. C^(-1/2) y is then z.
* The root of C is taken again after five times as many steps: no more evaluations, in 10 and 20 dimensions.
* The rate of the step size's path is pycma's; the step size grows by a factor e at most in a step.
* Bounds are mirrors: the search has none, and the loss is extended beyond the walls by its mirror image. As in pycma,
  no standard deviation exceeds a third of the box.
* Candidates of equal loss share their weights, one of infinite loss attracts nothing.
* The objective is evaluated at the mean only by ``step`` itself.
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
from torch_gfo.options import CommonOptions, check_choice, check_integer, check_number
from torch_gfo.recombination import Rates, by_rank, default_popsize, rates
from torch_gfo.search import Search

__all__ = ["CMAES"]

_RESTARTS = ("bipop", "ipop", None)
_MOST_DOUBLINGS = 9
_CRITERIA = ("tolfun", "tolfunhist", "tolx", "tolfacupx", "tolconditioncov", "noeffectcoord", "maxiter")
_TOLFACUPX = 1e3
_LONGEST_TO_SHORTEST = 1e7  # of the axes, that is 1e14 in C
_LAZINESS = 0.5  # how far the updates since the last root add up before the next; the tutorial has 0.1
_FLATTEST = 1e-15  # the least eigenvalue of C that stands out from rounding errors, as a share of the largest


class CMAES(GradientFreeOptimizer):
    """CMA-ES: samples a normal distribution and learns its mean, its size and the shape of the landscape.

    Use it on losses of 2 to about 100 parameters, badly scaled, not separable, rugged or without a gradient: where more
    than a few hundred evaluations are affordable, hardly any method without gradients is as robust. It stores matrices
    of dim x dim: networks need ``subspace=50``, or ``SepCMAES``, ``SNES`` or ``LMMAES``.

    In every step, with z_i standard normal and the weights w_i in the order of the losses, the best first, w_i^+ the
    positive and w_i^- the negative ones::

        y_i = C^(1/2) z_i,  x_i = m + sigma y_i,  i = 1, ..., popsize                                          (39, 40)
        m = m + sigma y_w,  y_w = sum_i w_i^+ y_i                                                              (41, 42)
        p_sigma = (1 - c_sigma) p_sigma + sqrt(c_sigma (2 - c_sigma) mu_eff) C^(-1/2) y_w                      (43)
        sigma = sigma exp(min(1, c_sigma / d_sigma (|p_sigma| / E|N(0, I)| - 1)))                              (44)
        p_c = (1 - c_c) p_c + h sqrt(c_c (2 - c_c) mu_eff) y_w                                                 (45)
        v_i = w_i^+ + w_i^- n / |z_i|^2                                                                        (46)
        C = (1 - c_1 + (1 - h) c_1 c_c (2 - c_c) - c_mu sum_i w_i) C + c_1 p_c p_c' + c_mu sum_i v_i y_i y_i'  (47)

    where h is 0 while p_sigma is very long, else 1. The root of C is taken again only when the updates
    since the last add up to something, about every dim / (2 popsize) steps.

    The model is at the mean m. With ``deterministic=True`` it is at the best point known, and a run that ends is
    followed by another from a random point: anywhere in finite ``bounds``, else around the first point with the first
    sigma. ``"ipop"`` doubles popsize each time. ``"bipop"`` alternates, by the evaluations used so far, between such
    runs and runs of smaller popsize and sigma.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Multiplies every displacement. Default: 1.
        sigma: First standard deviation in parameter units; about a quarter of the range where the minimum is expected.
            Default: None, half a standard deviation of each tensor's initial values. It adapts itself.
        popsize: Number of candidates, at least 2. More search wider, and average noise. Default: None, 4 + 3 ln(dim)
            rounded down.
        restarts: ``"bipop"``, ``"ipop"``, or None: what follows a run that has ended. Only with
            ``deterministic=True``: the minibatch or the noise would else decide when a run ends. Default: ``"bipop"``.
        tolfun: Ends a run when all losses, the best of the last steps among them, are within this range. Default:
            1e-11.
        tolx: Ends a run when the standard deviations, in units of the first sigma, have fallen below. Default: 1e-11.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.
        RuntimeError: If the matrices would not fit into memory.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0], dtype=torch.float64))
        >>> optimizer = torch_gfo.CMAES([x], seed=0, deterministic=True, restarts=None)
        >>> while not optimizer.stop_reasons():
        ...     loss = optimizer.step(lambda: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)
        >>> bool(loss < 1e-9)
        True
    """

    _auto_sigma: ClassVar[float] = 0.5

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        popsize: int | None = None,
        restarts: str | None = "bipop",
        tolfun: float = 1e-11,
        tolx: float = 1e-11,
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "popsize": popsize, "restarts": restarts}
        own |= {"tolfun": tolfun, "tolx": tolx}
        check_integer("popsize", popsize, 2, optional=True)
        check_choice("restarts", restarts, _RESTARTS)
        for name in ("tolfun", "tolx"):
            check_number(name, own[name], "[0, inf)")
        super().__init__(params, own, common)

    def stop_reasons(self) -> dict[str, float]:
        """Says why the last run ended, in the names of pycma: the criteria that were met, with the values met.

        Without restarts: the criteria that were met last. Empty where none has been met yet. The criteria are

        * ``tolfun``: the range of the losses and of the best ones of the last 10 + 30 dim / popsize steps;
        * ``tolfunhist``: the range of the latter alone, below 1e-12;
        * ``tolx``: the largest standard deviation, in units of the first sigma;
        * ``tolfacupx``: the same, above 1000 times the run's first: it was too small, or the loss falls forever;
        * ``tolconditioncov``: the condition number of C, above 1e14;
        * ``noeffectcoord``: so many coordinates are too large for a fifth of their standard deviation to change them;
        * ``maxiter``: the run's steps.
        """
        values = self._shared.get("stops")
        met = [] if values is None else values.tolist()
        return {name: value for name, value in zip(_CRITERIA, met, strict=False) if not math.isnan(value)}

    def _n_stored(self, dim: int) -> int:
        popsize = self.param_groups[0]["popsize"] or default_popsize(max(1, dim))
        return 2 * (5 * dim**2 + 4 * popsize * dim)  # in double precision whatever the parameters

    def _init_state(self, search: Search) -> dict[str, Any]:
        popsize = self.param_groups[0]["popsize"] or default_popsize(search.dim)
        mean = search.point.to(torch.float64)
        history = mean.new_zeros(_memory(search.dim, popsize))
        bookkeeping = {"first_popsize": popsize, "doublings": 0, "is_large": 0, "used_small": 0, "used_large": 0}
        stops = mean.new_full((len(_CRITERIA),), math.nan)
        return {**_beginning(mean, popsize), **bookkeeping, "history": history, "stops": stops}

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        n, popsize = search.dim, state["popsize"]
        k = rates(n, popsize)
        m, sigma = state["mean"], state["step_size"]
        if state["generation"] - state["decomposed"] >= _LAZINESS / ((k.c_1 + k.c_mu) * n):
            state.update(_decomposition(state["C"]), decomposed=state["generation"])
        if search.lower is not None and search.upper is not None:
            widest = (search.upper - search.lower) / (3 * state["C"].diagonal().sqrt())
            state["step_size"] = sigma = min(sigma, float(widest.min()))
        z = search.normal(popsize, n).to(torch.float64)
        y = z @ state["root"]  # (39)
        x = search.reflect(torch.add(m, y, alpha=sigma).to(search.dtype))  # (40)

        losses = yield x

        w = by_rank(k.parts, losses)
        y_w = w[0] @ y  # (41)
        state["mean"] = torch.add(m, y_w, alpha=sigma)  # (42)
        self._adapt(state, k, w, z, y, y_w)
        point = search.recommend(search.reflect(state["mean"].to(search.dtype)), x, losses)
        self._end(state, search, losses)
        return point

    def _adapt(self, state: dict[str, Any], k: Rates, w: Tensor, z: Tensor, y: Tensor, y_w: Tensor) -> None:
        """Learns the size and the shape of the distribution from a generation."""
        n, p = len(y_w), state["p_sigma"]
        state["generation"] += 1
        new = math.sqrt(k.c_sigma * (2 - k.c_sigma) * k.mu_eff)
        state["p_sigma"] = p = torch.add((1 - k.c_sigma) * p, w[0] @ z, alpha=new)  # (43)
        length = float(torch.linalg.vector_norm(p))
        state["step_size"] *= math.exp(min(1.0, k.c_sigma / k.d_sigma * (length / k.chi_n - 1)))  # (44)

        settled = 1 - (1 - k.c_sigma) ** (2 * state["generation"])
        h = float(length**2 / settled / n < 2 + 4 / (n + 1))
        new = h * math.sqrt(k.c_c * (2 - k.c_c) * k.mu_eff)
        state["p_c"] = p = torch.add((1 - k.c_c) * state["p_c"], y_w, alpha=new)  # (45)
        v = torch.addcdiv(w[0], w[1], z.square().sum(1), value=n)  # (46)
        keep = 1 - k.c_1 + (1 - h) * k.c_1 * k.c_c * (2 - k.c_c) - k.c_mu * sum(k.w)
        state["C"] = torch.addmm(state["C"], y.T * (k.c_mu * v), y, beta=keep).addr_(p, p, alpha=k.c_1)  # (47)

    def _end(self, state: dict[str, Any], search: Search, losses: Tensor) -> None:
        """Ends the step, and perhaps the run."""
        told, memory = losses.tolist(), _memory(search.dim, state["popsize"])
        history = state["history"] + search.drift
        history[(state["generation"] - 1) % memory if state["generation"] > 1 else slice(None)] = min(told)
        state["history"] = history
        stops = self._stops(state, history[:memory].tolist(), told)
        if stops:
            state["stops"] = history.new_tensor([stops.get(name, math.nan) for name in _CRITERIA])
            if search.deterministic and self.param_groups[0]["restarts"]:
                state.update(self._restarted(state, search))

    def _stops(self, state: dict[str, Any], best: list[float], told: list[float]) -> dict[str, float]:
        """The criteria for the end of a run that are met; from the best losses of the last steps, and the last ones."""
        group, sigma = self.param_groups[0], state["step_size"]
        deviations = [sigma * math.sqrt(max(0.0, c)) for c in state["C"].diagonal().tolist()]
        recent, widest = max(best) - min(best), max(deviations)
        total = max(*best, *told) - min(*best, *told)
        lost = sum(m + 0.2 * deviation == m for m, deviation in zip(state["mean"].tolist(), deviations, strict=True))
        condition = state["longest"] / state["shortest"]
        values = {
            "tolfun": (total, total < group["tolfun"]),
            "tolfunhist": (recent, recent < 1e-12 and state["generation"] > 9),
            "tolx": (widest, widest < group["tolx"] and sigma * float(state["p_c"].max()) < group["tolx"]),
            "tolfacupx": (widest, widest > _TOLFACUPX * state["first_step_size"]),
            "tolconditioncov": (condition**2, condition > _LONGEST_TO_SHORTEST),
            "noeffectcoord": (lost, lost > 0),
            "maxiter": (state["generation"], state["generation"] >= state["maxiter"]),
        }
        return {name: float(value) for name, (value, met) in values.items() if met}

    def _restarted(self, state: dict[str, Any], search: Search) -> dict[str, Any]:
        """The state at the start of the next run."""
        first, doublings = state["first_popsize"], state["doublings"]
        used = {name: state[name] for name in ("used_small", "used_large")}
        used["used_large" if state["is_large"] else "used_small"] += state["generation"] * state["popsize"]
        large = self.param_groups[0]["restarts"] == "ipop" or used["used_small"] >= used["used_large"]
        if large:
            doublings = min(doublings + 1, _MOST_DOUBLINGS)
            run = _beginning(search.anywhere(1)[0], first * 2**doublings)
        else:
            u = search.uniform(2).tolist()
            popsize = int(first * 2 ** ((doublings - 1) * u[0] ** 2))
            run = _beginning(search.anywhere(1)[0], popsize, 10 ** (-2 * u[1]))
            run["maxiter"] = max(1, min(run["maxiter"], used["used_large"] // (2 * popsize)))
        return {**run, **used, "doublings": doublings, "is_large": int(large)}


def _beginning(mean: Tensor, popsize: int, sigma: float = 1.0) -> dict[str, Any]:
    """The state at the start of a run."""
    mean = mean.to(torch.float64, copy=True)
    n, zero, one = len(mean), torch.zeros_like(mean), torch.diag(torch.ones_like(mean))
    distribution = {"mean": mean, "step_size": sigma, "C": one, "p_sigma": zero, "p_c": zero.clone()}
    root = {"root": one.clone(), "longest": 1.0, "shortest": 1.0, "decomposed": 0}
    maxiter = 100 + int(150 * (n + 3) ** 2 / math.sqrt(popsize))
    return {**distribution, **root, "popsize": popsize, "generation": 0, "maxiter": maxiter, "first_step_size": sigma}


def _decomposition(c: Tensor) -> dict[str, Any]:
    """The symmetric root of C, and the lengths of its longest and shortest axes."""
    squares, b = torch.linalg.eigh(c)
    least = _FLATTEST * float(squares[-1])
    if float(squares[0]) < least:  # rounding may leave a negative one
        squares = squares.clamp(min=least)
        c = (b * squares) @ b.T
    d = squares.sqrt()
    return {"C": c, "root": (b * d) @ b.T, "longest": float(d[-1]), "shortest": float(d[0])}


def _memory(n: int, popsize: int) -> int:
    """The number of steps whose best losses are remembered."""
    return 10 + 30 * n // popsize
