"""MeZO, equations (1) to (4) of its docstring, parameter by parameter and number by number."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

Values = list[list[float]]  # of each parameter


def iterate(
    state: dict[str, Any], p: Values, z: list[Values], sigma: list[float], lr: list[float], decay: list[float]
) -> Generator[list[Values], list[float], tuple[Values, list[str]]]:
    """One step: asks for the losses of points, returns the next point, and the branches that it took.

    Args:
        state: ``k`` and ``magnitude``, which are renewed.
        p: The parameters.
        z: The noise of each probe.
        sigma: Of each parameter, as ``lr`` and ``decay``, its weight decay.
    """
    notes = []
    d, n = sum(len(values) for values in p), len(z)
    places = [(t, j) for t in range(len(p)) for j in range(len(p[t]))]
    points = []
    for z_i in z:
        for sign in (1, -1):
            points.append([[p[t][j] + sign * sigma[t] * z_i[t][j] for j in range(len(p[t]))] for t in range(len(p))])
    losses = yield points  # (1)

    pairs = list(zip(losses[::2], losses[1::2], strict=True))
    g: list[float | None] = [
        plus / 2 - minus / 2 if abs(plus) + abs(minus) < math.inf else None for plus, minus in pairs
    ]
    known = [g_i for g_i in g if g_i is not None]  # (2)
    typical = math.sqrt(sum(g_i**2 for g_i in known) / len(known)) if known else 0.0
    for i, (plus, minus) in enumerate(pairs):
        if g[i] is None and min(plus, minus) < math.inf:
            notes.append("away")
            g[i] = (typical or state["magnitude"] or 1.0) * (-1 if plus < minus else 1)
    used = [g_i for g_i in g if g_i is not None]
    if len(used) < n:
        notes.append("left out")

    of_noise = sum(g_i**2 for g_i in used) / max(1, len(used)) ** 2
    of_decay = sum((sigma[t] * decay[t] * p[t][j]) ** 2 for t, j in places) / d
    size = math.sqrt(of_noise + of_decay)
    if size == 0:
        return p, [*notes, "flat"]
    if known:
        state["k"] += 1
        if state["k"] <= 10:
            k = state["k"]
            state["magnitude"] = ((k - 1) * state["magnitude"] + size) / k
    m, r = state["magnitude"], min(1.0, (300 / d) ** 0.25)  # (4)
    if size > m:
        notes.append("shortened")
    moved = [list(values) for values in p]
    for t, j in places:
        entry = sum(g_i * z_i[t][j] for g_i, z_i in zip(g, z, strict=True) if g_i is not None) / max(1, len(used))
        entry += sigma[t] * decay[t] * p[t][j]
        moved[t][j] -= lr[t] * sigma[t] * r / max(m, size) * entry  # (3)
    return moved, notes
