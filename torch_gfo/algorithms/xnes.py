"""Exponential natural evolution strategy (xNES).

* T. Glasmachers, T. Schaul, Y. Sun, D. Wierstra, J. Schmidhuber, "Exponential natural evolution strategies", 2010,
  https://doi.org/10.1145/1830483.1830557.
* D. Wierstra, T. Schaul, T. Glasmachers, Y. Sun, J. Peters, J. Schmidhuber, "Natural evolution strategies", 2014,
  https://jmlr.org/papers/v15/wierstra14a.html: the rates.

Differences from the papers:

* Bounds are mirrors: the search has none, and the loss is extended beyond the walls by its mirror image. No
  coordinate's standard deviation exceeds a third of the box.
* Candidates of equal loss share their utilities, one of infinite loss attracts nothing.
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
from torch_gfo.options import CommonOptions, check_integer, check_number
from torch_gfo.recombination import by_rank, default_popsize, utilities
from torch_gfo.search import Search

__all__ = ["XNES"]


class XNES(GradientFreeOptimizer):
    """xNES: follows the natural gradient of the expected utility in the mean, the size and the shape of a normal law.

    Use it on losses of 2 to about 50 parameters that are smooth, badly scaled and not separable. It is the plain form
    of what ``CMAES`` does; that one needs fewer evaluations and restarts. It stores matrices of dim x dim: networks
    need a subspace, or ``SNES``.

    In every step, with z_i standard normal and the utilities u_i of the ranks, of sum 0::

        x_i = m + sigma B z_i,  i = 1, ..., popsize                                                               (1)
        g_delta = sum_i u_i z_i,  g_M = sum_i u_i (z_i z_i' - I)                                                  (2)
        g_sigma = trace(g_M) / dim,  g_B = g_M - g_sigma I                                                        (3)
        m = m + mean_rate sigma B g_delta                                                                         (4)
        sigma = sigma exp(sigma_rate / 2 g_sigma)                                                                 (5)
        B = B exp(shape_rate / 2 g_B)                                                                             (6)

    The model is at the mean m, with ``deterministic=True`` at the best point known.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Multiplies every displacement. Default: 1.
        sigma: First standard deviation in parameter units. Default: None, half a standard deviation of each tensor's
            initial values. It adapts itself.
        popsize: Number of candidates, at least 2. Default: None, 4 + 3 ln(dim) rounded down.
        mean_rate: Rate of the mean, above 0. Default: 1.
        sigma_rate: Rate of the size. Default: None, (9 + 3 ln(dim)) / (5 dim sqrt(dim)).
        shape_rate: Rate of the shape; 0 for the same standard deviation in all directions. Default: None, the same.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.
        RuntimeError: If the matrix would not fit into memory.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0], dtype=torch.float64))
        >>> optimizer = torch_gfo.XNES([x], seed=0)
        >>> for _ in range(250):
        ...     loss = optimizer.step(lambda: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)
        >>> bool(loss < 1e-6)
        True
    """

    _auto_sigma: ClassVar[float] = 0.5

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        popsize: int | None = None,
        mean_rate: float = 1.0,
        sigma_rate: float | None = None,
        shape_rate: float | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "popsize": popsize, "mean_rate": mean_rate}
        own |= {"sigma_rate": sigma_rate, "shape_rate": shape_rate}
        check_integer("popsize", popsize, 2, optional=True)
        check_number("mean_rate", mean_rate, "(0, inf)")
        for name in ("sigma_rate", "shape_rate"):
            check_number(name, own[name], "[0, inf)", optional=True)
        super().__init__(params, own, common)

    def _n_stored(self, dim: int) -> int:
        popsize = self.param_groups[0]["popsize"] or default_popsize(max(1, dim))
        return 2 * (10 * dim**2 + 3 * popsize * dim)  # in double precision

    def _init_state(self, search: Search) -> dict[str, Any]:
        mean = search.point.to(torch.float64)
        return {"mean": mean, "step_size": 1.0, "shape": torch.diag(torch.ones_like(mean))}

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        n, group = search.dim, self.param_groups[0]
        popsize = group["popsize"] or default_popsize(n)
        usual = (9 + 3 * math.log(n)) / (5 * n * math.sqrt(n))
        sigma_rate, shape_rate = (
            usual if group[f"{x}_rate"] is None else group[f"{x}_rate"] for x in ("sigma", "shape")
        )
        m, sigma, b = state["mean"], state["step_size"], state["shape"]
        if search.lower is not None and search.upper is not None:
            widest = (search.upper - search.lower) / (3 * torch.linalg.vector_norm(b, dim=1))
            sigma = min(sigma, float(widest.min()))
        z = search.normal(popsize, n).to(torch.float64)
        x = search.reflect(torch.add(m, z @ b.T, alpha=sigma).to(search.dtype))  # (1)

        losses = yield x

        u = by_rank((utilities(popsize),), losses)[0] - 1 / popsize
        g_m = (z.T * u) @ z  # (2); the u_i have sum 0
        g_sigma = float(g_m.trace()) / n
        g_b = g_m - torch.diag(torch.full_like(m, g_sigma))  # (3)
        state["mean"] = torch.add(m, b @ (u @ z), alpha=group["mean_rate"] * sigma)  # (4)
        state["step_size"] = sigma * math.exp(sigma_rate / 2 * g_sigma)  # (5)
        values, vectors = torch.linalg.eigh(g_b)
        state["shape"] = b @ (vectors * (shape_rate / 2 * values).exp()) @ vectors.T  # (6)
        return search.recommend(search.reflect(state["mean"].to(search.dtype)), x, losses)
