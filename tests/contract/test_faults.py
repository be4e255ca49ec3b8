"""Whatever goes wrong in a step, it is as if the step had not begun."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import Task, assert_identical, distance, identical, snapshot, twin, vector
from tests.registry import Case, Entry


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


def test_interrupt_in_any_call(entry: Entry) -> None:
    """C25: the same for Ctrl-C."""
    _fail_in_every_call(Case(entry, "default", {}), KeyboardInterrupt)


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


def test_state_after_failing_to_load(case: Case) -> None:
    """C25: a checkpoint that is refused changes neither parameters nor state."""
    x = vector(8)
    optimizer = case.make([x])
    optimizer.step(lambda: case.goal(distance([x])))
    before = snapshot(optimizer)
    broken: dict[str, Any] = optimizer.state_dict()
    broken = {**broken, "state": {0: {"step": 1}}}
    with pytest.raises(ValueError, match="lacks"):
        optimizer.load_state_dict(broken)
    assert_identical(snapshot(optimizer), before)
