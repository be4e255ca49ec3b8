"""The task of this folder's tests."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tests.helpers import Task, seeded


def larger(*, tanh: nn.Module | None = None, n_batches: int = 4, dtype: torch.dtype = torch.float32) -> Task:
    """A network 2-8-2 has to tell which of two numbers is the larger one."""
    with seeded():
        model = nn.Sequential(nn.Linear(2, 8), tanh or nn.Tanh(), nn.Linear(8, 2)).to(dtype)
        inputs = torch.randn(n_batches, 64, 2)
        targets = inputs.argmax(-1)
    return Task(model, inputs.to(dtype), targets)


def each_way(names: Iterable[str]) -> list[tuple[str, str]]:
    """Optimizers with the ways in which they evaluate candidates; MeZO has but one."""
    ways = {"MeZO": ["auto"]}
    return [(name, way) for name in names for way in ways.get(name, ["sequential", "vectorized"])]


@torch.no_grad()
def accuracy(task: Task, model: nn.Module | None = None) -> float:
    """The share of right answers on all minibatches."""
    outputs: Tensor = (model or task.model)(task.inputs.flatten(0, 1))
    return float((outputs.argmax(-1) == task.targets.flatten()).float().mean())
