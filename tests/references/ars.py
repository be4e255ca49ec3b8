"""ARS, equations (1) to (4) of its docstring, direction by direction and coordinate by coordinate."""

from __future__ import annotations

import math
from typing import Any

from tests.references.step import Conversation, Step


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    x, dim, n = step.point, len(step.point), options["n_directions"]
    b = n if options["n_top"] is None else options["n_top"]
    deltas = step.draw("normal", n, dim)
    plus = [[x[j] + delta[j] for j in range(dim)] for delta in deltas]
    minus = [[x[j] - delta[j] for j in range(dim)] for delta in deltas]
    inside = [step.mirror(z) for z in plus + minus]  # (1)
    if inside != plus + minus:
        step.notes.append("wall")
        deltas = [[(inside[k][j] - inside[n + k][j]) / 2 for j in range(dim)] for k in range(n)]
    losses = yield inside

    f_plus, f_minus = losses[:n], losses[n:]
    kept = sorted(range(n), key=lambda k: min(f_plus[k], f_minus[k]))[:b]  # (2)
    finite = [f for k in kept for f in (f_plus[k], f_minus[k]) if math.isfinite(f)]
    if not finite or len({f for k in kept for f in (f_plus[k], f_minus[k])}) == 1:
        step.notes.append("equal losses")
        return x, math.nan
    beyond = 2 * max(finite) - min(finite) if max(finite) > min(finite) else max(finite) + 1
    f_plus, f_minus = ([f if math.isfinite(f) else beyond for f in side] for side in (f_plus, f_minus))
    returns = [f for k in kept for f in (f_plus[k], f_minus[k])]
    mean = sum(returns) / (2 * b)
    sigma_r = math.sqrt(sum((f - mean) ** 2 for f in returns) / (2 * b))  # (3)
    u = [-sum((f_plus[k] - f_minus[k]) * deltas[k][j] for k in kept) / (b * sigma_r) for j in range(dim)]  # (4)
    return [x[j] + step.unit[j] * u[j] for j in range(dim)], math.nan
