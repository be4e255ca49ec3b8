"""Likely mistakes of a newcomer: each is answered by an error that says what to do instead."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_gfo
from tests.helpers import assert_identical

INPUTS, TARGETS = torch.linspace(-1, 1, 24).view(8, 3), torch.arange(8) % 2


def network(inputs: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(inputs, 2)


def loss_of(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(INPUTS), TARGETS)


def step(closure: Callable[[nn.Module], Any]) -> Callable[[], Any]:
    """Makes a step with a closure of the model, after one that is right; the model must then be where it was."""

    def attempt() -> None:
        model = network()
        optimizer = torch_gfo.PSO(model.parameters(), seed=0)
        optimizer.step(lambda: loss_of(model))
        before = [p.detach().clone() for p in model.parameters()]
        try:
            optimizer.step(closure(model))
        finally:
            assert_identical([p.detach() for p in model.parameters()], before)

    return attempt


def load(saved: Callable[[], torch.optim.Optimizer], inputs: int = 3) -> Callable[[], None]:
    """Loads what another optimizer has saved into a file; ours must then be as it was."""

    def attempt() -> None:
        file = io.BytesIO()
        torch.save(saved().state_dict(), file)
        file.seek(0)
        optimizer = torch_gfo.PSO(network(inputs).parameters(), seed=0)
        before = optimizer.state_dict()
        try:
            optimizer.load_state_dict(torch.load(file, weights_only=True))
        finally:
            assert_identical(optimizer.state_dict(), before)

    return attempt


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no closure": (step(lambda model: None), RuntimeError, r"Call optimizer\.step\(closure\)"),
    "the loss in place of the closure": (step(loss_of), TypeError, r"Give it the function itself"),
    "a closure that returns None": (step(lambda model: lambda: None), TypeError, "End the closure with 'return loss'"),
    "a closure that returns a vector": (step(lambda model: lambda: model(INPUTS)), TypeError, r"with \.mean\(\)"),
    "lr=-1": (lambda: torch_gfo.GA(network().parameters(), lr=-1), ValueError, "lr must be a finite number >= 0"),
    "popsize=1": (lambda: torch_gfo.GA(network().parameters(), popsize=1), ValueError, "an integer of at least 2"),
    "numbers": (lambda: torch_gfo.GA([1.0, 2.0]), TypeError, r"x = torch\.nn\.Parameter.*give \[x\]"),
    "a module": (lambda: torch_gfo.GA(network()), TypeError, r"Give model\.parameters\(\)"),
    "bounds reversed": (
        lambda: torch_gfo.GA(network().parameters(), bounds=(1, -1)),
        ValueError,
        r"\(low, high\) with low < high, got \(1, -1\)",
    ),
    "an option mistyped": (
        lambda: torch_gfo.GA(network().parameters(), popsze=8),
        TypeError,
        "unexpected keyword argument 'popsze'. Did you mean 'popsize'",
    ),
    "an option of Adam": (
        lambda: torch_gfo.GA(network().parameters(), betas=(0.9, 0.999)),
        TypeError,
        "It takes bounds, .*popsize",
    ),
    "too many parameters for memory": (
        lambda: torch_gfo.CMAES([nn.Parameter(torch.zeros(1_000_000))]),
        RuntimeError,
        "Search fewer directions with subspace=100, lower popsize",
    ),
    "too large a population for memory": (
        lambda: torch_gfo.OpenAIES([nn.Parameter(torch.zeros(1_000_000))], popsize=10**8),
        RuntimeError,
        "lower popsize",
    ),
    "a checkpoint of another class": (
        load(lambda: torch_gfo.GA(network().parameters())),
        ValueError,
        "another optimizer has saved it, .*Load it into an optimizer of that class",
    ),
    "a checkpoint of Adam": (
        load(lambda: torch.optim.Adam(network().parameters())),
        ValueError,
        "Load it into an optimizer of that class",
    ),
    "a checkpoint of another model": (
        load(lambda: torch_gfo.PSO(network().parameters()), inputs=5),
        ValueError,
        "holds 6 numbers, here 10. Build the model as it was",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_error_says_what_to_do(mistake: str) -> None:
    attempt, error, remedy = MISTAKES[mistake]
    with pytest.raises(error, match=remedy):
        attempt()


def test_a_frozen_model_is_evaluated_and_the_warning_says_what_to_do() -> None:
    model = network().requires_grad_(False)
    optimizer = torch_gfo.GA(model.parameters(), seed=0)
    with pytest.warns(UserWarning, match=r"call requires_grad_\(\) on what it should move"):
        loss = optimizer.step(lambda: loss_of(model))
    assert loss == loss_of(model)


@pytest.mark.parametrize("params", [network(), [1.0]], ids=["module", "numbers"])
def test_suggest_takes_parameters(params: Any) -> None:
    with pytest.raises(TypeError, match=r"expected (its )?tensors"):
        torch_gfo.suggest(params, evaluations=100)
