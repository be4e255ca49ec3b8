"""SPSA, equations (1) to (5) of its docstring, pair by pair and coordinate by coordinate."""

from __future__ import annotations

import math
from typing import Any

from tests.references.eggroll import draw, products
from tests.references.step import Conversation, Step


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    n, d, k = options["n_probes"], len(step.point), state["k"]
    c_k = 1 / (k + 1) ** options["gamma"]  # (4)
    if options["perturbation"] == "low_rank" and step.lower is None:
        bits = draw(step, "integers", 2, n, rank=1)
        deltas = [products(step, [2 * bit - 1 for bit in row], 1) for row in bits]
    else:
        deltas = [[2 * bit - 1 for bit in row] for row in step.draw("integers", 2, n, d)]

    centre, c = list(step.point), [c_k] * d
    if step.lower is not None and step.upper is not None:
        for j in range(d):
            c[j] = min(c_k, (step.upper[j] - step.lower[j]) / 2)
            centre[j] = min(max(centre[j], step.lower[j] + c[j]), step.upper[j] - c[j])
        if centre != step.point:
            step.notes.append("wall")
    plus = [[centre[j] + c[j] * delta[j] for j in range(d)] for delta in deltas]
    minus = [[centre[j] - c[j] * delta[j] for j in range(d)] for delta in deltas]
    losses = yield plus + minus  # (1)

    finite = [loss for loss in [step.loss, *losses] if math.isfinite(loss)]
    if not finite:
        return step.point, step.loss
    if len(finite) < 2 * n + 1:
        step.notes.append("not finite")
    here, *losses = [loss if math.isfinite(loss) else max(finite) for loss in [step.loss, *losses]]

    g = [0.0] * d
    for delta, l_plus, l_minus in zip(deltas, losses[:n], losses[n:], strict=True):
        bend = abs(l_plus + l_minus - 2 * here)
        w = 1 / max(options["reg"], bend ** options["curvature"]) if options["curvature"] else 1.0
        for j in range(d):
            g[j] += w * (l_plus - l_minus) / (2 * c[j] * delta[j]) / n  # (2)
    magnitude = sum(abs(g_j) for g_j in g) / d
    if magnitude == 0:
        step.notes.append("flat")
        return step.point, step.loss

    state["k"] = k + 1
    if k < 10:
        state["magnitude"] = (k * state["magnitude"] + magnitude) / (k + 1)
    stability = options["stability"]
    a = (1 + stability) ** options["alpha"] / state["magnitude"]  # (5)
    a_k = a / (k + 1 + stability) ** options["alpha"]
    if a_k * magnitude > 1:
        step.notes.append("shortened")
        a_k = 1 / magnitude
    z = [step.point[j] - a_k * g[j] for j in range(d)]  # (3)
    if options["blocking"] is None:
        return z, math.nan

    loss = (yield [z])[0]
    mean = sum(abs(l_plus - l_minus) for l_plus, l_minus in zip(losses[:n], losses[n:], strict=True)) / n
    if math.isfinite(loss) and loss <= step.loss + options["blocking"] * mean:
        step.notes.append("taken")
        return z, loss
    step.notes.append("given up")
    return step.point, step.loss
