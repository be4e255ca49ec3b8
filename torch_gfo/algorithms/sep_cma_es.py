"""CMA-ES with a diagonal covariance matrix.

* R. Ros, N. Hansen, "A simple modification in CMA-ES achieving linear time and space complexity", 2008,
  https://doi.org/10.1007/978-3-540-87700-4_30.
* N. Hansen, "The CMA evolution strategy: a tutorial", 2016, https://arxiv.org/abs/1604.00772: equation numbers are its.
* N. Hansen et al., pycma, https://github.com/CMA-ES/pycma: the rates of a diagonal matrix.

Differences from the papers:

* Rates are pycma's, and the worse half of the candidates has negative weights, as in the tutorial.
* Bounds are mirrors: the search has none, and the loss is extended beyond the walls by its mirror image. As in pycma,
  no standard deviation exceeds a third of the box.
* Candidates of equal loss share their weights, one of infinite loss attracts nothing.
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
from torch_gfo.options import CommonOptions, check_integer
from torch_gfo.recombination import by_rank, default_popsize, rates
from torch_gfo.search import Search

__all__ = ["SepCMAES"]

_LEAST = 1e-30  # of a variance


class SepCMAES(GradientFreeOptimizer):
    """CMA-ES with a diagonal covariance matrix: learns a scale for each coordinate, at a cost linear in their number.

    Use it on losses of more than about 100 parameters, or of few that hardly depend on one another: there it learns
    the scales faster than ``CMAES`` learns the matrix. Do not use it in narrow valleys that are not along the axes.

    In every step, with z_i standard normal and the weights w_i in the order of the losses, the best first, w_i^+ the
    positive and w_i^- the negative ones; products of vectors are by coordinate::

        y_i = sqrt(c) z_i,  x_i = m + sigma y_i,  i = 1, ..., popsize                                          (39, 40)
        m = m + sigma y_w,  y_w = sum_i w_i^+ y_i                                                              (41, 42)
        p_sigma = (1 - c_sigma) p_sigma + sqrt(c_sigma (2 - c_sigma) mu_eff) y_w / sqrt(c)                     (43)
        sigma = sigma exp(min(1, c_sigma / d_sigma (|p_sigma| / E|N(0, I)| - 1)))                              (44)
        p_c = (1 - c_c) p_c + h sqrt(c_c (2 - c_c) mu_eff) y_w                                                 (45)
        v_i = w_i^+ + w_i^- n / |z_i|^2                                                                        (46)
        c = (1 - c_1 + (1 - h) c_1 c_c (2 - c_c) - c_mu sum_i w_i) c + c_1 p_c^2 + c_mu sum_i v_i y_i^2        (47)

    where h is 0 while p_sigma is very long, else 1. The model is at the mean m, with ``deterministic=True`` at the best
    point known.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Multiplies every displacement. Default: 1.
        sigma: First standard deviation in parameter units. Default: None, 0.3 standard deviations of each tensor's
            initial values. It adapts itself.
        popsize: Number of candidates, at least 2. Default: None, 4 + 3 ln(dim) rounded down.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.ones(10, dtype=torch.float64))
        >>> scales = 10 ** torch.linspace(0, 6, 10)
        >>> optimizer = torch_gfo.SepCMAES([x], seed=0)
        >>> for _ in range(250):
        ...     loss = optimizer.step(lambda: (scales * x**2).sum())
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
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "popsize": popsize}
        check_integer("popsize", popsize, 2, optional=True)
        super().__init__(params, own, common)

    def _n_stored(self, dim: int) -> int:
        return 4 * (self.param_groups[0]["popsize"] or default_popsize(max(1, dim))) * dim

    def _init_state(self, search: Search) -> dict[str, Any]:
        m = search.point
        paths = {"p_sigma": torch.zeros_like(m), "p_c": torch.zeros_like(m)}
        return {"mean": m.clone(), "step_size": 1.0, "variances": torch.ones_like(m), **paths, "generation": 0}

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        n = search.dim
        popsize = self.param_groups[0]["popsize"] or default_popsize(n)
        k = rates(n, popsize, separable=True)
        m, c, sigma = state["mean"], state["variances"], state["step_size"]
        root = c.sqrt()
        if search.lower is not None and search.upper is not None:
            sigma = min(sigma, float(((search.upper - search.lower) / (3 * root)).min()))
        z = search.normal(popsize, n)
        x = search.reflect(torch.addcmul(m, z, root, value=sigma))  # (39), (40)

        losses = yield x

        w = by_rank(k.parts, losses).to(z.dtype)
        z_w = w[0] @ z
        y_w = root * z_w  # (41)
        state["mean"] = m = torch.add(m, y_w, alpha=sigma)  # (42)
        state["generation"] += 1
        new = math.sqrt(k.c_sigma * (2 - k.c_sigma) * k.mu_eff)
        state["p_sigma"] = p = torch.add((1 - k.c_sigma) * state["p_sigma"], z_w, alpha=new)  # (43)
        length = float(torch.linalg.vector_norm(p))
        state["step_size"] = sigma * math.exp(min(1.0, k.c_sigma / k.d_sigma * (length / k.chi_n - 1)))  # (44)

        settled = 1 - (1 - k.c_sigma) ** (2 * state["generation"])
        h = float(length**2 / settled / n < 2 + 4 / (n + 1))
        new = h * math.sqrt(k.c_c * (2 - k.c_c) * k.mu_eff)
        state["p_c"] = p = torch.add((1 - k.c_c) * state["p_c"], y_w, alpha=new)  # (45)
        z_squared = z.square()
        v = torch.addcdiv(w[0], w[1], z_squared.sum(1), value=n)  # (46)
        keep = 1 - k.c_1 + (1 - h) * k.c_1 * k.c_c * (2 - k.c_c) - k.c_mu * sum(k.w)
        c = (c * torch.add(v @ z_squared, keep / k.c_mu)).mul_(k.c_mu)
        state["variances"] = c.addcmul_(p, p, value=k.c_1).clamp_(min=_LEAST)  # (47)
        return search.recommend(search.reflect(m), x, losses)
