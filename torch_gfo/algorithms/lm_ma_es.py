"""Limited-memory matrix adaptation evolution strategy (LM-MA-ES).

* I. Loshchilov, T. Glasmachers, H.-G. Beyer, "Large scale black-box optimization by limited-memory matrix adaptation",
  2017, https://arxiv.org/abs/1705.06693.

Differences from the paper:

* Rates are 0.5 at most: in few dimensions the paper's exceed 1.
* The products with all memory vectors are computed at once, from a triangular system of their scalar products: the same
  values, at the speed of matrix products.
* Bounds are mirrors: the search has none, and the loss is extended beyond the walls by its mirror image. The step size
  does not exceed a third of the box.
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
from torch_gfo.recombination import by_rank, default_popsize, log_weights
from torch_gfo.search import Search

__all__ = ["LMMAES"]

_FASTEST = 0.5


class LMMAES(GradientFreeOptimizer):
    """LM-MA-ES: learns the most promising directions of a landscape, and remembers a few of them.

    Use it on smooth, badly scaled and not separable losses of 100 to millions of parameters, with many evaluations. It
    remembers 4 + 3 ln(dim) vectors where ``CMAES`` remembers dim. In few dimensions take ``CMAES``; on networks, a step
    of ``SNES`` costs less.

    In every step t, with z_i standard normal and the weights w_i in the order of the losses, best first, none for the
    worse half::

        x_i = y + sigma d_i,  i = 1, ..., popsize                                                                 (1)
        d_i = z_i, then for j = 0, ..., min(t, memory) - 1:  d_i = (1 - c_j) d_i + c_j m_j (m_j' d_i)             (2)
        y = y + sigma sum_i w_i d_i                                                                               (3)
        p = (1 - c) p + sqrt(mu_w c (2 - c)) z_w,  z_w = sum_i w_i z_i,  mu_w = 1 / sum_i w_i^2                   (4)
        m_j = (1 - a_j) m_j + sqrt(mu_w a_j (2 - a_j)) z_w                                                        (5)
        sigma = sigma exp(min(1, c / 2 (|p|^2 / dim - 1)))                                                        (6)

    where c = 2 popsize / dim, c_j = 1 / (1.5^j dim), a_j = popsize / (4^j dim), each 0.5 at most. The model is at the
    mean y, with ``deterministic=True`` at the best point known.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Multiplies every displacement. Default: 1.
        sigma: First standard deviation in parameter units. Default: None, 0.3 standard deviations of each tensor's
            initial values. It adapts itself, slowly in many dimensions.
        popsize: Number of candidates, at least 2. Default: None, 4 + 3 ln(dim) rounded down.
        memory: Number of vectors m_j, at least 1. Default: None, 4 + 3 ln(dim) rounded down.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.ones(50, dtype=torch.float64))
        >>> optimizer = torch_gfo.LMMAES([x], seed=0)
        >>> for _ in range(1000):
        ...     loss = optimizer.step(lambda: (x**2).sum() + 10 * x.sum() ** 2)
        >>> bool(loss < 1e-3)
        True
    """

    _auto_sigma: ClassVar[float] = 0.3

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        popsize: int | None = None,
        memory: int | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "popsize": popsize, "memory": memory}
        for name, least in (("popsize", 2), ("memory", 1)):
            check_integer(name, own[name], least, optional=True)
        super().__init__(params, own, common)

    def _n_stored(self, dim: int) -> int:
        popsize, memory = (self.param_groups[0][name] or default_popsize(max(1, dim)) for name in ("popsize", "memory"))
        return (3 * popsize + 2 * memory) * dim

    def _init_state(self, search: Search) -> dict[str, Any]:
        y, memory = search.point, self.param_groups[0]["memory"] or default_popsize(search.dim)
        paths = {"p_sigma": torch.zeros_like(y), "memory": y.new_zeros(memory, search.dim)}
        return {"mean": y.clone(), "step_size": 1.0, **paths, "generation": 0}

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        n, popsize = search.dim, self.param_groups[0]["popsize"] or default_popsize(search.dim)
        y, sigma, memory, p = (state[name] for name in ("mean", "step_size", "memory", "p_sigma"))
        if search.lower is not None and search.upper is not None:
            sigma = min(sigma, float((search.upper - search.lower).min()) / 3)
        z = search.normal(popsize, n)
        d = _transformed(z, memory[: state["generation"]])
        x = search.reflect(torch.add(y, d, alpha=sigma))  # (1)

        losses = yield x

        weights = [max(0.0, w_i) for w_i in log_weights(popsize)]
        mu_w = 1 / sum(w_i**2 for w_i in weights)
        w = by_rank((tuple(weights),), losses)[0].to(z.dtype)
        z_w = w @ z
        state["mean"] = y = torch.add(y, w @ d, alpha=sigma)  # (3)
        c = min(_FASTEST, 2 * popsize / n)
        state["p_sigma"] = p = torch.add((1 - c) * p, z_w, alpha=math.sqrt(mu_w * c * (2 - c)))  # (4)
        state["step_size"] = sigma * math.exp(min(1.0, c / 2 * (float(p.square().sum()) / n - 1)))  # (6)
        c_c = z.new_tensor([min(_FASTEST, popsize / (4.0**i * n)) for i in range(len(memory))])[:, None]
        state["memory"] = torch.addcmul((1 - c_c) * memory, (mu_w * c_c * (2 - c_c)).sqrt(), z_w)  # (5)
        state["generation"] += 1
        return search.recommend(search.reflect(y), x, losses)


def _transformed(z: Tensor, memory: Tensor) -> Tensor:
    """(2) for all candidates: d = (1 - c_j) d + c_j m_j (m_j' d), one m_j after the other, starting from z.

    With A_j the product of the first (1 - c_i), g_j = m_j' d / A_(j-1) and r_j = c_j / (1 - c_j), d is in the end
    A (z + sum_j r_j g_j m_j), and the g_j solve g_j - sum_(i<j) m_j' m_i r_i g_i = m_j' z.
    """
    n = z.shape[1]
    if not len(memory):
        return z
    c = z.new_tensor([min(_FASTEST, 1 / (1.5**j * n)) for j in range(len(memory))])
    r = c / (1 - c)
    system = -(memory @ memory.T) * r
    g = torch.linalg.solve_triangular(system, memory @ z.T, upper=False, unitriangular=True)
    return torch.addmm(z, g.T * r, memory).mul_(float((1 - c).prod()))
