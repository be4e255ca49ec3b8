"""The ways to evaluate candidates: plain calls, a batched pass, a compiled one. None leaves a trace.

A plain call writes a candidate into the parameters and calls the closure. A batched pass runs the closure once inside
``torch.vmap``, in chunks that fit into memory. Which way is taken, ``evaluation.py`` decides.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from torch_gfo.batching import EVERYWHERE, STATELESS, batched_attention
from torch_gfo.closure import Footprints, Intercept, Memory, Observer, loss_of
from torch_gfo.compilation import Compiled, evaluate_batch
from torch_gfo.inputs import Inputs
from torch_gfo.pages import Pages
from torch_gfo.perturbation import Candidates, LowRank, as_rows
from torch_gfo.probing import PerturbedModels
from torch_gfo.products import StandIn
from torch_gfo.space import ParameterVector

__all__ = ["Closure", "Known", "OtherLossesError", "Passes"]

_MEMORY = 2**30  # bytes that one batched pass may take at a time; on a GPU a quarter of its memory
_CACHE = 2**25  # bytes that it should take, on a CPU: what falls out of the cache is slow to read again
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of that comparison: rounding, not another function
_COARSE_TOLERANCE = 1e-2  # float16 and bfloat16
Closure = Callable[[], Any]


@dataclass(frozen=True)
class Examined:
    """What is known of a closure's code that runs in a batch.

    Attributes:
        n_bytes: The memory that the evaluation of one candidate takes.
        n_operations: How many elementary operations it makes.
        writes: Whether it changes its parameters.
    """

    n_bytes: int
    n_operations: int
    writes: bool


class Known:
    """What is known of closures and of the memory at hand; a cache, which can be rebuilt at any time.

    A closure is known by its code: a loop that defines a new closure for every batch is examined once.

    Args:
        chunk_size: Most candidates in one batched pass; None bounds the memory that the pass takes, as measured for
            one candidate.
    """

    def __init__(self, chunk_size: int | None) -> None:
        self.chunk_size = chunk_size
        self.examined: dict[object, Examined] = {}
        self.modified: dict[object, list[weakref.ref[Tensor]]] = {}  # code -> the buffers that it writes to
        self.compiled_codes: set[object] = set()  # whose compiled losses have been compared
        self.pages = Pages()

    @cached_property
    def compiled(self) -> Compiled:
        """The compiled evaluation; made when it is needed, because importing torch's compiler takes seconds."""
        return Compiled()


class Passes:
    """A closure in one step, and the ways to evaluate candidates with it; a context manager that leaves no trace.

    On exit the parameters hold the values from before. Buffers and torch's global random state are as after the one
    plain call of ``model()``, or, if an exception leaves the block, as before it. Every evaluation starts from the same
    random state: all candidates see the same dropout masks.

    Attributes:
        returns_tensor: Whether the closure returns tensors (or Python numbers).
    """

    _chunk_size: int = 0  # most candidates in one batched pass, from what was measured; 0 if nothing was

    def __init__(self, known: Known, closure: Closure, vector: ParameterVector, inputs: Inputs | None = None) -> None:
        self.returns_tensor = True
        self._inputs = inputs
        self._known = known
        self._closure = closure
        self._code: object = getattr(closure, "__code__", type(closure))
        self._vector = vector
        self._kinds = {type(p) for p in vector.parameters}
        self._model_footprints = Footprints()
        self._footprints = Footprints()  # of the evaluation that is under way
        self._random_before: list[tuple[torch.device, Tensor]] = []
        self._before: list[Tensor] | None = None  # the parameters' values, once candidates take their place
        self._memory: Tensor | None = None  # of the rows that are being evaluated

    def __enter__(self) -> Self:
        """Remembers the global random state."""
        self._random_before = self._random_after = _random_state(self._vector.device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Puts everything back."""
        if kind is not None:
            self._undo()
            return
        self._restore_parameters()
        _set_random_state(self._random_after)

    @contextmanager
    def undone_unless(self, finished: Callable[[], bool]) -> Iterator[None]:
        """Takes back every trace if the block fails before it is ``finished``.

        Leaving a session does so as well; an interrupt may come just then, or after it.
        """
        try:
            yield
        except BaseException:
            if not finished():
                self._undo()
            raise

    def _undo(self) -> None:
        """Takes back every trace, those of the model's evaluation included; once more does no harm."""
        self._restore_parameters()
        self._footprints.erase()
        self._model_footprints.erase()
        _set_random_state(self._random_before)

    def _restore_parameters(self) -> None:
        if self._before is not None:
            for parameter, value in zip(self._vector.parameters, self._before, strict=True):
                parameter.detach().copy_(value)

    def model(self) -> tuple[object, float]:
        """Evaluates the model as it stands, in one plain call: what the closure returned, and the loss in it."""
        return self._leaving_traces(self._in_place())

    def _leaving_traces(self, stand_ins: Mapping[int, Tensor | StandIn]) -> tuple[object, float]:
        result = self._call(stand_ins, self._model_footprints, EVERYWHERE, self._inputs)
        self._known.modified[self._code] = self._model_footprints.references()
        self._random_after = _random_state(self._vector.device)
        self.returns_tensor = isinstance(result, Tensor)
        return result, float(loss_of(result))

    # Plain calls.

    def _sequential(self, x: Candidates) -> Tensor:
        losses: list[float | Tensor] = []
        stand_ins = self._in_place()
        if self._before is None:
            self._before = [p.detach().clone() for p in self._vector.parameters]
        for i in range(len(x)):
            self._vector.write(x[i] if isinstance(x, Tensor) else as_rows(self._own(x[i : i + 1]))[0])
            losses.append(self._leaving_no_trace(stand_ins))
        if not any(isinstance(loss, Tensor) for loss in losses):
            return torch.tensor(losses, dtype=x.dtype, device=x.device)
        return torch.stack([torch.as_tensor(loss, dtype=x.dtype, device=x.device) for loss in losses])

    def _perturbed(self, x: PerturbedModels) -> Tensor:
        """Evaluates perturbed models one by one; the first of a step is its one plain call, for there is no other."""
        first, *others = x.stand_ins()
        losses = [self._leaving_traces(first)[1], *(float(self._leaving_no_trace(other)) for other in others)]
        return torch.tensor(losses, dtype=x.dtype, device=x.device)

    def _leaving_no_trace(self, stand_ins: Mapping[int, Tensor | StandIn]) -> float | Tensor:
        _set_random_state(self._random_before)
        footprints = self._footprints = Footprints()
        try:
            result = self._call(stand_ins, footprints, STATELESS)
        finally:
            self._known.modified[self._code] = footprints.references()
            footprints.erase()
        self.returns_tensor = isinstance(result, Tensor)
        return loss_of(result)

    # Batched calls.

    def _vectorized(self, x: Candidates) -> Tensor:
        if self._code not in self._known.examined:
            self._known.examined[self._code] = self._trace(x[:1])
        return self._in_chunks(self._batched, x)

    def _most(self) -> int:
        """How many candidates a batched pass may have: as many as the user says, or the memory holds."""
        memory = _MEMORY
        if self._vector.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self._vector.device).total_memory // 4
        return self._known.chunk_size or max(1, memory // self._known.examined[self._code].n_bytes)

    def _suggested(self) -> int:
        """How many candidates a batched pass should have, where nothing was measured."""
        if self._known.chunk_size or self._vector.device.type != "cpu":
            return self._most()
        return max(1, int(_CACHE) // self._known.examined[self._code].n_bytes)

    @staticmethod
    def _even(n: int, most: int) -> int:
        """The size of ``n`` candidates' passes, of about the same size, none of which has more than ``most``."""
        return -(-n // -(-n // most))

    def _in_chunks(self, evaluate: Callable[[Candidates], Tensor], x: Candidates) -> Tensor:
        """Evaluates in passes, whose size is halved where memory runs out."""
        losses: list[Tensor] = []
        n_done = 0
        while n_done < len(x):
            size = min(self._most(), self._chunk_size or self._suggested())
            if evaluate != self._compiled_pass:
                size = self._even(len(x) - n_done, size)
            try:
                losses.append(evaluate(x[n_done : n_done + size]))
                n_done += size
            except RuntimeError as error:
                if size == 1 or not _is_out_of_memory(error):
                    raise
                self._chunk_size = min(size, len(x) - n_done) // 2 or 1
        return torch.cat(losses)

    def _trace(self, row: Candidates) -> Examined:
        """Runs the closure in a batch of one."""
        observer = Observer()
        before = None if isinstance(row, LowRank) else as_rows(row)
        own = row if before is None else before.clone()
        with Memory() as memory:
            self._batched(own, observer)
        if observer.release():
            raise RuntimeError("it keeps tensors beyond its end (in a list, as an attribute), where they are not valid")
        numbers, _ = self._vector.batch(own)
        writes = before is not None and not torch.equal(before, as_rows(own))
        return Examined(memory.peak + 2 * numbers.numel() * numbers.element_size(), memory.n_operations, writes)

    def _batched(self, rows: Candidates, observer: Observer | None = None) -> Tensor:
        """Evaluates all rows in one call of the closure."""
        footprints = self._footprints = Footprints()
        numbers, values = self._vector.batch(self._own(rows))
        _set_random_state(self._random_before)
        try:
            with batched_attention(numbers.device):
                losses = evaluate_batch(self._closure, numbers, values, self._kinds, footprints, observer)
        finally:
            footprints.erase()
        self._loss_dtype = losses.dtype
        return losses.to(rows.device, rows.dtype)

    def _own(self, x: Candidates) -> Tensor | LowRank:
        """What a pass evaluates, and its closure may write to; rows are made in memory that serves for all passes."""
        if isinstance(x, LowRank):
            return x
        if isinstance(x, Tensor):
            examined = self._known.examined.get(self._code)
            return x.clone() if examined is not None and examined.writes else x
        if self._memory is None or len(self._memory) < len(x):
            self._memory = None  # or it could not be used again
            self._memory = self._known.pages.empty((len(x), self._vector.dim), x.dtype, x.device)
        return x.rows(self._memory[: len(x)])

    def _compiled(self, x: Candidates) -> Tensor:
        return self._in_chunks(self._compiled_pass, x)

    def _compiled_pass(self, rows: Candidates) -> Tensor:
        """Evaluates all rows in one compiled call, which always has the same number of rows."""
        n, size = len(rows), self._chunk_size or len(rows)
        if 2 * n < size:
            return self._batched(rows)
        numbers, values = self._vector.batch(
            self._own(rows if n == size else rows[torch.arange(size).clamp(max=n - 1)])
        )
        modified = [tensor for tensor in (ref() for ref in self._known.modified[self._code]) if tensor is not None]
        before = [tensor.detach().clone() for tensor in modified]
        _set_random_state(self._random_before)
        try:
            with batched_attention(numbers.device):
                losses = self._known.compiled(self._closure, numbers, values, self._kinds)
        finally:
            for tensor, value in zip(modified, before, strict=True):
                tensor.detach().copy_(value)
        losses = losses[:n].to(rows.device, rows.dtype, copy=True)
        if self._code not in self._known.compiled_codes:
            self._check(losses, self._batched(rows), "compiled", "in a batch")
            self._known.compiled_codes.add(self._code)
        return losses

    def _call(
        self,
        stand_ins: Mapping[int, Tensor | StandIn],
        footprints: Footprints,
        rewrites: Mapping[Callable[..., Any], Callable[..., Any]],
        inputs: Inputs | None = None,
    ) -> Any:
        intercept = Intercept(dict(stand_ins), self._kinds, footprints, rewrites, inputs=inputs)
        try:
            with torch.enable_grad(), intercept:  # in this order: the other sends the grad mode's calls through it
                return self._closure()
        finally:
            intercept.close()

    def _in_place(self) -> dict[int, Tensor]:
        """Stand-ins that share the parameters' storage and do not require grad."""
        return {id(p): p.detach() for p in self._vector.parameters}

    def _check(self, losses: Tensor, expected: Tensor, how: str, other: str) -> None:
        tolerance = _TOLERANCE.get(self._loss_dtype, _COARSE_TOLERANCE)
        if not torch.allclose(losses, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
            one, another = (", ".join(f"{v:.6g}" for v in values[:3].tolist()) for values in (losses, expected))
            raise OtherLossesError(f"{how} the losses are {one}, {other} {another}")


def _random_state(device: torch.device) -> list[tuple[torch.device, Tensor]]:
    """The state of torch's global generators, of the CPU's and the parameters' device."""
    states = [(torch.device("cpu"), torch.get_rng_state())]
    if device.type == "cuda":
        states.append((device, torch.cuda.get_rng_state(device)))
    return states


def _set_random_state(states: list[tuple[torch.device, Tensor]]) -> None:
    for device, state in states:
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)


class OtherLossesError(RuntimeError):
    """Two ways to evaluate give different losses."""


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)  # a GPU's, the CPU's
