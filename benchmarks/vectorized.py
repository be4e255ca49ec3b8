"""How much faster a population is evaluated all at once than candidate by candidate.

    python benchmarks/vectorized.py

One population of 64 candidates near the initial weights, one minibatch, three ways in turn: a plain loop that copies
each candidate into the model and calls the closure without gradients, ``evaluation="sequential"`` and
``evaluation="vectorized"``. A time is the median over rounds of the fastest call in a tenth of a second. The results
are written to ``vectorized.md`` beside this file.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from environment import environment, markdown_table
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from torch_gfo.evaluation import Evaluator, Plan
from torch_gfo.space import ParameterVector

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from mnist_run import Settings, build_model

POPSIZE = 64


def small_mlp() -> nn.Module:
    """Returns an MLP 16-32-2."""
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 2))


CASES: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("MLP 16-32-2, batch 32", small_mlp, (32, 16)),
    ("MLP 16-32-2, batch 256", small_mlp, (256, 16)),
    ("MLP 784-32-10, batch 256", lambda: build_model(Settings()), (256, 784)),
    ("MLP 784-128-10, batch 256", lambda: build_model(Settings(hidden=128)), (256, 784)),
    ("CNN of 11,274 parameters, batch 256", lambda: build_model(Settings(model="cnn")), (256, 1, 28, 28)),
]


def measure(model: nn.Module, shape: tuple[int, ...], repeats: int) -> list[float]:
    """Returns the median seconds of the three ways to evaluate a population."""
    inputs = torch.randn(shape)
    targets = torch.randint(2, (len(inputs),))
    parameters = list(model.parameters())
    vector = ParameterVector(parameters)
    start = parameters_to_vector(parameters).detach()
    population = start + 0.1 * torch.randn(POPSIZE, len(start))

    def closure() -> Tensor:
        return nn.functional.cross_entropy(model(inputs), targets)

    @torch.no_grad()
    def plain() -> Tensor:
        losses = []
        for candidate in population:
            vector_to_parameters(candidate, parameters)
            losses.append(closure())
        vector_to_parameters(start, parameters)
        return torch.stack(losses)

    def library(evaluation: str) -> Callable[[], Tensor]:
        evaluator = Evaluator(evaluation, None)

        @torch.no_grad()
        def evaluate() -> Tensor:
            with evaluator.session(closure, vector, Plan()) as session:
                return session.losses(population)

        return evaluate

    ways = [plain, library("sequential"), library("vectorized")]
    expected = plain()
    for way in ways:
        torch.testing.assert_close(way(), expected, rtol=1e-4, atol=1e-5)
    times = [[seconds(way) for way in ways] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def seconds(function: Callable[[], object]) -> float:
    """Returns the seconds of the fastest of as many calls as fit into a tenth of a second."""
    started = time.perf_counter()
    fastest = float("inf")
    while time.perf_counter() - started < 0.1:
        before = time.perf_counter()
        function()
        fastest = min(fastest, time.perf_counter() - before)
    return fastest


def main() -> None:
    """Measures all cases, prints the table and writes it."""
    parser = argparse.ArgumentParser(description="Time a population evaluated one by one and all at once.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    rows = []
    for name, build, shape in CASES:
        print(f"{name} ...", file=sys.stderr)
        plain, sequential, vectorized = measure(build(), shape, args.repeats)
        rows.append(
            [
                name,
                *(f"{1000 * value:.2f}" for value in (plain, sequential, vectorized)),
                f"{plain / vectorized:.1f}",
                f"{sequential / vectorized:.1f}",
            ]
        )
    header = [
        "ms for 64 candidates",
        "plain loop",
        "sequential",
        "vectorized",
        "plain / vectorized",
        "seq. / vectorized",
    ]
    report = markdown_table(header, rows)
    print(report)
    made_with = ", ".join(f"{key} {value}" for key, value in environment().items())
    title = "# A population evaluated one by one and all at once"
    note = f"Medians of {args.repeats} rounds; `python benchmarks/vectorized.py`. Made with: {made_with}."
    Path(__file__).with_suffix(".md").write_text(f"{title}\n\n{note}\n\n{report}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
