"""How much memory a step takes: MeZO beside inference and Adam, EGGROLL and DeepGA with large populations.

    python benchmarks/memory.py
    python benchmarks/memory.py --only mezo inference

Each measurement runs in a process of its own. It builds the model and the minibatch, evaluates once, so that libraries
have their buffers, and takes note of the resident memory. Then it sets the system's record of the largest resident
memory back (``/proc/self/clear_refs``), makes two inferences or steps, one of large populations, and reads the record
(``VmHWM``): the figure is the difference. The allocator is told to return freed blocks at once, so that it is memory in
use; this is slow, and times are taken in another process, where MeZO's steps take turns with pairs of inferences. The
results are written to ``memory.md`` beside this file. Linux only.
"""

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import command, environment, markdown_table
from torch import Tensor, nn
from torch.nn import functional

import torch_gfo
from torch_gfo.layout import Layout

WORDS, WIDTH, LENGTH = 8192, 512, 128  # of the vocabulary; of the model; of a text
MIB = 2**20
RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


class Transformer(nn.Module):
    """A language model of 6 layers whose embedding is its last layer as well; 23,174,144 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 8, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, words: Tensor) -> Tensor:
        """Predicts each next word."""
        n = words.shape[1]
        x = self.words(words) + self.places[:n]
        mask = torch.ones(n, n, dtype=torch.bool).triu(1)
        return functional.linear(self.layers(x, mask=mask, is_causal=True), self.words.weight)


def language(batch: int, length: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The transformer, and the loss of a minibatch of random texts."""
    model = Transformer()
    words = torch.randint(WORDS, (batch, length + 1))

    def loss() -> Tensor:
        logits = model(words[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten())

    return model, loss


def digits() -> tuple[nn.Module, Callable[[], Tensor]]:
    """MLP 784-128-10, and the loss of a minibatch of 64 random images."""
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    images, targets = torch.randn(64, 784), torch.randint(10, (64,))
    return model, lambda: functional.cross_entropy(model(images), targets)


def adam(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Any]:
    """A step of Adam, with gradients by backpropagation."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        torch.autograd.backward(value)
        return value

    return lambda: optimizer.step(closure)


def estimate(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Any]:
    """A step of AdamW, with gradients from a pair of evaluations."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    options: dict[str, Any] = {"n_samples": 1, "evaluation": "sequential", "seed": 0}
    fill = torch_gfo.GradientEstimator(optimizer.param_groups, "spsa", **options)

    def step() -> None:
        optimizer.zero_grad()
        fill(loss)
        optimizer.step()

    return step


def ours(name: str, **options: Any) -> Callable[[nn.Module, Callable[[], Tensor]], Callable[[], Any]]:
    """A step of an optimizer of this library."""

    def make(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Any]:
        optimizer = getattr(torch_gfo, name)(model.parameters(), seed=0, **options)
        return lambda: optimizer.step(loss)

    return make


def inference(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Any]:
    """One evaluation without gradients."""
    return torch.no_grad()(loss)


# Name -> the model and its loss, and what is measured.
MEASUREMENTS: dict[str, tuple[Callable[[], tuple[nn.Module, Callable[[], Tensor]]], Any]] = {
    "inference": (lambda: language(8, LENGTH), inference),
    "mezo": (lambda: language(8, LENGTH), ours("MeZO")),
    "adam": (lambda: language(8, LENGTH), adam),
    "estimate": (lambda: language(8, LENGTH), estimate),
    "eggroll": (lambda: language(1, 8), ours("EGGROLL", popsize=1024, evaluation="vectorized", chunk_size=16)),
    "deep_ga": (digits, ours("DeepGA", popsize=10_000, evaluation="vectorized")),
}
LARGE = ("eggroll", "deep_ga")  # whose populations are so large that one step tells enough


def resident(field: str) -> int:
    """Bytes of memory, ``VmRSS`` as it is or ``VmHWM`` at most."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def measure(name: str) -> dict[str, Any]:
    """Measures one, in this process."""
    make_model, make_step = MEASUREMENTS[name]
    torch.manual_seed(0)
    model, loss = make_model()
    inference(model, loss)()
    gc.collect()
    before = resident("VmRSS")
    step = make_step(model, loss)
    started = time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")
    n_steps = 1 if name in LARGE else 2
    for _ in range(n_steps):
        step()
    sizes = [p.numel() * p.element_size() for p in model.parameters()]
    return {
        "above": resident("VmHWM") - before,
        "before": before,
        "parameters": sum(sizes),
        "largest": max(sizes),
        "seconds": (time.perf_counter() - started) / n_steps,
    }


def compare_times(rounds: int) -> dict[str, Any]:
    """Steps of MeZO beside pairs of inferences, in turn, in this process: medians."""
    torch.manual_seed(0)
    model, loss = language(8, LENGTH)
    evaluate, ratios = inference(model, loss), {}
    for distribution in ("rademacher", "normal"):
        step = ours("MeZO", distribution=distribution)(model, loss)
        pairs: list[tuple[float, float]] = []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            evaluate()
            evaluate()
            between = time.perf_counter()
            step()
            pairs.append((between - started, time.perf_counter() - between))
        ratios[distribution] = {
            "evaluations": statistics.median(pair[0] for pair in pairs[1:]),
            "step": statistics.median(pair[1] for pair in pairs[1:]),
            "ratio": statistics.median(pair[1] / pair[0] for pair in pairs[1:]),
        }
    return ratios


def in_a_new_process(*arguments: str, **variables: str) -> dict[str, Any]:
    """What this script prints with other arguments."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def report(found: dict[str, dict[str, Any]], times: dict[str, Any]) -> str:
    """The page."""
    mib = {name: result["above"] / MIB for name, result in found.items()}
    one = found["inference"]
    parameters, largest = one["parameters"] / MIB, one["largest"] / MIB
    limit = largest + 0.05 * parameters
    rows = [
        ["one inference", f"{mib['inference']:,.0f}", "", ""],
        ["`MeZO`", f"{mib['mezo']:,.0f}", f"{mib['mezo'] - mib['inference']:,.1f}", f"{limit:,.1f}"],
        ["`torch.optim.Adam`, with backward", f"{mib['adam']:,.0f}", f"{mib['adam'] - mib['inference']:,.0f}", ""],
        [
            '`GradientEstimator(..., "spsa", n_samples=1)` and `AdamW`',
            f"{mib['estimate']:,.0f}",
            f"{mib['estimate'] - mib['inference']:,.0f}",
            "",
        ],
    ]
    dense = 1024 * parameters
    numbers = population_of_eggroll() / MIB
    ga = found["deep_ga"]
    populations = [
        ["`EGGROLL`, 1,024 candidates of the transformer: the population", f"{numbers:,.0f}", f"{numbers / dense:.2%}"],
        [
            "the same, all of a step, with passes of 16 candidates",
            f"{mib['eggroll']:,.0f}",
            f"{mib['eggroll'] / dense:.2%}",
        ],
        ["as dense rows", f"{dense:,.0f}", "100%"],
        [
            "`DeepGA`, 10,000 members of the MLP: all of a step",
            f"{mib['deep_ga']:,.0f}",
            f"{ga['above'] / (10_000 * ga['parameters']):.2%}",
        ],
    ]
    speeds = [
        [f"`{name}`", f"{1000 * t['evaluations']:,.0f}", f"{1000 * t['step']:,.0f}", f"{t['ratio']:.2f}", "1.25"]
        for name, t in times.items()
    ]
    made = ", ".join(f"{key} {value}" for key, value in environment().items())
    return "\n\n".join(
        [
            "# Memory",
            f"`{command()}`. Made with: {made}.",
            f"Transformer of 6 layers and {one['parameters'] // 4:,} parameters in float32, {parameters:,.1f} MiB, of "
            f"which the largest tensor has {largest:,.1f}; 8 texts of 128 words. Peak of the resident memory of two "
            "steps above that of the process with the model and the minibatch:",
            markdown_table(["", "MiB", "above inference", "limit: largest tensor + 5% of all"], rows),
            "Time of a step of `MeZO` beside its two evaluations, at the speed of inference; medians, in turn:",
            markdown_table(["noise", "two inferences, ms", "step, ms", "ratio", "aim"], speeds),
            "Populations, on one text of 8 words and on 64 images (MLP 784-128-10). The dense rows of the transformer "
            "are computed, not measured: they would not fit. The share is of the dense population:",
            markdown_table(["", "MiB", "share"], populations),
            f"The process of `DeepGA` has {(ga['before'] + ga['above']) / MIB:,.0f} MiB at most, torch included.",
        ]
    )


def population_of_eggroll() -> int:
    """Bytes of the numbers that stand for 1,024 candidates of the transformer."""
    layout = Layout([tuple(p.shape) for p in Transformer().parameters()], 1)
    return 4 * 1024 * layout.n_numbers


def main() -> None:
    """Measures all, prints the tables and writes them; or one, and prints what it found."""
    parser = argparse.ArgumentParser(description="Measure the memory of a step.")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, help="print these figures alone")
    parser.add_argument("--rounds", type=int, default=9, help="of the times")
    parser.add_argument("--measure", choices=[*MEASUREMENTS, "times"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is not None:
        print(json.dumps(compare_times(args.rounds) if args.measure == "times" else measure(args.measure)))
        return
    found = {}
    for name in args.only or MEASUREMENTS:
        print(f"{name} ...", file=sys.stderr)
        found[name] = in_a_new_process("--measure", name, **RETURN_AT_ONCE)
        print(f"  {found[name]['above'] / MIB:,.1f} MiB, {found[name]['seconds']:.1f} s a step", file=sys.stderr)
    if args.only:
        return
    print("times ...", file=sys.stderr)
    text = report(found, in_a_new_process("--measure", "times", "--rounds", str(args.rounds)))
    print(text)
    Path(__file__).with_suffix(".md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
