"""A process that trains one network with every optimizer, in turns, and saves a checkpoint after each round.

It never ends by itself.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler

from tests.helpers import Task
from tests.registry import ENTRIES, Case
from torch_gfo.bridges.replay import require
from torch_gfo.callbacks import Checkpoint

for package in ("cma", "nevergrad"):  # here, once for all processes: it takes seconds
    require(package, __name__)


class Run:
    """What is trained: networks with BatchNorm and dropout, optimizers and schedules.

    Attributes:
        round: How many steps each optimizer has made.
    """

    def __init__(self) -> None:
        self.round = 0
        self.parts: list[tuple[Task, torch.optim.Optimizer, LRScheduler]] = []
        for entry in ENTRIES:
            case = Case(entry, "small", entry.small)
            task = case.mlp(normalize=True, dropout=0.25)
            optimizer = case.make(task.model.parameters())
            self.parts.append((task, optimizer, ExponentialLR(optimizer, 0.999)))

    def advance(self) -> None:
        """Makes a step with each optimizer."""
        for task, optimizer, schedule in self.parts:
            task.train(optimizer, 1, first=self.round)
            schedule.step()
        self.round += 1

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The first; a checkpoint is of one and what else there is."""
        return self.parts[0][1]

    def checkpoint(self, path: Path) -> Checkpoint:
        return Checkpoint(path, run=self)

    def state_dict(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "parts": [
                {"model": dict(t.model.state_dict()), "optimizer": o.state_dict(), "schedule": s.state_dict()}
                for t, o, s in self.parts
            ],
        }

    def load_state_dict(self, checkpoint: dict[str, Any]) -> None:
        for (task, optimizer, schedule), saved in zip(self.parts, checkpoint["parts"], strict=True):
            task.model.load_state_dict(saved["model"])
            schedule.load_state_dict(saved["schedule"])
            optimizer.load_state_dict(saved["optimizer"])
        self.round = checkpoint["round"]


def live(path: Path, born: Any) -> None:
    """Goes on from the last checkpoint, if there is one, until it is killed; tells ``born`` when it has loaded."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run = Run()
    checkpoint = run.checkpoint(path)
    checkpoint.restore(run.optimizer)
    born.set()
    while True:
        run.advance()
        checkpoint.save(run.optimizer)
