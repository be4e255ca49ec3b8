"""Parameters <-> one flat real vector <-> unit search coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torch_gfo.pages import Pages
from torch_gfo.perturbation import Candidates, Dense, LowRank, Population, Seeded, as_rows
from torch_gfo.products import Factored
from torch_gfo.search import Search, generator

__all__ = ["Directions", "Frame", "ParameterVector", "as_real", "automatic_scales", "searchable", "with_groups"]

_MANY = 2**16  # numbers, from which on rows are made when they are asked for
_DOUBLE = (torch.float64, torch.complex128)


def searchable(parameter: Tensor) -> bool:
    """Whether an optimizer may move a tensor: it requires grad, is real or complex floating point, and not empty."""
    return parameter.requires_grad and parameter.numel() > 0


def with_groups(params: Iterable[Any]) -> Iterator[tuple[Tensor, Mapping[str, Any]]]:
    """Yields each tensor with its group, from any of the forms in which optimizers take parameters."""
    for item in params:
        group = item if isinstance(item, dict) else {"params": [item]}
        entries = group["params"]
        for entry in [entries] if isinstance(entries, Tensor) else entries:
            yield entry[1] if isinstance(entry, tuple) else entry, group  # a tuple: of named_parameters()


class ParameterVector:
    """The parameters as one flat real vector ``x`` of shape ``(dim,)``, in their order; complex ones as pairs.

    The vector has float32 at least, float64 where a parameter has it, and lies on the first parameter's device.

    Args:
        parameters: The tensors that the search moves.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        double = any(p.dtype in _DOUBLE for p in self.parameters)
        self.dtype = torch.float64 if double else torch.float32
        self.device = self.parameters[0].device if self.parameters else torch.device("cpu")
        self.sizes = [p.numel() * (2 if p.is_complex() else 1) for p in self.parameters]
        self.shapes = [tuple(as_real(p).shape) for p in self.parameters]

    @property
    def dim(self) -> int:
        """The number of real numbers in the parameters."""
        return sum(self.sizes)

    def read(self) -> Tensor:
        """Copies the parameters' values into a new vector."""
        values = [as_real(p).reshape(-1).to(self.device, self.dtype) for p in self.parameters]
        return torch.cat(values) if values else torch.zeros(0)

    def write(self, x: Tensor) -> None:
        """Copies a vector into the parameters, in place: storage, ties and views survive."""
        for parameter, values in zip(self.parameters, x.split_with_sizes(self.sizes), strict=True):
            real = as_real(parameter)
            real.copy_(values.view(real.shape))

    def merge(self, x: Tensor) -> tuple[Tensor, bool]:
        """Returns ``x`` with the parameters' values where they differ from it, and whether any does.

        ``x`` keeps digits that a parameter of lower precision rounds away; a parameter that somebody has changed
        since counts as it stands.
        """
        if not self.parameters:
            return x, False
        parts, changed = [], False
        for parameter, values in zip(self.parameters, x.split_with_sizes(self.sizes), strict=True):
            now = as_real(parameter).detach().reshape(-1)
            held = values.to(now.device, now.dtype)
            if torch.equal(held, now):
                parts.append(values)
            else:
                same = held == now
                now = now.to(self.device, self.dtype)
                parts.append(torch.where(same.to(self.device), values, now))
                changed = True
        return torch.cat(parts), changed

    def tensors(self, x: Tensor) -> dict[int, Tensor]:
        """Gives the values of each parameter, ``id(parameter) -> tensor``, that a vector stands for."""
        values = x.split_with_sizes(self.sizes)
        return {id(p): _shaped(p, own) for p, own in zip(self.parameters, values, strict=True)}

    def batch(self, x: Candidates) -> tuple[Tensor, Callable[[Tensor], Mapping[int, Tensor | Factored]]]:
        """Returns the numbers ``(P, ...)`` of candidates, and what gives each parameter's value from those of one."""
        return (x.numbers, partial(self._factors, x)) if isinstance(x, LowRank) else (as_rows(x), self.tensors)

    def _factors(self, population: LowRank, numbers: Tensor) -> dict[int, Tensor | Factored]:
        stand_ins: dict[int, Tensor | Factored] = {}
        common, parts = population.center.split_with_sizes(self.sizes), population.layout.parts(numbers)
        for parameter, own, part in zip(self.parameters, common, parts, strict=True):
            if isinstance(part, Tensor):
                stand_ins[id(parameter)] = _shaped(parameter, own + part)
            elif parameter.is_complex():
                stand_ins[id(parameter)] = _shaped(parameter, own + (part[0].mT @ part[1]).flatten())
            else:
                a, b = (factor.to(parameter.device, parameter.dtype) for factor in part)
                stand_ins[id(parameter)] = Factored(_shaped(parameter, own), a, b)
        return stand_ins

    def expand(self, values: Sequence[float]) -> Tensor:
        """Spreads one number a parameter over the vector; a 0-d tensor where all are equal."""
        numbers = torch.tensor(values, dtype=self.dtype, device=self.device)
        if len(set(values)) == 1:
            return numbers[0]
        sizes = torch.tensor(self.sizes, device=self.device)
        return numbers.repeat_interleave(sizes, output_size=self.dim)


def _shaped(parameter: Tensor, values: Tensor) -> Tensor:
    """Real values ``(size,)`` as a tensor like the parameter."""
    if parameter.is_complex():
        values = torch.complex(*values.reshape(*parameter.shape, 2).unbind(-1))
    return values.reshape(parameter.shape).to(parameter.device, parameter.dtype)


def as_real(parameter: Tensor) -> Tensor:
    """A real view of a tensor's values: ``(..., 2)`` where it is complex."""
    return torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter.detach()


def automatic_scales(parameters: Sequence[Tensor], fraction: float) -> list[float]:
    """Chooses a radius of exploration for each tensor from the scale of its initial values.

    The radius is ``fraction`` times the first of these that is not zero:

    1. the standard deviation of the tensor's values;
    2. their mean absolute value (a single number; a normalisation's weights, which are all ones);
    3. the root mean square of the other tensors' scales (biases that start at zero);
    4. one (nothing is known).
    """
    scales = []
    for parameter in parameters:
        values = as_real(parameter).double()
        scales.append(float(values.std(correction=0)) or float(values.abs().mean()))
    known = [scale for scale in scales if 0 < scale < math.inf]
    typical = math.sqrt(sum(scale**2 for scale in known) / len(known)) if known else 1.0
    return [fraction * (scale if 0 < scale < math.inf else typical) for scale in scales]


class Directions:
    """The random directions of a subspace; a cache, drawn again from the seed whenever it is empty.

    They are orthogonal, each of norm ``sqrt(dim / k)``: a standard normal vector of ``k`` coordinates then displaces
    every parameter by about one unit, as one of ``dim`` coordinates does without a subspace.

    Args:
        seed: Of the random numbers.
        k: The number of directions, None for no subspace.
        refresh: The number of steps after which others are drawn, None for never.
    """

    def __init__(self, seed: int, k: int | None, refresh: int | None) -> None:
        self._seed = seed
        self._k = k
        self._refresh = refresh
        self._drawn: tuple[object, Tensor] | None = None

    def basis(self, x: Tensor, step: int) -> Tensor | None:
        """Returns the directions ``(dim, k)`` of a step, in the dtype of the parameter vector ``x``, or None."""
        if self._k is None:
            return None
        index, dim = step // self._refresh if self._refresh else 0, x.numel()
        key = (index, dim, x.dtype, x.device)
        if self._drawn is None or self._drawn[0] != key:
            rng = generator(self._seed, "subspace", index, x.device)
            gaussian = torch.randn(dim, self._k, generator=rng, dtype=x.dtype, device=x.device)
            directions: Tensor = torch.linalg.qr(gaussian)[0]
            self._drawn = (key, directions * math.sqrt(dim / self._k))
        return self._drawn[1]


@dataclass(frozen=True)
class Frame:
    """Unit search coordinates ``z`` around the model's parameters: ``x(z) = x + scale * basis @ (z - point)``.

    Coordinates are relative to the model's point, so ``scale`` multiplies every displacement of a candidate: lowering
    it in mid-run draws the population together around the model, and with ``scale = 0`` nothing moves. ``rate`` does
    so for the model itself: the same for most algorithms, ``lr`` for those that take steps along a gradient.

    Attributes:
        x: ``(dim,)``, the model's parameters.
        point: ``(k,)``, their search coordinates; ``k = dim`` without a subspace.
        scale: 0-d or ``(dim,)``, ``lr * sigma``; ``sigma`` where ``lr`` is the length of the model's step.
        rate: 0-d or ``(dim,)``, ``scale``; ``lr`` where that is the length of the model's step.
        lower: The lower bounds in parameter units, 0-d or ``(dim,)``, or None.
        upper: The upper bounds.
        basis: ``(dim, k)``, the directions of the subspace, or None.
        shapes: Of the tensors whose entries the parameters are, or None where that does not matter.
        directions: Of the inputs of each of them, or None where nothing is known of any.
    """

    x: Tensor
    point: Tensor
    scale: Tensor
    rate: Tensor
    lower: Tensor | None = None
    upper: Tensor | None = None
    basis: Tensor | None = None
    shapes: Sequence[tuple[int, ...]] | None = None
    directions: Sequence[Tensor | None] | None = None

    def parameters(self, z: Candidates) -> Candidates:
        """Maps candidates in search coordinates, rows ``(P, k)`` or a population, to parameter vectors ``(P, dim)``."""
        if self.basis is None and self.lower is None:
            if isinstance(z, Population):
                center = self._displaced(z.center[None], self.scale)[0]
                return z.placed(center, self.scale)
            if z.numel() > _MANY:
                return Dense(self.x, z, self.scale, self.point)
        if isinstance(z, Seeded):
            return z.mapped(lambda rows: self._displaced(rows, self.scale))
        return self._displaced(as_rows(z), self.scale)

    def moved(self, point: Tensor) -> Tensor:
        """The parameter vector ``(dim,)`` of the model that moves to search coordinates ``(k,)``."""
        x = self._displaced(point[None], self._reach)[0]
        return torch.where(x == self.x, self.x, x)

    def _displaced(self, z: Tensor, scale: Tensor) -> Tensor:
        displacement = z - self.point
        if self.basis is not None:
            displacement = displacement @ self.basis.T
        x = torch.addcmul(self.x, displacement, scale)
        if self.lower is not None and self.upper is not None:
            x = torch.where(scale == 0, x, x.clamp(self.lower, self.upper))
        return x

    @property
    def unit(self) -> Tensor:
        """The length of one unit in parameter units, 0-d or ``(dim,)``; in a subspace, of a typical parameter."""
        return self.scale if self.basis is None else self.scale.square().mean().sqrt()

    @property
    def stride(self) -> Tensor:
        """How many units the model moves for a step of one, 0-d or ``(dim,)``; in a subspace, a typical parameter."""
        if self.rate is self.scale:
            return torch.ones_like(self.scale)
        reach = self._reach if self.basis is None else self._reach.square().mean().sqrt()
        return torch.where(self.unit > 0, reach / self.unit, 0)

    @property
    def _reach(self) -> Tensor:
        """How far a parameter of the model moves for a step of one, 0-d or ``(dim,)``."""
        if self.basis is None or self.rate is self.scale:
            return self.rate
        return torch.where(self.unit > 0, self.rate * self.scale / self.unit, 0)  # steps are those of a typical one

    def box(self) -> tuple[Tensor | None, Tensor | None]:
        """The bounds in search coordinates; none in a subspace, where the box has no simple form."""
        if self.lower is None or self.upper is None or self.basis is not None:
            return None, None
        scale = self.scale.expand_as(self.x)
        moves = scale > 0
        infinity = torch.full_like(self.x, math.inf)
        below = torch.where(moves, (self.lower - self.x) / scale, -infinity)
        above = torch.where(moves, (self.upper - self.x) / scale, infinity)
        return self.point + below, self.point + above

    def search(
        self,
        rng: torch.Generator,
        loss: Tensor,
        remembered: float | None,
        pages: Pages,
        *,
        deterministic: bool,
    ) -> Search:
        """The step that an algorithm makes in these coordinates.

        Args:
            rng: Of the step.
            loss: 0-d, the model's, ``nan`` where it is unknown.
            remembered: The loss that the last step left at the model's point, where the objective has changed since.
            pages: Where the step takes memory from.
            deterministic: Whether the objective is promised never to change.
        """
        changed = remembered is not None
        drift = torch.zeros_like(loss) if remembered is None else (loss - remembered).nan_to_num(0, 0, 0)
        box = self.box()
        shapes = self.shapes if self.basis is None else None
        return Search(
            self.point,
            loss,
            changed,
            drift,
            rng,
            *box,
            self.unit,
            deterministic,
            self.stride,
            shapes,
            pages,
            self.directions,
        )
