"""EGGROLL, equations (1) to (6) of its docstring, candidate by candidate and entry by entry.

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
    x, s, dim, n = step.point, state["spread"], len(step.point), options["popsize"]
    n_drawn = n // 2 if options["mirrored"] else n
    e = [products(step, numbers, options["rank"]) for numbers in draw(step, "normal", n_drawn, rank=options["rank"])]
    if options["mirrored"]:
        e += [[-e_ij for e_ij in row] for row in e]
    losses = yield [[x[j] + s * row[j] for j in range(dim)] for row in e]  # (2)
    ranks = centred_ranks(losses)
    g = [sum(ranks[i] * e[i][j] for i in range(n)) / n for j in range(dim)]  # (3)
    u = descend(state, g, **{name: options[name] for name in ("update", "momentum", "lr_decay")})
    state["spread"] = openai_es.nearer(step, s, losses, options["sigma_lr"])  # (6)
    return [x[j] + step.unit[j] * u[j] for j in range(dim)], math.nan  # (4)


def draw(step: Step, kind: str, *shape: int, rank: int) -> list[Point]:
    """What stands for some perturbations, row by row."""
    factored = [is_factored(own, rank) for own in shapes(step)]
    step.notes += ["low rank"] * any(factored)
    rows: list[Point] = step.draw(kind, *shape, sum(count(own, rank) for own in shapes(step)))
    return rows


def products(step: Step, numbers: Point, r: int) -> Point:
    """The perturbation that numbers stand for, tensor by tensor."""
    row: Point = []
    for shape in shapes(step):
        own, numbers = numbers[: count(shape, r)], numbers[count(shape, r) :]
        row += matrix(own, shape[0], r) if is_factored(shape, r) else own
    return row


def shapes(step: Step) -> list[tuple[int, ...]]:
    return step.shapes or [(len(step.point),)]


def is_factored(shape: tuple[int, ...], r: int) -> bool:
    return len(shape) > 1 and r * (shape[0] + math.prod(shape[1:])) < math.prod(shape)


def count(shape: tuple[int, ...], r: int) -> int:
    return r * (shape[0] + math.prod(shape[1:])) if is_factored(shape, r) else math.prod(shape)


def matrix(numbers: Point, m: int, r: int) -> Point:
    """(1): E = A B^T / sqrt(r), row by row, of the columns of A and then of B."""
    columns_a = [numbers[k * m : (k + 1) * m] for k in range(r)]
    n = len(numbers) // r - m
    columns_b = [numbers[r * m + k * n : r * m + (k + 1) * n] for k in range(r)]
    return [sum(columns_a[k][i] * columns_b[k][j] for k in range(r)) / math.sqrt(r) for i in range(m) for j in range(n)]
