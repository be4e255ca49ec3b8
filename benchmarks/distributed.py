"""How much faster two ranks evaluate a population than one.

    python benchmarks/distributed.py

One rank and then two, processes of this machine with one thread each, make the same steps of ``OpenAIES`` with
``distributed="candidates"``, in turn, so that what else the machine does meets both. The closure keeps a processor
busy. The results are written to ``distributed.md`` beside this file.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from environment import command, environment, markdown_table
from torch import Tensor, nn

import torch_gfo

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from mnist_run import Settings, build_model

CASES = {"MLP 784-32-10": Settings(), "CNN of 11,274 parameters": Settings(model="cnn")}


def measure(rank: int, n_ranks: int, store: str, case: str, steps: int, popsize: int, file: str) -> None:
    """Makes steps and writes the seconds of one to a file; the first step, which warms up, does not count."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n_ranks)
    model = build_model(CASES[case])
    torch.manual_seed(0)
    images, digits = torch.randn(256, 1, 28, 28), torch.randint(10, (256,))
    optimizer = torch_gfo.OpenAIES(
        model.parameters(), popsize=popsize, seed=0, evaluation="sequential", distributed="candidates"
    )

    def closure() -> Tensor:
        return nn.functional.cross_entropy(model(images), digits)

    optimizer.step(closure)
    started = time.perf_counter()
    for _ in range(steps):
        optimizer.step(closure)
    if rank == 0:
        Path(file).write_text(str((time.perf_counter() - started) / steps), encoding="utf-8")
    dist.destroy_process_group()


def seconds_per_step(n_ranks: int, case: str, steps: int, popsize: int) -> float:
    """Returns the seconds of a step on so many ranks."""
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        store, file = f"{folder}/store", f"{folder}/seconds"
        arguments = (store, case, steps, popsize, file)
        ranks = [processes.Process(target=measure, args=(rank, n_ranks, *arguments)) for rank in range(n_ranks)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        return float(Path(file).read_text(encoding="utf-8"))


def main() -> None:
    """Measures all cases, prints the table and writes it."""
    parser = argparse.ArgumentParser(description="Time a step on one rank and on two.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--popsize", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)

    rows = []
    for case in CASES:
        print(f"{case} ...", file=sys.stderr)
        times = [[seconds_per_step(n, case, args.steps, args.popsize) for n in (1, 2)] for _ in range(args.repeats)]
        one, two = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(a / b for a, b in times)
        rows.append([case, f"{1000 * one:.1f}", f"{1000 * two:.1f}", f"{ratio:.2f}"])
    report = markdown_table([f"ms of a step, {args.popsize} candidates", "one rank", "two ranks", "ratio"], rows)
    print(report)
    made_with = ", ".join(f"{key} {value}" for key, value in environment().items())
    note = (
        f"Medians of {args.repeats} pairs of runs of {args.steps} steps, one thread a rank, {os.cpu_count()} "
        f"processors; `{command()}`. Made with: {made_with}."
    )
    text = f"# Steps on one rank and on two\n\n{note}\n\n{report}\n"
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
