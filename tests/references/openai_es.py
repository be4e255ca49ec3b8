"""OpenAIES, equations (1) to (5) of its docstring, candidate by candidate and coordinate by coordinate."""

from __future__ import annotations

import math
from typing import Any

from tests.references.gradient_steps import centred_ranks, descend
from tests.references.step import Conversation, Step


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    x, s, dim, n = step.point, state["spread"], len(step.point), options["popsize"]
    noise = step.draw("normal", n // 2 if options["mirrored"] else n, dim)
    signs = (1, -1) if options["mirrored"] else (1,)
    unbounded = [[x[j] + s * sign * e[j] for j in range(dim)] for sign in signs for e in noise]
    points = [step.mirror(point) for point in unbounded]  # (1)
    if points != unbounded:
        step.notes.append("wall")
    losses = yield points
    r = centred_ranks(losses)
    g = [sum(r[i] * (points[i][j] - x[j]) / s for i in range(n)) / n for j in range(dim)]  # (2)
    u = descend(state, g, **{name: options[name] for name in ("update", "momentum", "lr_decay")})
    state["spread"] = nearer(step, s, losses, options["sigma_lr"])  # (5)
    return [x[j] + step.unit[j] * u[j] for j in range(dim)], math.nan  # (3)


def nearer(step: Step, s: float, losses: list[float], sigma_lr: float) -> float:
    """(5): the next radius, in units of the first."""
    if not sigma_lr:
        return s
    p = sum(1.0 if loss < step.loss else 0.5 if loss == step.loss else 0.0 for loss in losses) / len(losses)
    step.notes.append("nearer" if p < 0.15 else "farther")
    return min(1.0, s * math.exp(sigma_lr * (p - 0.15)))
