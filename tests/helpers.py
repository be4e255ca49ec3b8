"""What the tests share: small problems, and exact comparisons."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

T = TypeVar("T")


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Draws from the global generator are fixed inside, and leave no trace outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def assert_identical(actual: Any, expected: Any, where: str = "") -> None:
    """Compares nested containers of tensors and numbers bit for bit; NaN equals NaN."""
    assert type(actual) is type(expected), f"{where}: {type(actual)} != {type(expected)}"
    if isinstance(actual, Tensor):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), where
        if not torch.equal(actual, expected):
            torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True, msg=lambda m: f"{where}: {m}")
    elif isinstance(actual, dict):
        assert list(actual) == list(expected), f"{where}: keys {list(actual)} != {list(expected)}"
        for key in actual:
            assert_identical(actual[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(actual, (list, tuple)):
        assert len(actual) == len(expected), f"{where}: lengths {len(actual)} != {len(expected)}"
        for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_identical(one, other, f"{where}[{i}]")
    else:
        assert actual == expected or (actual != actual and expected != expected), f"{where}: {actual} != {expected}"


def identical(actual: Any, expected: Any) -> bool:
    """Whether ``assert_identical`` holds."""
    try:
        assert_identical(actual, expected)
    except AssertionError:
        return False
    return True


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def snapshot(optimizer: Optimizer, model: nn.Module | None = None) -> dict[str, Any]:
    """Copies everything that training changes: parameters, buffers, the optimizer's state, the global generator."""
    return copy.deepcopy(
        {
            "parameters": [parameter.detach() for parameter in parameters_of(optimizer)],
            "model": dict(model.state_dict()) if model is not None else {},
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
    )


def twin(*objects: T) -> tuple[T, ...]:
    """Deep copies objects together: a copied optimizer holds the copied model's parameters."""
    return copy.deepcopy(objects)


def vector(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """A parameter of standard normal values."""
    with seeded(seed):
        return nn.Parameter(torch.randn(shape, dtype=dtype))


def join(parameters: Sequence[Tensor]) -> Tensor:
    """All values of some parameters in one real vector, in their order."""
    real = [torch.view_as_real(p) if p.is_complex() else p for p in parameters]
    return torch.cat([p.reshape(-1).to(torch.promote_types(p.dtype, torch.float32)) for p in real])


def distance(parameters: Sequence[Tensor]) -> Tensor:
    """A smooth bowl around one in every coordinate, which no parameter starts at."""
    return (join(parameters) - 1).square().sum()


@dataclass
class Task:
    """A small network, some minibatches, and what to make of them.

    Attributes:
        model: The network.
        inputs: ``(n_batches, batch, ...)``.
        targets: ``(n_batches, batch)``.
        sign: -1 to turn the loss into something to maximise.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    criterion: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    sign: int = 1

    def loss(self, batch: int = 0) -> Tensor:
        i = batch % len(self.inputs)
        return self.sign * self.criterion(self.model(self.inputs[i]), self.targets[i])

    def train(self, optimizer: Optimizer, n_steps: int, first: int = 0) -> list[float]:
        """Makes steps on consecutive minibatches and returns their losses."""
        return [float(optimizer.step(lambda: self.loss(batch))) for batch in range(first, first + n_steps)]

    @torch.no_grad()
    def total(self) -> float:
        """The loss on all minibatches, to minimise whatever the sign."""
        return self.sign * sum(float(self.loss(batch)) for batch in range(len(self.inputs)))


def mlp(*, n_batches: int = 4, normalize: bool = False, dropout: float = 0.0, sign: int = 1) -> Task:
    """Two classes, two features, 17 parameters, or 23 with BatchNorm."""
    with seeded():
        between = [nn.BatchNorm1d(3)] if normalize else []
        masks = [nn.Dropout(dropout)] if dropout else []
        model = nn.Sequential(nn.Linear(2, 3), *between, nn.Tanh(), *masks, nn.Linear(3, 2))
        inputs = torch.randn(n_batches, 16, 2)
        targets = (inputs.sum(-1) > 0).long()
    return Task(model, inputs, targets, sign=sign)
