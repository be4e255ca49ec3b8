"""What the references of evolution strategies share: constants in the tutorial's letters, weights by rank, products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tests.references.step import Point


@dataclass
class RankWeights:
    """Weights of candidates, the positive and the negative parts."""

    positive: list[float]
    negative: list[float]


def rank_weights(by_rank: list[float], fs: list[float]) -> RankWeights:
    """Ties share, and what is infinite attracts nothing."""
    positive, negative = [], []
    for f in fs:
        best = sum(other < f for other in fs)
        ranks = range(best, best + fs.count(f))
        positive.append(sum(max(0.0, by_rank[rank]) for rank in ranks) / len(ranks))
        negative.append(sum(min(0.0, by_rank[rank]) for rank in ranks) / len(ranks))
    finite = [0.0 if math.isinf(f) else w for f, w in zip(fs, positive, strict=True)]
    if not sum(finite):
        return RankWeights(positive, negative)
    scale = sum(positive) / sum(finite)
    return RankWeights([scale * w for w in finite], negative)


def utilities(fs: list[float]) -> list[float]:
    """Of natural evolution strategies; ties share, and what is infinite attracts nothing."""
    n = len(fs)
    raw = [max(0.0, math.log(n / 2 + 1) - math.log(i + 1)) for i in range(n)]
    return [u - 1 / n for u in rank_weights([value / sum(raw) for value in raw], fs).positive]


def constants(n: int, popsize: int, separable: bool = False) -> dict[str, Any]:
    """(49) to (58) for the full matrix; those of pycma for a diagonal one."""
    raw = [math.log((popsize + 1) / 2) - math.log(i + 1) for i in range(popsize)]  # (49)
    above, below = [w for w in raw if w > 0], [w for w in raw if w <= 0]
    mu = sum(above) ** 2 / sum(w**2 for w in above)
    mu_minus = sum(below) ** 2 / sum(w**2 for w in below)
    c_1 = min(1, popsize / 6) * 2 / ((n + 1.3) ** 2 + mu)  # (57)
    c_mu = min(1 - c_1, 2 * (1 / 4 + mu + 1 / mu - 2) / ((n + 2) ** 2 + 2 * mu / 2))  # (58)
    c_c = (4 + mu / n) / (n + 4 + 2 * mu / n)  # (56)
    if separable:
        c_1 = 1 / (n + 2 * n**0.5 + mu / n)
        c_mu = min(1 - c_1, (1 / 4 + mu + 1 / mu - 2) / (n + 4 * n**0.5 + mu / 2))
        c_c = (1 + 1 / n + mu / n) / (n**0.5 + 1 / n + 2 * mu / n)
    c_sigma = (mu + 2) / (n + mu + 3)
    least = min(1 + c_1 / c_mu, 1 + 2 * mu_minus / (mu + 2), (1 - c_1 - c_mu) / (n * c_mu))  # (50) to (52)
    return {
        "w": [w / sum(above) if w > 0 else least * w / abs(sum(below)) for w in raw],  # (53)
        "mu_eff": mu,
        "c_sigma": c_sigma,
        "d_sigma": 1 + 2 * max(0, math.sqrt((mu - 1) / (n + 1)) - 1) + c_sigma,  # (55)
        "c_c": c_c,
        "c_1": c_1,
        "c_mu": c_mu,
        "chi_n": math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2)),
    }


def times(matrix: list[Point], z: Point) -> Point:
    return [sum(m * value for m, value in zip(row, z, strict=True)) for row in matrix]


def length(z: Point) -> float:
    return math.sqrt(sum(value**2 for value in z))
