"""How long an optimizer itself takes for a generation, without the evaluations, beside pycma and nevergrad.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py

Each asks for a population of its default size and is told random losses, so that no search comes to an end. All take
turns, a block of generations each, on one thread. A time is the processor's, the median over the blocks of the mean of
a block, in which lazy work counts (an eigendecomposition every few generations). Results are written to
``overhead.md`` beside this file.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cma
import nevergrad
import numpy as np
import torch
from environment import environment, markdown_table

import torch_gfo

CASES = [
    ("CMAES", "pycma", 1.0),
    ("DE", "nevergrad's DE", 0.5),
    ("PSO", "nevergrad's PSO", 0.5),
]  # and the ratio aimed at
GENERATIONS = {20: 100, 1000: 8}  # in a block

Generation = Callable[[], int]  # makes one, and returns its number of candidates


def ours(name: str, dim: int) -> Generation:
    """A class of the library."""
    x = torch.nn.Parameter(torch.zeros(dim, dtype=torch.float64))
    optimizer = getattr(torch_gfo, name)([x], sigma=1.0, seed=0, deterministic=True)
    rng = torch.Generator().manual_seed(0)

    def generation() -> int:
        candidates = optimizer.ask()
        optimizer.tell(torch.rand(len(candidates), generator=rng, dtype=torch.float64))
        return len(candidates)

    return generation


def pycma(dim: int) -> Generation:
    """CMA-ES of pycma."""
    search = cma.CMAEvolutionStrategy(np.zeros(dim), 1.0, {"seed": 1, "verbose": -9})
    rng = np.random.default_rng(0)

    def generation() -> int:
        candidates = search.ask()
        search.tell(candidates, rng.random(len(candidates)).tolist())
        return len(candidates)

    return generation


def of_nevergrad(name: str, dim: int) -> Generation:
    """An optimizer of nevergrad, which asks for one candidate at a time."""
    parametrization = nevergrad.p.Array(shape=(dim,))
    parametrization.random_state.seed(0)
    search = nevergrad.optimizers.registry[name](parametrization, budget=10**7)
    rng = np.random.default_rng(0)
    popsize = int(search.llambda)

    def generation() -> int:
        candidates = [search.ask() for _ in range(popsize)]
        for candidate, loss in zip(candidates, rng.random(popsize).tolist(), strict=True):
            search.tell(candidate, loss)
        return popsize

    return generation


def microseconds(generation: Generation, n: int) -> float:
    """The mean of ``n`` generations."""
    started = time.process_time()
    for _ in range(n):
        generation()
    return 1e6 * (time.process_time() - started) / n


def main() -> None:
    """Measures all, prints the table and writes it."""
    parser = argparse.ArgumentParser(description="Time the optimizers themselves.")
    parser.add_argument("--blocks", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    rows = []
    for dim, n in GENERATIONS.items():
        for name, other, aim in CASES:
            print(f"{name}, {dim} parameters ...", file=sys.stderr)
            pair = [ours(name, dim), pycma(dim) if other == "pycma" else of_nevergrad(name, dim)]
            sizes = [[generation() for _ in range(3)][-1] for generation in pair]  # the first asks for the model, too
            blocks = [[microseconds(generation, n) for generation in pair] for _ in range(args.blocks)]
            mine, theirs = (statistics.median(column) for column in zip(*blocks, strict=True))
            populations = f"{sizes[0]} / {sizes[1]}"
            ratio = statistics.median(a / b for a, b in blocks)
            times = [f"{mine:,.0f}", f"{theirs:,.0f}"]
            rows.append([f"`{name}` / {other}", f"{dim:,}", populations, *times, f"{ratio:.2f}", f"{aim}"])
    header = ["", "parameters", "popsize", "ours, µs", "theirs, µs", "ratio", "aim"]
    made = {**environment(), "cma": version("cma"), "nevergrad": version("nevergrad")}
    text = [
        "# Time for a generation, without the evaluations",
        "`OMP_NUM_THREADS=1 python benchmarks/overhead.py`. "
        f"Made with: {', '.join(f'{key} {value}' for key, value in made.items())}.",
        markdown_table(header, rows),
    ]
    print("\n\n".join(text))
    Path(__file__).with_suffix(".md").write_text("\n\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
