"""XNES, equations (1) to (6) of its docstring, candidate by candidate and coordinate by coordinate."""

from __future__ import annotations

import math
from typing import Any

from tests.references.cma_es import composed, eigen
from tests.references.recombination import length, times, utilities
from tests.references.step import Conversation, Point, Step

Matrix = list[Point]


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    n, m, sigma, b = len(step.point), state["mean"], state["step_size"], state["shape"]
    popsize = options["popsize"] or 4 + math.floor(3 * math.log(n))
    usual = 3 / 5 * (3 + math.log(n)) / n**1.5
    sigma_rate, shape_rate = (usual if options[x] is None else options[x] for x in ("sigma_rate", "shape_rate"))
    if step.lower is not None and step.upper is not None:
        for j in range(n):
            widest = (step.upper[j] - step.lower[j]) / (3 * length(b[j]))
            if sigma > widest:
                step.notes.append("narrow box")
            sigma = min(sigma, widest)

    zs = step.draw("normal", popsize, n)
    xs = [step.mirror([m[j] + sigma * value for j, value in enumerate(times(b, z))]) for z in zs]  # (1)
    fs = list((yield xs))

    u, each = utilities(fs), range(popsize)
    g_delta = [sum(u[i] * zs[i][j] for i in each) for j in range(n)]
    g_m = [[sum(u[i] * (zs[i][a] * zs[i][c] - (a == c)) for i in each) for c in range(n)] for a in range(n)]  # (2)
    g_sigma = sum(g_m[j][j] for j in range(n)) / n
    g_b = [[g_m[a][c] - g_sigma * (a == c) for c in range(n)] for a in range(n)]  # (3)
    step_of_mean = times(b, g_delta)
    m = [m[j] + options["mean_rate"] * sigma * step_of_mean[j] for j in range(n)]  # (4)
    sigma *= math.exp(sigma_rate / 2 * g_sigma)  # (5)
    b = product(b, exponential([[shape_rate / 2 * value for value in row] for row in g_b]))  # (6)
    state.update(mean=m, step_size=sigma, shape=b)
    return step.recommended(step.mirror(m), xs, fs)


def product(a: Matrix, b: Matrix) -> Matrix:
    columns = list(zip(*b, strict=True))
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in columns] for row in a]


def exponential(a: Matrix) -> Matrix:
    values, vectors = eigen(a)
    return composed([math.exp(value) for value in values], vectors)
