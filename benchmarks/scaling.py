"""What a step of every optimizer costs: evaluations, time and memory, for more parameters and for more candidates.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py

The parameters are one square matrix W, and the loss is the mean square of W v for a fixed vector v: about the cheapest
that depends on all of them, so that the time is mostly the optimizer's own. Steps are made by ``step``, with batched
evaluation, but for MeZO. A time is the processor's, the median of the steps after the first two. Memory is what the
state holds between steps, and the most that the tensors of a step take beside it. Results are written to
``scaling.md`` beside this file.
"""

import argparse
import inspect
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from environment import command, environment, markdown_table, peak_memory
from torch.nn import functional

import torch_gfo
from torch_gfo.optimizer import GradientFreeOptimizer

SIZES = (10, 32, 100, 1000)  # of the side of the matrix
POPSIZES = (32, 256, 2048)  # with a matrix of SIDE
SIDE = 100
MOST_SECONDS = 5.0  # for the steps of one measurement
BRIDGES = ("Nevergrad", "PyCMA")  # that cost what the other package costs
ONE_BY_ONE = {"MeZO": "sequential"}  # it never holds two models at a time
MATRICES = ("CMAES", "XNES")  # learn a matrix of dim x dim
LARGEST = dict.fromkeys(MATRICES, 32)


@dataclass
class Cost:
    """Of one step."""

    evaluations: int
    seconds: float
    state: int  # bytes
    peak: int  # bytes


def optimizers() -> list[str]:
    """The names of the library's optimizers."""
    classes = {name: getattr(torch_gfo, name) for name in torch_gfo.__all__}
    own = [name for name, cls in classes.items() if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)]
    return [name for name in own if not inspect.isabstract(classes[name]) and name not in BRIDGES]


def measure(name: str, side: int, n_steps: int, **options: int) -> Cost:
    """Makes some steps."""
    torch.manual_seed(0)
    weight, v = torch.nn.Parameter(torch.randn(side, side)), torch.randn(1, side)
    evaluation = ONE_BY_ONE.get(name, "vectorized")
    optimizer = getattr(torch_gfo, name)([weight], seed=0, evaluation=evaluation, **options)

    def closure() -> torch.Tensor:
        return functional.linear(v, weight).square().mean()

    seconds: list[float] = []
    counts: list[int] = []
    while len(seconds) < 3 or (len(seconds) < n_steps and sum(seconds) < MOST_SECONDS):
        before, started = optimizer.evaluations, time.process_time()
        optimizer.step(closure)
        seconds.append(time.process_time() - started)
        counts.append(optimizer.evaluations - before)
    peak = peak_memory(lambda: optimizer.step(closure))
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors(optimizer))
    return Cost(statistics.mode(counts), statistics.median(seconds[2:]), held, peak)


def tensors(optimizer: GradientFreeOptimizer) -> Iterator[torch.Tensor]:
    """The state's."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def milliseconds(cost: Cost | None) -> str:
    """Of a step."""
    return "–" if cost is None else f"{1e3 * cost.seconds:.2g}" if cost.seconds < 0.1 else f"{1e3 * cost.seconds:,.0f}"


def vectors(cost: Cost | None, dim: int) -> str:
    """Memory between steps and the most beside it during one, in vectors of float32 of the parameters' number."""
    if cost is None:
        return "–"
    return " + ".join(f"{n:,.0f}" if n >= 10 else f"{n:.2g}" for n in (cost.state / (4 * dim), cost.peak / (4 * dim)))


def main() -> None:
    """Measures all, prints the tables and writes them."""
    parser = argparse.ArgumentParser(description="Time and memory of a step.")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--optimizers", nargs="+", metavar="NAME", help="(default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    by_size, by_popsize = [], []
    for name in args.optimizers or optimizers():
        print(f"{name} ...", file=sys.stderr)
        largest = LARGEST.get(name, SIZES[-1])
        costs = [measure(name, side, args.steps) if side <= largest else None for side in SIZES]
        known = [(cost, side) for cost, side in zip(costs, SIZES, strict=True) if cost is not None]
        counts = {cost.evaluations for cost, _ in known}
        evaluations = " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))
        by_size.append([f"`{name}`", evaluations, *map(milliseconds, costs), vectors(known[-1][0], known[-1][1] ** 2)])
        if "popsize" in inspect.signature(getattr(torch_gfo, name)).parameters and largest >= SIDE:
            costs = [measure(name, SIDE, args.steps, popsize=popsize) for popsize in POPSIZES]
            by_popsize.append([f"`{name}`", *map(milliseconds, costs), *(vectors(cost, SIDE**2) for cost in costs)])
    sides = [f"{side**2:,}" for side in SIZES]
    made = ", ".join(f"{key} {value}" for key, value in environment().items())
    text = [
        "# Cost of a step",
        f"`OMP_NUM_THREADS=1 {command()}`. Made with: {made}.",
        "Milliseconds of a step with defaults, for so many parameters; evaluations, with the one of the model; memory "
        "in units of the parameters' own (float32), at the largest size measured: between steps + the most that a step "
        "takes beside that.",
        markdown_table(["", "evaluations", *[f"{side} parameters" for side in sides], "memory"], by_size),
        f"Milliseconds and memory with {SIDE**2:,} parameters and so many candidates.",
        markdown_table(
            ["", *[f"{n:,}" for n in POPSIZES], *[f"memory, {n:,}" for n in POPSIZES]],
            by_popsize,
        ),
    ]
    print("\n\n".join(text))
    Path(__file__).with_suffix(".md").write_text("\n\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
