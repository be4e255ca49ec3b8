"""How many evaluations it takes to find a minimum."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import seeded
from tests.registry import ENTRIES, Entry

DIM, TARGET = 5, 1e-8


def sphere(x: Tensor) -> Tensor:
    return x.square().sum(-1)


def ellipsoid(x: Tensor) -> Tensor:
    """Axes of lengths 1 to 1000."""
    return (10 ** torch.linspace(0, 6, DIM, dtype=x.dtype) * x.square()).sum(-1)


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(-1)


OBJECTIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "sphere": sphere,
    "ellipsoid": ellipsoid,
    "rosenbrock": rosenbrock,
}

BUDGETS = [
    pytest.param(entry, name, budget, id=f"{entry}-{name}")
    for entry in ENTRIES
    for name, budget in entry.budgets.items()
]


def evaluations_to_target(entry: Entry, name: str, seed: int, limit: int) -> int:
    """Searches from a random start in [-2, 2]; counts evaluations until the best loss is below the target."""
    with seeded(seed):
        x = nn.Parameter(4 * torch.rand(DIM, dtype=torch.float64) - 2)
    optimizer = entry.make([x], seed=seed, deterministic=True)
    target = entry.targets.get(name, TARGET)
    while optimizer.best_loss > target and optimizer.evaluations < limit:
        optimizer.tell(OBJECTIVES[name](optimizer.ask()))
    return optimizer.evaluations if optimizer.best_loss <= target else limit + 1


@pytest.mark.parametrize(("searcher", "name", "budget"), BUDGETS)
def test_minima(searcher: Entry, name: str, budget: int) -> None:
    """The median of five seeds reaches 1e-8, or the registry's own target, in five dimensions within its budget."""
    needed = [evaluations_to_target(searcher, name, seed, 2 * budget) for seed in range(5)]
    assert statistics.median(needed) <= budget, needed


def test_every_objective_has_a_budget(entry: Entry) -> None:
    """No optimizer leaves out an objective."""
    assert set(entry.budgets) == set(OBJECTIVES)
