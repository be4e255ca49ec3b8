"""PGPE, equations (1) to (4) of its docstring, pair by pair and coordinate by coordinate."""

from __future__ import annotations

import math
from typing import Any

from tests.references.gradient_steps import centred_ranks, descend, z_scores
from tests.references.step import Conversation, Step


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    x, s, dim, n = step.point, state["scales"], len(step.point), options["popsize"]
    noise = step.draw("normal", n // 2, dim)
    unbounded = [[x[j] + sign * s[j] * e[j] for j in range(dim)] for sign in (1, -1) for e in noise]
    points = [step.mirror(point) for point in unbounded]  # (1)
    if points != unbounded:
        step.notes.append("wall")
    losses = yield points
    w = {"centered_rank": centred_ranks, "z_score": z_scores}[options["shaping"]](losses)
    deviations = [[(point[j] - x[j]) / s[j] for j in range(dim)] for point in points]
    g = [sum(w[i] * deviations[i][j] for i in range(n)) / n for j in range(dim)]  # (2)
    u = descend(state, g, update=options["update"], momentum=options["momentum"])

    widened = []
    for j in range(dim):
        change = -options["sigma_lr"] * sum(w[i] * (deviations[i][j] ** 2 - 1) for i in range(n)) / n
        if abs(change) > 0.2:
            step.notes.append("limit")
        widened.append(s[j] * (1 + min(max(change, -0.2), 0.2)))  # (4)
    state["scales"] = widened
    return [x[j] + step.unit[j] * s[j] * u[j] for j in range(dim)], math.nan  # (3)
