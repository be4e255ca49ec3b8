"""One step as a reference sees it: plain numbers and lists, and the random numbers that the fast algorithm drew."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_gfo.search import Search

Point = list[float]
Conversation = Generator[list[Point], list[float], tuple[Point, float]]


@dataclass(frozen=True)
class Recording(Search):
    """A ``Search`` that remembers what was drawn."""

    draws: list[tuple[str, tuple[int, ...], Tensor]] = field(default_factory=list)

    def _record(self, kind: str, shape: tuple[int, ...], drawn: Tensor) -> Tensor:
        self.draws.append((kind, shape, drawn.clone()))
        return drawn

    def normal(self, *shape: int) -> Tensor:
        return self._record("normal", shape, super().normal(*shape))

    def uniform(self, *shape: int) -> Tensor:
        return self._record("uniform", shape, super().uniform(*shape))

    def integers(self, high: int, *shape: int) -> Tensor:
        return self._record("integers", (high, *shape), super().integers(high, *shape))

    def permutation(self, n: int) -> Tensor:
        return self._record("permutation", (n,), super().permutation(n))


@dataclass
class Step:
    """What ``Search`` is, without tensors.

    Attributes:
        recorded: The random numbers, to be asked for in the same order and shape.
        notes: What the reference did, for tests that must know that a branch was taken.
    """

    point: Point
    loss: float
    changed: bool
    drift: float
    lower: Point | None
    upper: Point | None
    unit: Point
    deterministic: bool
    recorded: list[tuple[str, tuple[int, ...], Tensor]]
    shapes: list[tuple[int, ...]] | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def replaying(cls, search: Recording) -> Step:
        lower, upper = (None if side is None else side.tolist() for side in (search.lower, search.upper))
        point, loss, drift = search.point.tolist(), float(search.loss), float(search.drift)
        unit = torch.as_tensor(search.unit, dtype=search.dtype).expand_as(search.point).tolist()
        surroundings = (lower, upper, unit, search.deterministic)
        shapes = None if search.shapes is None else list(search.shapes)
        return cls(point, loss, search.changed, drift, *surroundings, search.draws, shapes)

    def draw(self, kind: str, *shape: int) -> Any:
        """The next recorded numbers, as nested lists; a seed stands for rows of them, one for each integer from it."""
        recorded_kind, recorded_shape, drawn = self.recorded.pop(0)
        if (recorded_kind, recorded_shape) == ("integers", (2**62,)):
            n, dim = shape[-2:]
            rngs = [torch.Generator().manual_seed(int(drawn) + i) for i in range(n)]
            if kind == "normal":
                return [torch.randn(dim, generator=rng, dtype=torch.float64).tolist() for rng in rngs]
            return [torch.randint(*shape[:-2], (dim,), generator=rng).tolist() for rng in rngs]
        assert (kind, shape) == (recorded_kind, recorded_shape)
        return drawn.tolist()

    def mirror(self, z: Point) -> Point:
        """Mirrors coordinates at the walls, one after the other, until none lies outside."""
        inside = list(z)
        for i in range(len(z)):
            if self.lower is None or self.upper is None:
                continue
            while not self.lower[i] <= inside[i] <= self.upper[i]:
                wall = self.lower[i] if inside[i] < self.lower[i] else self.upper[i]
                inside[i] = 2 * wall - inside[i]
        return inside

    def anywhere(self, n: int) -> list[Point]:
        """Points anywhere in the box; normal about zero in coordinates without two walls."""
        d = len(self.point)
        normal = self.draw("normal", n, d)
        if self.lower is None or self.upper is None:
            return normal
        u = self.draw("uniform", n, d)
        points = [self.mirror(row) for row in normal]
        for j, (low, high) in enumerate(zip(self.lower, self.upper, strict=True)):
            if math.isfinite(high - low):
                for i in range(n):
                    points[i][j] = low + u[i][j] * (high - low)
        return points

    def renewed(self, losses: list[float]) -> list[float]:
        """Remembered losses on this step's objective; when the search begins, only the first point's is known."""
        if all(loss == math.inf for loss in losses):
            return [self.loss, *losses[1:]]
        return [loss + self.drift for loss in losses]

    def better(self, candidates: list[Point], losses: list[float]) -> tuple[Point, float]:
        """The best candidate, if it beats the model's point, else that."""
        best = losses.index(min(losses))
        return (candidates[best], losses[best]) if losses[best] < self.loss else (self.point, self.loss)

    def recommended(self, mean: Point, candidates: list[Point], losses: list[float]) -> tuple[Point, float]:
        """The mean, whose loss is not known; the best point known, where the objective never changes."""
        return self.better(candidates, losses) if self.deterministic else (mean, math.nan)


def plain(state: dict[str, Any]) -> dict[str, Any]:
    """A state with lists for tensors."""
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in state.items()}


def assert_close(actual: Any, expected: Any, where: str) -> None:
    """Equal up to rounding: in float64, sums of fewer than a hundred terms of order one, in a few moves."""
    actual, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (actual, expected))
    torch.testing.assert_close(
        actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True, msg=lambda message: f"{where}: {message}"
    )
