"""How long it takes to rebuild a search of another package from the record of its losses.

    python benchmarks/replay.py

Prints processor seconds of a search, and of the first candidates after loading its checkpoint into a new optimizer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from environment import environment, markdown_table

import torch_gfo
from torch_gfo.optimizer import GradientFreeOptimizer

Make = Callable[[Iterable[torch.Tensor]], GradientFreeOptimizer]

COMMON: dict[str, Any] = {"seed": 0, "sigma": 1.0, "deterministic": True}
CASES: list[tuple[str, Make, int, int]] = [
    ("Nevergrad, OnePlusOne", lambda p: torch_gfo.Nevergrad(p, "OnePlusOne", **COMMON), 20, 4000),
    ("Nevergrad, TwoPointsDE", lambda p: torch_gfo.Nevergrad(p, "TwoPointsDE", **COMMON), 20, 4000),
    ("Nevergrad, NGOpt", lambda p: torch_gfo.Nevergrad(p, **COMMON), 20, 4000),
    ("PyCMA", lambda p: torch_gfo.PyCMA(p, **COMMON), 20, 4000),
    ("PyCMA", lambda p: torch_gfo.PyCMA(p, **COMMON), 25_450, 1000),
]


def advance(optimizer: GradientFreeOptimizer, evaluations: int) -> float:
    """Searches until so many evaluations are made; returns the processor seconds."""
    started = time.process_time()
    while optimizer.evaluations < evaluations:
        optimizer.tell((optimizer.ask() - 1).square().sum(1))
    return time.process_time() - started


def seconds(make: Make, dim: int, evaluations: int) -> tuple[float, float]:
    """Of a search, and of rebuilding it."""
    x = torch.nn.Parameter(torch.zeros(dim))
    optimizer = make([x])
    searching = advance(optimizer, evaluations)
    successor = make([torch.nn.Parameter(x.detach().clone())])
    successor.load_state_dict(optimizer.state_dict())
    started = time.process_time()
    successor.ask()
    return searching, time.process_time() - started


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    rows = []
    for name, make, dim, evaluations in CASES:
        seconds(make, 20, 100)  # imports what is imported on first use
        searching, rebuilding = seconds(make, dim, evaluations)
        rows.append([name, f"{dim:,}", f"{evaluations:,}", f"{searching:.2f}", f"{rebuilding:.2f}"])
    print("# Rebuilding a search of another package\n")
    print("Processor seconds for a sphere; `python benchmarks/replay.py`. Made with: ", end="")
    print(f"{', '.join(f'{name} {value}' for name, value in environment().items())}.\n")
    print(markdown_table(["optimizer", "parameters", "evaluations", "search, s", "rebuilding, s"], rows))


if __name__ == "__main__":
    main()
