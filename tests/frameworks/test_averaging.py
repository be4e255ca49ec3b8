"""``torch.optim.swa_utils``: averages of the models that a search has passed through."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

import torch_gfo
from tests.frameworks.tasks import accuracy, larger
from tests.helpers import Task, mlp


def averaged(name: str, task: Task, **options: object) -> tuple[AveragedModel, list[nn.Module], SWALR]:
    """Trains for 30 steps, then for 20 whose models are averaged at another learning rate."""
    optimizer = getattr(torch_gfo, name)(task.model.parameters(), seed=0, evaluation="sequential", **options)
    task.train(optimizer, 30)
    average = AveragedModel(task.model)
    scheduler = SWALR(optimizer, swa_lr=0.2 * optimizer.param_groups[0]["lr"], anneal_epochs=5)
    passed = []
    for step in range(30, 50):
        task.train(optimizer, 1, first=step)
        scheduler.step()
        average.update_parameters(task.model)
        passed.append(copy.deepcopy(task.model))
    return average, passed, scheduler


@pytest.mark.parametrize("name", ["EGGROLL", "OpenAIES", "SNES"])
def test_averaged_model_and_swalr(name: str) -> None:
    task = larger()
    average, passed, scheduler = averaged(name, task)
    for averages, *values in zip(average.module.parameters(), *(m.parameters() for m in passed), strict=True):
        torch.testing.assert_close(averages.detach(), torch.stack([v.detach() for v in values]).mean(0))
    group = scheduler.optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(0.2 * group["initial_lr"])  # after annealing
    assert accuracy(task, average) > 0.93
    assert accuracy(task) > 0.93


def test_an_average_of_a_noisy_walk_is_better_than_its_places() -> None:
    """One pair of evaluations a step: far steps, along random directions."""
    task = larger()
    optimizer = torch_gfo.SPSA(task.model.parameters(), lr=4.0, seed=0, evaluation="sequential")
    average, losses = AveragedModel(task.model, multi_avg_fn=get_ema_multi_avg_fn(0.95)), []
    for step in range(200):
        task.train(optimizer, 1, first=step)
        average.update_parameters(task.model)
        if step >= 150:
            losses.append(task.total())
    task.model = average.module
    assert task.total() < sum(losses) / len(losses)


def test_batch_norm_of_the_average() -> None:
    task = mlp(normalize=True)
    average, _, _ = averaged("EGGROLL", task)
    update_bn(task.inputs, average)
    activations = average.module[0](task.inputs.flatten(0, 1))
    torch.testing.assert_close(average.module[1].running_mean, activations.mean(0).detach(), rtol=1e-4, atol=1e-5)
    task.model = average.module.eval()
    assert task.total() < 4 * 0.3
