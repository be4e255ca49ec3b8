"""Learning-rate schedulers of torch drive the search."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

from tests.helpers import assert_identical, distance, vector
from tests.registry import Case, Entry

Make = Callable[[Optimizer], Any]

SCHEDULERS: dict[str, Make] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda _: 0.8),
    "StepLR": lambda o: schedulers.StepLR(o, step_size=2, gamma=0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, milestones=[1, 4]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, total_iters=3),
    "LinearLR": lambda o: schedulers.LinearLR(o, total_iters=6),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, gamma=0.7),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, total_iters=7),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, T_max=5),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=3),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.1, 1.0, step_size_up=2, cycle_momentum=False),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 1.0, total_steps=12, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=1, threshold=10.0),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o, 0.1, 2), schedulers.ExponentialLR(o, 0.8)], milestones=[3]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.5, 3), schedulers.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: SWALR(o, swa_lr=0.05, anneal_epochs=4),
}

CYCLING_MOMENTUM: dict[str, Make] = {
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.1, 1.0),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 1.0, total_steps=12),
}

N_STEPS = 6


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")  # SequentialLR's own
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(entry: Entry, scheduler: str, tensor_lr: bool) -> None:
    """C22: a scheduler sets the lr that it sets for SGD, and the search follows it as if set by hand."""
    x, y, z = vector(5), vector(5), vector(5)
    lr = 0.5
    driven = entry.make([x], lr=torch.tensor(lr, dtype=torch.float64) if tensor_lr else lr)
    by_hand, sgd = entry.make([y], lr=lr), torch.optim.SGD([z], lr=lr)
    ours, theirs = SCHEDULERS[scheduler](driven), SCHEDULERS[scheduler](sgd)
    rates = []
    for _ in range(N_STEPS):
        rates.append(float(driven.param_groups[0]["lr"]))
        assert rates[-1] == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)
        by_hand.param_groups[0]["lr"] = rates[-1]
        loss = driven.step(lambda: distance([x]))
        by_hand.step(lambda: distance([y]))
        sgd.step()
        for schedule in (ours, theirs):
            metric = (loss,) if isinstance(schedule, schedulers.ReduceLROnPlateau) else ()
            schedule.step(*metric)
        assert_identical(x, y)
    assert len(set(rates)) > 1


@pytest.mark.parametrize("scheduler", CYCLING_MOMENTUM)
def test_schedulers_of_momentum(entry: Entry, scheduler: str) -> None:
    """C22: a scheduler that cycles momentum works where there is one, and says so where there is none."""
    optimizer = entry.make([vector(5)], lr=0.5)
    if entry.has_momentum:
        CYCLING_MOMENTUM[scheduler](optimizer)
        assert optimizer.param_groups[0]["momentum"] > 0
    else:
        with pytest.raises(ValueError, match="optimizer must support momentum"):
            CYCLING_MOMENTUM[scheduler](optimizer)


@pytest.mark.parametrize("scheduler", ["StepLR", "OneCycleLR", "ReduceLROnPlateau"])
def test_displacements_follow_the_schedule(case: Case, scheduler: str) -> None:
    """C22: the candidates' distance from the model is that of an unscheduled twin, times the schedule's factor.

    Where ``lr`` is the length of the model's step, the model's displacement is.
    """
    if case.options.get("bounds"):
        pytest.skip("the walls bend displacements")
    for n_steps in (1, 4):
        scheduled, constant = (case.make([vector(6, dtype=torch.float64)], lr=1.0) for _ in range(2))
        schedule = SCHEDULERS[scheduler](scheduled)
        for optimizer in (scheduled, constant):
            optimizer.param_groups[0]["lr"] = 1.0  # the same past for both
        for _, optimizer in itertools.product(range(n_steps), (scheduled, constant)):
            _one_step(optimizer)
        for _ in range(n_steps):
            metric = (1.0,) if scheduler == "ReduceLROnPlateau" else ()
            schedule.step(*metric)
        lr = float(scheduled.param_groups[0]["lr"])
        for optimizer in (scheduled, constant):
            with torch.no_grad():  # another objective for both
                optimizer.param_groups[0]["params"][0].add_(1.0)
        moves = [_displacements(optimizer, of_model=case.entry.lr_is_step) for optimizer in (scheduled, constant)]
        assert moves[1].abs().max() > 0
        torch.testing.assert_close(moves[0], lr * moves[1])


def _one_step(optimizer: Any) -> None:
    parameter = optimizer.param_groups[0]["params"][0]
    sign = -1 if optimizer.param_groups[0]["maximize"] else 1
    optimizer.step(lambda: sign * distance([parameter]))


def _displacements(optimizer: Any, *, of_model: bool) -> torch.Tensor:
    if not of_model:
        model = optimizer.ask()
        optimizer.tell((model - 1).square().sum(1))
        return optimizer.ask() - model
    sign = -1 if optimizer.param_groups[0]["maximize"] else 1
    parameter = optimizer.param_groups[0]["params"][0]
    before = parameter.detach().clone()
    step = int(optimizer.state[parameter]["step"])
    while int(optimizer.state[parameter]["step"]) == step:
        optimizer.tell(sign * (optimizer.ask() - 1).square().sum(1))
    return parameter.detach() - before
