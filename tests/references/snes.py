"""SNES, equations (1) to (5) of its docstring, candidate by candidate and coordinate by coordinate."""

from __future__ import annotations

import math
from typing import Any

from tests.references.recombination import utilities
from tests.references.step import Conversation, Step


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    n, m, s = len(step.point), state["mean"], state["scales"]
    popsize = options["popsize"] or 4 + math.floor(3 * math.log(n))
    sigma_rate = options["sigma_rate"]
    if sigma_rate is None:
        sigma_rate = (3 + math.log(n)) / (5 * math.sqrt(n))
    if step.lower is not None and step.upper is not None:
        for j in range(n):
            widest = (step.upper[j] - step.lower[j]) / 3
            if s[j] > widest:
                step.notes.append("narrow box")
            s[j] = min(s[j], widest)

    if options["antithetic"]:
        popsize += popsize % 2
        half = step.draw("normal", popsize // 2, n)
        zs = half + [[-value for value in z] for z in half]
    else:
        zs = step.draw("normal", popsize, n)
    xs = [step.mirror([m[j] + s[j] * z[j] for j in range(n)]) for z in zs]  # (1)
    fs = list((yield xs))

    u = utilities(fs)  # (2)
    c = options["mean_rate"] or (1 if step.deterministic else 2)
    if not step.deterministic:
        c /= math.sqrt(1 + options["mean_decay"] * state["n_updates"])  # (5)
    m = [m[j] + c * s[j] * sum(u[i] * zs[i][j] for i in range(popsize)) for j in range(n)]  # (3)
    growth = [sum(u[i] * (zs[i][j] ** 2 - 1) for i in range(popsize)) for j in range(n)]
    s = [s[j] * math.exp(sigma_rate / 2 * growth[j]) for j in range(n)]  # (4)
    state["n_updates"] += 1
    state["scales"] = s
    state["mean"] = m
    return step.recommended(step.mirror(m), xs, fs)
