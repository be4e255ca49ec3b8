"""GA, equations (1) to (3) of its docstring, member by member and coordinate by coordinate."""

from __future__ import annotations

import math
from typing import Any

from tests.references.step import Conversation, Point, Step

ETA = 15.0  # of SBX
ALPHA = 0.5  # of BLX


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    x, r = state["members"], state["radii"]
    f = step.renewed(state["losses"])
    n, dim = len(x), len(x[0])
    parents = choose_parents(step, n, **options)

    r_children = []
    for i, u in enumerate(step.draw("uniform", n)):
        mean_log = sum(math.log(r[k]) for k in parents[i]) / len(parents[i])
        factor = options["meta"] ** (2 * u - 1) if options["self_adaptive"] else 1.0
        r_children.append(min(max(math.exp(mean_log) * factor, 1e-30), 10.0))  # (3)

    if options["crossover"] == "centroid":
        children = around_the_centroid(step, x, parents, r_children)
    else:
        us = step.draw("uniform", n, dim) if options["crossover"] is not None else None
        noise = step.draw("normal", n, dim)
        children = []
        for i in range(n):
            a, b = x[parents[i][0]], x[parents[i][-1]]
            child = []
            for j in range(dim):
                between = a[j] if us is None else CROSSOVERS[options["crossover"]](a[j], b[j], us[i][j])
                child.append(between + r_children[i] * noise[i][j])
            children.append(child)
    children = [step.mirror(child) for child in children]

    losses = yield children

    everyone = list(zip(f + losses, x + children, r + r_children, strict=True))
    survivors = sorted(everyone, key=lambda member: member[0])[:n]
    state["losses"], state["members"], state["radii"] = (list(column) for column in zip(*survivors, strict=True))
    return step.better(children, losses)


def choose_parents(step: Step, n: int, **options: Any) -> list[list[int]]:
    """Members are sorted, so the better one has the lower number."""
    n_elite = max(2, round(options["elite"] * n))
    if options["crossover"] is None:
        n_parents = 1
    elif options["crossover"] == "centroid":
        n_parents = n_elite
    else:
        n_parents = 2
    if options["selection"] == "tournament":
        return [[min(pair) for pair in pairs] for pairs in step.draw("integers", n, n, n_parents, 2)]
    parents = []
    for keys in step.draw("uniform", n, n_elite):
        in_random_order = sorted(range(n_elite), key=lambda k: keys[k])
        parents.append(in_random_order[:n_parents])
    return parents


def around_the_centroid(step: Step, x: list[Point], parents: list[list[int]], r: list[float]) -> list[Point]:
    n, dim = len(x), len(x[0])
    m = min(1.0, (n - 1) / (4 * dim))
    xi, noise = step.draw("normal", n, n), step.draw("normal", n, dim)
    children = []
    for i in range(n):
        child = []
        for j in range(dim):
            centroid = sum(x[k][j] for k in parents[i]) / len(parents[i])
            mean = sum(x[k][j] for k in range(n)) / n
            b = 1.6 * math.sqrt(m) * sum(xi[i][k] * (x[k][j] - mean) for k in range(n)) / math.sqrt(n - 1)  # (2)
            child.append(centroid + b + math.sqrt(1 - m) * r[i] * noise[i][j])  # (1)
        children.append(child)
    return children


def uniform(a: float, b: float, u: float) -> float:
    return a if u < 0.5 else b


def sbx(a: float, b: float, u: float) -> float:
    """Deb and Agrawal: beta spreads the children about the parents' middle."""
    beta = (2 * u) ** (1 / (ETA + 1)) if u <= 0.5 else (1 / (2 * (1 - u))) ** (1 / (ETA + 1))
    return 0.5 * ((1 + beta) * a + (1 - beta) * b)


def blend(a: float, b: float, u: float) -> float:
    """Eshelman and Schaffer: uniform between the ends of the extended interval."""
    start, end = a - ALPHA * (b - a), b + ALPHA * (b - a)
    return start + u * (end - start)


CROSSOVERS = {"uniform": uniform, "sbx": sbx, "blend": blend}
