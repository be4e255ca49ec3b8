"""Mutations: do the tests notice when the code is changed?

    python benchmarks/mutation.py                   # the three modules below
    python benchmarks/mutation.py --module ranking  # one of them
    python benchmarks/mutation.py --quick           # the modules' own tests alone
    python benchmarks/mutation.py --resume          # tries those alone that no run has killed

Cosmic-ray's operators make the mutants: another arithmetic operator, comparison or number, a condition turned round, an
exception that is not caught, a loop that does not run. Each is tried in a process of its own, forked where torch is
already imported; the changed module is in its memory alone, no file is written to. First the module's own tests run,
without the slow ones, then those of ``WIDER``; a mutant is killed when a test fails or the time is over. What became of
each is written, with its change, into ``build/mutation``. Bitwise operators are not put in, which no float takes, and
annotations are left alone, which nothing evaluates.
"""

import argparse
import ast
import difflib
import gc
import importlib.machinery
import importlib.util
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, ModuleType

import hypothesis.strategies
import numpy as np  # noqa: F401 - imported once for all forked processes, as torch is
import pytest
import torch._dynamo  # noqa: F401
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "mutation"
OWN = {
    "space": ["tests/test_space.py"],
    "ranking": ["tests/test_ranking.py", "torch_gfo/ranking.py"],
    "evaluation": ["tests/test_evaluation.py", "-k", "not compiled"],
}
WIDER = [*(f"tests/test_{name}.py" for name in (*OWN, "perturbation")), "-k", "not compiled"]
PYTEST = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--assert=plain"]
LEFT_OUT = re.compile(
    "ReplaceBinaryOperator_.*_(RShift|LShift|BitOr|BitAnd|BitXor)$|ReplaceComparisonOperator_(?!Is).*_(Is|IsNot)$"
)
PATIENCE = 5  # times as long as the tests take on the code as it is, and ten seconds


@dataclass
class Mutant:
    """One change of a module, and what became of it."""

    module: str
    operator: str
    occurrence: int
    change: str
    outcome: str = ""


def mutants(module: str, source: str) -> Iterator[tuple[Mutant, str]]:
    """All mutants of a module that can be compiled, with their sources."""
    tree, spans = get_ast(source), list(annotations(source))
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments() or LEFT_OUT.search(name):
            continue
        starts = [start for node in ast_nodes(tree) for start, _ in operator().mutation_positions(node)]
        for occurrence, start in enumerate(starts):
            mutated = mutate_code(source, operator(), occurrence)
            if any(first <= start < last for first, last in spans) or mutated is None or not compiles(mutated):
                continue
            lines = difflib.unified_diff(source.splitlines(), mutated.splitlines(), n=0, lineterm="")
            yield Mutant(module, name.split("/")[-1], occurrence, "\n".join(list(lines)[2:])), mutated


def annotations(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the annotations of a module begin and end: lines and columns."""
    for node in ast.walk(ast.parse(source)):
        for field in ("annotation", "returns"):
            found = getattr(node, field, None)
            if found is not None:
                yield (found.lineno, found.col_offset), (found.end_lineno, found.end_col_offset)


def compiles(source: str) -> bool:
    """Whether a source is Python."""
    try:
        compile(source, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


class Examples:
    """A plugin of pytest's: so many examples of a property, and none made simpler, for one that fails is enough."""

    def __init__(self, most: int) -> None:
        self.most = most

    def pytest_configure(self) -> None:
        """Changes the settings, once the tests' own have been made."""
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        profile = hypothesis.settings(hypothesis.settings.default, phases=phases, max_examples=self.most)
        hypothesis.settings.register_profile("mutation", profile)
        hypothesis.settings.load_profile("mutation")


class Changed(importlib.machinery.SourceFileLoader):
    """Gives one module another source than its file's."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        super().__init__(name, str(path))
        self.source = source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module, if it is this one."""
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_code(self, fullname: str) -> CodeType:
        """The module's code, from the other source."""
        return self.source_to_code(self.source.encode(), self.path)


def passes(module: str, source: str, arguments: list[str], examples: int, limit: float) -> bool:
    """Whether the tests pass, within so many seconds, where a module has another source."""
    process = os.fork()
    if process == 0:
        os.setsid()
        log = os.open(OUT / "tests.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.meta_path.insert(0, Changed(f"torch_gfo.{module}", ROOT / "torch_gfo" / f"{module}.py", source))
        status = 1
        try:
            status = int(pytest.main([*PYTEST, *arguments], plugins=[Examples(examples)]))
        finally:
            os._exit(status)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.02)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def stages(module: str, source: str, quick: bool) -> list[tuple[list[str], int, float]]:
    """The tests to run, one selection after the other: arguments, examples, seconds. They pass on the code as it is."""
    result = []
    for arguments, examples in [(OWN[module], 10)] if quick else [(OWN[module], 10), (WIDER, 100)]:
        started = time.monotonic()
        if not passes(module, source, arguments, examples, math.inf):
            sys.exit(f"{' '.join(arguments)} fails on the code as it is: {OUT / 'tests.log'}")
        seconds = time.monotonic() - started
        print(f"{module}: {' '.join(arguments)} takes {seconds:.1f} s", flush=True)
        result.append((arguments, examples, PATIENCE * seconds + 10))
    return result


def run(module: str, resume: bool, quick: bool) -> list[Mutant]:
    """Tries all mutants of a module."""
    source = (ROOT / "torch_gfo" / f"{module}.py").read_text(encoding="utf-8")
    file = OUT / f"{module}.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if resume and file.exists() else []
    old = [Mutant(**json.loads(line)) for line in lines]
    killed = {(mutant.operator, mutant.change) for mutant in old if mutant.outcome == "killed"}
    tests = stages(module, source, quick)
    made = list(mutants(module, source))
    results = [mutant for mutant, _ in made]
    for mutant in results:
        mutant.outcome = "killed" if (mutant.operator, mutant.change) in killed else ""
    for mutant, mutated in made:
        if mutant.outcome:
            continue
        survived = all(passes(module, mutated, *stage) for stage in tests)
        mutant.outcome = "survived" if survived else "killed"
        if survived:
            print(f"{mutant.operator}\n{mutant.change}\n", flush=True)
        tried = [json.dumps(asdict(mutant)) + "\n" for mutant in results if mutant.outcome]
        file.write_text("".join(tried), encoding="utf-8")
    return results


def main() -> None:
    """Prints the survivors and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", nargs="+", default=list(OWN), choices=list(OWN))
    parser.add_argument("--resume", action="store_true", help="do not try again what build/mutation says is killed")
    parser.add_argument("--quick", action="store_true", help="run the module's own tests alone")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    gc.freeze()  # nothing here is garbage: a forked process need not look
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    rows = []
    for module in options.module:
        results = run(module, options.resume, options.quick)
        killed = sum(mutant.outcome == "killed" for mutant in results)
        rows.append([f"torch_gfo/{module}.py", str(len(results)), str(killed), f"{killed / len(results):.0%}"])
    for row in [["file", "mutants", "killed", "share"], ["---", "---:", "---:", "---:"], *rows]:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
