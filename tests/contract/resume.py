"""Continues, in a process of its own, what ``test_state_and_checkpoints`` has begun."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from tests.helpers import Task
from tests.registry import CASES, Case
from torch_gfo.optimizer import GradientFreeOptimizer

RUNS = {f"{case}": (case, "sequential") for case in CASES if case.options.get("evaluation") != "vectorized"}
RUNS |= {
    f"{case}-vectorized": (case, "vectorized")
    for case in CASES
    if case.entry.batches and case.name in ("default", "vectorized")
}


def steps(case: Case) -> int:
    """How far a run goes before and after its interruption."""
    return 20 if case.name == "default" else 3


def build(case: Case, evaluation: str) -> tuple[Task, GradientFreeOptimizer]:
    """A network with BatchNorm, and its optimizer."""
    task = case.mlp(normalize=True)
    return task, case.make(task.model.parameters(), evaluation=evaluation)


def state_of(task: Task, optimizer: GradientFreeOptimizer) -> dict[str, Any]:
    """What a checkpoint holds."""
    return {"model": dict(task.model.state_dict()), "optimizer": optimizer.state_dict()}


def main(folder: Path) -> None:
    """Loads each checkpoint in the folder, trains on, and saves all results."""
    results = {}
    for name, (case, evaluation) in RUNS.items():
        task, optimizer = build(case, evaluation)
        checkpoint = torch.load(folder / f"{name}.pt", weights_only=True)
        task.model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        results[name] = {"losses": task.train(optimizer, steps(case), first=steps(case)), **state_of(task, optimizer)}
    torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
