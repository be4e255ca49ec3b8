"""Every optimizer of nevergrad's registry behind `torch_gfo.Nevergrad`: which do not work, and why.

    python benchmarks/nevergrad_registry.py --limit 60 --output benchmarks/nevergrad_registry.md

Each searches the minimum of a sphere of five dimensions, with 200 evaluations, in a process of its own (which needs
`fork`). In the middle its state is loaded into another optimizer, which must ask for the same candidates.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nevergrad
import torch
from environment import environment

import torch_gfo

DIM, BUDGET, COMPARED = 5, 200, 30
SPARE = 10  # of the budget: a step has up to 8 candidates, and designs of all points at once do not go beyond
LATE, IDLE, UNREPEATABLE = "not finished", "no better point", "not repeatable"


def sphere(x: torch.Tensor) -> torch.Tensor:
    """A sphere around one in every coordinate."""
    return (x - 1).square().sum(-1)


def build(name: str, num_workers: int | None) -> torch_gfo.Nevergrad:
    """The optimizer of that name, at zero."""
    x = torch.nn.Parameter(torch.zeros(DIM, dtype=torch.float64))
    return torch_gfo.Nevergrad([x], name, BUDGET, num_workers, sigma=1.0, seed=0, deterministic=True)


def advance(optimizer: torch_gfo.Nevergrad, evaluations: int) -> list[torch.Tensor]:
    """Searches until so many evaluations are made; returns the candidates."""
    asked = []
    while optimizer.evaluations < evaluations:
        asked.append(optimizer.ask())
        optimizer.tell(sphere(asked[-1]))
    return asked


def outcome(name: str, num_workers: int | None = None) -> str:
    """Empty where all is well."""
    optimizer, successor = build(name, num_workers), build(name, num_workers)
    advance(optimizer, BUDGET // 2)
    successor.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        for own, other in zip(parameters(successor), parameters(optimizer), strict=True):
            own.copy_(other)
    n = BUDGET // 2 + COMPARED
    pairs = zip(advance(optimizer, n), advance(successor, n), strict=True)
    if not all(torch.equal(*pair) for pair in pairs):
        return UNREPEATABLE
    advance(optimizer, BUDGET - SPARE)
    return "" if optimizer.best_loss < DIM else IDLE


def parameters(optimizer: torch.optim.Optimizer) -> Iterable[torch.Tensor]:
    """All parameters of an optimizer."""
    return (p for group in optimizer.param_groups for p in group["params"])


def attempt(name: str, results: Any) -> None:
    """Puts the outcome of one name, or the error, into a queue."""
    warnings.simplefilter("ignore")
    try:
        results.put(outcome(name))
    except Exception as error:
        if "asks for other points than it did" in str(error):
            results.put(UNREPEATABLE)
            return
        reason = str(error.__cause__ or error)
        try:
            results.put(f"`num_workers=1` works, more: {reason}" if not outcome(name, 1) else reason)
        except Exception:
            results.put(reason)


def within(limit: float, name: str) -> str:
    """The outcome of one name, in a process that is ended after so many seconds."""
    context: Any = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=attempt, args=(name, results), daemon=True)
    process.start()
    try:
        text: str = results.get(timeout=limit)
    except Exception:  # queue.Empty
        text = LATE
    process.kill()
    process.join()
    return text


def report(outcomes: dict[str, str], limit: float) -> str:
    """Says in Markdown which names do not work."""
    kinds = ("", IDLE, UNREPEATABLE, LATE)
    working, *lists = ([name for name, text in outcomes.items() if text == kind] for kind in kinds)
    idle, unrepeatable, late = (", ".join(f"`{name}`" for name in names) or "none" for names in lists)
    failed = {name: text for name, text in outcomes.items() if text not in kinds}
    made_with = environment() | {"nevergrad": version("nevergrad"), "cma": version("cma")}
    lines = [
        "# nevergrad's registry behind `torch_gfo.Nevergrad`",
        "",
        f"{BUDGET} evaluations of a sphere of {DIM} dimensions with seed 0; "
        f"`python benchmarks/nevergrad_registry.py --limit {limit:g} --output benchmarks/nevergrad_registry.md`. "
        f"Made with: {', '.join(f'{name} {value}' for name, value in made_with.items())}.",
        "",
        f"Of {len(outcomes)} names, {len(working)} work: they find a better point than the start, and resume from a "
        "checkpoint bit for bit.",
        "",
        f"Too few evaluations to find a better point: {idle}.",
        "",
        f"These search, but take a seed from the clock, so that they cannot be resumed: {unrepeatable}.",
        "",
        f"Not finished after {limit:g} seconds: {late}.",
        "",
        f"The other {len(failed)} fail, for nevergrad's own reasons:",
        "",
        "| optimizer | reason |",
        "| --- | --- |",
        *(f"| `{name}` | {one_line(text)} |" for name, text in failed.items()),
        "",
    ]
    return "\n".join(lines)


def one_line(text: str) -> str:
    """Text that fits into a cell of a table."""
    return " ".join(text.replace("|", "/").split())[:300]


def main() -> None:
    """Tries all names, or those given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for each name (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="the table, as Markdown (default: print it)")
    parser.add_argument("names", nargs="*", help="default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = {}
    for name in arguments.names or sorted(nevergrad.optimizers.registry):
        outcomes[name] = within(arguments.limit, name)
        print(f"{name}: {outcomes[name] or 'works'}", flush=True)
    text = report(outcomes, arguments.limit)
    if arguments.output is None:
        print(text)
    else:
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
