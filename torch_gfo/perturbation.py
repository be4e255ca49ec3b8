"""Populations: candidates around one common point, and what an estimate of the gradient makes of them.

A population knows its length, parts of itself (for chunks), its candidates as dense rows, and the weighted sum of its
perturbations. ``Dense`` holds a number for each
coordinate. ``LowRank`` holds few numbers for each candidate: a matrix of
shape ``(m, n)`` is perturbed by ``A^T B`` with ``r`` rows each, ``r (m + n)`` numbers instead of ``m n``; it is
evaluated, and summed up, without ever forming the product (see ``products.py``).

* B. Sarkar et al., "Evolution strategies at the hyperscale", 2025, https://arxiv.org/abs/2511.16652: perturbations of
  low rank, ``E = A B^T / sqrt(r)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torch_gfo.search import Search

__all__ = [
    "Candidates",
    "Dense",
    "Layout",
    "LowRank",
    "Population",
    "as_rows",
    "n_drawn",
    "perturbed",
    "rank_of",
]


class Population(ABC):
    """Candidates ``c + E_i``, i = 1, ..., P, around a common point ``c``, in search coordinates or as parameters."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of candidates."""

    @abstractmethod
    def rows(self) -> Tensor:
        """The candidates as dense rows ``(P, dim)``."""

    @abstractmethod
    def weighted_sum(self, weights: Tensor) -> Tensor:
        """The sum ``(dim,)`` of the perturbations ``E_i``, with weights ``(P,)``."""


@dataclass(frozen=True)
class Dense(Population):
    """Candidates ``center + scale * (numbers - origin)``, whose rows are made when they are asked for.

    Whoever asks for a few at a time, in chunks, makes them in the cache; all of them at once are new memory, which
    takes longer to get than to fill.

    Attributes:
        center: ``(dim,)``, the common point.
        numbers: ``(P, dim)``, the perturbations, or coordinates.
        scale: 0-d or ``(dim,)``; None for one.
        origin: ``(dim,)``, the coordinates of the common point; None where the numbers are perturbations.
    """

    center: Tensor
    numbers: Tensor
    scale: Tensor | None = None
    origin: Tensor | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: slice | Tensor) -> Dense:
        return replace(self, numbers=self.numbers[index])

    def __iter__(self) -> Iterator[Tensor]:
        """Yields the candidates one after the other."""
        return (self[i : i + 1].rows()[0] for i in range(len(self)))

    @property
    def dtype(self) -> torch.dtype:
        """That of the rows."""
        return self.center.dtype

    @property
    def device(self) -> torch.device:
        """That of the rows."""
        return self.center.device

    def rows(self, out: Tensor | None = None) -> Tensor:
        """The candidates, in memory of their own or in ``out``."""
        if self.origin is None:
            scale = self.center.new_ones(()) if self.scale is None else self.scale
            return torch.addcmul(self.center, self.numbers, scale, out=out)
        displacement = torch.sub(self.numbers, self.origin, out=out)
        return (displacement if self.scale is None else displacement.mul_(self.scale)).add_(self.center)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """One product."""
        total = weights @ self.numbers
        if self.origin is not None:
            total = total - weights.sum() * self.origin
        return total if self.scale is None else total * self.scale

    def placed(self, center: Tensor, scale: Tensor) -> Dense:
        """The same perturbations around another point, each multiplied by ``scale``, 0-d or ``(dim,)``."""
        return replace(self, center=center, scale=scale if self.scale is None else self.scale * scale)


class Layout:
    """How a few numbers stand for a perturbation of every tensor.

    A tensor of at least two dimensions is seen as a matrix ``(m, n)``, m being its first dimension, and perturbed by
    ``A^T B`` with A ``(r, m)`` and B ``(r, n)`` where that saves numbers; any other is perturbed by as many numbers as
    it has. The numbers of a candidate are those of the first tensor, A before B, then those of the second, and so on.

    Args:
        shapes: The shapes of the tensors.
        rank: The number r of rows of A and B.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], rank: int) -> None:
        self.sizes = [math.prod(shape) for shape in shapes]
        self._rank = rank
        self._factored = [
            len(shape) >= 2 and rank * (shape[0] + size // shape[0]) < size
            for shape, size in zip(shapes, self.sizes, strict=True)
        ]
        # Two pieces for each tensor: what is proportional to the perturbation (all of it, or A), and B.
        self._pieces: list[int] = []
        for shape, size, factored in zip(shapes, self.sizes, self._factored, strict=True):
            self._pieces += [rank * shape[0], rank * (size // shape[0])] if factored else [size, 0]

    @property
    def n_numbers(self) -> int:
        """How many numbers stand for one perturbation."""
        return sum(self._pieces)

    def draw(self, search: Search, n: int) -> Tensor:
        """Draws ``n`` perturbations, ``(n, n_numbers)``, whose entries have mean zero and variance one."""
        gains = [self._rank**-0.5 if factored else 1.0 for factored in self._factored]
        return search.normal(n, self.n_numbers).mul_(self.spread(search.point.new_tensor(gains)))

    def spread(self, factors: Tensor) -> Tensor:
        """The numbers ``(n_numbers,)`` by which to multiply, so that each tensor's perturbation has its factor."""
        both = torch.stack([factors, torch.ones_like(factors)], -1).flatten()
        pieces = torch.tensor(self._pieces, device=factors.device)
        return both.repeat_interleave(pieces, output_size=self.n_numbers)

    def parts(self, numbers: Tensor) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        """Yields, for each tensor, its perturbation ``(..., size)``, or A ``(..., r, m)`` and B ``(..., r, n)``."""
        pieces = numbers.split_with_sizes(self._pieces, -1)
        for factored, first, second in zip(self._factored, pieces[::2], pieces[1::2], strict=True):
            if factored:
                a, b = (piece.view(*piece.shape[:-1], self._rank, -1) for piece in (first, second))
                yield a, b
            else:
                yield first


@dataclass(frozen=True)
class LowRank(Population):
    """Candidates whose matrices are perturbed by products of two thin ones.

    Attributes:
        center: ``(dim,)``, the common point.
        numbers: ``(P, n_numbers)``, the perturbations.
        layout: How the numbers stand for perturbations.
    """

    center: Tensor
    numbers: Tensor
    layout: Layout

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: slice | Tensor) -> LowRank:
        return replace(self, numbers=self.numbers[index])

    def __iter__(self) -> Iterator[Tensor]:
        """Yields the candidates one after the other, dense."""
        return (self[i : i + 1].rows()[0] for i in range(len(self)))

    def split(self, size: int) -> list[LowRank]:
        """Splits the population into parts of a size, as ``torch.split``."""
        return [replace(self, numbers=numbers) for numbers in torch.split(self.numbers, size)]

    @property
    def dtype(self) -> torch.dtype:
        """That of the dense rows."""
        return self.center.dtype

    @property
    def device(self) -> torch.device:
        """That of the dense rows."""
        return self.center.device

    def rows(self) -> Tensor:
        """The candidates, their products formed."""
        parts = [
            part if isinstance(part, Tensor) else (part[0].mT @ part[1]).flatten(-2)
            for part in self.layout.parts(self.numbers)
        ]
        return torch.cat(parts, -1).add_(self.center)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """One product for each matrix, ``(m, P r)`` times ``(P r, n)``."""
        sums = []
        for part in self.layout.parts(self.numbers):
            if isinstance(part, Tensor):
                sums.append(weights @ part)
            else:
                a, b = part
                sums.append(((weights[:, None, None] * a).flatten(0, 1).T @ b.flatten(0, 1)).flatten())
        return torch.cat(sums)

    def placed(self, center: Tensor, scale: Tensor) -> LowRank:
        """The same perturbations around another point, each tensor's multiplied by its entry of ``scale``."""
        first = torch.tensor([0, *self.layout.sizes[:-1]], device=scale.device).cumsum(0)
        factors = self.layout.spread(scale.expand_as(center)[first])
        return replace(self, center=center, numbers=self.numbers * factors)


Candidates = Tensor | Dense | LowRank  # what can be evaluated


def perturbed(search: Search, popsize: int, *, mirrored: bool = False, rank: int | None = None) -> Population:
    """Draws candidates around the model's point, the entries of their perturbations with mean zero and variance one.

    Args:
        search: The step.
        popsize: Number of candidates, even where they are mirrored.
        mirrored: Whether the second half are the opposites of the first.
        rank: Of the perturbations of matrices; None for independent normal entries. Within bounds, whose walls mirror
            single coordinates, and in a subspace, which knows no matrices, all are independent.
    """
    x, n = search.point, popsize // (1 + mirrored)
    if rank is None or search.lower is not None:
        noise = search.normal(n, search.dim)
        if mirrored:
            noise = torch.cat([noise, -noise])
        return Dense(x, noise if search.lower is None else search.reflect(noise.add_(x)).sub_(x))
    layout = Layout([tuple(x.shape)] if search.shapes is None else search.shapes, rank)
    numbers = layout.draw(search, n)
    if mirrored:
        opposite = layout.spread(x.new_full((len(layout.sizes),), -1.0))
        numbers = torch.cat([numbers, numbers * opposite])
    return LowRank(x, numbers, layout)


def rank_of(group: dict[str, Any]) -> int | None:
    """The ``rank`` that ``perturbed`` takes, from the options ``perturbation`` and ``rank``."""
    return int(group["rank"]) if group["perturbation"] == "low_rank" else None


def n_drawn(dim: int, groups: Sequence[dict[str, Any]]) -> int:
    """How many numbers ``perturbed`` draws for one candidate of ``dim`` coordinates, from an optimizer's groups."""
    rank = rank_of(groups[0])
    if rank is None or groups[0]["subspace"] is not None or any(group["bounds"] is not None for group in groups):
        return dim
    shapes = [parameter.shape for group in groups for parameter in group["params"] if parameter.numel()]
    return Layout(shapes, rank).n_numbers


def as_rows(candidates: Tensor | Population) -> Tensor:
    """Candidates of any kind as dense rows ``(P, dim)``."""
    return candidates if isinstance(candidates, Tensor) else candidates.rows()
