"""accelerate: prepared optimizers, schedulers and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import with_accelerate
from accelerate import Accelerator

import torch_gfo
from tests.helpers import Task, assert_identical, mlp
from torch_gfo.callbacks import count_evaluations

OPTIMIZERS = [torch_gfo.PSO, torch_gfo.CMAES, torch_gfo.EGGROLL]


def build(cls: Any, evaluation: str = "sequential") -> tuple[Accelerator, Task, Any, Any]:
    task, accelerator = mlp(), Accelerator(cpu=True)
    optimizer = cls(task.model.parameters(), seed=0, evaluation=evaluation)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    task.model, optimizer, schedule = accelerator.prepare(task.model, optimizer, schedule)
    return accelerator, task, optimizer, schedule


def train(accelerator: Accelerator, task: Task, optimizer: Any, schedule: Any, batches: range) -> None:
    for batch in batches:

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = task.loss(batch)
            accelerator.backward(loss)
            return loss

        assert optimizer.step(closure) is None
        schedule.step()


def test_the_example_learns() -> None:
    """72 steps of EGGROLL; a tenth would be right by chance."""
    assert with_accelerate.train(epochs=2) > 0.5


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_it_is_the_run_without_accelerate(cls: Any) -> None:
    accelerator, task, optimizer, schedule = build(cls)
    train(accelerator, task, optimizer, schedule, range(8))
    plain = mlp()
    alone = cls(plain.model.parameters(), seed=0, evaluation="sequential")
    decay = torch.optim.lr_scheduler.ExponentialLR(alone, 0.9)
    for batch in range(8):
        plain.train(alone, 1, first=batch)
        decay.step()
    assert_identical(dict(task.model.state_dict()), dict(plain.model.state_dict()))
    assert_identical(optimizer.state_dict(), alone.state_dict())
    assert count_evaluations(optimizer, 8) == alone.evaluations


def test_candidates_are_evaluated_in_a_batch() -> None:
    one, all_at_once = build(torch_gfo.PSO), build(torch_gfo.PSO, evaluation="vectorized")
    for run in (one, all_at_once):
        train(*run, range(4))
    for value, expected in zip(all_at_once[1].model.parameters(), one[1].model.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_the_optimizer_inside_returns_the_models_loss(cls: Any) -> None:
    _, task, optimizer, _ = build(cls)
    for batch in range(4):
        with torch.no_grad():
            expected = task.loss(batch)
        assert torch.equal(optimizer.optimizer.step(lambda: task.loss(batch)), expected)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_a_resumed_run_equals_an_undisturbed_one(cls: Any, tmp_path: Path) -> None:
    whole = build(cls)
    train(*whole, range(16))
    half = build(cls)
    train(*half, range(8))
    half[0].save_state(str(tmp_path / "run"))
    resumed = build(cls)
    resumed[0].load_state(str(tmp_path / "run"))
    train(*resumed, range(8, 16))
    assert_identical(dict(resumed[1].model.state_dict()), dict(whole[1].model.state_dict()))
    assert_identical(resumed[2].state_dict(), whole[2].state_dict())
    assert resumed[3].get_last_lr() == whole[3].get_last_lr()
