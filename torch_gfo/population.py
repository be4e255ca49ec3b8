"""What a population is: candidates around one common point, whatever stands for them.

It knows its length, parts of itself (for chunks), its candidates as dense rows, and weighted sums of its perturbations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["Blockwise", "Population"]


class Population(ABC):
    """Candidates ``c + s E_i``, i = 1, ..., P, around a common point ``c``, in search coordinates or as parameters.

    Attributes:
        center: ``(dim,)``, c.
        scale: Of the numbers that were drawn; None for one.
    """

    center: Tensor
    scale: Tensor | None

    @abstractmethod
    def __len__(self) -> int:
        """The number of candidates."""

    @abstractmethod
    def __getitem__(self, index: slice | Tensor) -> Population:
        """Some of the candidates."""

    def __iter__(self) -> Iterator[Tensor]:
        """Yields the candidates one after the other, dense."""
        return (self[i : i + 1].rows()[0] for i in range(len(self)))

    def split(self, size: int) -> list[Population]:
        """Splits the population into parts of a size, as ``torch.split``."""
        return [self[i : i + size] for i in range(0, len(self), size)]

    @property
    def dtype(self) -> torch.dtype:
        """That of the dense rows."""
        return self.center.dtype

    @property
    def device(self) -> torch.device:
        """That of the dense rows."""
        return self.center.device

    @property
    def spread(self) -> Tensor:
        """The standard deviation s of each coordinate, 0-d or ``(dim,)``."""
        return self.center.new_ones(()) if self.scale is None else self.scale

    @abstractmethod
    def rows(self, out: Tensor | None = None) -> Tensor:
        """The candidates as dense rows ``(P, dim)``, in memory of their own; in ``out`` where that saves some."""

    @abstractmethod
    def placed(self, center: Tensor, scale: Tensor) -> Population:
        """The same perturbations around another point, multiplied by ``scale``, 0-d or ``(dim,)``."""

    @abstractmethod
    def weighted_sum(self, weights: Tensor) -> Tensor:
        """The sum ``(dim,)`` of the perturbations ``E_i``, with weights ``(P,)``."""

    @abstractmethod
    def moments(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum, and that of the squares of all numbers that were drawn, each in units of its scale."""


class Blockwise(Population):
    """A population that sums up dense perturbations, a block at a time."""

    @abstractmethod
    def _blocks(self, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields weights ``(n,)`` and perturbations ``(n, dim)`` of so many candidates at a time."""

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """One product for each block."""
        total = torch.zeros_like(self.center)
        for w, e in self._blocks(weights):
            total += w @ e
        return total

    def moments(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Both ``(dim,)``, from one pass."""
        total, squares = torch.zeros_like(self.center), torch.zeros_like(self.center)
        for w, e in self._blocks(weights):
            total += w @ e
            squares += w @ e.square()
        return total, squares
