"""Closure -> losses: one plain closure, evaluated for one point or for a whole population at once.

``"sequential"`` writes each candidate into the parameters and calls the closure: it works for everything that can be
called twice. ``"vectorized"`` runs the unmodified closure once inside ``torch.vmap`` over all candidates;
``"compiled"`` compiles that (see ``passes.py``). ``"auto"`` tries the second on the first population it sees, compares
it with plain calls, and keeps the faster of the two that agree; in a long run it tries the third.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torch_gfo.inputs import Inputs
from torch_gfo.passes import Closure, Known, OtherLossesError, Passes
from torch_gfo.perturbation import Candidates
from torch_gfo.probing import PerturbedModels
from torch_gfo.space import ParameterVector

__all__ = ["BACKENDS", "Evaluator", "Plan", "Session"]

BACKENDS = ("auto", "sequential", "vectorized", "compiled")

_N_COMPARED = 3  # candidates on which "auto" compares a batched pass with plain calls
_QUICK = 0.5  # seconds
_PATIENCE = 10  # "auto" compiles once evaluating has taken so many times as long as compiling will
_SECONDS_TO_COMPILE = (5.0, 0.06)  # in all, and for each of the closure's operations
_TOO_MANY_OPERATIONS = 2000  # for "auto" to compile: a long recurrence
_PAYS = 0.9  # of the time without compiling

_log = logging.getLogger("torch_gfo")


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


class Evaluator(Known):
    """What an optimizer knows about evaluating its closures; a cache, which can be rebuilt at any time.

    Args:
        evaluation: ``"auto"``, ``"sequential"``, ``"vectorized"`` or ``"compiled"``.
        chunk_size: Most candidates in one batched pass; None bounds the memory that the pass takes, as measured for
            one candidate.
    """

    def __init__(self, evaluation: str, chunk_size: int | None) -> None:
        super().__init__(chunk_size)
        self.evaluation = evaluation
        self._sequential_only: set[object] = set()
        self._uncompiled: set[object] = set()

    def session(self, closure: Closure, vector: ParameterVector, plan: Plan, inputs: Inputs | None = None) -> Session:
        """Opens the evaluations of one step, which go by the last step's plan, and may note the layers' inputs."""
        return Session(self, closure, vector, plan, inputs)

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


class Session(Passes):
    """The evaluations of one step: ``model()`` evaluates the model as it stands, ``losses(x)`` evaluates candidates.

    A context manager that leaves no trace, see ``Passes``.
    """

    _known: Evaluator

    def __init__(
        self, evaluator: Evaluator, closure: Closure, vector: ParameterVector, plan: Plan, inputs: Inputs | None
    ) -> None:
        super().__init__(evaluator, closure, vector, inputs)
        self.plan = plan

    @property
    def plan(self) -> Plan:
        """How the next step is to evaluate."""
        return Plan(BACKENDS.index(self._choice), self._chunk_size, self._patience)

    @plan.setter
    def plan(self, plan: Plan) -> None:
        self._choice, self._chunk_size, self._patience = BACKENDS[plan.backend], plan.chunk_size, plan.patience

    def losses(self, x: Candidates | PerturbedModels) -> Tensor:
        """Evaluates candidates.

        Args:
            x: ``(P, dim)``, parameter vectors; or a population of them.

        Returns:
            ``(P,)``, their losses, in the dtype of ``x``.
        """
        evaluation = self._known.evaluation
        if isinstance(x, PerturbedModels):
            return self._perturbed(x)
        if evaluation == "vectorized":
            return self._vectorized_or_explain(x)
        if (
            evaluation == "sequential"
            or (self._choice == "sequential" and not self._patience)
            or len(x) == 1
            or self._known.is_sequential_only(self._code)
        ):
            return self._sequential(x)
        return self._automatic(x)

    # "auto" and "compiled": what works, and what is faster.

    def _automatic(self, x: Candidates) -> Tensor:
        """Evaluates in a batch, if that works; at first, only if it agrees with plain calls and is faster."""
        try:
            if self._code not in self._known.examined:
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
            if not isinstance(error, OtherLossesError):
                reason = f"the closure does not run in a batch: {reason}"
            self._known.fall_back(self._code, reason)
        return self._sequential(x)

    def _by_choice(self, x: Candidates) -> Tensor:
        if self._choice == "sequential":
            return self._sequential(x)
        if self._choice == "compiled" and not self._known.is_uncompiled(self._code):
            try:
                return self._compiled(x)
            except Exception as error:
                self._known.leave_uncompiled(self._code, _first_line(error))
        return self._vectorized(x)

    def _compare(self, x: Candidates) -> None:
        """Compares a batched pass with plain calls on a few candidates; raises an error if they differ."""
        rows = x[torch.linspace(0, len(x) - 1, min(_N_COMPARED, len(x)), device=x.device).long()]
        self._check(self._vectorized(rows), self._sequential(rows), "in a batch", "in plain calls")

    def _choose(self, x: Candidates) -> None:
        """Chooses between plain calls and a batch, and the size of its chunks, by timing them."""
        if self._known.evaluation == "compiled":
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
        n_operations = self._known.examined[self._code].n_operations
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
            self._known.leave_uncompiled(self._code, _first_line(error))
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

    def _vectorized_or_explain(self, x: Candidates) -> Tensor:
        try:
            return self._vectorized(x)
        except RuntimeError as error:
            raise RuntimeError(
                f"The closure does not run for all candidates at once: {_first_line(error)}. "
                'Give the optimizer evaluation="auto" or evaluation="sequential".'
            ) from error


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
