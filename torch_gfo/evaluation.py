"""Closure -> losses: one plain closure, evaluated for one point or for a whole population at once.

``"sequential"`` writes each candidate into the parameters and calls the closure: it works for everything that can be
called twice. ``"vectorized"`` runs the unmodified closure once inside ``torch.vmap`` over all candidates;
``"compiled"`` compiles that. ``"auto"`` tries the second on the first population it sees, compares it with plain calls,
and keeps the faster of the two that agree; in a long run it tries the third. Whatever happens, an evaluation leaves no
trace (see ``Session``).
"""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_gfo.batching import SAME_MASKS, STATELESS, batched_attention
from torch_gfo.closure import Footprints, Intercept, Memory, Observer, loss_of
from torch_gfo.compilation import Compiled, evaluate_batch
from torch_gfo.pages import Pages
from torch_gfo.perturbation import Candidates, LowRank, as_rows
from torch_gfo.probing import PerturbedModels
from torch_gfo.products import StandIn
from torch_gfo.space import ParameterVector

__all__ = ["BACKENDS", "Evaluator", "Plan", "Session"]

BACKENDS = ("auto", "sequential", "vectorized", "compiled")

_MEMORY = 2**30  # bytes that one batched pass may take at a time; on a GPU a quarter of its memory
_CACHE = 2**25  # bytes that it should take, on a CPU: what falls out of the cache is slow to read again
_N_COMPARED = 3  # candidates on which "auto" compares a batched pass with plain calls
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of that comparison: rounding, not another function
_COARSE_TOLERANCE = 1e-2  # float16 and bfloat16
_QUICK = 0.5  # seconds
_PATIENCE = 10  # "auto" compiles once evaluating has taken so many times as long as compiling will
_SECONDS_TO_COMPILE = (5.0, 0.06)  # in all, and for each of the closure's operations
_TOO_MANY_OPERATIONS = 2000  # for "auto" to compile: a long recurrence
_PAYS = 0.9  # of the time without compiling

_log = logging.getLogger("torch_gfo")

Closure = Callable[[], Any]


class Plan(NamedTuple):
    """How ``"auto"`` evaluates, as it has found by timing; goes from each step to the next, and into checkpoints.

    Attributes:
        backend: An index into ``BACKENDS``; 0 until it has chosen.
        chunk_size: Most candidates in one batched pass; 0 if nothing was measured.
        patience: How many candidates it still evaluates before it tries to compile; 0 if it will not.
    """

    backend: int = 0
    chunk_size: int = 0
    patience: int = 0


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


class Evaluator:
    """What an optimizer knows about evaluating its closures; a cache, which can be rebuilt at any time.

    A closure is known by its code: a loop that defines a new closure for every batch is examined once.

    Args:
        evaluation: ``"auto"``, ``"sequential"``, ``"vectorized"`` or ``"compiled"``.
        chunk_size: Most candidates in one batched pass; None bounds the memory that the pass takes, as measured for
            one candidate.
    """

    def __init__(self, evaluation: str, chunk_size: int | None) -> None:
        self.evaluation = evaluation
        self.chunk_size = chunk_size
        self.examined: dict[object, Examined] = {}
        self.modified: dict[object, list[weakref.ref[Tensor]]] = {}  # code -> the buffers that it writes to
        self.pages = Pages()
        self.compiled_codes: set[object] = set()  # whose compiled losses have been compared
        self._sequential_only: set[object] = set()
        self._uncompiled: set[object] = set()

    @cached_property
    def compiled(self) -> Compiled:
        """The compiled evaluation; made when it is needed, because importing torch's compiler takes seconds."""
        return Compiled()

    def session(self, closure: Closure, vector: ParameterVector, plan: Plan) -> Session:
        """Opens the evaluations of one step, which go by the last step's plan."""
        return Session(self, closure, vector, plan)

    def is_sequential_only(self, code: object) -> bool:
        """Whether a closure is known not to run in a batch."""
        return code in self._sequential_only

    def is_uncompiled(self, code: object) -> bool:
        """Whether a closure is known not to compile."""
        return code in self._uncompiled

    def fall_back(self, code: object, reason: str) -> None:
        """Remembers that a closure does not run in a batch, and says so once."""
        if not self._sequential_only:
            _log.warning(
                "Candidates are evaluated one after the other, because %s. This is correct but slower; "
                'evaluation="sequential" avoids the attempt and this message.',
                reason,
            )
        self._sequential_only.add(code)

    def leave_uncompiled(self, code: object, reason: str) -> None:
        """Remembers that a closure does not compile, and says so once."""
        if not self._uncompiled:
            _log.log(
                logging.WARNING if self.evaluation == "compiled" else logging.INFO,
                "Candidates are evaluated without compiling, because %s. This is correct but may be slower; "
                'evaluation="vectorized" avoids the attempt and this message.',
                reason,
            )
        self._uncompiled.add(code)


class Session:
    """The evaluations of one step; a context manager that leaves no trace.

    Inside, ``model()`` evaluates the model as it stands and ``losses(x)`` evaluates candidates. On exit the parameters
    hold the values from before. Buffers and torch's global random state are as after the one plain call of
    ``model()``, or, if an exception leaves the block, as before it. Every evaluation starts from the same random state:
    all candidates see the same dropout masks.

    Attributes:
        returns_tensor: Whether the closure returns tensors (or Python numbers).
    """

    def __init__(self, evaluator: Evaluator, closure: Closure, vector: ParameterVector, plan: Plan) -> None:
        self.plan = plan
        self.returns_tensor = True
        self._evaluator = evaluator
        self._closure = closure
        self._code: object = getattr(closure, "__code__", type(closure))
        self._vector = vector
        self._kinds = {type(p) for p in vector.parameters}
        self._model_footprints = Footprints()
        self._before: list[Tensor] | None = None  # the parameters' values, once candidates take their place
        self._memory: Tensor | None = None  # of the rows that are being evaluated

    @property
    def plan(self) -> Plan:
        """How the next step is to evaluate."""
        return Plan(BACKENDS.index(self._choice), self._chunk_size, self._patience)

    @plan.setter
    def plan(self, plan: Plan) -> None:
        self._choice, self._chunk_size, self._patience = BACKENDS[plan.backend], plan.chunk_size, plan.patience

    def __enter__(self) -> Session:
        """Remembers the global random state."""
        self._random_before = self._random_after = _random_state(self._vector.device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Puts everything back."""
        if self._before is not None:
            for parameter, value in zip(self._vector.parameters, self._before, strict=True):
                parameter.detach().copy_(value)
        if kind is not None:
            self._model_footprints.erase()
            self._random_after = self._random_before
        _set_random_state(self._random_after)

    def model(self) -> tuple[object, float]:
        """Evaluates the model as it stands, in one plain call: what the closure returned, and the loss in it."""
        return self._leaving_traces(self._in_place())

    def _leaving_traces(self, stand_ins: Mapping[int, Tensor | StandIn]) -> tuple[object, float]:
        result = self._call(stand_ins, self._model_footprints, SAME_MASKS)
        self._evaluator.modified[self._code] = self._model_footprints.references()
        self._random_after = _random_state(self._vector.device)
        self.returns_tensor = isinstance(result, Tensor)
        return result, float(loss_of(result))

    def losses(self, x: Candidates | PerturbedModels) -> Tensor:
        """Evaluates candidates.

        Args:
            x: ``(P, dim)``, parameter vectors; or a population of them.

        Returns:
            ``(P,)``, their losses, in the dtype of ``x``.
        """
        evaluation = self._evaluator.evaluation
        if isinstance(x, PerturbedModels):
            return self._perturbed(x)
        if evaluation == "vectorized":
            return self._vectorized_or_explain(x)
        if (
            evaluation == "sequential"
            or (self._choice == "sequential" and not self._patience)
            or len(x) == 1
            or self._evaluator.is_sequential_only(self._code)
        ):
            return self._sequential(x)
        return self._automatic(x)

    # "auto" and "compiled": what works, and what is faster.

    def _automatic(self, x: Candidates) -> Tensor:
        """Evaluates in a batch, if that works; at first, only if it agrees with plain calls and is faster."""
        try:
            if self._code not in self._evaluator.examined:
                self._compare(x)
            if self._choice == "auto":
                self._choose(x)
            elif self._patience:
                self._patience = max(0, self._patience - len(x))
                if self._patience == 0:
                    return self._try_compiling(x)
            if self._choice != "sequential":
                return self._by_choice(x)
        except Exception as error:  # a fault of the closure's own comes again, unwrapped, from the plain calls
            reason = _first_line(error)
            if not isinstance(error, _OtherLossesError):
                reason = f"the closure does not run in a batch: {reason}"
            self._evaluator.fall_back(self._code, reason)
        return self._sequential(x)

    def _by_choice(self, x: Candidates) -> Tensor:
        if self._choice == "sequential":
            return self._sequential(x)
        if self._choice == "compiled" and not self._evaluator.is_uncompiled(self._code):
            try:
                return self._compiled(x)
            except Exception as error:
                self._evaluator.leave_uncompiled(self._code, _first_line(error))
        return self._vectorized(x)

    def _compare(self, x: Candidates) -> None:
        """Compares a batched pass with plain calls on a few candidates; raises an error if they differ."""
        rows = x[torch.linspace(0, len(x) - 1, min(_N_COMPARED, len(x)), device=x.device).long()]
        self._check(self._vectorized(rows), self._sequential(rows), "in a batch", "in plain calls")

    def _check(self, losses: Tensor, expected: Tensor, how: str, other: str) -> None:
        tolerance = _TOLERANCE.get(self._loss_dtype, _COARSE_TOLERANCE)
        if not torch.allclose(losses, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
            one, another = (", ".join(f"{v:.6g}" for v in values[:3].tolist()) for values in (losses, expected))
            raise _OtherLossesError(f"{how} the losses are {one}, {other} {another}")

    def _choose(self, x: Candidates) -> None:
        """Chooses between plain calls and a batch, and the size of its chunks, by timing them."""
        if self._evaluator.evaluation == "compiled":
            self._choice, self._chunk_size = "compiled", self._even(len(x), self._suggested())
            return
        rows = x[: min(_N_COMPARED, len(x))]
        seconds = self._timed(self._sequential, rows) / len(rows)
        self._choice, best = "sequential", self._most()
        size = largest = min(len(x), best)
        while size:
            self._chunk_size = size
            batched = self._timed(self._vectorized, x[:size])
            if batched < _QUICK:  # the first pass includes warming up
                batched = min(batched, self._timed(self._vectorized, x[:size]))
            batched /= size
            if batched > seconds and size < largest:
                break  # still smaller ones do not pay either
            if batched <= seconds:
                self._choice, seconds, best = "vectorized", batched, best if size == largest else size
            size //= 4
        self._chunk_size = best
        n_operations = self._evaluator.examined[self._code].n_operations
        if n_operations <= _TOO_MANY_OPERATIONS:
            fixed, each = _SECONDS_TO_COMPILE
            self._patience = math.ceil(_PATIENCE * (fixed + each * n_operations) / seconds)

    def _try_compiling(self, x: Candidates) -> Tensor:
        """Evaluates as before, and compiled; goes on with that if it pays."""
        seconds = self._timed(self._by_choice, x)
        losses = self._by_choice(x)
        before = self._choice, self._chunk_size
        self._chunk_size = self._even(len(x), self._suggested())
        try:
            self._compiled(x)
            compiled_seconds = min(self._timed(self._compiled, x) for _ in range(2))
        except Exception as error:
            self._evaluator.leave_uncompiled(self._code, _first_line(error))
            compiled_seconds = math.inf
        if compiled_seconds < _PAYS * seconds:
            self._choice = "compiled"
        else:
            self._choice, self._chunk_size = before
        return losses

    def _timed(self, evaluate: Callable[[Candidates], Tensor], x: Candidates) -> float:
        _synchronize(x.device)
        started = time.perf_counter()
        evaluate(x)
        _synchronize(x.device)
        return time.perf_counter() - started

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
        footprints = Footprints()
        try:
            result = self._call(stand_ins, footprints, STATELESS)
        finally:
            self._evaluator.modified[self._code] = footprints.references()
            footprints.erase()
        self.returns_tensor = isinstance(result, Tensor)
        return loss_of(result)

    # Batched calls.

    def _vectorized(self, x: Candidates) -> Tensor:
        if self._code not in self._evaluator.examined:
            self._evaluator.examined[self._code] = self._trace(x[:1])
        return self._in_chunks(self._batched, x)

    def _most(self) -> int:
        """How many candidates a batched pass may have: as many as the user says, or the memory holds."""
        memory = _MEMORY
        if self._vector.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self._vector.device).total_memory // 4
        return self._evaluator.chunk_size or max(1, memory // self._evaluator.examined[self._code].n_bytes)

    def _suggested(self) -> int:
        """How many candidates a batched pass should have, where nothing was measured."""
        if self._evaluator.chunk_size or self._vector.device.type != "cpu":
            return self._most()
        return max(1, int(_CACHE) // self._evaluator.examined[self._code].n_bytes)

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

    def _vectorized_or_explain(self, x: Candidates) -> Tensor:
        try:
            return self._vectorized(x)
        except RuntimeError as error:
            raise RuntimeError(
                f"The closure does not run for all candidates at once: {_first_line(error)}. "
                'Give the optimizer evaluation="auto" or evaluation="sequential".'
            ) from error

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
        footprints = Footprints()
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
            examined = self._evaluator.examined.get(self._code)
            return x.clone() if examined is not None and examined.writes else x
        if self._memory is None or len(self._memory) < len(x):
            self._memory = None  # or it could not be used again
            self._memory = self._evaluator.pages.empty((len(x), self._vector.dim), x.dtype, x.device)
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
        modified = [tensor for tensor in (ref() for ref in self._evaluator.modified[self._code]) if tensor is not None]
        before = [tensor.detach().clone() for tensor in modified]
        _set_random_state(self._random_before)
        try:
            with batched_attention(numbers.device):
                losses = self._evaluator.compiled(self._closure, numbers, values, self._kinds)
        finally:
            for tensor, value in zip(modified, before, strict=True):
                tensor.detach().copy_(value)
        losses = losses[:n].to(rows.device, rows.dtype, copy=True)
        if self._code not in self._evaluator.compiled_codes:
            self._check(losses, self._batched(rows), "compiled", "in a batch")
            self._evaluator.compiled_codes.add(self._code)
        return losses

    def _call(
        self,
        stand_ins: Mapping[int, Tensor | StandIn],
        footprints: Footprints,
        rewrites: Mapping[Callable[..., Any], Callable[..., Any]],
    ) -> Any:
        intercept = Intercept(dict(stand_ins), self._kinds, footprints, rewrites)
        with torch.enable_grad(), intercept:  # in this order: the other sends the grad mode's calls through the mode
            return self._closure()

    def _in_place(self) -> dict[int, Tensor]:
        """Stand-ins that share the parameters' storage and do not require grad."""
        return {id(p): p.detach() for p in self._vector.parameters}


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


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _OtherLossesError(RuntimeError):
    """Two ways to evaluate give different losses."""


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)  # a GPU's, the CPU's


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
