"""Evaluations of one step, without an optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_batchedtensor

from tests.helpers import assert_identical, distance, mlp, seeded, vector
from torch_gfo import evaluation as module
from torch_gfo import passes
from torch_gfo.evaluation import BACKENDS, Evaluator, Plan
from torch_gfo.perturbation import Dense
from torch_gfo.space import ParameterVector


def evaluate(
    closure: Callable[[], Any],
    parameters: list[nn.Parameter],
    x: Tensor,
    evaluation: str,
    chunk_size: int | None = None,
) -> Tensor:
    with Evaluator(evaluation, chunk_size).session(closure, ParameterVector(parameters), Plan()) as session:
        return session.losses(x)


def rows_around(parameters: list[nn.Parameter], n: int) -> Tensor:
    x = ParameterVector(parameters).read()
    with seeded(1):
        return x + 0.1 * torch.randn(n, len(x), dtype=x.dtype)


@pytest.mark.parametrize("evaluation", ["sequential", "vectorized", "auto"])
def test_losses_of_rows(evaluation: str) -> None:
    """Row i of the losses is the loss at row i, and the parameters are as before."""
    x = vector(2, 3)
    rows = rows_around([x], 5)
    losses = evaluate(lambda: distance([x]), [x], rows, evaluation)
    torch.testing.assert_close(losses, (rows - 1).square().sum(1))
    assert_identical(x, vector(2, 3))


@pytest.mark.parametrize("evaluation", BACKENDS)
@pytest.mark.parametrize("kind", ["rows", "population"])
def test_a_closure_that_writes_to_its_parameters(kind: str, evaluation: str) -> None:
    """It changes what it evaluates, not what it was given: neither the caller's candidates nor the model."""
    x = nn.Parameter(torch.linspace(-1, 1, 6))
    rows = rows_around([x], 7)
    given = rows.clone()
    candidates = rows if kind == "rows" else Dense(torch.zeros(6), rows)

    def closure() -> Tensor:
        with torch.no_grad():
            x.mul_(0.5)
        return distance([x])

    evaluator, plan = Evaluator(evaluation, 3), Plan()
    for _ in range(2):
        with evaluator.session(closure, ParameterVector([x]), plan) as session:
            losses = session.losses(candidates)
        plan = session.plan
        assert_identical(rows, given)
        torch.testing.assert_close(losses, (0.5 * given - 1).square().sum(1))
        assert_identical(x.detach(), torch.linspace(-1, 1, 6))


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 100])
def test_chunk_size(chunk_size: int) -> None:
    """No batched call has more rows than chunk_size, none is forgotten, and the order is kept."""
    x = vector(4)
    rows = rows_around([x], 5)
    sizes = []

    def closure() -> Tensor:
        sizes.append(1)
        return distance([x])

    losses = evaluate(closure, [x], rows, "vectorized", chunk_size)
    torch.testing.assert_close(losses, (rows - 1).square().sum(1))
    trial = 1
    assert len(sizes) == trial + -(-5 // chunk_size)


@pytest.mark.parametrize(("memory", "cache", "most"), [(2**30, 17e6, 4), (9 * 10**6, 17e6, 2), (2**20, 17e6, 1)])
def test_memory_bounds_the_chunk(memory: int, cache: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default a pass takes no more memory than what is given, and no more than stays in the cache."""
    monkeypatch.setattr(passes, "_MEMORY", memory)
    monkeypatch.setattr(passes, "_CACHE", cache)
    x = vector(4)
    sizes: list[int] = []

    def closure() -> Tensor:
        product = (x[0] + torch.zeros(2**19)).exp()  # 2 MiB, and 2 MiB of which it is made
        sizes.append(get_unwrapped(product).shape[0])
        return product.sum() + distance([x])

    rows = rows_around([x], 9)
    losses = evaluate(closure, [x], rows, "vectorized")
    torch.testing.assert_close(losses, 2**19 * rows[:, 0].exp() + (rows - 1).square().sum(1))
    assert max(sizes[1:]) == -(-9 // -(-9 // most))  # passes of about the same size
    assert sum(sizes[1:]) == 9


def test_choice_is_kept() -> None:
    """A session goes on with what "auto" has chosen before."""
    x = vector(4)
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        return distance([x])

    with Evaluator("auto", None).session(closure, ParameterVector([x]), Plan(BACKENDS.index("sequential"))) as session:
        session.losses(rows_around([x], 7))
        assert BACKENDS[session.plan.backend] == "sequential"
    assert len(calls) == 7


def test_a_fresh_closure_for_every_batch_is_examined_once() -> None:
    """A loop that defines a new closure in every iteration costs no new trial."""
    x = vector(4)
    evaluator, calls = Evaluator("auto", None), []
    for _ in range(4):

        def closure() -> Tensor:
            calls.append(1)
            return distance([x])

        with evaluator.session(closure, ParameterVector([x]), Plan(BACKENDS.index("vectorized"))) as session:
            session.losses(rows_around([x], 6))
    assert len(calls) == (1 + 1 + 3) + 4  # a trial, a batch, three plain calls; then batches


def test_one_message(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a closure's code is, one evaluator says once that it falls back."""
    x = vector(4)
    rows, evaluator = rows_around([x], 3), Evaluator("auto", None)
    with caplog.at_level(logging.INFO, logger="torch_gfo"):
        for closure in (lambda: distance([x]).item(), lambda: float(distance([x]))):
            for _ in range(2):
                with evaluator.session(closure, ParameterVector([x]), Plan()) as session:
                    losses = session.losses(rows)
                torch.testing.assert_close(losses, (rows - 1).square().sum(1))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("evaluation", ["sequential", "vectorized"])
def test_common_random_numbers(evaluation: str) -> None:
    """All candidates see the masks that the plain call at the model's point sees."""
    task = mlp(dropout=0.5)
    parameters = list(task.model.parameters())
    space = ParameterVector(parameters)
    with Evaluator(evaluation, None).session(lambda: task.loss(), space, Plan()) as session:
        _, loss = session.model()
        losses = session.losses(space.read().expand(6, -1))
    torch.testing.assert_close(losses, torch.full((6,), loss))


@pytest.mark.parametrize("evaluation", ["sequential", "vectorized"])
def test_buffers_that_a_closure_modifies(evaluation: str) -> None:
    """A counter or a running mean of the closure's own moves once, in the plain call."""
    x, calls, running = vector(4), torch.zeros(()), torch.zeros(4)

    def closure() -> Tensor:
        calls.add_(1)
        running.lerp_(torch.ones(4), 0.5)
        return distance([x]) + running.sum()

    space = ParameterVector([x])
    rows = rows_around([x], 5)
    with Evaluator(evaluation, None).session(closure, space, Plan()) as session:
        session.model()
        losses = session.losses(rows)
    assert_identical([calls, running], [torch.ones(()), torch.full((4,), 0.5)])
    assert losses.shape == (5,)


def test_losses_that_require_grad() -> None:
    """Parameters that are not searched may require grad: no graph outlives the evaluation."""
    x, other = vector(4), vector(4, seed=1)
    for evaluation in ("sequential", "vectorized"):
        losses = evaluate(lambda: (x * other).sum(), [x], rows_around([x], 3), evaluation)
        assert not losses.requires_grad
        torch.testing.assert_close(losses, rows_around([x], 3) @ other.detach())


def test_dtype_of_the_losses() -> None:
    """Losses have the dtype of the rows, whatever the closure's arithmetic."""
    for dtype in (torch.float32, torch.float64):
        x = vector(4, dtype=dtype)
        for evaluation in ("sequential", "vectorized", "auto"):
            losses = evaluate(lambda: distance([x]).half(), [x], rows_around([x], 3), evaluation)
            assert losses.dtype == dtype


def test_gradients_by_inputs_fall_back_or_work() -> None:
    """A physics-informed loss, made of derivatives by inputs, has the same values under every evaluation."""
    x = vector(3)

    def closure() -> Tensor:
        t = torch.linspace(0, 1, 4, requires_grad=True)
        curve = x[0] + x[1] * t + x[2] * t**2
        (slope,) = torch.autograd.grad(curve.sum(), t)
        return slope.square().sum()

    rows = rows_around([x], 4)
    expected = torch.stack([(row[1] + 2 * row[2] * torch.linspace(0, 1, 4)).square().sum() for row in rows])
    for evaluation in ("sequential", "auto"):
        torch.testing.assert_close(evaluate(closure, [x], rows, evaluation), expected)


def test_auto_measures_once() -> None:
    """Timing the two ways, and the sizes of chunks, costs a bounded number of evaluations, at the first step alone."""
    x = vector(4)
    evaluator, calls = Evaluator("auto", None), []

    def closure() -> Tensor:
        calls.append(1)
        return distance([x])

    plan = Plan()
    counts = []
    for _ in range(4):
        calls.clear()
        with evaluator.session(closure, ParameterVector([x]), plan) as session:
            session.losses(rows_around([x], 64))
        plan = session.plan
        counts.append(len(calls))
    assert BACKENDS[plan.backend] == "vectorized"  # 64 calls against one
    assert counts[0] <= 1 + 1 + 3 + 3 + 2 * 4 + 4
    assert counts[1:] == [1 if plan.chunk_size == 0 else -(-64 // plan.chunk_size)] * 3


class OutOfMemory:
    """A closure that runs in batches of at most so many candidates."""

    def __init__(self, x: Tensor, most: int, error: RuntimeError) -> None:
        self.x, self.most, self.error = x, most, error
        self.sizes: list[int] = []

    def __call__(self) -> Tensor:
        loss = distance([self.x])
        product = self.x * 1  # a batched tensor where there is a batch
        size = get_unwrapped(product).shape[0] if is_batchedtensor(product) else 1
        self.sizes.append(size)
        if size > self.most:
            raise self.error
        return loss


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
@pytest.mark.parametrize("evaluation", ["vectorized", "auto"])
def test_out_of_memory_halves_the_chunk(evaluation: str, error: RuntimeError) -> None:
    """Where memory runs out, a pass is made again with half as many candidates, and so are all later ones."""
    x = vector(4)
    closure = OutOfMemory(x, 6, error)
    rows = rows_around([x], 20)
    evaluator, chunk_size = Evaluator(evaluation, None), 0
    for attempt in range(2):
        closure.sizes.clear()
        backend = BACKENDS.index("vectorized" if evaluation == "auto" else "auto")
        with evaluator.session(closure, ParameterVector([x]), Plan(backend, chunk_size)) as session:
            losses = session.losses(rows)
        torch.testing.assert_close(losses, (rows - 1).square().sum(1))
        chunk_size = session.plan.chunk_size
        assert chunk_size == 5
        assert closure.sizes[-4:] == [5] * 4
        assert (20 in closure.sizes) == (attempt == 0)


def test_out_of_memory_for_one_candidate() -> None:
    """Where not even one candidate fits, the error is torch's."""
    x = vector(4)
    closure = OutOfMemory(x, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        evaluate(closure, [x], rows_around([x], 20), "vectorized")


class Timed:
    """A closure on a clock that it alone moves on: what a call costs depends on the number of its candidates."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: Callable[[int], float]) -> None:
        self.x = vector(4)
        self.cost = cost
        self.now = 0.0
        self.sizes: list[int] = []  # of the calls, 0 of a plain one
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def __call__(self) -> Tensor:
        product = self.x * 1
        self.spend(get_unwrapped(product).shape[0] if is_batchedtensor(product) else 0)
        return distance([self.x])

    def spend(self, size: int) -> None:
        self.sizes.append(size)
        self.now += self.cost(size)

    def step(self, evaluator: Evaluator, plan: Plan, n: int = 64) -> Plan:
        """Evaluates candidates, and returns how the next ones are to be evaluated."""
        rows = rows_around([self.x], n)
        self.sizes.clear()
        with evaluator.session(self, ParameterVector([self.x]), plan) as session:
            losses = session.losses(rows)
        torch.testing.assert_close(losses, (rows - 1).square().sum(1))
        return session.plan


def backend(plan: Plan) -> str:
    return BACKENDS[plan.backend]


@pytest.mark.parametrize("n", [2, 3, 64])
def test_auto_keeps_plain_calls_that_are_faster(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that takes longer than so many plain calls is not used again, nor are its parts."""
    closure, evaluator = Timed(monkeypatch, lambda size: 5.0 * size + 1), Evaluator("auto", None)
    plan = closure.step(evaluator, Plan(), n)
    assert backend(plan) == "sequential"
    closure.step(evaluator, Plan(plan.backend), n)
    assert closure.sizes == [0] * n


def test_auto_takes_all_at_once_where_that_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it does with a larger population, as far as memory allows."""
    closure, evaluator = Timed(monkeypatch, lambda size: 1.0), Evaluator("auto", None)
    plan = closure.step(evaluator, Plan())
    assert backend(plan) == "vectorized"
    closure.step(evaluator, plan, 100)
    assert closure.sizes == [100]


def test_auto_takes_chunks_that_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a large batch is slow, as one is that the cache does not hold, smaller ones are tried."""

    def cost(size: int) -> float:
        return size * (10 if size > 16 else 0.1) + 1

    closure, evaluator = Timed(monkeypatch, cost), Evaluator("auto", None)
    plan = closure.step(evaluator, Plan())
    assert (backend(plan), plan.chunk_size) == ("vectorized", 16)
    assert set(closure.sizes[5:]) == {0, 64, 16, 4}  # four is slower: one is not tried
    closure.step(evaluator, plan)
    assert closure.sizes == [16] * 4


def test_auto_tries_no_chunk_below_the_one_that_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    closure = Timed(monkeypatch, lambda size: 0.01 * size + 1)
    plan = closure.step(Evaluator("auto", None), Plan())
    assert backend(plan) == "vectorized"
    assert closure.sizes[-3:] == [64, 16, 64]  # the last one is the evaluation that was asked for


def test_a_first_pass_that_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick pass is timed twice, for the first one takes longer; a slow one is not."""
    warm: set[int] = set()

    def cost(size: int) -> float:
        extra = 0.0 if size in warm else 0.4
        if len(closure.sizes) > 5:
            warm.add(size)
        return extra + 0.001 if size else 0.005

    closure = Timed(monkeypatch, cost)
    assert backend(closure.step(Evaluator("auto", None), Plan())) == "vectorized"
    assert closure.sizes.count(64) == 2 + 1  # and the evaluation that was asked for
    closure = Timed(monkeypatch, lambda size: 1.0)
    closure.step(Evaluator("auto", None), Plan())
    assert closure.sizes.count(64) == 1 + 1


@pytest.mark.parametrize("seconds", [0.01, 2.0])
def test_patience(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """It compiles once evaluating has taken ten times as long as compiling will: at least five seconds."""
    closure = Timed(monkeypatch, lambda size: seconds * max(size, 1))
    evaluator = Evaluator("auto", None)
    plan = closure.step(evaluator, Plan())
    (examined,) = evaluator.examined.values()
    assert plan.patience == pytest.approx(10 * (5 + 0.06 * examined.n_operations) / seconds, abs=1)
    assert closure.step(evaluator, plan, 16).patience == plan.patience - 16
    monkeypatch.setattr(module, "_TOO_MANY_OPERATIONS", examined.n_operations)
    assert closure.step(Evaluator("auto", None), Plan()).patience > 0
    monkeypatch.setattr(module, "_TOO_MANY_OPERATIONS", examined.n_operations - 1)
    assert closure.step(Evaluator("auto", None), Plan()).patience == 0  # a long recurrence: never


@pytest.mark.parametrize(
    ("before", "seconds", "after"),
    [
        (Plan(2, 64, 64), 0.8, Plan(3, 64, 0)),
        (Plan(2, 64, 64), 0.9, Plan(2, 64, 0)),
        (Plan(2, 16, 10), 3.5, Plan(3, 64, 0)),
        (Plan(2, 16, 64), 3.7, Plan(2, 16, 0)),
        (Plan(1, 16, 64), 57.0, Plan(3, 64, 0)),
        (Plan(1, 16, 64), 58.0, Plan(1, 16, 0)),
    ],
)
def test_trying_what_is_generated(before: Plan, seconds: float, after: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once patience is over, code that torch generates is used where it saves a tenth of the time."""

    def generated(closure: Callable[[], Tensor], numbers: Tensor, *_: object) -> Tensor:
        timed.sizes.append(-len(numbers))
        timed.now += 100 if timed.sizes.count(-len(numbers)) == 1 else seconds  # the first call generates it
        return (numbers - 1).square().sum(1)

    monkeypatch.setattr(passes, "Compiled", lambda: generated)
    timed, evaluator = Timed(monkeypatch, lambda size: 1.0), Evaluator("auto", None)
    timed.step(evaluator, Plan())
    assert timed.step(evaluator, before) == after
    assert timed.sizes.count(-64) == 3
    timed.step(evaluator, after)
    assert timed.sizes == {1: [0] * 64, 2: [after.chunk_size] * (64 // after.chunk_size), 3: [-64]}[after.backend]


def test_generated_code_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed: it is used as soon as a batch has the losses of plain calls."""
    monkeypatch.setattr(passes, "Compiled", lambda: lambda closure, numbers, *_: (numbers - 1).square().sum(1))
    closure, evaluator = Timed(monkeypatch, lambda size: 1.0), Evaluator("compiled", None)
    plan = closure.step(evaluator, Plan())
    assert plan == Plan(BACKENDS.index("compiled"), 64, 0)
    assert closure.sizes == [1, 3, 0, 0, 0, 64]  # the last one is what generated losses are compared with
    assert closure.step(evaluator, plan, 100) == plan
    assert closure.sizes == []


@pytest.mark.parametrize(("evaluation", "calls"), [("sequential", [0] * 64), ("vectorized", [1, 64])])
def test_a_way_that_is_asked_for(evaluation: str, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compared, timed or chosen."""
    closure = Timed(monkeypatch, lambda size: 1.0)
    assert closure.step(Evaluator(evaluation, None), Plan()) == Plan()
    assert closure.sizes == calls


@pytest.mark.parametrize(
    ("evaluation", "level"), [("auto", logging.INFO), ("compiled", logging.WARNING)], ids=["by_choice", "asked_for"]
)
def test_code_that_cannot_be_generated(
    evaluation: str, level: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The evaluation goes on as before; one message says so, to everybody only where compiling was asked for."""

    def fails(*_: object) -> Tensor:
        raise NotImplementedError("no compiler.\nMore about it.")

    monkeypatch.setattr(passes, "Compiled", lambda: fails)
    timed, evaluator = Timed(monkeypatch, lambda size: 1.0), Evaluator(evaluation, None)
    plan = Plan()
    with caplog.at_level(logging.INFO, logger="torch_gfo"):
        for _ in range(3):
            plan = timed.step(evaluator, plan._replace(patience=min(plan.patience, 1)))
    assert [record.levelno for record in caplog.records] == [level]
    assert "because no compiler. This" in caplog.text
    assert timed.sizes == [64]
    assert plan.patience == 0


def test_one_candidate_needs_no_batch() -> None:
    """Where there is one candidate, "auto" makes one plain call and learns nothing."""
    x, calls = vector(4), []

    def closure() -> Tensor:
        calls.append(is_batchedtensor(x * 1))
        return distance([x])

    for evaluation in ("auto", "compiled"):
        calls.clear()
        with Evaluator(evaluation, None).session(closure, ParameterVector([x]), Plan()) as session:
            session.losses(rows_around([x], 1))
        assert calls == [False]
        assert session.plan == Plan()


@pytest.mark.parametrize("which", [0, 4, 8])
def test_other_losses_in_a_batch_are_found(which: int, caplog: pytest.LogCaptureFixture) -> None:
    """A closure that computes something else in a batch for one of those that are compared is evaluated in plain calls.

    The first, the middle and the last of a population are.
    """
    x = vector(4)
    rows = rows_around([x], 9)
    other = distance([rows[which]])

    def closure() -> Tensor:
        loss = distance([x])
        return torch.where((loss - other).abs() < 1e-4, loss + 1, loss) if is_batchedtensor(loss) else loss

    with caplog.at_level(logging.INFO, logger="torch_gfo"):
        losses = evaluate(closure, [x], rows, "auto")
    torch.testing.assert_close(losses, (rows - 1).square().sum(1))
    assert "because in a batch the losses are" in caplog.text


def test_why_it_does_not_run_in_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    """The reason is the first line of the error, or its kind where it says nothing."""
    x = vector(4)
    for error, reason in (
        (RuntimeError("one.\ntwo"), "the closure does not run in a batch: one."),
        (KeyError(), "the closure does not run in a batch: KeyError."),
    ):

        def closure() -> Tensor:
            if is_batchedtensor(x * 1):
                raise error
            return distance([x])

        caplog.clear()
        with caplog.at_level(logging.INFO, logger="torch_gfo"):
            evaluate(closure, [x], rows_around([x], 3), "auto")
        assert f"because {reason} This" in caplog.text


def test_a_batch_that_is_asked_for_and_fails() -> None:
    """The error says what does not work, why, and what to do."""
    x = vector(4)
    with pytest.raises(
        RuntimeError, match=r'all candidates at once: .*[^.]\. Give the optimizer evaluation="auto"'
    ) as info:
        evaluate(lambda: distance([x]).item(), [x], rows_around([x], 3), "vectorized")
    assert isinstance(info.value.__cause__, RuntimeError)
