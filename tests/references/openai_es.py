"""OpenAIES, equations (1) to (3) of its docstring, candidate by candidate and coordinate by coordinate."""

from __future__ import annotations

import math
from typing import Any

from tests.references.gradient_steps import centred_ranks, descend
from tests.references.step import Conversation, Step


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    x, dim, n = step.point, len(step.point), options["popsize"]
    noise = step.draw("normal", n // 2 if options["mirrored"] else n, dim)
    signs = (1, -1) if options["mirrored"] else (1,)
    unbounded = [[x[j] + sign * e[j] for j in range(dim)] for sign in signs for e in noise]
    points = [step.mirror(point) for point in unbounded]  # (1)
    if points != unbounded:
        step.notes.append("wall")
    losses = yield points
    r = centred_ranks(losses)
    g = [sum(r[i] * (points[i][j] - x[j]) for i in range(n)) / n for j in range(dim)]  # (2)
    u = descend(state, g, **{name: options[name] for name in ("update", "momentum", "lr_decay")})
    return [x[j] + step.unit[j] * u[j] for j in range(dim)], math.nan  # (3)
