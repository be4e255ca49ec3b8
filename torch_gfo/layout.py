"""Perturbations of low rank: how a few numbers stand for a perturbation of every tensor.

* B. Sarkar et al., "Evolution strategies at the hyperscale", 2025, https://arxiv.org/abs/2511.16652: perturbations of
  low rank, ``E = A B^T / sqrt(r)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["Layout"]


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

    def draw(
        self, draw: Callable[[int, int], Tensor], n: int, directions: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """Draws ``n`` perturbations, ``(n, n_numbers)``, whose entries have mean zero and variance one.

        Args:
            draw: Gives ``(n, k)`` independent numbers of mean zero and variance one.
            n: How many.
            directions: Of each tensor, ``(k, n)``: the rows of B are combinations of them, with such numbers; None
                where they are such numbers themselves.
        """
        if directions is None or not any(d is not None for d in directions):
            numbers = draw(n, self.n_numbers)
        else:
            numbers = self._combined(draw, n, directions)
        gains = [self._rank**-0.5 if factored else 1.0 for factored in self._factored]
        return numbers.mul_(self.spread(numbers.new_tensor(gains)))

    def _combined(self, draw: Callable[[int, int], Tensor], n: int, directions: Sequence[Tensor | None]) -> Tensor:
        pairs = [(None, d if f else None) for d, f in zip(directions, self._factored, strict=True)]
        given = [d for pair in pairs for d in pair]  # one for each piece
        sizes = [size if d is None else self._rank * len(d) for size, d in zip(self._pieces, given, strict=True)]
        drawn = draw(n, sum(sizes)).split_with_sizes(sizes, -1)
        pieces = [
            z if d is None else (z.view(n, self._rank, -1) @ d).flatten(1) for z, d in zip(drawn, given, strict=True)
        ]
        return torch.cat(pieces, -1)

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

    def dense(self, numbers: Tensor) -> Tensor:
        """The perturbations ``(..., dim)`` of all tensors, their products formed."""
        parts = [
            part if isinstance(part, Tensor) else (part[0].mT @ part[1]).flatten(-2) for part in self.parts(numbers)
        ]
        return torch.cat(parts, -1)
