"""Networks trained by this library, by other packages and by Adam, at equal numbers of closure evaluations.

    python benchmarks/training.py --data DIR
    python benchmarks/training.py --data DIR --task spiking --optimizer OpenAIES --optimizer polystep --seeds 0 1 2
    python benchmarks/training.py --data DIR --optimizer "OpenAIES(lr=0.05)" --tuning 100000
    python benchmarks/training.py --text DIR --task minilm --task minilm_head --budgets 5000
    python benchmarks/training_report.py training.json

Every optimizer trains every task with every seed and every budget, in one configuration for all tasks, on minibatches
of 256, or of 32 sentences. At the start, at 20 checkpoints and at the end the model is scored on the validation and the
test data; that at the lowest validation loss is the result, and the last one is reported beside it. The seconds are
those of the steps alone. Each run is written to ``--output`` as soon as it is done, in place of an earlier one of the
same task, optimizer with options, seed and budget; ``--resume`` skips those that are there.

``training_tasks.py`` has the tasks, ``training_text.py`` the sentences and their model, ``training_optimizers.py`` the
optimizers, ``training_peers.py`` those of other packages, and ``training_steps.py`` says what counts as an evaluation.
"""

import argparse
import json
import logging
import math
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from environment import environment
from training_optimizers import DEFAULT_WORDS, Entry
from training_steps import Batch, Trainer
from training_tasks import TASKS, Folders, Task, load_mnist
from training_text import read_sentences

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from mnist_data import Data, Minibatches, Split
from optimizer_table import UserError, parse_option

CHECKPOINTS = 20
_KEY = ("task", "optimizer", "seed", "budget")


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        task: A key of ``TASKS``.
        entry: The optimizer.
        seed: Of the initial weights, the minibatches and the optimizer.
        budget: Closure evaluations at most.
        folders: Where the data are.
        threads: Of the processor.
        tuning: The evaluations that were spent to find the options; 0 if they were not tuned.
    """

    task: str
    entry: Entry
    seed: int
    budget: int
    folders: Folders = field(default_factory=Folders)
    threads: int = 1
    tuning: int = 0

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from other runs."""
        return (self.task, self.entry.label, self.seed, self.budget)

    def run(self) -> dict[str, Any]:
        """Trains, and returns what is worth keeping; an optimizer's failure is a result too."""
        torch.set_num_threads(self.threads)
        task = TASKS[self.task]
        data = task.data(self.folders)
        made_with = environment() | self.entry.made_with()
        about = dict(zip(_KEY, self.key, strict=True)) | {"kind": self.entry.kind, "tuning": self.tuning}
        try:
            with quiet():
                found = train(task, self.entry, self.seed, self.budget, data)
        except Exception as error:  # an optimizer may be unable to train this, and the next one should go on
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        return about | {"training_rows": len(data.train)} | found | made_with


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back warnings and all but the most serious messages of other packages."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def train(task: Task, entry: Entry, seed: int, budget: int, data: Data) -> dict[str, Any]:
    """Trains until another step could exceed the budget; the first step is made in any case."""
    model = task.model(seed)
    trainer = entry.build(model, seed, budget)
    batches = Minibatches(data.train, task.batch_size, seed)
    curve = [score(task, model, data, 0)]
    spent, costliest, seconds = 0, 0, 0.0
    while spent + costliest <= budget:
        evaluations, taken = timed_step(trainer, Batch(model, *next(batches), task.objective))
        spent, costliest, seconds = spent + evaluations, max(costliest, evaluations), seconds + taken
        if spent * CHECKPOINTS // budget > curve[-1]["evaluations"] * CHECKPOINTS // budget:
            curve.append(score(task, model, data, spent))
    if curve[-1]["evaluations"] < spent:
        curve.append(score(task, model, data, spent))
    best = min(curve, key=lambda point: point["validation_loss"])
    return {
        "evaluations": spent,
        "seconds": round(seconds, 2),
        "test": best["test"],
        "test_last": curve[-1]["test"],
        "best_at": best["evaluations"],
        "curve": [[*point.values()] for point in curve],
    }


def timed_step(trainer: Trainer, batch: Batch) -> tuple[int, float]:
    """Makes a step; returns its evaluations and seconds."""
    started = time.perf_counter()
    evaluations = trainer.step(batch)
    return evaluations, time.perf_counter() - started


def score(task: Task, model: torch.nn.Module, data: Data, evaluations: int) -> dict[str, Any]:
    """Returns the validation loss, infinite if it is NaN, and what the task measures on the test data."""
    outputs = predict(model, data.validation)
    loss = task.objective(outputs, data.validation.digits).item()
    metric = task.metric(predict(model, data.test), data.test.digits).item()
    return {
        "evaluations": evaluations,
        "validation_loss": round(loss, 6) if math.isfinite(loss) else 1e30,  # which JSON has, unlike infinity
        "test": round(metric, 6),
    }


@torch.no_grad()
def predict(model: torch.nn.Module, split: Split) -> torch.Tensor:
    """Returns the outputs for all rows of a split."""
    return torch.cat([model(rows) for rows in torch.split(split.images, 1000)])


def results_of(jobs: Sequence[Job], processes: int) -> Iterator[dict[str, Any]]:
    """Runs the jobs, in so many processes, and yields their results in the order in which they are done."""
    if processes == 1:
        yield from (job.run() for job in jobs)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(job.run) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the runs of a file, none if there is no file."""
    runs: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return runs


def keep(run: dict[str, Any], path: Path) -> None:
    """Adds a run to a file, in place of an earlier one of the same task, optimizer, seed and budget.

    The file is read again for each run, so that two benchmarks may write to it in turn, and it is replaced when the new
    one is complete.
    """
    key = [run[name] for name in _KEY]
    runs = [old for old in read(path) if [old[name] for name in _KEY] != key] + [run]
    place = {name: i for i, name in enumerate(TASKS)}
    runs.sort(key=lambda run: (run["budget"], place.get(run["task"], -1), run["kind"], run["optimizer"], run["seed"]))
    part = path.with_name(path.name + ".part")
    part.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n", encoding="utf-8")
    os.replace(part, path)


def plan(args: argparse.Namespace) -> list[Job]:
    """Returns the runs that the command line asks for, less those that are there; says what is left out."""
    folders = Folders(args.data, args.text)
    names = args.task or [name for name, task in TASKS.items() if args.text or not task.reads_text]
    load_mnist(folders.mnist)  # or says now that it is not there
    if any(TASKS[name].reads_text for name in names):
        read_sentences(folders.text)
    entries = [entry for entry in choose(args.words or []) if is_installed(entry)]
    for entry in entries:
        if entry.options or entry.kind == 1:
            with quiet():
                entry.build(torch.nn.Linear(2, 2), 0, min(args.budgets))  # or says now what is wrong with its options
    names = [name for name in names if is_installed(TASKS[name])]
    jobs = [
        Job(name, entry, seed, budget, folders, args.threads, args.tuning)
        for budget, name, seed, entry in product(args.budgets, names, args.seeds, entries)
    ]
    done = {tuple(run[name] for name in _KEY) for run in read(args.output)} if args.resume else set()
    return [job for job in jobs if job.key not in done]


def is_installed(what: Entry | Task) -> bool:
    """Returns whether an optimizer or a task has the package that it needs; says if not."""
    missing = what.missing()
    if missing:
        print(f"{what.name} is left out: pip install {missing}", file=sys.stderr)
    return not missing


def choose(words: Sequence[str | tuple[str, Any]]) -> list[Entry]:
    """Reads optimizers and the ``(key, value)`` options that follow them; options before the first are for all."""
    common: dict[str, Any] = {}
    entries: list[Entry] = []
    for word in words:
        if isinstance(word, str):
            entry = Entry.parse(word)
            entries.append(Entry(entry.name, common | entry.options))
        else:
            options = entries[-1].options if entries else common
            options.update([word])
    return entries or choose([*common.items(), *DEFAULT_WORDS])


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description="Train networks at equal numbers of closure evaluations.")
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="where MNIST/raw is (default: the embedded sample)")
    add("--text", type=Path, metavar="DIR", help="where vaderSentiment-3.3.2.tar.gz is, for the tasks with sentences")
    add("--task", action="append", choices=TASKS, metavar="NAME", help=f"repeatable, of {', '.join(TASKS)}")
    add("--optimizer", dest="words", action="append", metavar="NAME", help="repeatable; NAME or NAME(KEY=VALUE, ...)")
    help_text = "option of the optimizer named before it, or of all if it comes first; repeatable"
    add("--option", dest="words", action="append", type=parse_option, metavar="KEY=VALUE", help=help_text)
    add("--budgets", type=int, nargs="+", default=[5_000, 50_000, 500_000], help="closure evaluations")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--tuning", type=int, default=0, metavar="EVALUATIONS", help="spent to find the options, for the record")
    add("--jobs", type=int, default=1, help="processes")
    add("--threads", type=int, default=1, help="of each process")
    add("--output", type=Path, default=Path(__file__).with_suffix(".json"), metavar="FILE")
    add("--resume", action="store_true", help="skip the runs that the file has")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is asked for; a mistake in the command line is one line and exit status 2."""
    try:
        args = build_parser().parse_args(argv)
        jobs = plan(args)
        for i, run in enumerate(results_of(jobs, args.jobs), 1):
            keep(run, args.output)
            found = run.get("error") or f"{run['test']:.2%} after {run['evaluations']:,} in {run['seconds']:.1f} s"
            what = f"{run['task']}, {run['optimizer']}, seed {run['seed']}, {run['budget']:,}"
            print(f"[{i}/{len(jobs)}] {what}: {found}", flush=True)
    except UserError as error:
        print(f"training.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
