"""Whatever goes wrong in a step, it is as if the step had not begun."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.helpers import Task, assert_identical, distance, identical, mlp, seeded, snapshot, twin, vector
from tests.registry import ENTRIES, Case, Entry


class Fault:
    """A closure over a task that raises in one of its calls.

    Attributes:
        calls: How often it has been called.
        at: The call that raises, counted from 1; None for none.
    """

    def __init__(self, task: Task, error: type[BaseException]) -> None:
        self.task = task
        self.error = error
        self.calls = 0
        self.at: int | None = None

    def __call__(self) -> Tensor:
        self.calls += 1
        loss = self.task.loss()  # BatchNorm and dropout have left their traces already
        if self.calls == self.at:
            raise self.error("in the middle of a step")
        return loss


def test_exception_in_any_call(case: Case) -> None:
    """C25: an exception in any call of the closure leaves parameters, buffers, state and random state as before."""
    _fail_in_every_call(case, RuntimeError)


@pytest.mark.parametrize("evaluation", ["sequential", "vectorized", "auto"])
def test_interrupt_in_any_call(entry: Entry, evaluation: str) -> None:
    """C25: the same for Ctrl-C, in every way to evaluate."""
    if evaluation in entry.refused:
        pytest.skip(entry.refused[evaluation])
    _fail_in_every_call(Case(entry, "default", {"evaluation": evaluation}), KeyboardInterrupt)


def _fail_in_every_call(case: Case, error: type[BaseException]) -> None:
    task = case.mlp(normalize=True, dropout=0.25)
    optimizer = case.make(task.model.parameters())
    task.train(optimizer, 2)
    before = snapshot(optimizer, task.model)
    untroubled_task, untroubled = twin(task, optimizer)
    expected = untroubled.step(lambda: untroubled_task.loss())
    after = snapshot(untroubled, untroubled_task.model)
    torch.set_rng_state(before["random"])
    fault = Fault(task, error)
    for k in itertools.count(1):
        fault.calls, fault.at = 0, k
        try:
            loss = optimizer.step(fault)
        except error:
            assert fault.calls == k
            assert_identical(snapshot(optimizer, task.model), before)
        else:
            break
    assert 1 <= fault.calls < k  # each call of a step has failed once, then none
    assert_identical(loss, expected)
    assert_identical(snapshot(optimizer, task.model), after)


@pytest.mark.parametrize("evaluation", ["auto", "vectorized"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_exception_in_a_first_batch(batching: Entry, error: type[BaseException], evaluation: str) -> None:
    """C25: the same in the first step of all, whichever call of the trial, the batch or the comparison raises."""
    case = Case(batching, "default", {})
    reference = case.mlp(normalize=True)
    reference_optimizer = batching.make(reference.model.parameters(), evaluation="sequential")
    reference.train(reference_optimizer, 1)
    for k in range(1, 8):
        task = case.mlp(normalize=True)
        optimizer = batching.make(task.model.parameters(), evaluation=evaluation)
        before = snapshot(optimizer, task.model)
        fault = Fault(task, error)
        fault.at = k
        with contextlib.suppress(RuntimeError, KeyboardInterrupt):  # "auto" may get along without that call
            optimizer.step(fault)
        if fault.calls == k:
            assert_identical(snapshot(optimizer, task.model), before)
            fault.at = None
            optimizer.step(fault)
        torch.testing.assert_close(
            dict(task.model.state_dict()), dict(reference.model.state_dict()), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_exception_while_compiling(error: type[BaseException]) -> None:
    """C25: the same where a batch is being compiled; a closure that fails then is evaluated without compiling."""
    case = Case(ENTRIES[0], "compiled", {**ENTRIES[0].small, "evaluation": "compiled"})
    reference = case.mlp(normalize=True)
    reference.train(case.make(reference.model.parameters(), evaluation="sequential"), 2)
    n_undone = 0
    for k in range(1, 5):
        task = case.mlp(normalize=True)
        optimizer = case.make(task.model.parameters())
        before = snapshot(optimizer, task.model)
        fault = Fault(task, error)
        fault.at = k
        try:
            optimizer.step(fault)
        except error:
            n_undone += 1
            assert_identical(snapshot(optimizer, task.model), before)
            fault.at = None
            optimizer.step(fault)
        task.train(optimizer, 1, first=1)
        torch.testing.assert_close(
            dict(task.model.state_dict()), dict(reference.model.state_dict()), rtol=1e-4, atol=1e-5
        )
    assert n_undone > 0


def test_exception_from_tell(entry: Entry) -> None:
    """C25: losses that cannot be read leave the conversation where it was."""
    x = vector(4)
    optimizer = entry.make([x])
    rows = optimizer.ask()
    before = snapshot(optimizer)
    with pytest.raises((TypeError, ValueError)):
        optimizer.tell(["not a loss"])  # type: ignore[list-item]
    assert_identical(snapshot(optimizer), before)
    assert_identical(optimizer.ask(), rows)


BAD = (math.nan, math.inf, -math.inf)


@pytest.mark.filterwarnings("ignore:All candidates")  # of so few
def test_some_losses_are_not_finite(case: Case) -> None:
    """C26: a candidate whose loss is NaN or infinite, with either sign, is never taken."""
    x = vector(4, 2)
    edge = x.detach().flatten()[0].item()
    optimizer = case.make([x])
    before = distance([x]).item()
    for bad in 8 * BAD:

        def closure() -> Tensor:
            loss = case.goal(distance([x]))
            return torch.where(x[0, 0] > edge, loss.new_tensor(bad), loss)  # about half of the candidates

        assert math.isfinite(float(optimizer.step(closure)))
        assert x[0, 0] <= edge
    assert torch.isfinite(x).all()
    assert math.isfinite(optimizer.best_loss)
    assert distance([x]).item() < before


def _models_after_one_bad_loss(case: Case, bad: float, closure: Callable[[Tensor, float], Tensor]) -> list[Tensor]:
    """Makes two steps, in the first of which one loss is bad; returns the model after each."""
    x = vector(4, 2)
    optimizer = case.make([x])
    models = []
    for value in (bad, 0.0):  # 0 for none
        optimizer.step(lambda: closure(x, value))
        models.append(x.detach().clone())
    assert all(torch.isfinite(model).all() for model in models)
    assert math.isfinite(optimizer.best_loss)
    return models


@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
def test_one_bad_loss_in_any_call(entry: Entry, maximize: bool) -> None:
    """C26: whichever call gives NaN, inf or -inf, it is the worst of all: the three make the same search."""
    case = Case(entry, "small", {**entry.small, "maximize": maximize})
    calls = 0
    for k in itertools.count(1):
        searches = []
        for bad in BAD:
            calls = 0

            def closure(x: Tensor, value: float) -> Tensor:
                nonlocal calls
                calls += 1
                return torch.tensor(value) if calls == k and value else case.goal(distance([x]))

            searches.append(_models_after_one_bad_loss(case, bad, closure))
        assert_identical(searches[1:], 2 * searches[:1])
        if calls < k:
            break
    assert k > 3


def test_one_bad_loss_in_a_batch(batching: Entry) -> None:
    """C26: the same for every candidate of a batch."""
    case = Case(batching, "small", {**batching.small, "evaluation": "vectorized"})
    start = vector(4, 2).detach()

    def loss(x: Tensor) -> Tensor:
        return distance([x]) + 100 * (x == start).all()  # any candidate is better than the model

    rows = batching.ask_for_candidates(case.make([vector(4, 2)]), loss=float(loss(start)))
    undisturbed = _models_after_one_bad_loss(case, 0.0, lambda x, _: loss(x))
    n_matter = 0
    for row in rows:
        searches = []
        for bad in BAD:

            def closure(x: Tensor, value: float) -> Tensor:
                here = (x.reshape(-1) - row).abs().max() < 1e-5
                return torch.where(here, torch.full((), value), loss(x)) if value else loss(x)

            searches.append(_models_after_one_bad_loss(case, bad, closure))
        assert_identical(searches[1:], 2 * searches[:1])
        n_matter += not identical(searches[0], undisturbed)
    assert n_matter > 0


def test_slow_calls(entry: Entry) -> None:
    """C25: however long a call takes, the search is the same, also if the way to evaluate is chosen by the clock."""
    for evaluation in ("sequential", "auto"):
        models = []
        for seconds in (0.0, 0.002):
            with seeded():
                task = mlp()
            task.model.double()
            task.inputs = task.inputs.double()
            optimizer = entry.make(task.model.parameters(), evaluation=evaluation, weight_decay=0.1, **entry.small)
            calls = itertools.count()

            def closure() -> Tensor:
                time.sleep(seconds if next(calls) % 3 == 0 else 0.0)
                return task.loss()

            for _ in range(3):
                optimizer.step(closure)
            models.append(dict(task.model.state_dict()))
        if evaluation == "sequential":
            assert_identical(*models)
        torch.testing.assert_close(*models, rtol=1e-7, atol=1e-7)


def test_all_losses_are_not_finite(case: Case) -> None:
    """C26: where no candidate has a finite loss nothing moves, a warning says so, and the next step works."""
    x = vector(4, 2)
    optimizer = case.make([x])
    for _ in range(2):
        optimizer.step(lambda: case.goal(distance([x])))
    before = x.detach().clone()
    for bad in BAD:
        with pytest.warns(UserWarning, match=r"All candidates of step \d have losses that are NaN or infinite"):
            optimizer.step(lambda: torch.full((), bad) + 0 * distance([x]))
        assert_identical(x.detach(), before)
    assert math.isfinite(optimizer.best_loss)
    for _ in range(20):
        optimizer.step(lambda: case.goal(distance([x])))
    assert torch.isfinite(x).all()
    assert distance([x]) < distance([before])


def test_candidates_are_not_finite_but_the_model_is(case: Case) -> None:
    """C26: the same where the model's own loss is finite: it stays the model."""
    x = vector(4, 2)
    before = x.detach().clone()
    optimizer = case.make([x])
    for bad in BAD:

        def closure() -> Tensor:
            here = (x == before).all()
            return torch.where(here, case.goal(distance([x])), torch.full((), bad))

        with pytest.warns(UserWarning, match="All candidates"):
            assert math.isfinite(float(optimizer.step(closure))) is case.entry.looks_first
        assert_identical(x.detach(), before)


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_leaving_a_bad_point(entry: Entry, bad: float) -> None:
    """C26: a model whose own loss is not finite moves to a point that has one."""
    for maximize in (False, True):
        x = vector(4, 2)
        edge = x.detach().flatten()[0].item()
        optimizer = entry.make([x], maximize=maximize)

        def closure() -> Tensor:
            loss = -distance([x]) if maximize else distance([x])
            return torch.where(x[0, 0] >= edge, loss.new_tensor(bad), loss)

        assert math.isfinite(float(optimizer.step(closure))) is not entry.looks_first
        for _ in range(15):
            optimizer.step(closure)
        assert x[0, 0] < edge
        assert math.isfinite(float(optimizer.step(closure)))


def test_huge_losses(case: Case) -> None:
    """C26: losses near the end of the number range do no harm."""
    x = vector(4, 2)
    optimizer = case.make([x], weight_decay=0.0)
    before = distance([x]).item()
    for _ in range(15):
        optimizer.step(lambda: case.goal(distance([x])) * 1e36)
    assert torch.isfinite(x).all()
    assert distance([x]).item() < before
    assert not identical(x, vector(4, 2))
