"""PGPE, equations (1) to (4) of its docstring, pair by pair and coordinate by coordinate.

Of low rank, a matrix has a standard deviation for each number of its rows and of its columns.
"""

from __future__ import annotations

import math
from typing import Any

from tests.references.eggroll import draw, products
from tests.references.gradient_steps import centred_ranks, descend, z_scores
from tests.references.step import Conversation, Point, Step


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    x, s, dim, n = step.point, state["scales"], len(step.point), options["popsize"]
    if options["perturbation"] == "low_rank" and step.lower is None:
        return (yield from iterate_low_rank(state, step, **options))
    noise = step.draw("normal", n // 2, dim)
    unbounded = [[x[j] + sign * s[j] * e[j] for j in range(dim)] for sign in (1, -1) for e in noise]
    points = [step.mirror(point) for point in unbounded]  # (1)
    if points != unbounded:
        step.notes.append("wall")
    losses = yield points
    w = {"centered_rank": centred_ranks, "z_score": z_scores}[options["shaping"]](losses)
    deviations = [[(point[j] - x[j]) / s[j] for j in range(dim)] for point in points]
    g = [sum(w[i] * deviations[i][j] for i in range(n)) / n for j in range(dim)]  # (2)
    u = descend(state, g, **{name: options[name] for name in ("update", "momentum", "lr_decay")})
    state["scales"] = widened(step, s, w, deviations, options["sigma_lr"])  # (4)
    return [x[j] + step.unit[j] * s[j] * u[j] for j in range(dim)], math.nan  # (3)


def iterate_low_rank(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    x, s, dim, n = step.point, state["scales"], len(step.point), options["popsize"]
    numbers = draw(step, "normal", n // 2, rank=1)
    signs = [1] * (n // 2) + [-1] * (n // 2)
    scaled = [products(step, [s_k * e_k for s_k, e_k in zip(s, row, strict=True)], 1) for row in numbers]
    losses = yield [[x[j] + sign * e[j] for j in range(dim)] for sign, e in zip(signs, 2 * scaled, strict=True)]  # (1)
    w = {"centered_rank": centred_ranks, "z_score": z_scores}[options["shaping"]](losses)
    e = 2 * [products(step, row, 1) for row in numbers]
    g = [sum(w[i] * signs[i] * e[i][j] for i in range(n)) / n for j in range(dim)]  # (2)
    u = descend(state, g, **{name: options[name] for name in ("update", "momentum", "lr_decay")})
    state["scales"] = widened(step, s, w, 2 * numbers, options["sigma_lr"])  # (4)
    s_ij = products(step, s, 1)
    return [x[j] + step.unit[j] * s_ij[j] * u[j] for j in range(dim)], math.nan  # (3)


def widened(step: Step, s: Point, w: list[float], deviations: list[Point], sigma_lr: float) -> Point:
    """(4): the next standard deviations."""
    n, new = len(w), []
    for j in range(len(s)):
        change = -sigma_lr * sum(w[i] * (deviations[i][j] ** 2 - 1) for i in range(n)) / n
        if abs(change) > 0.2:
            step.notes.append("limit")
        new.append(s[j] * (1 + min(max(change, -0.2), 0.2)))
    return new
