"""Search what to give to a simulator: ``ask()`` for points, simulate them in several processes, ``tell()`` the results.

python examples/simulator.py
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from thrown_ball import miss

import torch_gfo


class Found(NamedTuple):
    """A throw, speed and two angles; by how many metres it misses, and how many simulations it took to find it."""

    throw: list[float]
    missed: float
    simulations: int


def search(map_: Callable[..., Any], time_step: float, target: float = 0.01) -> Found:
    """Throws until the hoop is missed by less than the target; ``map_`` applies a function to the items of a list."""
    speed = torch.nn.Parameter(torch.tensor([15.0], dtype=torch.float64))
    angles = torch.nn.Parameter(torch.tensor([0.7, 0.0], dtype=torch.float64))
    groups = [{"params": [speed], "sigma": 3.0}, {"params": [angles], "sigma": 0.2}]  # how far to look, in their units
    optimizer = torch_gfo.CMAES(groups, deterministic=True, seed=0)
    best = Found([], float("inf"), 0)
    while best.missed > target and optimizer.evaluations < 2000:
        throws = optimizer.ask().tolist()  # a row for each: speed, angles
        misses = list(map_(partial(miss, time_step=time_step), throws))
        optimizer.tell(misses)
        missed, throw = min(zip(misses, throws, strict=True))  # the model itself is at the mean of the search
        if missed < best.missed:
            best = Found(throw, missed, optimizer.evaluations)
    return best


def search_in_processes(time_step: float, processes: int = 2) -> Found:
    """Does the same with a pool of processes."""
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return search(pool.map, time_step)


def main(time_step: float = 2e-4) -> None:
    """Searches in one process and in two."""
    ways: dict[str, Callable[[float], Found]] = {"one process": partial(search, map), "two": search_in_processes}
    for name, way in ways.items():
        start = time.perf_counter()
        (speed, up, left), missed, simulations = way(time_step)
        seconds = time.perf_counter() - start
        print(
            f"{name:12} speed {speed:.2f} m/s, angles {up:.3f} and {left:.3f}, misses by {1000 * missed:.1f} mm,",
            end="",
        )
        print(f" {simulations} simulations, {seconds:.1f} s")


if __name__ == "__main__":
    print("Expected: the same throw twice, within 10 mm, after 176 simulations; in less than a minute.")
    print("Processes pay where the simulations take much longer than starting them, some seconds, on idle processors.")
    print("Where the simulator can be written in torch, its gradient takes fewer runs: use LBFGS or Adam.\n")
    main()
