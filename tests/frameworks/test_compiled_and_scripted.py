"""Models made by ``torch.compile`` and ``torch.jit`` train as the plain model does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional

import torch_gfo
from tests.frameworks.tasks import accuracy, larger
from tests.helpers import Task

# Torch wants torch.compile or torch.export in the place of torch.jit; people have such models nevertheless.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

STEPS = {"GA": 30, "EGGROLL": 30, "SPSA": 100}
ROUNDING = 1e-5  # of the parameters, after all steps: a compiled kernel may round otherwise


def train(name: str, task: Task, model: nn.Module, n_steps: int, **options: object) -> None:
    optimizer = getattr(torch_gfo, name)(model.parameters(), seed=0, **options)
    for step in range(n_steps):
        inputs, targets = task.inputs[step % 4], task.targets[step % 4]
        optimizer.step(lambda: functional.cross_entropy(model(inputs), targets))


def assert_alike(task: Task, other: Task) -> None:
    for one, another in zip(task.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(one, another, rtol=ROUNDING, atol=ROUNDING)


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(("name", "n_steps"), [("GA", 30), ("MeZO", 30)])
def test_a_compiled_model_trains_as_the_plain_one(name: str, n_steps: int) -> None:
    task, other = larger(), larger()
    options = {} if name == "MeZO" else {"evaluation": "sequential"}
    compiled = torch.compile(task.model)
    train(name, task, compiled, n_steps, **options)
    train(name, other, other.model, n_steps, **options)
    assert_alike(task, other)
    if name != "MeZO":  # which takes more steps
        assert accuracy(task) > 0.93
    inputs = task.inputs[0]
    torch.testing.assert_close(compiled(inputs), task.model(inputs))  # outside of a step, compiled indeed


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_model_in_a_batch() -> None:
    task, other = larger(), larger()
    train("GA", task, torch.compile(task.model), 20, evaluation="vectorized")
    train("GA", other, other.model, 20, evaluation="vectorized")
    assert_alike(task, other)


def script(task: Task) -> nn.Module:
    return torch.jit.script(task.model)


def trace(task: Task) -> nn.Module:
    return torch.jit.trace(task.model, task.inputs[0])


@pytest.mark.parametrize("make", [script, trace])
@pytest.mark.parametrize(("name", "n_steps"), STEPS.items())
def test_a_scripted_model_trains_one_candidate_at_a_time(
    name: str, n_steps: int, make: Callable[[Task], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    task, other = larger(), larger()
    train(name, task, make(task), n_steps)
    assert "one after the other" in caplog.text
    assert accuracy(task) > 0.93
    train(name, other, other.model, n_steps, evaluation="sequential")
    if name != "EGGROLL":  # which does not see what the layers' inputs are, and draws in all directions
        assert_alike(task, other)


def test_mezo_says_that_it_cannot_train_a_scripted_model(caplog: pytest.LogCaptureFixture) -> None:
    task = larger()
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    with caplog.at_level(logging.WARNING, "torch_gfo"):
        train("MeZO", task, script(task), 3)
    assert "as a scripted model does: SPSA can train it" in caplog.text
    assert all(torch.equal(p, b) for p, b in zip(task.model.parameters(), before, strict=True))
