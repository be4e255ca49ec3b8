"""SimulatedAnnealing, equations (1) to (7) of its docstring, proposal by proposal and coordinate by coordinate."""

from __future__ import annotations

import math
import sys
from typing import Any

from tests.references.step import Conversation, Step


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    n, d = options["popsize"], len(step.point)
    x, f, r, s, t = (state[name] for name in ("current", "current_loss", "radius", "lengths", "temperature"))
    if step.changed or math.isnan(f):
        x, f = step.point, step.loss
    normal = step.draw("normal", n, d)
    xs = [step.mirror([x[j] + r * s[j] * normal[i][j] for j in range(d)]) for i in range(n)]  # (2)
    fs, f_0 = (yield xs), f

    if math.isnan(t) and options["temperature"] is not None:
        t = options["temperature"]
    elif math.isnan(t):
        rises = [f_i - f for f_i in fs if f < f_i < math.inf]
        if rises:
            t = sum(rises) / len(rises) / math.log(5)  # (1)
        step.notes.append("measured" if rises else "nothing rises")

    uniform = step.draw("uniform", n)
    accepted = []
    for i in range(n):
        if fs[i] < f:
            step.notes.append("down")
            accepted.append(i)
        elif fs[i] < math.inf and t > 0 and uniform[i] < math.exp(-(fs[i] - f) / t):  # (3)
            step.notes.append("up" if fs[i] > f else "level")
            accepted.append(i)

    if accepted:
        best = min(accepted, key=lambda i: fs[i])
        step.notes.append("the model gets worse" if fs[best] > f else "the model gets no worse")
        x, f = xs[best], fs[best]  # (4)
        s = [s[j] * math.exp(0.05 / d * (abs(normal[best][j]) - math.sqrt(2 / math.pi))) for j in range(d)]
        mean = math.prod(s) ** (1 / d)
        s = [s_j / mean for s_j in s]  # (6)
    acceptance = options["acceptance"]
    if acceptance is None:
        acceptance = 0.4 if step.changed else 0.2
    r *= math.exp(len(accepted) / n - acceptance)  # (5)
    if r > 10:
        step.notes.append("largest radius")
        r = 10.0
    state.update(current=x, current_loss=f, radius=r, lengths=s, temperature=options["cooling"] * t)  # (7)

    point, loss = step.better(xs, fs) if step.deterministic else (x, f)
    epsilon = sys.float_info.epsilon
    rounding = epsilon**0.85 * abs(f)
    frozen = state["temperature"] <= rounding and all(abs(f_i - f_0) <= rounding for f_i in fs)
    if frozen:
        step.notes.append("frozen")
    if options["restarts"] and (frozen or r * max(s) < epsilon**0.75):
        step.notes.append("elsewhere" if step.deterministic else "wider")
        state.update(radius=1.0, lengths=[1.0] * d)
        if step.deterministic:
            (anywhere,) = step.anywhere(1)
            state.update(current=anywhere, current_loss=math.inf, temperature=math.nan)
    return point, loss
