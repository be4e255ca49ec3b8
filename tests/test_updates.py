"""The updates against torch's own, and what ClipUp promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gfo.updates import UPDATES, descend, memory


def gradients(n: int = 30, dim: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(dim, generator=generator, dtype=torch.float64) * 10.0 ** (i % 5 - 2) for i in range(n)]


@pytest.mark.parametrize(
    ("update", "build"),
    [
        ("adam", lambda params: torch.optim.Adam(params, lr=0.3, betas=(0.8, 0.999))),
        ("sgd", lambda params: torch.optim.SGD(params, lr=0.3, momentum=0.8)),
    ],
    ids=["adam", "sgd"],
)
def test_updates_are_those_of_torch(update: str, build: Callable[[Any], torch.optim.Optimizer]) -> None:
    x, y = torch.zeros(7, dtype=torch.float64), nn.Parameter(torch.zeros(7, dtype=torch.float64))
    state, theirs = memory(update, x), build([y])
    for gradient in gradients():
        x = x + 0.3 * descend(update, state, gradient, 0.8)
        y.grad = gradient
        theirs.step()
        torch.testing.assert_close(x, y.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("update", UPDATES)
def test_decay_shortens_steps_and_touches_nothing_else(update: str) -> None:
    """As torch's scheduler would, with a factor of 1 / sqrt(1 + 0.5 t)."""
    x, y = torch.zeros(7, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
    state, plain = memory(update, x), memory(update, y)
    for t, gradient in enumerate(gradients()):
        x = x + descend(update, state, gradient, 0.8, 0.5)
        y = y + descend(update, plain, gradient, 0.8) / (1 + 0.5 * t) ** 0.5
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    assert state.keys() == plain.keys()
    assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(plain[name])) for name, value in state.items())


def test_clipup_keeps_its_speed() -> None:
    """Toklu et al., algorithm 1: gradients of any length count alike, and the speed stays below twice the step size."""
    state, scaled = memory("clipup", torch.zeros(7).double()), memory("clipup", torch.zeros(7).double())
    for i, gradient in enumerate(gradients()):
        u = descend("clipup", state, gradient, 0.9)
        torch.testing.assert_close(descend("clipup", scaled, 2.0**i * gradient, 0.9), u)
        assert u.square().mean() <= 4 * (1 + 1e-12)
    for _ in range(60):
        u = descend("clipup", state, torch.ones(7).double(), 0.9)
    torch.testing.assert_close(u, torch.full((7,), -2.0).double())


@pytest.mark.parametrize("update", UPDATES)
def test_no_gradient_from_rest(update: str) -> None:
    state = memory(update, torch.zeros(3))
    for _ in range(3):
        assert torch.equal(descend(update, state, torch.zeros(3), 0.9), torch.zeros(3))


@pytest.mark.parametrize("update", UPDATES)
def test_entries_are_replaced_not_modified(update: str) -> None:
    """A step that fails is thrown away, and with it what it has made of the state."""
    state = memory(update, torch.zeros(7).double())
    for gradient in gradients(3):
        before = {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
        kept = dict(state)
        descend(update, state, gradient, 0.9)
        assert set(state) == set(before)
        for name, value in before.items():
            assert torch.equal(torch.as_tensor(kept[name]), torch.as_tensor(value))
