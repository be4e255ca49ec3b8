"""NelderMead, the moves of its docstring, vertex by vertex and coordinate by coordinate."""

from __future__ import annotations

import math
import sys
from typing import Any

from tests.references.step import Conversation, Point, Step


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    n = len(step.point)
    alpha, beta, gamma, delta = 1.0, 2.0, 0.5, 0.5
    if options["adaptive"] or (options["adaptive"] is None and n >= 10):
        k = max(n, 2)
        alpha, beta, gamma, delta = 1.0, 1 + 2 / k, 0.75 - 1 / (2 * k), 1 - 1 / k

    def towards(origin: Point, factor: float, to: Point) -> Point:
        """origin + factor (to - origin), inside the box."""
        return step.mirror([origin[j] + factor * (to[j] - origin[j]) for j in range(n)])

    vertices = [(f, x) for f, x in zip(state["losses"], state["simplex"], strict=True)]
    budget = 1
    fresh = all(f == math.inf for f, _ in vertices)
    if fresh:
        signs = step.draw("integers", 2, n)
        vertices = [(math.inf, step.mirror(x)) for x in regular_simplex(state["start"], signs)]
    if fresh or step.changed:
        step.notes.append("evaluation of all")
        budget = n
        points = [x for _, x in vertices]
        if points[0] == step.point:
            losses = [step.loss, *(yield points[1:])]
        else:
            losses = yield points
        vertices = list(zip(losses, points, strict=True))

    spent = 0
    while spent < budget:
        vertices.sort(key=lambda vertex: vertex[0])
        f_1, f_n, f_worst = vertices[0][0], vertices[-2][0], vertices[-1][0]
        c = [sum(x[j] for _, x in vertices[:-1]) / n for j in range(n)]
        x_r = towards(c, -alpha, vertices[-1][1])
        (f_r,) = yield [x_r]
        spent += 1
        if f_1 <= f_r < f_n:
            step.notes.append("reflection")
            vertices[-1] = (f_r, x_r)
        elif f_r < f_1:
            x_e = towards(c, beta, x_r)
            (f_e,) = yield [x_e]
            spent += 1
            step.notes.append("expansion" if f_e < f_r else "reflection after expansion")
            vertices[-1] = (f_e, x_e) if f_e < f_r else (f_r, x_r)
        else:
            where = "outside" if f_r < f_worst else "inside"
            x_c = towards(c, gamma if where == "outside" else -gamma, x_r)
            (f_c,) = yield [x_c]
            spent += 1
            if f_c < f_r and f_c < f_worst:
                step.notes.append(f"{where} contraction")
                vertices[-1] = (f_c, x_c)
            else:
                step.notes.append("shrinkage")
                x_1 = vertices[0][1]
                shrunk = [towards(x_1, delta, x) for _, x in vertices[1:]]
                losses = yield shrunk
                spent += n
                vertices = [vertices[0], *zip(losses, shrunk, strict=True)]

    vertices.sort(key=lambda vertex: vertex[0])
    f_1, x_1 = vertices[0]
    state["losses"], state["simplex"] = [f for f, _ in vertices], [x for _, x in vertices]
    point, loss = (x_1, f_1) if f_1 < step.loss else (step.point, step.loss)
    if options["restarts"] and collapsed(state["simplex"], state["losses"]):
        state["losses"] = [math.inf] * (n + 1)
        if step.changed or loss < state["best_at_start"]:
            step.notes.append("restart at the best point")
            state["start"] = point
        else:
            step.notes.append("restart elsewhere")
            (state["start"],) = step.anywhere(1)
        state["best_at_start"] = loss
    return point, loss


def regular_simplex(start: Point, signs: list[int]) -> list[Point]:
    """Spendley, Hext and Himsworth: edges of length one."""
    n = len(start)
    p = (math.sqrt(n + 1) + n - 1) / (n * math.sqrt(2))
    q = (math.sqrt(n + 1) - 1) / (n * math.sqrt(2))
    vertices = [list(start)]
    for i in range(n):
        vertices.append([start[j] + (1 if signs[j] else -1) * (p if i == j else q) for j in range(n)])
    return vertices


def collapsed(x: list[Point], f: list[float]) -> bool:
    epsilon = sys.float_info.epsilon
    extent = max(abs(vertex[j] - x[0][j]) for vertex in x for j in range(len(x[0])))
    return f[-1] - f[0] <= epsilon**0.85 * abs(f[0]) or extent <= epsilon**0.75
