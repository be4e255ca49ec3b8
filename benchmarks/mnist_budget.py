"""MNIST's 10,000 test images after 50,000 closure evaluations: the median of three seeds.

    python benchmarks/mnist_budget.py --data DIR
    python benchmarks/mnist_budget.py --data DIR --optimizer PSO --option popsize=64 --seeds 0

Runs the training loop of ``examples/mnist.py``: MLP 784-128-10 (101,770 parameters), minibatches of 256 of the first
54,000 training images, no early stopping. All evaluations count, those that an optimizer repeats too, and the accuracy
is that of the model as the last step leaves it. Results are kept in ``mnist_budget.json`` after each run, where a run
replaces an earlier one of the same optimizer, options and seed, and shown in ``mnist_budget.md``.
"""

import argparse
import json
import statistics
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from environment import environment, markdown_table

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from mnist import choose, train
from mnist_data import Data, load_full
from mnist_run import Run, Settings
from optimizer_table import OptimizerChoice, parse_option

OPTIMIZERS = ["EGGROLL", "OpenAIES", "PGPE", "SNES", "GA", "PSO", "RandomSearch", "NelderMead"]


def measure(choice: OptimizerChoice, settings: Settings, data: Data) -> dict[str, Any]:
    """Trains once and returns what is worth keeping."""
    run = Run(choice, settings, data)
    train(run)
    result = run.result()
    last = result.curve[-1]
    return {
        "optimizer": choice.label,
        "seed": settings.seed,
        "evaluations": last.evaluations,
        "seconds": round(last.seconds, 1),
        "train_loss": round(result.train_loss, 4),
        "test_accuracy": round(last.test_accuracy, 4),
        "curve": [[point.evaluations, round(point.test_accuracy, 4)] for point in result.curve],
        **environment(),
    }


def summary(runs: list[dict[str, Any]]) -> str:
    """Returns a Markdown table with a line for each optimizer."""
    rows = []
    for label, group in groupby(runs, key=lambda run: str(run["optimizer"])):
        same = list(group)
        rows.append(
            [
                f"`{label}`",
                f"{statistics.median(run['test_accuracy'] for run in same):.2%}",
                ", ".join(f"{run['test_accuracy']:.2%}" for run in same),
                f"{max(run['evaluations'] for run in same):,}",
                f"{statistics.median(run['train_loss'] for run in same):.3f}",
                f"{statistics.median(run['seconds'] for run in same):.0f}",
            ]
        )
    return markdown_table(
        ["optimizer", "median test accuracy", "seeds", "most evaluations", "train loss", "seconds"], rows
    )


def keep(runs: list[dict[str, Any]], path: Path) -> str:
    """Writes the runs and their summary, and returns the latter."""
    runs.sort(key=lambda run: (run["optimizer"], run["seed"]))
    lines = ",\n".join(json.dumps(run) for run in runs)
    path.with_suffix(".json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    table = summary(runs)
    keys = ("date", "torch_gfo", "torch", "python", "processor", "threads")
    used = [f"{key} {', '.join(sorted({run[key] for run in runs}))}" for key in keys]
    seeds = ", ".join(str(seed) for seed in sorted({run["seed"] for run in runs}))
    text = [
        f"# MNIST after {max(run['evaluations'] for run in runs):,} closure evaluations",
        "MLP 784-128-10, batches of 256, accuracy of the final model on the 10,000 test images; "
        f"seeds {seeds}; `python benchmarks/mnist_budget.py --data DIR`.",
        table,
        f"Made with: {'; '.join(used)}.",
    ]
    path.with_suffix(".md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return table


def main() -> None:
    """Runs every optimizer with every seed."""
    parser = argparse.ArgumentParser(description="Train MNIST with 50,000 closure evaluations.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where MNIST/raw is")
    parser.add_argument("--optimizer", dest="words", action="append", metavar="NAME", help="repeatable")
    parser.add_argument("--option", dest="words", action="append", type=parse_option, metavar="KEY=VALUE")
    parser.add_argument("--evaluations", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__), help="where the results are kept, less suffix")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    data = load_full(args.data, download=False, device=torch.device("cpu"))
    file = args.output.with_suffix(".json")
    runs = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    for choice in choose(args.words or OPTIMIZERS, "cross-entropy"):
        for seed in args.seeds:
            evaluations = args.evaluations
            settings = Settings(
                hidden=128, evaluations=evaluations, check_every=evaluations // 20, patience=0, seed=seed
            )
            run = measure(choice, settings, data)
            print(f"{run['optimizer']}, seed {seed}: {run['test_accuracy']:.2%} in {run['seconds']} s", flush=True)
            runs = [old for old in runs if (old["optimizer"], old["seed"]) != (run["optimizer"], seed)] + [run]
            table = keep(runs, args.output)
    print(table)


if __name__ == "__main__":
    main()
