"""A model perturbed by noise that is never stored: every number is drawn again, from its seed, when it is needed.

A search in these coordinates holds neither noise nor a copy of the parameters. While a closure runs, each use of a
parameter p is handed ``p + sigma z``, made for that use and freed after it; p itself is not touched, so that there is
nothing to restore. Only the model's own move writes to the parameters, one block of numbers at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from torch_gfo.products import StandIn
from torch_gfo.search import Search, generator
from torch_gfo.space import ParameterVector, as_real
from torch_gfo.start import Start, reaches

__all__ = ["DISTRIBUTIONS", "Noise", "PerturbedModels", "Probing", "ProbingStart", "look_without_copy"]

DISTRIBUTIONS = ("rademacher", "normal")

_BLOCK = {"cpu": 2**15}  # numbers made at a time: they stay in the cache, and below what torch hands to its threads
_LARGE_BLOCK = 2**22  # on other devices
_ONE = 0x3F800000  # the bits of 1.0


@dataclass(frozen=True)
class Noise:
    """The random numbers of a step, independent for each probe and each tensor, of mean zero and variance one.

    Attributes:
        seed: Of the search.
        step: The number of the step.
        distribution: ``"rademacher"``, random signs, or ``"normal"``.
    """

    seed: int
    step: int
    distribution: str

    def blocks(self, weights: Sequence[float], index: int, values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields consecutive blocks of a tensor's ``values``, each with ``sum_i weights[i] z_i``, z_i of probe i.

        Args:
            weights: Of the probes.
            index: The tensor's.
            values: ``(n,)``.
        """
        streams = [
            (weight, generator(self.seed, f"noise/{self.step}/{probe}", index, values.device))
            for probe, weight in enumerate(weights)
            if weight
        ]
        dtype = torch.promote_types(values.dtype, torch.float32)
        for block in torch.split(values, _BLOCK.get(values.device.type, _LARGE_BLOCK)):
            parts = (self._draw(len(block), dtype, rng).mul_(weight) for weight, rng in streams)
            total = next(parts, None)
            if total is None:
                total = torch.zeros(len(block), dtype=dtype, device=values.device)
            for part in parts:
                total += part
            yield block, total

    def _draw(self, n: int, dtype: torch.dtype, rng: torch.Generator) -> Tensor:
        if self.distribution == "normal":
            return torch.empty(n, dtype=dtype, device=rng.device).normal_(generator=rng)
        words = torch.empty(-(-n // 32), dtype=torch.int32, device=rng.device)
        words.random_(-(2**31), 2**31 - 1, generator=rng)
        shifts = torch.arange(32, dtype=torch.int32, device=rng.device)[:, None]
        bits = (words << shifts).bitwise_and_(-(2**31)).bitwise_or_(_ONE)  # a random sign before the bits of one
        return bits.view(torch.float32).flatten()[:n].to(dtype)


@dataclass(frozen=True)
class Perturbed(StandIn):
    """A parameter plus noise, a tensor only while a call uses it.

    Attributes:
        common: The parameter's values, which do not require grad.
        noise: The step's.
        weights: Of its probes, in the parameter's units.
        index: Of the parameter.
        bounds: Of the values, or None.
        shrinkage: The share of the values that is taken away from them.
    """

    kept: ClassVar[bool] = False

    common: Tensor
    noise: Noise
    weights: Sequence[float]
    index: int
    bounds: tuple[float, float] | None
    shrinkage: float = 0.0

    def blocks(self, into: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields consecutive blocks of the flat values, and what they become, in float32 at least.

        Args:
            into: Where the second are to be written, rounded to its dtype; None for new tensors.
        """
        values, n_done = as_real(self.common).reshape(-1), 0
        for block, z in self.noise.blocks(self.weights, self.index, values):
            out = z if into is None else into[n_done : n_done + len(z)]
            torch.add(z, block, alpha=1 - self.shrinkage, out=out)
            n_done += len(z)
            yield block, out if self.bounds is None else out.clamp_(*self.bounds)

    def dense(self) -> Tensor:
        """The sum, rounded to the parameter's dtype; the same at every use."""
        result = torch.empty_like(as_real(self.common), memory_format=torch.contiguous_format)
        for _ in self.blocks(result.view(-1)):
            pass
        return torch.view_as_complex(result) if self.common.is_complex() else result


@dataclass(frozen=True)
class ProbingStart(Start):
    """Where a step begins that holds no copy of the parameters: ``x`` is empty.

    It is its own frame. Coordinates are the amounts of each probe's noise, and one of the pull of ``weight_decay``::

        p(a_1, ..., a_n, b) = p + scale (a_1 z_1 + ... + a_n z_n - b scale weight_decay p)

    Attributes:
        noise: The random numbers of the step.
        n_probes: n.
    """

    noise: Noise
    n_probes: int

    def values(self) -> Sequence[Tensor]:
        """The real values of each parameter, which are not copied."""
        return [as_real(parameter) for parameter in self.vector.parameters]

    def losses(self, values: Tensor, x: Any, state: dict[str, Any]) -> Tensor:
        """Turns the closure's values into losses to minimise; the penalty of ``weight_decay`` is not among them."""
        return self.counted(values, state)

    def value(self, state: Mapping[str, Any], update: Mapping[str, Any]) -> float:
        """The closure's mean value at the perturbed points of this step; NaN if none was finite."""
        return self.signed(float(update.get("loss", math.nan)))

    def write(self, update: dict[str, Any]) -> None:
        """Moves the model, in place, if it moves."""
        target = update.pop("x")
        if isinstance(target, PerturbedModels):
            target.write()

    def frame(self, point: Tensor, basis: Tensor | None) -> Any:
        """Search coordinates around the model."""
        return self

    def search(
        self, rng: torch.Generator, loss: Tensor, remembered: float | None, pages: Any, *, deterministic: bool
    ) -> Probing:
        """The step that an algorithm makes in these coordinates."""
        point, none = self.x.new_zeros(self.n_probes + 1), torch.zeros_like(loss)
        squares = [
            (scale * group["weight_decay"] * float(torch.linalg.vector_norm(as_real(p), dtype=self.x.dtype))) ** 2
            for p, group, scale in zip(self.vector.parameters, self.groups, self.scales, strict=True)
            if group["weight_decay"]
        ]
        return Probing(point, loss, False, none, rng, pull=math.sqrt(sum(squares) / self.vector.dim))

    def parameters(self, z: Tensor) -> PerturbedModels:
        """Maps candidates ``(P, n + 1)`` to perturbed models."""
        return PerturbedModels(self, z.tolist(), self.scales)

    def moved(self, point: Tensor) -> PerturbedModels:
        """The model that moves to coordinates ``(n + 1,)``."""
        return PerturbedModels(
            self, [point.tolist()], [rate * s for rate, s in zip(self.rates, self.scales, strict=True)]
        )


def look_without_copy(
    searched: list[tuple[Tensor, dict[str, Any]]],
    states: Mapping[Tensor, dict[str, Any]],
    shared: dict[str, Any],
    *,
    lr_is_step: bool,
) -> ProbingStart:
    """Looks at the parameters and the schedule, as ``start.look`` does, but takes no copy."""
    vector, groups = ParameterVector([p for p, _ in searched]), [group for _, group in searched]
    options: dict[str, Any] = groups[0] if groups else {"seed": 0, "distribution": "normal", "n_probes": 1}
    noise = Noise(options["seed"], int(shared["step"]), options["distribution"])
    x = torch.zeros(0, dtype=vector.dtype, device=vector.device)
    reach = reaches(searched, states, lr_is_step=lr_is_step)
    return ProbingStart(vector, groups, x, *reach, False, True, None, noise, options["n_probes"])


@dataclass(frozen=True)
class Probing(Search):
    """A step in the coordinates of ``ProbingStart``.

    Attributes:
        pull: The root mean square of the displacements that the last coordinate stands for, in units of ``sigma``.
    """

    pull: float = 0.0


@dataclass(frozen=True)
class PerturbedModels:
    """Perturbed models, none of which is in memory.

    Attributes:
        start: The model, and the noise.
        coordinates: Of the points.
        reaches: The length of one unit of their displacements, for each parameter.
    """

    start: ProbingStart
    coordinates: list[list[float]]
    reaches: list[float]

    def __len__(self) -> int:
        return len(self.coordinates)

    def __getitem__(self, index: slice) -> PerturbedModels:
        return replace(self, coordinates=self.coordinates[index])

    @property
    def dtype(self) -> torch.dtype:
        """That of the dense rows."""
        return self.start.x.dtype

    @property
    def device(self) -> torch.device:
        """That of the dense rows."""
        return self.start.x.device

    def rows(self) -> Tensor:
        """The points as dense rows ``(P, dim)``, before they are rounded to the parameters' dtypes."""
        points = [[t.to(self.dtype) for v in self._perturbed(c) for _, t in v.blocks()] for c in self.coordinates]
        return torch.stack([torch.cat([t.to(self.device) for t in parts]) for parts in points])

    def stand_ins(self) -> Iterator[dict[int, Tensor | StandIn]]:
        """Yields what takes the place of each parameter, ``id(parameter) -> stand-in``, point by point."""
        for point in self.coordinates:
            pairs = zip(self.start.vector.parameters, self._perturbed(point), strict=True)
            yield {id(p): value if any(value.weights) else p.detach() for p, value in pairs}

    def write(self) -> None:
        """Moves the parameters, in place, to the only point."""
        noise = self.start.noise
        values = self._perturbed(self.coordinates[0])
        for i, (parameter, value) in enumerate(zip(self.start.vector.parameters, values, strict=True)):
            if not any(value.weights) and not value.shrinkage:
                continue
            real = as_real(parameter)
            flat = real.reshape(-1)  # a copy where the parameter is not contiguous
            rng = generator(noise.seed, f"rounding/{noise.step}", i, flat.device)
            for block, total in replace(value, common=flat).blocks():
                block.copy_(_rounded(total, block.dtype, rng))
            if not real.is_contiguous():
                real.copy_(flat.view(real.shape))

    def _perturbed(self, point: list[float]) -> Iterator[Perturbed]:
        """Yields the value of each parameter."""
        *amounts, pull = point
        start = self.start
        for i, (p, group) in enumerate(zip(start.vector.parameters, start.groups, strict=True)):
            weights = [self.reaches[i] * amount for amount in amounts]
            shrinkage = self.reaches[i] * start.scales[i] * group["weight_decay"] * pull
            yield Perturbed(p.detach(), start.noise, weights, i, group["bounds"], shrinkage)


def _rounded(exact: Tensor, dtype: torch.dtype, rng: torch.Generator) -> Tensor:
    """Rounds to a lower precision up or down at random, such that the mean is exact.

    Moves smaller than the distance between two bfloat16 numbers so add up, without a copy that knows more digits.
    Numbers that need no rounding stay as they are.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return exact
    dropped = 23 + int(math.log2(torch.finfo(dtype).eps))  # of float32's 23 bits, those that there is no room for
    dither = torch.randint(2**dropped, exact.shape, dtype=torch.int32, device=exact.device, generator=rng)
    return (exact.view(torch.int32) + dither).bitwise_and_(-(2**dropped)).view(torch.float32)
