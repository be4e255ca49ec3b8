"""Populations: candidates around one common point, and what an estimate of the gradient makes of them.

``Dense`` holds rows of search coordinates. ``LowRank`` holds few numbers for each candidate: a matrix of
shape ``(m, n)`` is perturbed by ``A^T B`` with ``r`` rows each, ``r (m + n)`` numbers instead of ``m n``; it is
evaluated, and summed up, without ever forming the product (see ``products.py``). ``Seeded`` holds a seed for each
candidate, and draws its numbers whenever they are needed.

* B. Sarkar et al., "Evolution strategies at the hyperscale", 2025, https://arxiv.org/abs/2511.16652: perturbations of
  low rank, ``E = A B^T / sqrt(r)``.
* T. Salimans et al., "Evolution strategies as a scalable alternative to reinforcement learning", 2017,
  https://arxiv.org/abs/1703.03864: a perturbation is as good as its seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torch_gfo.layout import Layout
from torch_gfo.population import Blockwise, Population
from torch_gfo.search import Search, draw_normal

__all__ = [
    "Candidates",
    "Dense",
    "LowRank",
    "Population",
    "Seeded",
    "as_rows",
    "is_low_rank",
    "n_drawn",
    "perturbed",
    "unit_scale",
]

_BLOCK = 2**20  # numbers that a sum over drawn perturbations holds at a time, in the cache


@dataclass(frozen=True)
class Dense(Blockwise):
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

    def rows(self, out: Tensor | None = None) -> Tensor:
        """The candidates."""
        if self.origin is None:
            return torch.addcmul(self.center, self.numbers, self.spread, out=out)
        displacement = torch.sub(self.numbers, self.origin, out=out)
        return _multiplied(displacement, self.scale).add_(self.center)

    def placed(self, center: Tensor, scale: Tensor) -> Dense:
        """The same perturbations around another point, each multiplied by ``scale``, 0-d or ``(dim,)``."""
        return replace(self, center=center, scale=scale if self.scale is None else self.scale * scale)

    def _blocks(self, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        yield weights, self.numbers if self.origin is None else self.numbers - self.origin


@dataclass(frozen=True)
class LowRank(Population):
    """Candidates whose matrices are perturbed by products of two thin ones.

    Attributes:
        center: ``(dim,)``, the common point.
        numbers: ``(P, n_numbers)``, the perturbations.
        layout: How the numbers stand for perturbations.
        scale: Of each of the numbers, ``(n_numbers,)``; None for one.
    """

    center: Tensor
    numbers: Tensor
    layout: Layout
    scale: Tensor | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: slice | Tensor) -> LowRank:
        return replace(self, numbers=self.numbers[index])

    @property
    def spread(self) -> Tensor:
        """Of a matrix, the products of its numbers' scales."""
        return super().spread if self.scale is None else self.layout.dense(self.scale)

    def rows(self, out: Tensor | None = None) -> Tensor:
        """The candidates, their products formed."""
        return torch.add(self.layout.dense(self.numbers), self.center, out=out)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """One product for each matrix, ``(m, P r)`` times ``(P r, n)``."""
        sums = []
        for part in self.layout.parts(self._unscaled):
            if isinstance(part, Tensor):
                sums.append(weights @ part)
            else:
                a, b = part
                sums.append(((weights[:, None, None] * a).flatten(0, 1).T @ b.flatten(0, 1)).flatten())
        return torch.cat(sums)

    def moments(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum ``(dim,)``, and that of the squares of the numbers, ``(n_numbers,)``."""
        return self.weighted_sum(weights), weights @ self._unscaled.square()

    @property
    def _unscaled(self) -> Tensor:
        return self.numbers if self.scale is None else self.numbers / self.scale

    def placed(self, center: Tensor, scale: Tensor) -> LowRank:
        """The same perturbations around another point, each tensor's multiplied by its entry of ``scale``."""
        first = torch.tensor([0, *self.layout.sizes[:-1]], device=scale.device).cumsum(0)
        factors = self.layout.spread(scale.expand_as(center)[first])
        return replace(self, center=center, numbers=self.numbers * factors)


@dataclass(frozen=True)
class Seeded(Blockwise):
    """Candidates that are drawn from their seeds whenever they are asked for.

    What is drawn depends on the seed alone: it is the same for every chunk, in every sum, and on every rank.

    Attributes:
        center: ``(dim,)``, the common point.
        draws: ``(P, 2)``, the seed of each candidate and the sign of its perturbation, on the CPU.
        scale: s, 0-d or ``(dim,)``; None for one.
        signs: Whether perturbations are random signs, not normal numbers.
        mapping: What becomes of the rows, if they do not stay as they are.
    """

    center: Tensor
    draws: Tensor
    scale: Tensor | None = None
    signs: bool = False
    mapping: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, index: slice | Tensor) -> Seeded:
        return replace(self, draws=self.draws[index.cpu() if isinstance(index, Tensor) else index])

    def rows(self, out: Tensor | None = None) -> Tensor:
        """The candidates, drawn again."""
        rows = _multiplied(self._noise(out if self.mapping is None else None), self.scale).add_(self.center)
        return rows if self.mapping is None else self.mapping(rows)

    def placed(self, center: Tensor, scale: Tensor) -> Seeded:
        """The same perturbations around another point, multiplied by ``scale``, ``(dim,)``; before any mapping."""
        return replace(self, center=center, scale=scale if self.scale is None else self.scale * scale)

    def mapped(self, mapping: Callable[[Tensor], Tensor]) -> Seeded:
        """What a function makes of the rows, each for itself."""
        inner = self.mapping
        return replace(self, mapping=mapping if inner is None else lambda rows: mapping(inner(rows)))

    def _noise(self, out: Tensor | None = None) -> Tensor:
        """The perturbations ``(P, dim)``; mirrored ones that lie side by side are drawn once."""
        noise = self.center.new_empty(len(self), self.center.numel()) if out is None else out
        rng = torch.Generator(self.device)
        seed_before, sign_before = None, 1
        for i, (seed, sign) in enumerate(self.draws.tolist()):
            if seed == seed_before:
                torch.mul(noise[i - 1], sign * sign_before, out=noise[i])
            else:
                rng.manual_seed(seed)
                _fill(noise[i], rng, signs=self.signs)
                if sign < 0:
                    noise[i].neg_()
            seed_before, sign_before = seed, sign
        return noise

    def _blocks(self, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Draws what has a weight, a few candidates at a time, mirrored ones side by side."""
        chosen = weights.nonzero()[:, 0]
        chosen = chosen[self[chosen].draws[:, 0].argsort(stable=True).to(chosen.device)]
        for index in torch.split(chosen, max(2, _BLOCK // max(1, self.center.numel()))):
            part = self[index]
            if self.mapping is None:
                yield weights[index], part._noise()
            else:
                yield weights[index], _divided(part.rows().sub_(self.center), self.scale)


Candidates = Tensor | Population  # what can be evaluated


def perturbed(
    search: Search,
    popsize: int,
    perturbation: str = "dense",
    rank: int = 1,
    *,
    mirrored: bool = False,
    signs: bool = False,
    center: Tensor | None = None,
    scale: Tensor | None = None,
) -> Population:
    """Draws candidates around a point, the entries of their perturbations with mean zero and variance one.

    Args:
        search: The step.
        popsize: Number of candidates, even where they are mirrored.
        perturbation: One of ``PERTURBATIONS``. Within bounds, whose walls mirror single coordinates, and in a subspace,
            which knows no matrices, ``"low_rank"`` is ``"dense"``.
        rank: Of the perturbations of matrices, where they are of low rank.
        mirrored: Whether the second half are the opposites of the first.
        signs: Whether random signs are drawn, not normal numbers.
        center: ``(dim,)``, the point; None for the model's.
        scale: Of the perturbations, 0-d or ``(dim,)``; of low rank, 0-d or one for each number that is drawn; None for
            one.
    """
    center, n = search.point if center is None else center, popsize // (1 + mirrored)
    if perturbation == "seeded":
        seeds = int(search.integers(2**62)) + torch.arange(n)  # torch tells 2^32 of them apart: these all differ
        draws = torch.stack([seeds, torch.ones_like(seeds)], 1)
        if mirrored:
            draws = torch.cat([draws, draws * torch.tensor([1, -1])])
        return Seeded(center, draws, scale, signs, None if search.lower is None else search.reflect)

    def draw(n: int, k: int) -> Tensor:
        return search.integers(2, n, k).to(search.dtype).mul_(2).sub_(1) if signs else search.normal(n, k)

    layout = _layout(search, perturbation, rank)
    if layout is None:
        noise = draw(n, search.dim)
        if mirrored:
            noise = torch.cat([noise, -noise])
        if search.lower is not None:
            noise = _divided(search.reflect(_multiplied(noise, scale).add_(center)).sub_(center), scale)
        return Dense(center, noise, scale)
    if scale is not None and scale.ndim == 0:
        scale = layout.spread(scale.expand(len(layout.sizes)))
    numbers = _multiplied(layout.draw(draw, n, search.directions), scale)
    if mirrored:
        opposite = layout.spread(center.new_full((len(layout.sizes),), -1.0))
        numbers = torch.cat([numbers, numbers * opposite])
    return LowRank(center, numbers, layout, scale)


def unit_scale(search: Search, perturbation: str) -> Tensor:
    """Ones, one for each number that ``perturbed`` draws for a candidate."""
    layout = _layout(search, perturbation, 1)
    return torch.ones_like(search.point) if layout is None else search.point.new_ones(layout.n_numbers)


def _layout(search: Search, perturbation: str, rank: int) -> Layout | None:
    if perturbation != "low_rank" or search.lower is not None:
        return None
    return Layout([tuple(search.point.shape)] if search.shapes is None else search.shapes, rank)


def _multiplied(numbers: Tensor, scale: Tensor | None) -> Tensor:
    return numbers if scale is None else numbers.mul_(scale)


def _divided(numbers: Tensor, scale: Tensor | None) -> Tensor:
    return numbers if scale is None else numbers.div_(scale)


def _fill(row: Tensor, rng: torch.Generator, *, signs: bool) -> None:
    """Draws a row, in place."""
    if signs:
        row.random_(0, 2, generator=rng).mul_(2).sub_(1)
    else:
        draw_normal(row, rng)


def is_low_rank(groups: Sequence[dict[str, Any]]) -> bool:
    """Whether ``perturbed`` takes factors for matrices: not within bounds, nor in a subspace."""
    group = groups[0]
    free = group["subspace"] is None and all(group["bounds"] is None for group in groups)
    return free and group.get("perturbation") == "low_rank"


def n_drawn(dim: int, groups: Sequence[dict[str, Any]]) -> int:
    """How many numbers ``perturbed`` holds for one candidate of ``dim`` coordinates, from an optimizer's groups."""
    group = groups[0]
    if group["perturbation"] == "seeded":
        return 2
    if not is_low_rank(groups):
        return dim
    shapes = [parameter.shape for group in groups for parameter in group["params"] if parameter.numel()]
    return Layout(shapes, group.get("rank", 1)).n_numbers


def as_rows(candidates: Tensor | Population) -> Tensor:
    """Candidates of any kind as dense rows ``(P, dim)``."""
    return candidates if isinstance(candidates, Tensor) else candidates.rows()
