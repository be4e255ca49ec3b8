"""Evaluations of one step, without an optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_batchedtensor

from tests.helpers import assert_identical, distance, mlp, seeded, vector
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
