"""What a rank is worth: weights of recombination, and the learning rates that CMA-ES derives from them.

* N. Hansen, "The CMA evolution strategy: a tutorial", 2016, https://arxiv.org/abs/1604.00772: equation numbers are its.
* R. Ros, N. Hansen, "A simple modification in CMA-ES achieving linear time and space complexity", 2008,
  https://doi.org/10.1007/978-3-540-87700-4_30: the faster rates of a diagonal covariance matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["Rates", "by_rank", "default_popsize", "log_weights", "rates", "utilities"]


def default_popsize(dim: int) -> int:
    """The usual number of candidates of an evolution strategy that learns its distribution."""
    return 4 + int(3 * math.log(dim))  # (48)


def log_weights(popsize: int) -> list[float]:
    """Weights by rank, best first: the first half positive with sum 1, the others negative with sum -1 (or 0)."""
    raw = [math.log((popsize + 1) / 2) - math.log(i) for i in range(1, popsize + 1)]  # (49)
    above, below = (sum(abs(w) for w in raw if (w > 0) is positive) for positive in (True, False))
    return [w / above if w > 0 else w / below for w in raw]


def utilities(popsize: int) -> tuple[float, ...]:
    """Utilities by rank of natural evolution strategies, best first: none for the worse half, with sum 1.

    The strategies subtract their mean, 1 / popsize.
    """
    raw = [max(0.0, math.log(popsize / 2 + 1) - math.log(i)) for i in range(1, popsize + 1)]
    return tuple(u / sum(raw) for u in raw)


@dataclass(frozen=True)
class Rates:
    """The constants of CMA-ES, in the tutorial's letters.

    Attributes:
        w: Weights by rank, best first; the positive ones have sum 1.
        parts: The positive weights, with zeros for the others, and the negative ones.
        mu_eff: How many equal weights would vary a mean as little as the positive ones.
        c_sigma: Rate of the path of the step size.
        d_sigma: Damping of the step size.
        c_c: Rate of the path of the covariance matrix.
        c_1: Rate of the rank-one update.
        c_mu: Rate of the rank-mu update.
        chi_n: Expected length of a standard normal vector.
    """

    w: tuple[float, ...]
    parts: tuple[tuple[float, ...], tuple[float, ...]]
    mu_eff: float
    c_sigma: float
    d_sigma: float
    c_c: float
    c_1: float
    c_mu: float
    chi_n: float


@lru_cache(maxsize=64)
def rates(n: int, popsize: int, *, separable: bool = False) -> Rates:
    """The constants of CMA-ES for ``n`` coordinates; ``separable``: for a diagonal covariance matrix."""
    w = log_weights(popsize)
    mu_eff = 1 / sum(w_i**2 for w_i in w if w_i > 0)
    mu_eff_minus = 1 / sum(w_i**2 for w_i in w if w_i < 0)
    innovation = 0.25 + mu_eff + 1 / mu_eff - 2
    if separable:
        c_c = (1 + 1 / n + mu_eff / n) / (math.sqrt(n) + 1 / n + 2 * mu_eff / n)
        c_1 = 1 / (n + 2 * math.sqrt(n) + mu_eff / n)
        c_mu = min(1 - c_1, innovation / (n + 4 * math.sqrt(n) + mu_eff / 2))
    else:
        c_c = (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n)  # (56)
        c_1 = min(1, popsize / 6) * 2 / ((n + 1.3) ** 2 + mu_eff)  # (57)
        c_mu = min(1 - c_1, 2 * innovation / ((n + 2) ** 2 + mu_eff))  # (58)
    c_sigma = (mu_eff + 2) / (n + mu_eff + 3)  # (55); the tutorial has 5 for 3
    d_sigma = 1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_sigma  # (55)
    least = min(1 + c_1 / c_mu, 1 + 2 * mu_eff_minus / (mu_eff + 2), (1 - c_1 - c_mu) / (n * c_mu))  # (50) to (52)
    chi_n = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
    finite = tuple(w_i if w_i > 0 else least * w_i for w_i in w)  # (53)
    parts = tuple(max(w_i, 0.0) for w_i in finite), tuple(min(w_i, 0.0) for w_i in finite)
    return Rates(finite, parts, mu_eff, c_sigma, d_sigma, c_c, c_1, c_mu, chi_n)


def by_rank(weights: tuple[tuple[float, ...], ...], losses: Tensor) -> Tensor:
    """Gives each candidate the weight of its rank.

    Candidates of equal loss share the weights of their ranks equally. One whose loss is infinite attracts nothing: it
    has no positive weight, the others have more in proportion; where there are others.

    Args:
        weights: Rows of weights by rank, best first.
        losses: ``(P,)``.

    Returns:
        ``(rows, P)``, in double precision: a weight for each candidate.
    """
    w = _rows(weights, losses.device)
    ranked, order = losses.sort(stable=True)
    told = ranked.tolist()  # one look at the device
    if len(set(told)) < len(told):
        _, tie, size = torch.unique_consecutive(ranked, return_inverse=True, return_counts=True)
        w = (w.new_zeros(len(w), len(size)).index_add_(1, tie, w) / size)[:, tie]
    if math.isinf(told[-1]) and math.isfinite(told[0]):
        finite = w.clamp(min=0) * torch.isfinite(ranked)
        share = finite.sum(1, keepdim=True) / w.clamp(min=0).sum(1, keepdim=True)
        w = torch.where(share > 0, finite / share, 0) + w.clamp(max=0)
    return torch.empty_like(w).scatter_(1, order.expand_as(w), w)


@lru_cache(maxsize=64)
def _rows(weights: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """Weights as a tensor, which nobody may modify."""
    return torch.tensor(weights, dtype=torch.float64, device=device)
