"""A long run: does the time of a step, or the memory of the process, grow?

    python benchmarks/soak.py                                  # a million steps of MeZO
    python benchmarks/soak.py --optimizer CMAES PyCMA --steps 20000

A tiny model, one thread, a new minibatch in every step. After each tenth of the run it prints the processor's time of a
step (other programs change a clock's more), the resident memory (``/proc/self/statm``, Linux only), the number of
tensors that Python's collector knows, and the loss on all data; the results go to ``soak.md`` beside this file.
"""

import argparse
import gc
import os
import time
from pathlib import Path

import torch
from environment import command, environment, markdown_table
from torch import Tensor, nn
from torch.nn import functional

import torch_gfo

MIB = 2**20
BATCH, N_BATCHES = 32, 64


def soak(name: str, n_steps: int, n_rows: int = 10) -> list[list[str]]:
    """Trains, and returns a row of figures for each part of the run."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    inputs = torch.randn(N_BATCHES, BATCH, 2)
    targets = (inputs[..., 0] * inputs[..., 1] > 0).long()
    optimizer = getattr(torch_gfo, name)(model.parameters(), seed=0, evaluation="sequential")
    rows = []
    done = 0
    for part in range(1, n_rows + 1):
        started, first = time.process_time(), done
        while done < n_steps * part // n_rows:
            x, y = inputs[done % N_BATCHES], targets[done % N_BATCHES]

            def closure() -> Tensor:
                return functional.cross_entropy(model(x), y)

            optimizer.step(closure)
            done += 1
        seconds = time.process_time() - started
        with torch.no_grad():
            loss = float(functional.cross_entropy(model(inputs.flatten(0, 1)), targets.flatten()))
        row = [name, f"{done:,}", f"{1000 * seconds / (done - first):.3f}", f"{resident():.1f}"]
        rows.append([*row, str(n_tensors()), f"{loss:.3f}"])
        print("  ".join(rows[-1]), flush=True)
    return rows


def resident() -> float:
    """The resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def n_tensors() -> int:
    """The number of tensors that are alive."""
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def main() -> None:
    """Soaks each optimizer in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", nargs="+", default=["MeZO"])
    parser.add_argument("--steps", type=int, default=1_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in arguments.optimizer for row in soak(name, arguments.steps)]
    head = ["optimizer", "steps", "ms a step", "resident MiB", "tensors", "loss"]
    versions = ", ".join(f"{name} {value}" for name, value in environment().items())
    text = f"# A long run\n\n`{command()}`. Made with: {versions}.\n\n{markdown_table(head, rows)}\n"
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
