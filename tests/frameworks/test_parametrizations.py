"""``torch.nn.utils.parametrize``: the search moves what a weight is computed from."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import torch_gfo
from tests.frameworks.tasks import accuracy, larger
from tests.helpers import Task, assert_identical, seeded


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


def weight_norm(layer: nn.Module) -> None:
    parametrizations.weight_norm(layer)


def weight_norm_of_columns(layer: nn.Module) -> None:
    parametrizations.weight_norm(layer, dim=1)


def weight_norm_as_a_whole(layer: nn.Module) -> None:
    parametrizations.weight_norm(layer, dim=None)  # type: ignore[arg-type]


def spectral_norm(layer: nn.Module) -> None:
    parametrizations.spectral_norm(layer)


def orthogonal(layer: nn.Module) -> None:
    parametrizations.orthogonal(layer)


def symmetric(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", Symmetric())


ALL = [weight_norm, weight_norm_of_columns, weight_norm_as_a_whole, spectral_norm, orthogonal, symmetric]


def task_with(parametrization: Callable[[nn.Module], None]) -> Task:
    with seeded():
        task = larger(tanh=nn.Sequential(nn.Tanh(), nn.Linear(8, 8), nn.Tanh()))
        parametrization(task.model[1][1])
    return task


@pytest.mark.parametrize("parametrization", ALL)
def test_training_and_the_constraint(parametrization: Callable[[nn.Module], None]) -> None:
    task = task_with(parametrization)
    optimizer = torch_gfo.EGGROLL(task.model.parameters(), seed=0, evaluation="sequential")
    task.train(optimizer, 60)
    layer = task.model[1][1]
    weight = layer.weight.detach()
    assert accuracy(task) > 0.93
    if parametrization is symmetric:
        assert torch.equal(weight, weight.T)
    elif parametrization is orthogonal:
        torch.testing.assert_close(weight @ weight.T, torch.eye(8), atol=1e-5, rtol=0)
    elif parametrization is spectral_norm:
        assert 0.9 < float(torch.linalg.matrix_norm(weight, 2)) < 1.1  # power iteration
    else:
        dims = {weight_norm: [1], weight_norm_of_columns: [0], weight_norm_as_a_whole: [0, 1]}[parametrization]
        lengths = layer.parametrizations.weight.original0.detach().abs()
        torch.testing.assert_close(weight.norm(dim=dims).flatten(), lengths.flatten())


@pytest.mark.parametrize("parametrization", [one for one in ALL if one is not spectral_norm])
@pytest.mark.parametrize("name", ["GA", "EGGROLL"])
def test_all_candidates_at_once(
    name: str, parametrization: Callable[[nn.Module], None], caplog: pytest.LogCaptureFixture
) -> None:
    """They are what they are one by one: rounding apart, in float64."""
    tasks = [task_with(parametrization)]
    tasks[0].model.double()
    tasks[0].inputs = tasks[0].inputs.double()
    tasks.append(copy.deepcopy(tasks[0]))
    losses = []
    for task, evaluation in zip(tasks, ("sequential", "vectorized"), strict=True):
        optimizer = getattr(torch_gfo, name)(task.model.parameters(), seed=0, evaluation=evaluation, popsize=8)
        losses.append(task.train(optimizer, 5))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][0] != losses[0][-1]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_spectral_norm_is_evaluated_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    """Its power iteration writes into given memory, which vmap cannot; its vectors move once a step."""
    task = task_with(spectral_norm)
    optimizer = torch_gfo.GA(task.model.parameters(), seed=0)
    task.train(optimizer, 3)
    assert "one after the other" in caplog.text
    other = task_with(spectral_norm)
    other.train(torch_gfo.GA(other.model.parameters(), seed=0, evaluation="sequential"), 3)
    assert_identical(dict(task.model.named_buffers()), dict(other.model.named_buffers()))
    assert_identical(dict(task.model.named_parameters()), dict(other.model.named_parameters()))


def test_the_older_weight_norm(caplog: pytest.LogCaptureFixture) -> None:
    """A hook computes the weight and keeps it in the layer, which a batched pass does not allow."""
    task = larger()
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(task.model[0])
    task.train(torch_gfo.EGGROLL(task.model.parameters(), seed=0), 30)
    assert "one after the other" in caplog.text
    assert accuracy(task) > 0.93
