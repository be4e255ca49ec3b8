"""How long one generation takes: ours in every mode, beside a plain loop and other packages.

    python benchmarks/generation.py
    python benchmarks/generation.py --models cnn lstm --popsizes 64 --ways loop compiled

All ways do the same work on the same minibatch: they evaluate a population of a model near its initial weights.
``loop`` copies each candidate into the model and calls the closure without gradients; ``sequential``, ``vectorized``,
``compiled`` and ``auto`` are this library's evaluations of the same rows, without an algorithm. The others are whole
steps of an optimizer. All run in turn in one process; a time is the median over the rounds, after two calls that do not
count, in which compilers compile and "auto" chooses. PolyStep's number of candidates follows from a subspace and is
only near the popsize: its time is scaled by the ratio. The results are written to ``generation.json`` and
``generation.md`` beside this file.
"""

import argparse
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from environment import command, environment, markdown_table
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import torch_gfo
from torch_gfo.evaluation import Evaluator, Plan
from torch_gfo.space import ParameterVector

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from mnist_run import Settings, build_model


class Recurrent(nn.Module):
    """An LSTM that reads 28 vectors of 8 numbers; 5,442 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.last = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies a sequence by the last output."""
        result: Tensor = self.last(self.lstm(x)[0][:, -1])
        return result


class Transformer(nn.Module):
    """One encoder layer over 16 words out of 32; 9,634 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(32, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.last = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies a sentence by the mean of its words."""
        result: Tensor = self.last(self.layer(self.words(x)).mean(1))
        return result


@dataclass
class Work:
    """What is to be evaluated.

    Attributes:
        model: The network, at its initial weights.
        inputs: A minibatch.
        targets: Its classes.
        popsize: The number of candidates.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    popsize: int
    parameters: list[nn.Parameter] = field(init=False)
    population: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = list(self.model.parameters())
        start = parameters_to_vector(self.parameters).detach()
        self.population = torch.randn(self.popsize, len(start)).mul_(0.05).add_(start)

    def closure(self) -> Tensor:
        """The loss on the minibatch."""
        return nn.functional.cross_entropy(self.model(self.inputs), self.targets)


def _images(n: int) -> Tensor:
    return torch.randn(n, 1, 28, 28)


MODELS: dict[str, tuple[str, Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "small": (
        "MLP 16-32-2, batch 32",
        lambda: nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 2)),
        lambda: torch.randn(32, 16),
    ),
    "mlp": (
        "MLP 784-128-10, batch 256",
        lambda: nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)),
        lambda: torch.randn(256, 784),
    ),
    "cnn": ("CNN of 11,274 parameters, batch 64", lambda: build_model(Settings(model="cnn")), lambda: _images(64)),
    "lstm": ("LSTM 8-32, 28 steps, batch 32", Recurrent, lambda: torch.randn(32, 28, 8)),
    "transformer": ("transformer layer of 32, 16 words, batch 32", Transformer, lambda: torch.randint(32, (32, 16))),
}


def loop(work: Work) -> Callable[[], Any]:
    """Copies each candidate into the model and calls the closure."""
    start = parameters_to_vector(work.parameters).detach()

    @torch.no_grad()
    def evaluate() -> Tensor:
        losses = []
        for candidate in work.population:
            vector_to_parameters(candidate, work.parameters)
            losses.append(work.closure())
        vector_to_parameters(start, work.parameters)
        return torch.stack(losses)

    return evaluate


def evaluation(mode: str) -> Callable[[Work], Callable[[], Any]]:
    """The library's evaluation of the rows, in one of its modes."""

    def prepare(work: Work) -> Callable[[], Any]:
        evaluator, vector = Evaluator(mode, None), ParameterVector(work.parameters)
        plan = Plan()

        @torch.no_grad()
        def evaluate() -> Tensor:
            nonlocal plan
            with evaluator.session(work.closure, vector, plan) as session:
                losses = session.losses(work.population)
            plan = session.plan._replace(patience=0)  # "auto" is not to compile
            return losses

        return evaluate

    return prepare


def step(name: str, **options: Any) -> Callable[[Work], Callable[[], Any]]:
    """A whole step of one of the library's optimizers."""

    def prepare(work: Work) -> Callable[[], Any]:
        optimizer = getattr(torch_gfo, name)(work.parameters, popsize=work.popsize, seed=0, **options)
        return lambda: optimizer.step(work.closure)

    return prepare


def polystep(work: Work) -> Callable[[], Any]:
    """A step of PolyStep in a subspace of about so many dimensions that it scores ``popsize`` candidates."""
    from polystep import HybridSubspace, ParamLayout, PolyStepOptimizer

    layout = ParamLayout.from_module(work.model)
    subspace = HybridSubspace.from_layout(layout, rank=4, max_subspace_dim=max(8 * work.popsize // 9, 1))
    optimizer = PolyStepOptimizer(work.model, subspace=subspace, solver="softmax")
    criterion = nn.CrossEntropyLoss()
    return Scaled(
        lambda: optimizer.step_batch(work.inputs, work.targets, loss_fn=criterion),
        work.popsize / (subspace.subspace_dim * 9 / 8),
    )


def evotorch(work: Work) -> Callable[[], Any]:
    """A step of SNES on a problem whose fitness is a ``torch.vmap`` of the functional model."""
    from evotorch import Problem
    from evotorch.algorithms import SNES

    shapes = {name: parameter.shape for name, parameter in work.model.named_parameters()}
    sizes = [parameter.numel() for parameter in work.parameters]

    def loss(x: Tensor) -> Tensor:
        values = {n: part.view(s) for (n, s), part in zip(shapes.items(), x.split_with_sizes(sizes), strict=True)}
        outputs = torch.func.functional_call(work.model, values, (work.inputs,))
        return nn.functional.cross_entropy(outputs, work.targets)

    fitness = torch.vmap(loss, randomness="same")
    problem = Problem("min", fitness, solution_length=sum(sizes), initial_bounds=(-0.05, 0.05), vectorized=True)
    searcher = SNES(problem, stdev_init=0.05, popsize=work.popsize)

    @torch.no_grad()
    def advance() -> None:
        searcher.step()

    return advance


def swarmtorch(work: Work) -> Callable[[], Any]:
    """A step of PSO."""
    from swarmtorch import PSO

    optimizer = PSO(work.parameters, swarm_size=work.popsize)
    return lambda: optimizer.step(work.closure)


def torch_pso(work: Work) -> Callable[[], Any]:
    """A step of PSO."""
    from torch_pso import ParticleSwarmOptimizer

    optimizer = ParticleSwarmOptimizer(work.parameters, num_particles=work.popsize)
    return lambda: optimizer.step(work.closure)


@dataclass
class Scaled:
    """A way whose time is to be multiplied by a factor."""

    function: Callable[[], Any]
    factor: float

    def __call__(self) -> Any:
        """Runs it."""
        return self.function()


WAYS: dict[str, Callable[[Work], Callable[[], Any]]] = {
    "loop": loop,
    "sequential": evaluation("sequential"),
    "vectorized": evaluation("vectorized"),
    "compiled": evaluation("compiled"),
    "auto": evaluation("auto"),
    "OpenAIES": step("OpenAIES"),
    "OpenAIES, seeded": step("OpenAIES", perturbation="seeded"),
    "EGGROLL": step("EGGROLL"),
    "EGGROLL, compiled": step("EGGROLL", evaluation="compiled"),
    "PSO": step("PSO"),
    "polystep": polystep,
    "evotorch": evotorch,
    "swarmtorch": swarmtorch,
    "torch_pso": torch_pso,
}
PACKAGES = ("polystep", "evotorch", "swarmtorch", "torch_pso")


def measure(work: Work, ways: list[str], rounds: int, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """Times every way in turn.

    Returns:
        The median seconds of each, and the seconds of the first call of each.
    """
    start = parameters_to_vector(work.parameters).detach().clone()
    functions: dict[str, Callable[[], Any]] = {}
    first: dict[str, float] = {}
    for name in ways:
        began = time.perf_counter()
        try:
            functions[name] = WAYS[name](work)
            functions[name]()
        except ImportError as error:
            print(f"  without {name}: {error}", file=sys.stderr)
            continue
        except Exception as error:  # another package's limits
            functions.pop(name, None)
            print(f"  without {name}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        first[name] = time.perf_counter() - began
        functions[name]()
    times: dict[str, list[float]] = {name: [] for name in functions}
    began = time.perf_counter()
    for i in range(rounds):
        if i >= 3 and time.perf_counter() - began > seconds:
            break
        for name, function in functions.items():
            with torch.no_grad():  # the same work for all: some leave the model elsewhere
                vector_to_parameters(start, work.parameters)
            before = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - before) * getattr(function, "factor", 1.0))
    return {name: statistics.median(values) for name, values in times.items()}, first


def versions() -> dict[str, str]:
    """The versions of the other packages, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def report(results: list[dict[str, Any]], ways: list[str]) -> str:
    """Two tables: milliseconds, and ratios to the loop."""
    parts = []
    for title, divided in (("Milliseconds", False), ("Time relative to the plain loop's evaluation alone", True)):
        rows = []
        for result in results:
            seconds = result["seconds"]
            if divided and "loop" not in seconds:
                continue
            cells = []
            for way in ways:
                if way not in seconds:
                    cells.append("")
                elif divided:
                    cells.append(f"{seconds[way] / seconds['loop']:.2f}")
                else:
                    cells.append(f"{1000 * seconds[way]:.1f}")
            rows.append([result["model"], str(result["popsize"]), *cells])
        parts += [f"## {title}", markdown_table(["", "candidates", *ways], rows)]
    return "\n\n".join(parts)


def main() -> None:
    """Measures, prints the tables and writes them."""
    parser = argparse.ArgumentParser(description="Time one generation: ours beside other packages.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--popsizes", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=9, help="most rounds; at least three")
    parser.add_argument("--seconds", type=float, default=30.0, help="after which no further round is begun")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(""))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    results: list[dict[str, Any]] = []
    for key in args.models:
        title, build, data = MODELS[key]
        for popsize in args.popsizes:
            torch.manual_seed(0)
            torch._dynamo.reset()
            work = Work(build(), data(), torch.empty(0), popsize)
            work.targets = torch.randint(2, (len(work.inputs),))
            print(f"{title}, {popsize} candidates ...", file=sys.stderr)
            seconds, first = measure(work, args.ways, args.rounds, args.seconds)
            results.append({"model": title, "popsize": popsize, "seconds": seconds, "first_call": first})
            print("  " + ", ".join(f"{n} {1000 * s:.1f}" for n, s in seconds.items()), file=sys.stderr)
    made_with = environment() | versions()
    tables = report(results, args.ways)
    print(tables)
    note = (
        f"Medians of up to {args.rounds} rounds; `{command()}`. The columns up to `auto` evaluate "
        "the population alone, the others make a whole step. Compiling is not counted. Made with: "
        f"{', '.join(f'{key} {value}' for key, value in made_with.items())}."
    )
    args.output.with_suffix(".md").write_text(f"# One generation\n\n{note}\n\n{tables}\n", encoding="utf-8")
    document = {"made_with": made_with, "results": results}
    args.output.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
