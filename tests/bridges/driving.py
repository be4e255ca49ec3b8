"""Bridges driven step by step in search coordinates, in float64, where a bit of difference shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.search import Search, generator

DOUBLE = torch.float64


def bowl(z: Tensor) -> Tensor:
    weights = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    return (weights * (z - 0.3) ** 2).sum(-1)


def forbidden(z: Tensor) -> Tensor:
    """A bowl with a wall in it."""
    return torch.where(z[..., 0] > 0.2, math.inf, bowl(z))


class Driver:
    """An optimizer whose steps are made one by one.

    Args:
        cls: Its class.
        box: The sides of the box, in search coordinates.
    """

    def __init__(
        self, cls: Any, dim: int, *, box: tuple[float, float] | None = None, deterministic: bool = False, **options: Any
    ) -> None:
        x = nn.Parameter(torch.zeros(dim, dtype=DOUBLE))
        self.optimizer: GradientFreeOptimizer = cls([x], seed=0, deterministic=deterministic, **options)
        self.point = torch.zeros(dim, dtype=DOUBLE)
        self._sides = (None, None) if box is None else [torch.full((dim,), side, dtype=DOUBLE) for side in box]
        self._deterministic = deterministic
        self._remembered = torch.full((), math.nan, dtype=DOUBLE)
        self.state = {"step": 0, **self.optimizer._init_state(self._search(self.point[0], False))}

    def _search(self, loss: Tensor, changed: bool) -> Search:
        drift = (
            loss - self._remembered if changed and bool(torch.isfinite(self._remembered)) else torch.zeros_like(loss)
        )
        rng = generator(0, "test", 0, self.point.device)
        return Search(
            self.point,
            loss,
            changed,
            drift,
            rng,
            *self._sides,
            deterministic=self._deterministic,  # type: ignore[misc]
        )

    def step(self, objective: Callable[[Tensor], Tensor], *, changed: bool = False) -> tuple[Search, Tensor, Tensor]:
        """Makes one step; gives what the algorithm knew, its candidates and their losses."""
        search = self._search(objective(self.point), changed)
        state = dict(self.state)
        algorithm = self.optimizer._iterate(state, search)
        z = next(algorithm)
        losses = objective(z)
        try:
            algorithm.send(losses)
        except StopIteration as stop:
            point, loss = stop.value
        if bool(torch.isfinite(losses).any()):
            self.state, self.point, self._remembered = state, point, loss
        self.state["step"] += 1
        return search, z, losses


@contextmanager
def global_generator_restored() -> Iterator[None]:
    """A reference may seed NumPy's global generator."""
    before = np.random.get_state()
    yield
    np.random.set_state(before)
