"""The results of ``training.py`` as Markdown tables, and as a figure.

python benchmarks/training_report.py benchmarks/training.json > benchmarks/training.md
python benchmarks/training_report.py benchmarks/training.json --budget 50000 --plot training.png
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from environment import markdown_table

Run = dict[str, Any]
_KINDS = ("this library", "other packages", "with gradients")
_ENOUGH = 3  # seeds for quartiles


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the lower quartile, the median and the upper quartile, with linear interpolation."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def quality(runs: Sequence[Run], measure: str) -> str:
    """Returns the median and the quartiles in per cent; the number of seeds if they are too few for quartiles."""
    values = [100 * run[measure] for run in runs if "error" not in run]
    if not values:
        return "fails" if runs else ""
    low, middle, high = spread(values)
    note = f"{low:.1f}–{high:.1f}" if len(values) >= _ENOUGH else f"of {len(values)}"
    failed = f", {len(runs) - len(values)} failed" if len(values) < len(runs) else ""
    return f"{middle:.1f} ({note}{failed})"


def median(runs: Sequence[Run], measure: str) -> str:
    """Returns the median in per cent, with a star if it is of too few seeds."""
    values = [100 * run[measure] for run in runs if "error" not in run]
    return f"{statistics.median(values):.1f}{'*' * (len(values) < _ENOUGH)}" if values else "fails" if runs else ""


def cost(runs: Sequence[Run]) -> str:
    """Returns the most evaluations of a run and the median seconds."""
    runs = [run for run in runs if "error" not in run]
    if not runs:
        return ""
    seconds = statistics.median(run["seconds"] for run in runs)
    return f"{max(run['evaluations'] for run in runs):,} / {seconds:,.{0 if seconds >= 10 else 1}f}"


def name_of(run: Run) -> str:
    """Returns the optimizer of a row, and what was spent to tune it."""
    tuned = f", tuned with {run['tuning']:,} evaluations" if run["tuning"] else ""
    return f"`{run['optimizer']}`{tuned}"


def grouped(runs: Iterable[Run]) -> dict[tuple[int, str], dict[str, list[Run]]]:
    """Returns the runs by kind and name of the optimizer and by task, the best of a kind on the average first."""
    groups: dict[tuple[int, str], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        groups[run["kind"], name_of(run)][run["task"]].append(run)

    def order(item: tuple[tuple[int, str], dict[str, list[Run]]]) -> tuple[int, float, str]:
        (kind, name), tasks = item
        medians = (statistics.median(run.get("test", 0) for run in same) for same in tasks.values())
        return kind, -sum(medians), name

    return dict(sorted(groups.items(), key=order))


def table(runs: Sequence[Run], cell: Callable[[Sequence[Run]], str]) -> str:
    """Returns a table with a row for each optimizer and a column for each task."""
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    rows, last = [], -1
    for (kind, name), found in grouped(runs).items():
        if kind != last:
            rows.append([f"**{_KINDS[kind]}**", *[""] * len(tasks)])
            last = kind
        rows.append([name, *[cell(found.get(task, [])) for task in tasks]])
    return markdown_table(["", *tasks], rows)


def report(runs: Sequence[Run], measure: str = "test") -> str:
    """Returns the tables of every budget, and what they were made with."""
    which = "of the model at the lowest validation loss" if measure == "test" else "of the last model"
    parts = ["# Training"]
    for budget in sorted({run["budget"] for run in runs}):
        same = [run for run in runs if run["budget"] == budget]
        parts += [
            f"## {budget:,} evaluations",
            f"Test accuracy (F1 in task f1) in per cent {which}: median and quartiles over the seeds.",
            table(same, lambda found: quality(found, measure)),
            "Evaluations, at most, and median seconds of the steps. Seconds compare optimizers only "
            "where each run had the machine to itself.",
            table(same, cost),
        ]
    seeds = ", ".join(map(str, sorted({run["seed"] for run in runs})))
    return "\n\n".join([*parts, f"Seeds {seeds}. Made with: {made_with(runs)}."])


def medians(runs: Sequence[Run], measure: str) -> str:
    """Returns a narrow table for every budget."""
    parts = []
    for budget in sorted({run["budget"] for run in runs}):
        same = [run for run in runs if run["budget"] == budget]
        parts += [f"After {budget:,} evaluations:", table(same, lambda found: median(found, measure))]
    return "\n\n".join([*parts, f"Made with: {made_with(runs)}."])


def made_with(runs: Iterable[Run]) -> str:
    """Returns the versions, processors and dates of the runs."""
    found: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        found["training rows"].add(f"{run['training_rows']:,}")
        for key, value in run.items():
            if isinstance(value, str) and key not in ("task", "optimizer", "error"):
                found[key].add(value)
    return "; ".join(f"{key} {', '.join(sorted(values))}" for key, values in sorted(found.items()))


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draws each task's test metric against the evaluations: the median over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(run["task"] for run in runs))
    groups = grouped(run for run in runs if "error" not in run)
    columns = min(len(tasks), 4)
    lines = -(-len(tasks) // columns)
    height = 3 * lines + 0.2 * -(-len(groups) // columns)  # the legend has its columns below the panels'
    figure, axes = pyplot.subplots(lines, columns, figsize=(4 * columns, height), layout="constrained", squeeze=False)
    handles = {}
    for ax, task in zip(axes.flat, tasks, strict=False):
        for i, ((kind, name), found) in enumerate(groups.items()):
            if task in found:
                color = "black" if kind == _KINDS.index("with gradients") else f"C{i % 10}"
                style = {"color": color, "linestyle": ("-", "--", ":")[kind], "linewidth": 1 + i // 10 % 2}
                (handles[name.replace("`", "")],) = ax.plot(*median_curve(found[task]), **style)
        ax.set(title=task, xscale="log", xlabel="evaluations", ylabel="per cent", ylim=(0, 100))
        ax.grid(alpha=0.3)
    for ax in axes.flat[len(tasks) :]:
        ax.remove()
    where = {"loc": "outside lower center", "ncols": columns, "fontsize": "small", "frameon": False}
    figure.legend(handles.values(), handles.keys(), **where)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def median_curve(runs: Sequence[Run]) -> tuple[list[float], list[float]]:
    """Returns evaluations, and the medians of the test metric there, of runs whose checkpoints may lie apart."""
    import numpy as np

    end = min(run["curve"][-1][0] for run in runs)
    x = sorted({point[0] for point in runs[0]["curve"] if 0 < point[0] <= end})
    curves = [np.interp(x, *np.array(run["curve"])[:, [0, 2]].T) for run in runs]
    return [float(at) for at in x], [100 * float(value) for value in np.median(curves, axis=0)]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables and draws the figure."""
    parser = argparse.ArgumentParser(description="Tables and a figure of training.py's results.")
    parser.add_argument("file", type=Path, nargs="?", default=Path(__file__).with_name("training.json"))
    parser.add_argument("--budget", type=int, action="append", help="repeatable (default: all; the largest is drawn)")
    parser.add_argument("--optimizer", action="append", metavar="LABEL", help="repeatable (default: all)")
    parser.add_argument("--last", action="store_true", help="of the last model, not of that with the best validation")
    parser.add_argument("--medians", action="store_true", help="print them alone, with a star if of fewer than 3 seeds")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the courses, but for those of tuned optimizers")
    args = parser.parse_args(argv)
    runs: list[Run] = json.loads(args.file.read_text(encoding="utf-8"))
    runs = [run for run in runs if not args.budget or run["budget"] in args.budget]
    runs = [run for run in runs if not args.optimizer or run["optimizer"] in args.optimizer]
    if not runs:
        parser.error(f"{args.file} has no such runs")
    measure = "test_last" if args.last else "test"
    print(medians(runs, measure) if args.medians else report(runs, measure))
    if args.plot:
        largest = max(run["budget"] for run in runs)
        draw([run for run in runs if run["budget"] == largest and not run["tuning"]], args.plot)


if __name__ == "__main__":
    main()
