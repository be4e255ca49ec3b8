"""``torch.autocast`` in a closure or around a step, models in bfloat16, and ``GradScaler``."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import torch_gfo
from tests.frameworks.tasks import accuracy, each_way, larger
from tests.helpers import Task

STEPS = {"GA": 50, "EGGROLL": 30, "SPSA": 100, "MeZO": 300}


def closure(task: Task, batch: int, *, cast: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16) if cast else nullcontext():
        outputs = task.model(task.inputs[batch % 4])
    return functional.cross_entropy(outputs.float(), task.targets[batch % 4])


def test_a_batch_agrees_with_plain_calls_to_bfloat16() -> None:
    """In a batch, autocast reaches a layer's product and not the sum, which is not rounded to bfloat16 then."""
    losses = []
    for evaluation in ("sequential", "vectorized"):
        task = larger()
        optimizer = torch_gfo.GA(task.model.parameters(), seed=0, evaluation=evaluation)
        losses.append([float(optimizer.step(lambda: closure(task, 0, cast=True))) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert losses[0][-1] < losses[0][0]
    assert losses[0] != losses[1]


def test_a_loss_in_bfloat16() -> None:
    """Whatever ``"auto"`` chooses, it has been compared with plain calls."""
    task = larger()
    optimizer = torch_gfo.GA(task.model.parameters(), seed=0)
    for step in range(30):
        optimizer.step(lambda: closure(task, step, cast=True).bfloat16())
    assert accuracy(task) > 0.93


@pytest.mark.parametrize("place", ["in the closure", "around the step"])
@pytest.mark.parametrize(("name", "evaluation"), each_way(STEPS))
def test_autocast(name: str, evaluation: str, place: str) -> None:
    """Weights keep their dtype and take steps far below bfloat16's last digit."""
    task = larger()
    optimizer = getattr(torch_gfo, name)(task.model.parameters(), seed=0, evaluation=evaluation)
    for step in range(STEPS[name]):
        with torch.autocast("cpu", torch.bfloat16, enabled=place == "around the step"):
            optimizer.step(lambda: closure(task, step, cast=place == "in the closure"))
    assert all(p.dtype == torch.float32 for p in task.model.parameters())
    assert any(not torch.equal(p, p.bfloat16().float()) for p in task.model.parameters())
    assert accuracy(task) > 0.93


@pytest.mark.parametrize("name", STEPS)
def test_a_model_in_bfloat16(name: str) -> None:
    task = larger(dtype=torch.bfloat16)
    optimizer = getattr(torch_gfo, name)(task.model.parameters(), seed=0)
    for step in range(STEPS[name]):
        optimizer.step(lambda: closure(task, step, cast=False))
    assert all(p.dtype == torch.bfloat16 for p in task.model.parameters())
    assert accuracy(task) > 0.93


def test_grad_scaler() -> None:
    """Disabled, it hands the closure over; enabled, it needs gradients, and refuses."""
    task = larger()
    optimizer = torch_gfo.GA(task.model.parameters(), seed=0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loss = scaler.step(optimizer, lambda: task.loss())
    assert float(scaler.step(optimizer, lambda: task.loss())) < float(loss)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    scaler.scale(torch.zeros(()))
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaler.step(optimizer, lambda: task.loss())
