"""Small searches in float64 whose every step can be looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_gfo.optimizer import GradientFreeOptimizer

Objective = Callable[[Tensor], Tensor]  # (..., dim) -> (...)


def sphere(x: Tensor) -> Tensor:
    return x.square().sum(-1)


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(-1)


def ellipsoid(x: Tensor) -> Tensor:
    return (10.0 ** torch.arange(x.shape[-1], dtype=x.dtype) * x.square()).sum(-1)


def two_wells(x: Tensor) -> Tensor:
    """A local minimum of 1 at the origin, the minimum of 0 at 3 in every coordinate."""
    return torch.minimum(sphere(x) + 1, 4 * sphere(x - 3))


def build(cls: type[GradientFreeOptimizer], start: Sequence[float] | Tensor, **options: Any) -> GradientFreeOptimizer:
    make: Any = cls
    x = nn.Parameter(torch.as_tensor(start, dtype=torch.float64).clone())
    optimizer: GradientFreeOptimizer = make([x], **{"seed": 0, "sigma": 1.0, "evaluation": "sequential", **options})
    return optimizer


def rounds(optimizer: GradientFreeOptimizer, objective: Callable[[Tensor, int], Tensor], n_steps: int) -> Iterator[Any]:
    """Makes steps by ``ask()`` and ``tell()``: gives ``(step, rows, losses)`` of each round, before they are told.

    The first round of a step looks at the model.
    """
    x = optimizer.param_groups[0]["params"][0]
    while (step := int(optimizer.state[x]["step"])) < n_steps:
        rows = optimizer.ask()
        losses = objective(rows, step)
        yield step, rows, losses
        optimizer.tell(losses)


def path(
    cls: type[GradientFreeOptimizer],
    objective: Objective,
    start: Sequence[float] | Tensor,
    n_steps: int = 25,
    *,
    luck: Callable[[int], float] = lambda step: 0.0,
    **options: Any,
) -> Tensor:
    """The model's points ``(n_steps + 1, dim)``; ``luck`` is added to all losses of a step."""
    optimizer = build(cls, start, **options)
    x = optimizer.param_groups[0]["params"][0]
    points = {}
    for step, _, _ in rounds(optimizer, lambda rows, step: objective(rows) + luck(step), n_steps):
        points[step] = x.detach().clone()  # as the step found it
    return torch.stack([*points.values(), x.detach()])
