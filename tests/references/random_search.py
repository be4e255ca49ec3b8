"""RandomSearch, equations (1) to (6) of its docstring, proposal by proposal and coordinate by coordinate."""

from __future__ import annotations

import math
import sys
from typing import Any

from tests.references.step import Conversation, Point, Step


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    n, d = options["popsize"], len(step.point)
    if options["proposal"] == "uniform":
        return (yield from uniform(step, n))

    x, f = state["center"], state["center_loss"]
    if step.changed or math.isnan(f):
        x, f = step.point, step.loss
    r, s, p = state["radius"], state["scales"], state["path"]
    normal, along = step.draw("normal", n, d), step.draw("normal", n, 1)
    gs = [[normal[i][j] + along[i][0] * p[j] for j in range(d)] for i in range(n)]
    xs = [step.mirror([x[j] + r * s[j] * g[j] for j in range(d)]) for g in gs]  # (1)
    fs = list((yield xs))
    succeeded = [i for i in range(n) if fs[i] < f]
    share = len(succeeded) / n

    if len(succeeded) > 1:
        step.notes.append("sum")
        g_best = gs[fs.index(min(fs))]
        g_0 = [sum(gs[i][j] for i in succeeded) for j in range(d)]
        a = norm(g_best) / norm(g_0)
        g_0 = [a * value for value in g_0]
        x_0 = step.mirror([x[j] + r * s[j] * g_0[j] for j in range(d)])  # (2)
        f_0 = (yield [x_0])[0]
        gs, xs, fs = [*gs, g_0], [*xs, x_0], [*fs, f_0]

    best = fs.index(min(fs))
    path = [0.9 * p_j for p_j in p]  # (6)
    if fs[best] < f:
        step.notes.append("success")
        x, f, g = xs[best], fs[best], gs[best]  # (3)
        u = [min(max(value, -5.0), 5.0) for value in g]
        s = [s[j] * math.exp(0.05 * (abs(u[j]) - math.sqrt(2 / math.pi)) / d) for j in range(d)]
        geometric_mean = math.prod(s) ** (1 / d)
        s = [s_j / geometric_mean for s_j in s]  # (5)
        path = [path[j] + math.sqrt(1 - 0.9**2) * u[j] / math.sqrt(d) for j in range(d)]  # (6)
    aim = options["success_rate"]
    if aim is None:
        aim = 0.4 if step.changed else 0.2
    r = r * math.exp(share - aim)  # (4)

    state.update(center=x, center_loss=f, radius=r, scales=s, path=path)
    point, loss = (x, f) if f < step.loss else (step.point, step.loss)
    if options["restarts"] and r * max(s) < sys.float_info.epsilon**0.75:
        step.notes.append("restart")
        state.update(radius=1.0, scales=[1.0] * d, path=[0.0] * d)
        if step.changed:
            state.update(center=point, center_loss=math.nan)
        else:
            state.update(center=step.anywhere(1)[0], center_loss=math.inf)
    return point, loss


def uniform(step: Step, n: int) -> Conversation:
    d = len(step.point)
    assert step.lower is not None
    assert step.upper is not None
    xs = []
    for u in step.draw("uniform", n, d):
        x = []
        for j in range(d):
            frozen = math.isinf(step.lower[j])
            x.append(step.point[j] if frozen else step.lower[j] + u[j] * (step.upper[j] - step.lower[j]))
        xs.append(x)
    fs = yield xs
    return step.better(xs, fs)


def norm(g: Point) -> float:
    return math.sqrt(sum(value**2 for value in g))
