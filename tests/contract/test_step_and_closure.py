"""What ``step`` does with its closure, returns, and leaves alone; ``ask`` and ``tell``."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tests.helpers import assert_identical, distance, identical, parameters_of, snapshot, vector
from tests.registry import Case, Entry
from torch_gfo.optimizer import GradientFreeOptimizer


@pytest.mark.parametrize(
    ("contiguous", "schedulers"),
    [(True, ()), (False, (StepLR, ReduceLROnPlateau))],
    ids=["contiguous", "strided_and_scheduled"],
)
def test_right_direction(case: Case, contiguous: bool, schedulers: tuple[type, ...]) -> None:
    """C2: after 20 steps on 60 parameters the loss is better, and an elitist search was never worse on the way."""
    weight, bias, inputs = vector(10, 5), vector(10, seed=1), vector(5, seed=2).detach()
    if not contiguous:
        weight = nn.Parameter(torch.stack([weight.detach(), weight.detach()], -1)[..., 0])
        assert not weight.is_contiguous()
    optimizer = case.make([weight, bias])
    chain = [cls(optimizer, **({"step_size": 5} if cls is StepLR else {})) for cls in schedulers]

    def closure() -> Tensor:
        return case.goal((weight.mv(inputs) + bias).square().sum())

    losses = []
    for _ in range(20):
        losses.append(optimizer.step(closure))
        for scheduler in chain:
            scheduler.step(losses[-1]) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
    goals = [float(case.goal(loss)) for loss in (*losses, closure().detach())]
    assert goals[-1] < goals[0]
    if case.entry.elitist and not case.options.get("weight_decay"):
        assert goals == sorted(goals, reverse=True)


def test_step_hooks(entry: Entry) -> None:
    """C10: hooks of a step fire once, in torch's order, also with a closure that returns a plain 1."""
    x = vector(3)
    optimizer = entry.make([x])
    other = entry.make([vector(3)])
    seen: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: seen.append(name)

    handles = [
        optimizer.register_step_post_hook(note("post")),
        optimizer.register_step_pre_hook(note("pre")),
        register_optimizer_step_post_hook(note("global post")),
        register_optimizer_step_pre_hook(note("global pre")),
    ]
    try:
        assert optimizer.step(lambda: 1) == 1
    finally:
        for handle in handles:
            handle.remove()
    assert seen == ["global pre", "pre", "post", "global post"]
    other.step(lambda: 1)
    optimizer.step(lambda: 1)
    assert len(seen) == 4


def test_closure_from_a_hook(entry: Entry) -> None:
    """C10: a pre-hook may provide the closure; frameworks that call step() without one do so."""
    x = vector(3)
    optimizer = entry.make([x])
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: distance([x])), {}))
    before = distance([x]).item()
    for _ in range(10):
        optimizer.step()
    assert distance([x]).item() < before


def test_checkpoint_hooks(entry: Entry) -> None:
    """C10: all hooks of state_dict and load_state_dict fire in order, and what they return is used."""
    x = vector(3)
    optimizer = entry.make([x])
    optimizer.step(lambda: distance([x]))
    seen: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: seen.append(name)

    def halve_lr(_: Any, checkpoint: dict[str, Any]) -> dict[str, Any]:
        seen.append("load pre, changing")
        group = {**checkpoint["param_groups"][0], "lr": 0.5}
        return {**checkpoint, "param_groups": [group]}

    def add_note(_: Any, checkpoint: dict[str, Any]) -> dict[str, Any]:
        return {**checkpoint, "note": "added"}

    optimizer.register_state_dict_pre_hook(note("save pre"))
    optimizer.register_state_dict_post_hook(add_note)
    optimizer.register_load_state_dict_pre_hook(halve_lr)
    optimizer.register_load_state_dict_pre_hook(note("load pre, first"), prepend=True)
    optimizer.register_load_state_dict_post_hook(note("load post"))
    optimizer.register_load_state_dict_post_hook(note("load post, first"), prepend=True)
    checkpoint = optimizer.state_dict()
    assert checkpoint["note"] == "added"
    before = copy.deepcopy(checkpoint)
    for _ in range(2):
        seen.clear()
        optimizer.load_state_dict(checkpoint)
        assert seen == ["load pre, first", "load pre, changing", "load post, first", "load post"]
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert_identical(checkpoint, before)


def test_nothing_to_optimize(entry: Entry) -> None:
    """C12: without a trainable parameter the closure is evaluated once, its value returned, and nothing moves."""
    x = nn.Parameter(torch.ones(3), requires_grad=False)
    indices = nn.Parameter(torch.arange(3), requires_grad=False)
    optimizer = entry.make([x, indices])
    calls = []
    value = torch.tensor([2.5])
    with pytest.warns(UserWarning, match="nothing to optimize"):
        assert optimizer.step(lambda: calls.append(1) or value) is value
    assert optimizer.step(lambda: calls.append(1) or value) is value  # warned of once
    assert len(calls) == 2
    assert_identical([x.detach(), indices.detach()], [torch.ones(3), torch.arange(3)])


def test_flat_loss(case: Case) -> None:
    """C13: where all points are equally good, an elitist search keeps the model bit-identical; none gives NaN."""
    x = vector(4, 2)
    optimizer = case.make([x], weight_decay=0.0)
    for _ in range(5):
        assert float(optimizer.step(lambda: 0.0 * distance([x]) + 1.5)) == 1.5
    assert torch.isfinite(x).all()
    if case.entry.elitist:
        assert_identical(x, vector(4, 2))


@pytest.mark.parametrize("value", [float, lambda loss: loss, lambda loss: loss.reshape(1)], ids=["float", "0d", "1d"])
def test_return_type(case: Case, value: Callable[[Tensor], Any]) -> None:
    """C16: step always returns what the closure returns, also where it need not call it at the model's point."""
    if case.options.get("evaluation") == "vectorized" and value is float:
        pytest.skip("a batch gives tensors")
    x = vector(4, 2)
    optimizer = case.make([x])
    results = [optimizer.step(lambda: value(case.goal(distance([x])).detach())) for _ in range(4)]
    assert {type(result) for result in results} == {float if value is float else Tensor}
    assert all(not isinstance(result, Tensor) or result.numel() == 1 for result in results)


def test_first_call_and_result(case: Case) -> None:
    """C23: the first call sees the current parameters, and step returns its value; later ones see candidates.

    If all calls see candidates, step returns their mean value.
    """
    x = vector(4, 2)
    optimizer = case.make([x], evaluation="sequential", deterministic=False)
    for _ in range(4):
        before = x.detach().clone()
        points, values = [], []

        def closure() -> Tensor:
            points.append(x.detach().clone())
            values.append(case.goal(distance([x])))
            return values[-1]

        result = optimizer.step(closure)
        assert identical(points[0], before) is case.entry.looks_first
        assert not identical(points[1], before)
        if case.entry.looks_first:
            assert result is values[0]
            assert_identical(result, case.goal(distance([before])))
        else:
            torch.testing.assert_close(result, torch.stack(values).mean())


def test_returned_loss_is_the_models(case: Case) -> None:
    """C23: what step returns is the loss at the parameters from before it, evaluated, remembered or nearly so."""
    x = vector(4, 2)
    optimizer = case.make([x])
    tolerances = {} if case.entry.looks_first else {"rtol": 0.1, "atol": 0.1}
    for _ in range(6):
        expected = case.goal(distance([x.detach()]))
        torch.testing.assert_close(optimizer.step(lambda: case.goal(distance([x]))), expected, **tolerances)


def test_what_a_step_leaves_alone(case: Case) -> None:
    """C24: grad mode, gradients, requires_grad, storage and layout of parameters are the caller's."""
    task = case.mlp(normalize=True)
    parameters = list(task.model.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    frozen = parameters[1].requires_grad_(False)
    optimizer = case.make(parameters)
    identity = [(id(p), p.data_ptr(), p.stride(), p.requires_grad, id(p.grad)) for p in parameters]
    modes = []

    def closure() -> Tensor:
        modes.append(torch.is_grad_enabled())
        return task.loss()

    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            optimizer.step(closure)
            assert torch.is_grad_enabled() is enabled
    assert set(modes) == {True}
    assert identity == [(id(p), p.data_ptr(), p.stride(), p.requires_grad, id(p.grad)) for p in parameters]
    assert_identical(parameters[0].grad, torch.ones_like(parameters[0]))
    assert frozen.grad is None


def test_zero_grad_and_backward_do_no_harm(case: Case) -> None:
    """C24: a closure written for LBFGS gives the same search as a bare one, and computes no gradient."""
    one, other = case.mlp(), case.mlp()
    bare, full = case.make(one.model.parameters()), case.make(other.model.parameters())

    def closure() -> Tensor:
        full.zero_grad()
        loss = other.loss()
        loss.backward()
        return loss

    for _ in range(3):
        bare.step(lambda: one.loss())
        full.step(closure)
    assert_identical(dict(one.model.state_dict()), dict(other.model.state_dict()))
    assert all(p.grad is None for p in other.model.parameters())


def test_global_random_state(case: Case) -> None:
    """C24: a step moves torch's global generator as one plain call of the closure does."""
    task = case.mlp(dropout=0.5)
    optimizer = case.make(task.model.parameters(), deterministic=False)
    torch.manual_seed(1)
    plain = task.loss().detach()
    after_one_call = torch.get_rng_state()
    torch.manual_seed(1)
    loss = optimizer.step(lambda: task.loss())
    assert identical(loss, plain) is case.entry.looks_first
    assert_identical(torch.get_rng_state(), after_one_call)


def test_values_of_all_kinds(entry: Entry) -> None:
    """C27: a loss may be a Python, NumPy or torch number of any shape with one element: the same search."""
    kinds: list[Callable[[float], Any]] = [
        float,
        np.float64,
        np.float32,
        lambda loss: np.array(loss),
        torch.tensor,
        lambda loss: torch.tensor([loss]),
        lambda loss: torch.tensor([[loss]], dtype=torch.float64),
        lambda loss: torch.tensor(loss, requires_grad=True),
    ]
    trajectories = []
    for kind in kinds:
        x = vector(5)
        optimizer = entry.make([x])
        for _ in range(4):
            optimizer.step(lambda: kind(float(distance([x]))))
        trajectories.append(x.detach())
    for trajectory in trajectories[1:]:
        assert_identical(trajectory, trajectories[0])
    assert not identical(trajectories[0], vector(5).detach())


def test_integer_losses(entry: Entry) -> None:
    """C27: a count of mistakes, a Python int or an integer tensor, is a loss."""
    for kind in (int, torch.tensor):
        x = vector(8)
        optimizer = entry.make([x], sigma=1.0)
        before = int((x > 0.1).sum())
        for _ in range(20):
            optimizer.step(lambda: kind(int((x > 0.1).sum())))
        assert int((x > 0.1).sum()) < before


@pytest.mark.parametrize(
    "value",
    [None, torch.ones(2), torch.ones(0), "1.0", [1.0], np.ones(2), 1j, torch.tensor(1j)],
    ids=["None", "vector", "empty", "string", "list", "array", "complex", "complex_tensor"],
)
@pytest.mark.parametrize("evaluation", ["auto", "sequential", "vectorized"])
def test_values_that_are_no_loss(entry: Entry, value: Any, evaluation: str) -> None:
    """C27: anything else is a TypeError that says what to return; nothing has changed then."""
    if evaluation in entry.refused:
        pytest.skip(entry.refused[evaluation])
    x = vector(5)
    optimizer = entry.make([x], evaluation=evaluation)
    before = snapshot(optimizer)
    with pytest.raises(TypeError, match="an optimizer minimises one real number"):
        optimizer.step(lambda: value)
    assert_identical(snapshot(optimizer), before)


def test_no_closure(entry: Entry) -> None:
    """C27: step() without a closure explains why it needs one."""
    optimizer = entry.make([vector(2)])
    for call in (optimizer.step, lambda: optimizer.step(None), lambda: optimizer.step(closure=None)):
        with pytest.raises(RuntimeError, match="needs a closure"):
            call()


def test_number_of_evaluations(case: Case) -> None:
    """C28: a step calls the closure as often as promised, at the model and for candidates, and counts it."""
    x = vector(4, 2)
    optimizer = case.make([x], evaluation="sequential")
    group = optimizer.param_groups[0]
    changing, dim = not group["deterministic"], group["subspace"] or x.numel()
    total = 0
    for step in range(8):
        calls = []
        optimizer.step(lambda: calls.append(1) or case.goal(distance([x]) + step * changing))
        total += len(calls)
        least, most = case.entry.candidates(group, dim, changing)
        looks = int(case.entry.looks_first and (step == 0 or changing))
        assert looks + least <= len(calls) <= looks + most
        assert optimizer.evaluations == total


def test_best_loss(case: Case) -> None:
    """C28: best_loss is the best value that the closure has returned so far."""
    x = vector(4, 2)
    optimizer = case.make([x], evaluation="sequential")
    values = []

    def closure() -> Tensor:
        values.append(case.goal(distance([x])).item())
        return case.goal(distance([x]))

    for _ in range(4):
        optimizer.step(closure)
        best = max(values) if case.options.get("maximize") else min(values)
        assert optimizer.best_loss == best


def test_maximize(case: Case) -> None:
    """C34: maximising f is minimising -f, bit for bit, and step returns f itself."""
    x, y = vector(4, 2), vector(4, 2)
    up, down = case.make([x], maximize=True), case.make([y], maximize=False)
    for _ in range(8):
        above, below = up.step(lambda: -distance([x])), down.step(lambda: distance([y]))
        assert_identical(above, -below)
        assert_identical(x, y)
    assert up.best_loss == -down.best_loss


def test_ask_and_tell_are_a_step(case: Case) -> None:
    """D1: asking and telling from outside makes the same steps as a closure, bit for bit."""
    x, y = vector(8), vector(8)
    inside, outside = case.make([x], evaluation="sequential"), case.make([y])
    for step in range(6):
        inside.step(lambda: case.goal(distance([x])))
        while _step_of(outside) == step:
            rows = outside.ask()
            outside.tell([case.goal(distance([row])).item() for row in rows])
        assert_identical(x, y)
        assert_identical(snapshot(outside)["optimizer"]["state"][0]["step"], step + 1)
    assert inside.evaluations == outside.evaluations
    assert inside.best_loss == outside.best_loss


def test_interrupted_between_ask_and_tell(case: Case) -> None:
    """D1: a copy or checkpoint taken between ask and tell asks for the same candidates again."""
    x = vector(8)
    optimizer = case.make([x])
    for _ in range(3):
        optimizer.step(lambda: case.goal(distance([x])))
    one_round = case.options.get("deterministic") or not case.entry.looks_first
    for n_told in (0,) if one_round else (0, 1):
        rounds = _rounds(case, optimizer, n_told)
        assert_identical(optimizer.ask(), rounds[-1])
        loaded = case.make([nn.Parameter(x.detach().clone())], seed=5)
        loaded.load_state_dict(optimizer.state_dict())
        for successor in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)), loaded):
            assert_identical(_rounds(case, successor, n_told), rounds)


def test_a_step_gives_up_what_was_asked(case: Case) -> None:
    """D1: step() after ask() makes the step that ask() has begun; what was asked need not be told."""
    x, y = vector(8), vector(8)
    one, other = case.make([x]), case.make([y])
    one.ask()
    for _ in range(2):
        one.step(lambda: case.goal(distance([x])))
        other.step(lambda: case.goal(distance([y])))
    assert_identical(x, y)
    with pytest.raises(RuntimeError, match=r"call ask\(\) first"):
        one.tell([1.0])


def test_telling_the_wrong_number(entry: Entry) -> None:
    """D1: as many losses as rows, or a ValueError; the right ones may follow."""
    optimizer = entry.make([vector(3)])
    n = len(optimizer.ask())
    for losses in ([], torch.ones(n + 1), torch.ones(n, 1)):
        with pytest.raises(ValueError, match=f"one loss for each of the {n} rows"):
            optimizer.tell(losses)
    optimizer.tell(n * [1.0])


def _rounds(case: Case, optimizer: GradientFreeOptimizer, n_told: int) -> list[Tensor]:
    """The rows of the first rounds of a step, the last of them not told."""
    rounds = [optimizer.ask()]
    for _ in range(n_told):
        optimizer.tell(case.goal((rounds[-1] - 1).square().sum(1)))
        rounds.append(optimizer.ask())
    return rounds


def _step_of(optimizer: GradientFreeOptimizer) -> int:
    return int(optimizer.state[parameters_of(optimizer)[0]]["step"])
