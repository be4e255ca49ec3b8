"""EGGROLL, equations (1) to (4) of its docstring, candidate by candidate and entry by entry.

``shapes`` are those of the parameters, one after the other; without them all coordinates are one vector's.
"""

from __future__ import annotations

import math
from typing import Any

from tests.references import openai_es
from tests.references.gradient_steps import centred_ranks, descend
from tests.references.step import Conversation, Point, Step


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    if step.lower is not None:
        step.notes.append("walls")
        return (yield from openai_es.iterate(state, step, **options))
    x, dim, n = step.point, len(step.point), options["popsize"]
    shapes, r = step.shapes or [(dim,)], options["rank"]
    factored = [len(shape) > 1 and r * (shape[0] + math.prod(shape[1:])) < math.prod(shape) for shape in shapes]
    counts = [
        r * (shape[0] + math.prod(shape[1:])) if low else math.prod(shape)
        for shape, low in zip(shapes, factored, strict=True)
    ]
    n_drawn = n // 2 if options["mirrored"] else n
    e = []
    for numbers in step.draw("normal", n_drawn, sum(counts)):
        row: Point = []
        for shape, low, count in zip(shapes, factored, counts, strict=True):
            own, numbers = numbers[:count], numbers[count:]
            row += matrix(own, shape[0], r) if low else own
        e.append(row)
    step.notes += ["low rank"] * any(factored)
    if options["mirrored"]:
        e += [[-e_ij for e_ij in row] for row in e]
    losses = yield [[x[j] + row[j] for j in range(dim)] for row in e]  # (2)
    ranks = centred_ranks(losses)
    g = [sum(ranks[i] * e[i][j] for i in range(n)) / n for j in range(dim)]  # (3)
    u = descend(state, g, update=options["update"], momentum=options["momentum"])
    return [x[j] + step.unit[j] * u[j] for j in range(dim)], math.nan  # (4)


def matrix(numbers: Point, m: int, r: int) -> Point:
    """(1): E = A B^T / sqrt(r), row by row, of the columns of A and then of B."""
    columns_a = [numbers[k * m : (k + 1) * m] for k in range(r)]
    n = len(numbers) // r - m
    columns_b = [numbers[r * m + k * n : r * m + (k + 1) * n] for k in range(r)]
    return [sum(columns_a[k][i] * columns_b[k][j] for k in range(r)) / math.sqrt(r) for i in range(m) for j in range(n)]
