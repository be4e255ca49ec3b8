"""DeepGA, equations (1) to (3) of its docstring, child by child and coordinate by coordinate, all children kept."""

from __future__ import annotations

from typing import Any

import torch

from tests.references.step import Conversation, Point, Step
from torch_gfo.search import generator


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    x, genomes, t = state["parents"], state["genomes"], state["generation"]
    dim, size, n_parents = len(step.point), options["popsize"], options["n_parents"]

    ks = step.draw("integers", n_parents, size)
    seeds = [s + 1 for s in step.draw("integers", 2**62, size)]
    children, their_genomes = [], []
    for k, s in zip(ks, seeds, strict=True):
        outside = [a + b for a, b in zip(x[k], noise(s, dim), strict=True)]
        children.append(step.mirror(outside))  # (1)
        if children[-1] != outside:
            step.notes.append("wall")
        genome = list(genomes[k])
        genome[t] = s
        their_genomes.append(genome)  # (2)

    losses = yield children

    members = [(step.loss, step.point, genomes[0], -1)]  # the elite comes first among equals
    members += zip(losses, children, their_genomes, ks, strict=True)
    best = sorted(members, key=lambda member: member[0])[:n_parents]  # (3)
    state["parents"] = [point for _, point, _, _ in best]
    state["genomes"] = [genome for _, _, genome, _ in best]
    state["generation"] = t + 1
    step.notes.append("the model stays" if best[0][3] == -1 else "the model moves")
    if best[0][3] > 0:
        step.notes.append("child of another parent")
    if all(k != -1 for *_, k in best):
        step.notes.append("the model is no parent")
    return step.better(children, losses)


def noise(seed: int, dim: int) -> Point:
    """The mutation of a seed."""
    rng = generator(seed, "mutation", 0, torch.device("cpu"))
    numbers: Point = torch.randn(dim, generator=rng, dtype=torch.float64).tolist()
    return numbers
