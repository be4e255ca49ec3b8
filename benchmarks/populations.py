"""Time and memory of a step with each kind of perturbation.

    python benchmarks/populations.py
    python benchmarks/populations.py --popsize 1024 --threads 1

A network 784-128-10 on a batch of 256, evaluated in a batch. All kinds take turns in one process; a time is the median
over the rounds, after two steps that do not count. ``memory`` is the most that the tensors of a step take at a time,
beside what there is before it, in multiples of the parameters. Results are written to ``populations.md`` beside this
file.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from environment import command, environment, markdown_table, peak_memory
from torch import Tensor, nn

import torch_gfo

CASES = [("OpenAIES", {}), ("OpenAIES", {"mirrored": True}), ("PGPE", {}), ("ARS", {}), ("SPSA", {})]
KINDS = ("dense", "seeded", "low_rank")
SIZES = {"ARS": "n_directions", "SPSA": "n_probes"}  # half of the candidates; the others' is popsize


def measure(
    name: str, options: dict[str, bool], popsize: int, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The seconds of a step of each kind, and the peaks of memory in multiples of the parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    inputs, targets = torch.randn(256, 784), torch.randint(10, (256,))
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    size = {SIZES[name]: popsize // 2} if name in SIZES else {"popsize": popsize}

    def closure() -> Tensor:
        return nn.functional.cross_entropy(model(inputs), targets)

    optimizers = {
        kind: getattr(torch_gfo, name)(
            model.parameters(), lr=1e-6, seed=0, evaluation="vectorized", perturbation=kind, **size, **options
        )
        for kind in KINDS
    }
    peaks: dict[str, float] = {}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for kind, optimizer in optimizers.items():
        optimizer.step(closure)
        peaks[kind] = peak_memory(partial(optimizer.step, closure)) / n_bytes
    for _ in range(rounds):
        for kind, optimizer in optimizers.items():
            began = time.perf_counter()
            optimizer.step(closure)
            times[kind].append(time.perf_counter() - began)
    return {kind: statistics.median(seconds) for kind, seconds in times.items()}, peaks


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description="Time and memory of a step with each kind of perturbation.")
    parser.add_argument("--popsize", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name, options in CASES:
        seconds, peaks = measure(name, options, args.popsize, args.rounds)
        cells = [f"{1000 * seconds[kind]:.0f}" for kind in KINDS]
        cells += [f"{seconds[kind] / seconds['dense']:.2f}" for kind in KINDS[1:]]
        rows.append([name + ", mirrored" * bool(options), *cells, *(f"{peaks[kind]:.0f}" for kind in KINDS)])
    header = ["", *(f"{kind}, ms" for kind in KINDS), *(f"{kind} / dense" for kind in KINDS[1:])]
    table = markdown_table([*header, *(f"{kind}, memory" for kind in KINDS)], rows)
    print(table)
    made_with = ", ".join(f"{key} {value}" for key, value in environment().items())
    note = (
        f"A step with {args.popsize} candidates of a network 784-128-10, batch 256, medians of {args.rounds}; memory "
        f"in multiples of the parameters. `{command()}`. Made with: {made_with}."
    )
    args.output.write_text(f"# Kinds of perturbation\n\n{note}\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
