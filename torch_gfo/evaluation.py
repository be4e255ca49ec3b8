"""Closure -> losses: one plain closure, evaluated for one point or for a whole population at once.

``"sequential"`` writes each candidate into the parameters and calls the closure: it works for everything that can be
called twice. ``"vectorized"`` runs the unmodified closure once inside ``torch.vmap`` over all candidates. ``"auto"``
tries the second on the first population it sees, compares it with plain calls, and keeps the faster of the two that
agree. Whatever happens, an evaluation leaves no trace (see ``Session``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from torch_gfo.closure import Footprints, Intercept, Observer, loss_of
from torch_gfo.perturbation import LowRank
from torch_gfo.products import Factored
from torch_gfo.space import ParameterVector

__all__ = ["BACKENDS", "Evaluator", "Session"]

BACKENDS = ("auto", "sequential", "vectorized")

_CHUNK_BYTES = {"cpu": 2**25}  # of the tensors that one batched pass computes: larger ones are slower to come by
_CHUNK_BYTES_ELSEWHERE = 2**30
_N_COMPARED = 3  # candidates on which "auto" compares a batched pass with plain calls
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of that comparison: rounding, not another function
_COARSE_TOLERANCE = 1e-2  # float16 and bfloat16

_log = logging.getLogger("torch_gfo")

Closure = Callable[[], Any]
Candidates = Tensor | LowRank


class Evaluator:
    """What an optimizer knows about evaluating its closures; a cache, which can be rebuilt at any time.

    A closure is known by its code: a loop that defines a new closure for every batch is examined once.

    Args:
        evaluation: ``"auto"``, ``"sequential"`` or ``"vectorized"``.
        chunk_size: Most candidates in one batched pass; None bounds the pass's memory by 32 MiB on a CPU, 1 GiB
            elsewhere, estimated from the tensors that the closure computes for one candidate.
    """

    def __init__(self, evaluation: str, chunk_size: int | None) -> None:
        self.evaluation = evaluation
        self.chunk_size = chunk_size
        self.chunks: dict[object, int] = {}  # code -> candidates in one batched pass
        self._sequential_only: set[object] = set()

    def session(self, closure: Closure, vector: ParameterVector, choice: str | None) -> Session:
        """Opens the evaluations of one step; ``choice`` is what ``"auto"`` has chosen before, if it has."""
        return Session(self, closure, vector, choice)

    def is_sequential_only(self, code: object) -> bool:
        """Whether a closure is known not to run in a batch."""
        return code in self._sequential_only

    def fall_back(self, code: object, reason: str) -> None:
        """Remembers that a closure does not run in a batch, and says so once."""
        if not self._sequential_only:
            _log.warning(
                "Candidates are evaluated one after the other, because %s. This is correct but slower; "
                'evaluation="sequential" avoids the attempt and this message.',
                reason,
            )
        self._sequential_only.add(code)


class Session:
    """The evaluations of one step; a context manager that leaves no trace.

    Inside, ``model()`` evaluates the model as it stands and ``losses(x)`` evaluates candidates. On exit the parameters
    hold the values from before. Buffers and torch's global random state are as after the one plain call of
    ``model()``, or, if an exception leaves the block, as before it. Every evaluation starts from the same random state:
    all candidates see the same dropout masks.

    Attributes:
        choice: ``"sequential"`` or ``"vectorized"`` once ``"auto"`` has chosen, else None.
        returns_tensor: Whether the closure returns tensors (or Python numbers).
    """

    def __init__(self, evaluator: Evaluator, closure: Closure, vector: ParameterVector, choice: str | None) -> None:
        self.choice = choice
        self.returns_tensor = True
        self._evaluator = evaluator
        self._closure = closure
        self._code: object = getattr(closure, "__code__", type(closure))
        self._vector = vector
        self._model_footprints = Footprints()
        self._before: list[Tensor] | None = None  # the parameters' values, once candidates take their place

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
        result = self._call(self._in_place(), self._model_footprints, move_statistics=True)
        self._random_after = _random_state(self._vector.device)
        self.returns_tensor = isinstance(result, Tensor)
        return result, float(loss_of(result))

    def losses(self, x: Candidates) -> Tensor:
        """Evaluates candidates.

        Args:
            x: ``(P, dim)``, parameter vectors; or a population of them.

        Returns:
            ``(P,)``, their losses, in the dtype of ``x``.
        """
        evaluation = self._evaluator.evaluation
        if evaluation == "vectorized":
            return self._vectorized_or_explain(x)
        if (
            evaluation == "sequential"
            or self.choice == "sequential"
            or len(x) == 1
            or self._evaluator.is_sequential_only(self._code)
        ):
            return self._sequential(x)
        return self._automatic(x)

    def _automatic(self, x: Candidates) -> Tensor:
        """Evaluates in a batch, if that works; at first, only if it agrees with plain calls and is faster."""
        known = self._code in self._evaluator.chunks
        try:
            losses, seconds = self._timed(self._vectorized, x)
        except Exception as error:  # a fault of the closure's own comes again, unwrapped, from the plain calls
            self._evaluator.fall_back(self._code, f"the closure does not run in a batch: {_first_line(error)}")
            return self._sequential(x)
        if known:
            return losses
        rows = torch.linspace(0, len(x) - 1, min(_N_COMPARED, len(x)), device=x.device).long()
        plain, plain_seconds = self._timed(self._sequential, x[rows])
        tolerance = _TOLERANCE.get(self._loss_dtype, _COARSE_TOLERANCE)
        if not torch.allclose(losses[rows], plain, rtol=tolerance, atol=tolerance, equal_nan=True):
            batched = ", ".join(f"{loss:.6g}" for loss in losses[rows].tolist())
            called = ", ".join(f"{loss:.6g}" for loss in plain.tolist())
            self._evaluator.fall_back(self._code, f"in a batch the losses are {batched}, in plain calls {called}")
            return self._sequential(x)
        if self.choice is None:
            plain_seconds *= len(x) / len(rows)
            if seconds > plain_seconds:  # the first pass includes warming up
                losses, seconds = self._timed(self._vectorized, x)
            self.choice = "vectorized" if seconds <= plain_seconds else "sequential"
        return losses if self.choice == "vectorized" else self._sequential(x)

    def _timed(self, evaluate: Callable[[Candidates], Tensor], x: Candidates) -> tuple[Tensor, float]:
        _synchronize(x.device)
        started = time.perf_counter()
        losses = evaluate(x)
        _synchronize(x.device)
        return losses, time.perf_counter() - started

    def _sequential(self, x: Candidates) -> Tensor:
        losses: list[float | Tensor] = []
        stand_ins = self._in_place()
        if self._before is None:
            self._before = [p.detach().clone() for p in self._vector.parameters]
        for row in x:
            self._vector.write(row)
            _set_random_state(self._random_before)
            footprints = Footprints()
            try:
                result = self._call(stand_ins, footprints)
            finally:
                footprints.erase()
            losses.append(loss_of(result))
            self.returns_tensor = isinstance(result, Tensor)
        if not any(isinstance(loss, Tensor) for loss in losses):
            return torch.tensor(losses, dtype=x.dtype, device=x.device)
        return torch.stack([torch.as_tensor(loss, dtype=x.dtype, device=x.device) for loss in losses])

    def _vectorized(self, x: Candidates) -> Tensor:
        chunks = self._evaluator.chunks
        if self._code not in chunks:
            chunk_size = self._trace(x[:1])
            chunks[self._code] = chunk_size if self._evaluator.chunk_size is None else self._evaluator.chunk_size
        return torch.cat([self._batched(rows) for rows in x.split(chunks[self._code])])

    def _vectorized_or_explain(self, x: Candidates) -> Tensor:
        try:
            return self._vectorized(x)
        except RuntimeError as error:
            raise RuntimeError(
                f"The closure does not run for all candidates at once: {_first_line(error)}. "
                'Give the optimizer evaluation="auto" or evaluation="sequential".'
            ) from error

    def _trace(self, row: Candidates) -> int:
        """Runs the closure in a batch of one, and returns the number of candidates that fit into a pass."""
        observer = Observer()
        self._batched(row, observer)
        if observer.release():
            raise RuntimeError("it keeps tensors beyond its end (in a list, as an attribute), where they are not valid")
        numbers, _ = self._vector.batch(row)
        n_bytes = observer.n_bytes + 2 * numbers.numel() * numbers.element_size()
        return max(1, _CHUNK_BYTES.get(self._vector.device.type, _CHUNK_BYTES_ELSEWHERE) // n_bytes)

    def _batched(self, rows: Candidates, observer: Observer | None = None) -> Tensor:
        """Evaluates all rows in one call of the closure."""
        footprints = Footprints()
        numbers, values = self._vector.batch(rows)

        def one(own: Tensor) -> Tensor:
            loss = loss_of(self._call(values(own), footprints, observer=observer))
            if not isinstance(loss, Tensor):
                raise RuntimeError("it returns a Python number, not a tensor")
            return loss

        _set_random_state(self._random_before)
        try:
            losses = torch.vmap(one, randomness="same")(numbers)
        finally:
            footprints.erase()
        self._loss_dtype = losses.dtype
        return losses.to(rows.device, rows.dtype)

    def _call(
        self,
        stand_ins: Mapping[int, Tensor | Factored],
        footprints: Footprints,
        *,
        move_statistics: bool = False,
        observer: Observer | None = None,
    ) -> Any:
        kinds = {type(p) for p in self._vector.parameters}
        intercept = Intercept(dict(stand_ins), kinds, footprints, move_statistics=move_statistics, observer=observer)
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


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
