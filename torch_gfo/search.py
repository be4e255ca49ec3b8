"""What an algorithm knows while it makes one step: the model's point, its loss, the box, and random numbers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from torch_gfo.pages import Pages

__all__ = ["Search", "draw_normal", "generator"]

_MANY = 2**16  # numbers, from which on a CPU draws them from tables
_BLOCK = 2**18  # numbers that are made at a time, in the cache


def generator(seed: int, stream: str, index: int, device: torch.device) -> torch.Generator:
    """Returns a private generator for ``(seed, stream, index)``.

    Random numbers depend on these three alone: nothing reads or moves torch's global generators, a step can be
    replayed from its number, and there is no generator state to save.
    """
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "big") >> 1)


@lru_cache(maxsize=1)
def _quantiles() -> Tensor:
    """The 65,536 equally likely values of a normal number: quantiles, scaled to variance one; the largest is 4.3."""
    middles = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    values: Tensor = torch.special.ndtri(middles)
    return (values / values.square().mean().sqrt()).float()


def draw_normal(out: Tensor, rng: torch.Generator) -> Tensor:
    """Fills ``out``, contiguous, with standard normal numbers: many on a CPU in float32 with 16 random bits each."""
    return _draw_many(out, rng, normal=True) if _are_many(out) else out.normal_(generator=rng)


def _are_many(out: Tensor) -> bool:
    return out.numel() >= _MANY and out.dtype == torch.float32 and out.device.type == "cpu"


def _draw_many(out: Tensor, rng: torch.Generator, *, normal: bool) -> Tensor:
    """Fills ``out``, contiguous, with normal or uniform numbers of 16 random bits each, a block at a time.

    torch's generator yields 64 bits at the price of 32, and takes twice as long again to make them normal.
    """
    numbers = out.view(-1)
    size = min(_BLOCK, -(-len(numbers) // 4) * 4)
    bits = torch.empty(size // 4, dtype=torch.int64)
    indices = torch.empty(size, dtype=torch.int32)
    for block in torch.split(numbers, size):
        halves = bits.random_(-(2**63), None, generator=rng).view(torch.uint16)[: len(block)]
        if normal:
            torch.index_select(_quantiles(), 0, indices[: len(block)].copy_(halves), out=block)
        else:
            block.copy_(halves).add_(0.5).mul_(2.0**-16)
    return out


@dataclass(frozen=True)
class Search:
    """One step as an algorithm sees it, in unit coordinates (one unit = the radius ``sigma`` of the first exploration).

    Attributes:
        point: ``(dim,)``, the coordinates of the model's current parameters.
        loss: 0-d, the loss at ``point`` on this step's objective, ``inf`` where it is not finite, ``nan`` in
            ``_init_state``.
        changed: Whether the objective differs from the previous step's (another minibatch, another ``lr``), so that
            remembered losses are stale.
        drift: 0-d, by how much ``loss`` differs from the loss that the last step left at ``point``; 0 where the
            objective has not changed.
        rng: The private generator of this step.
        lower: ``(dim,)``, the lower sides of the box, or None where there are no bounds.
        upper: ``(dim,)``, the upper sides.
        unit: 0-d or ``(dim,)``, the length of one unit in parameter units.
        deterministic: Whether the objective is promised never to change.
        stride: 0-d or ``(dim,)``, by how many units the model moves for a step of one; 1 unless ``lr`` is its length.
        shapes: Of the tensors whose entries the coordinates are, in their order; None where they are no tensors'.
        pages: Where ``empty`` takes memory from.
        directions: Of the inputs of each tensor, ``(k, n)``, see ``inputs.whitened``; None of those that are not known.
    """

    point: Tensor
    loss: Tensor
    changed: bool
    drift: Tensor
    rng: torch.Generator
    lower: Tensor | None = None
    upper: Tensor | None = None
    unit: Tensor | float = 1.0
    deterministic: bool = False
    stride: Tensor | float = 1.0
    shapes: Sequence[tuple[int, ...]] | None = None
    pages: Pages = field(default_factory=Pages)
    directions: Sequence[Tensor | None] | None = None

    @property
    def dim(self) -> int:
        """The number of search coordinates."""
        return self.point.numel()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the search coordinates: float32, or float64 where a parameter has it."""
        return self.point.dtype

    @property
    def device(self) -> torch.device:
        """The device of the search coordinates."""
        return self.point.device

    def renewed(self, losses: Tensor) -> Tensor:
        """Remembered losses ``(n,)`` as this step's objective would give them: shifted as the model's own.

        What all points share of a minibatch's luck so counts for none. When a search begins, with infinite losses, the
        first of its points is the model's.
        """
        if bool(torch.isinf(losses).all()):
            return torch.cat([self.loss[None], losses[1:]])
        return losses + self.drift

    def recommend(self, mean: Tensor, z: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """The model's next point, of an algorithm that samples ``z`` around a mean; and its loss, ``nan`` if unknown.

        It is the mean, which is better than any sample where losses are noisy. On an objective that never changes it is
        the best point known, whose loss need not be evaluated.
        """
        if not self.deterministic:
            return mean, torch.full_like(self.loss, math.nan)
        best = losses.argmin()
        return (z[best].clone(), losses[best]) if losses[best] < self.loss else (self.point, self.loss)

    def normal(self, *shape: int) -> Tensor:
        """Draws standard normal numbers; a large number of them on a CPU in float32 with 16 random bits each."""
        return draw_normal(self.empty(*shape), self.rng)

    def uniform(self, *shape: int) -> Tensor:
        """Draws uniform numbers in [0, 1); a large number of them on a CPU in float32 with 16 random bits each."""
        out = self.empty(*shape)
        return _draw_many(out, self.rng, normal=False) if _are_many(out) else out.uniform_(generator=self.rng)

    def empty(self, *shape: int) -> Tensor:
        """Memory for a tensor; where it is large, it may be that of one which nobody refers to any more."""
        return self.pages.empty(shape, self.dtype, self.device)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draws uniform integers in [0, high)."""
        return torch.randint(high, shape, generator=self.rng, device=self.device)

    def permutation(self, n: int) -> Tensor:
        """Draws a permutation of 0, ..., n - 1."""
        return torch.randperm(n, generator=self.rng, device=self.device)

    def anywhere(self, n: int) -> Tensor:
        """Draws ``(n, dim)`` points to begin anew from: uniform within bounds, else normal about where it all began."""
        z = self.normal(n, self.dim)
        if self.lower is None or self.upper is None:
            return z
        inside = torch.lerp(self.lower, self.upper, self.uniform(n, self.dim))
        return torch.where(torch.isfinite(inside), inside, self.reflect(z))

    def reflect(self, z: Tensor) -> Tensor:
        """Mirrors coordinates at the sides of the box until they lie inside; the identity without bounds.

        Clamping would pile points up on the walls; mirroring keeps them spread, as inside the box.
        """
        if self.lower is None or self.upper is None:
            return z
        z = torch.where(z < self.lower, 2 * self.lower - z, z)  # one-sided walls, and the common near miss
        z = torch.where(z > self.upper, 2 * self.upper - z, z)
        width = self.upper - self.lower
        beyond = (z < self.lower) | (z > self.upper)  # farther out than a box's width: fold the triangle wave
        phase = torch.remainder(z - self.lower, 2 * width)
        folded = self.lower + torch.minimum(phase, 2 * width - phase)
        return torch.where(beyond, folded, z)
