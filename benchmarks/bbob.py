"""Evaluations until the minimum is found, on the 24 noiseless functions of BBOB, beside published algorithms.

    python benchmarks/bbob.py --optimizer NelderMead --optimizer PSO
    python benchmarks/bbob.py --optimizer pycma --optimizer scipy:differential_evolution --optimizer nevergrad:DE

A run starts at a random point of [-4, 4]^d and ends when f - f_opt <= 1e-8 or its budget is spent; all evaluations
count. Which settings and restarts, see ``bbob_solvers.py``. The expected running time ERT is the evaluations of all
runs of a function, divided by the number of successful ones. docs/benchmarks.md tells more.
"""

import argparse
import contextlib
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from bbob_solvers import TARGETS, Finished, Problem, solver
from environment import environment, markdown_table

PUBLISHED = json.loads(Path(__file__).with_name("bbob_published.json").read_text(encoding="utf-8"))
CLOSEST = {  # of the published algorithms
    "NelderMead": "NELDER",
    "PSO": "PSO",
    "GA": "GA",
    "RandomSearch": "ONEFIFTH",
    "DE": "DEuniform",
    "SPSA": "SPSA",
    "CMAES": "BIPOP-CMA-ES",
    "scipy:nelder_mead": "NELDER",
    "scipy:differential_evolution": "DEuniform",
    "nevergrad:DE": "DEuniform",
    "nevergrad:PSO": "PSO",
    "pyswarms": "PSO",
}
REFERENCE = "BIPOP-CMA-ES"  # what no published algorithm is closest to is compared with it


@dataclass
class Task:
    """One run: of which optimizer, on what."""

    optimizer: str
    function: int
    instance: int
    dimension: int
    budget: int


@dataclass
class Run:
    """What came out.

    Attributes:
        seed: All random numbers come from it.
        evaluations: That it used.
        gap: The lowest f - f_opt.
        hits: The evaluations until it reached 1e2, ..., 1e-8, as far as it did.
        seconds: The processor's time.
    """

    optimizer: str
    function: int
    instance: int
    seed: int
    evaluations: int
    gap: float
    hits: list[int]
    seconds: float

    @property
    def solved(self) -> bool:
        """Whether it reached the last target."""
        return len(self.hits) == len(TARGETS)


def run(task: Task) -> Run:
    """Makes one run."""
    torch.set_num_threads(1)
    problem = Problem(task.function, task.instance, task.dimension, task.budget)
    solve, started = solver(task.optimizer), time.process_time()
    with contextlib.suppress(Finished):
        solve(problem)
    seconds = time.process_time() - started
    gap = max(0.0, problem.best - problem.f_opt)
    which = (task.optimizer, task.function, task.instance, problem.seed)
    return Run(*which, problem.evaluations, gap, problem.hits, round(seconds, 3))


def expected_running_time(runs: list[Run]) -> float:
    """All evaluations, divided by the number of successes."""
    successes = sum(run.solved for run in runs)
    return sum(run.evaluations for run in runs) / successes if successes else math.inf


def mostly_solved(runs: list[Run]) -> bool:
    """Whether at least half of the runs reached the last target."""
    return 2 * sum(run.solved for run in runs) >= len(runs)


def by_function(runs: list[Run]) -> dict[int, list[Run]]:
    """Sorts the runs of one optimizer."""
    functions = sorted({run.function for run in runs})
    return {function: [run for run in runs if run.function == function] for function in functions}


def table(name: str, runs: list[Run], dimension: int) -> str:
    """A table of one optimizer, a function in a row, and a line that sums it up."""
    closest = CLOSEST.get(name, REFERENCE)
    published = PUBLISHED["ert"].get(str(dimension), {}).get(closest, [None] * 24)
    rows, ratios, n_solved = [], [], 0
    for function, group in by_function(runs).items():
        ert, theirs = expected_running_time(group), published[function - 1]
        n_solved += mostly_solved(group)
        ratio = ert / theirs if theirs else math.nan
        if math.isfinite(ratio):
            ratios.append(ratio)
        successes = f"{sum(run.solved for run in group)}/{len(group)}"
        gap = statistics.median(run.gap for run in group)
        rows.append([f"f{function}", number(ert), successes, f"{gap:.0e}", number(theirs), number(ratio)])
    header = [name, "ERT", "solved", "median f - f_opt", f"ERT of {closest}", "ratio"]
    seconds, evaluations = sum(run.seconds for run in runs), sum(run.evaluations for run in runs)
    total = (
        f"{name}: {n_solved} of {len(rows)} functions solved in at least half of the instances; median ratio to "
        f"{closest} {number(statistics.median(ratios) if ratios else math.nan)}; "
        f"{1e6 * seconds / evaluations:.0f} µs an evaluation."
    )
    return f"{markdown_table(header, rows)}\n\n{total}"


def number(value: float | None) -> str:
    """Three digits, as the published numbers; a dot for never."""
    if value is None or not math.isfinite(value):
        return "."
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot(runs: list[Run], budget: int, dimension: int, path: Path) -> None:
    """The fraction of (function, instance, target) triples reached, against the evaluations used."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name in dict.fromkeys(run.optimizer for run in runs):
        own = [run for run in runs if run.optimizer == name]
        hits = sorted(hit for run in own for hit in run.hits)
        n_triples = len(own) * len(TARGETS)
        at, reached = [1, *hits, budget], [0, *range(1, len(hits) + 1), len(hits)]
        axes.step(at, [n / n_triples for n in reached], where="post", label=name)
    axes.set(xscale="log", xlabel="evaluations", ylim=(0, 1), ylabel="reached (function, instance, target)")
    axes.set_title(f"BBOB in {dimension} dimensions, targets 1e2 to 1e-8")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def numbers(text: str) -> list[int]:
    """Reads ``1-3,8``."""
    values: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        values += range(int(low), int(high or low) + 1)
    return values


def make(tasks: list[Task], jobs: int) -> Iterator[Run]:
    """Makes the runs, in this process or in several."""
    if jobs == 1:
        yield from map(run, tasks)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(run, tasks)


def available(names: list[str]) -> list[str]:
    """Those of the optimizers whose package is installed; says which are not."""
    found = []
    for name in names:
        try:
            solver(name)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
        except ValueError as error:
            sys.exit(str(error))
        else:
            found.append(name)
    return found


def main() -> None:
    """Makes all runs, prints the tables and writes results and plot."""
    parser = argparse.ArgumentParser(description="Evaluations to the minimum on the 24 functions of BBOB.")
    parser.add_argument("--optimizer", action="append", required=True, metavar="NAME", help="a class of ours, or one "
        "of scipy:differential_evolution, scipy:nelder_mead, scipy:dual_annealing, pycma, nevergrad:NAME, pyswarms; "
        "may be given several times")  # fmt: skip
    parser.add_argument("--dimension", type=int, default=5)
    parser.add_argument("--instances", type=numbers, default=numbers("1-15"), metavar="1-15")
    parser.add_argument("--functions", type=numbers, default=numbers("1-24"), metavar="1-24")
    parser.add_argument("--budget", type=int, default=50_000, help="evaluations of a run")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json and OUTPUT.png")
    args = parser.parse_args()
    torch.set_num_threads(1)

    runs: list[Run] = []
    for name in available(args.optimizer):
        pairs = product(args.functions, args.instances)
        own = []
        for result in make([Task(name, f, i, args.dimension, args.budget) for f, i in pairs], args.jobs):
            own.append(result)
            print(f"\r{name} {len(own)} f{result.function} ", end="", file=sys.stderr)
        print(file=sys.stderr)
        print(table(name, own, args.dimension), end="\n\n", flush=True)
        runs += own
    if args.output and runs:
        settings = {"dimension": args.dimension, "budget": args.budget, "targets": TARGETS}
        report = {"environment": environment(), **settings, "runs": [asdict(each) for each in runs]}
        args.output.with_suffix(".json").write_text(json.dumps(report), encoding="utf-8")
        plot(runs, args.budget, args.dimension, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
