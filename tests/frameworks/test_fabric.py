"""Fabric: the loop that it sets up, and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import with_fabric
from lightning import Fabric

import torch_gfo
from tests.helpers import Task, assert_identical, mlp
from torch_gfo.callbacks import count_evaluations

OPTIMIZERS = [torch_gfo.PSO, torch_gfo.CMAES, torch_gfo.EGGROLL]


def build(cls: Any, evaluation: str = "sequential", **options: Any) -> tuple[Fabric, Task, Any]:
    task, fabric = mlp(), Fabric(accelerator="cpu", devices=1, **options)
    optimizer = cls(task.model.parameters(), seed=0, evaluation=evaluation)
    task.model, optimizer = fabric.setup(task.model, optimizer)
    return fabric, task, optimizer


def train(fabric: Fabric, task: Task, optimizer: Any, batches: range) -> list[float]:
    losses = []
    for batch in batches:

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = task.loss(batch)
            fabric.backward(loss)
            return loss

        losses.append(float(optimizer.step(closure)))
    return losses


def test_the_example_learns() -> None:
    """60 steps of EGGROLL; a tenth would be right by chance."""
    assert with_fabric.train(steps=60) > 0.4


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_it_is_the_run_without_fabric(cls: Any) -> None:
    fabric, task, optimizer = build(cls)
    plain = mlp()
    expected = plain.train(cls(plain.model.parameters(), seed=0, evaluation="sequential"), 8)
    assert train(fabric, task, optimizer, range(8)) == expected
    assert count_evaluations(optimizer, 8) == optimizer.optimizer.evaluations > 8


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_a_resumed_run_equals_an_undisturbed_one(cls: Any, tmp_path: Path) -> None:
    _, whole, undisturbed = first = build(cls)
    fabric, half, optimizer = interrupted = build(cls)
    _, resumed, again = second = build(cls)
    expected = train(*first, range(16))
    train(*interrupted, range(8))
    fabric.save(tmp_path / "run.ckpt", {"model": half.model, "optimizer": optimizer})
    second[0].load(tmp_path / "run.ckpt", {"model": resumed.model, "optimizer": again})
    assert train(*second, range(8, 16)) == expected[8:]
    assert_identical(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    assert_identical(again.state_dict(), undisturbed.state_dict())


def test_candidates_are_evaluated_in_a_batch() -> None:
    one, all_at_once = build(torch_gfo.PSO), build(torch_gfo.PSO, evaluation="vectorized")
    assert train(*all_at_once, range(4)) == pytest.approx(train(*one, range(4)), rel=1e-4)


def test_bfloat16_autocast_trains() -> None:
    fabric, task, optimizer = build(torch_gfo.OpenAIES, precision="bf16-mixed")
    before = task.total()
    train(fabric, task, optimizer, range(60))
    assert task.total() < 0.6 * before
    assert all(parameter.dtype == torch.float32 for parameter in task.model.parameters())
