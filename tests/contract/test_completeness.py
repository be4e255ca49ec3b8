"""C36: what is public is tested and documented."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import torch_gfo
from tests.registry import ENTRIES, Entry
from torch_gfo.optimizer import GradientFreeOptimizer

ROOT = Path(__file__).parents[2]


def test_registry_is_complete() -> None:
    """C36: every public optimizer is in the registry, and every file of an algorithm or a bridge is public."""
    public = {name for name in torch_gfo.__all__ if _is_optimizer(getattr(torch_gfo, name))}
    assert public == {entry.cls.__name__ for entry in ENTRIES}
    files = {path.stem for folder in ("algorithms", "bridges") for path in (ROOT / "torch_gfo" / folder).glob("*.py")}
    assert files - {"__init__", "replay"} == {entry.file for entry in ENTRIES}  # replay: what the bridges share


def test_documentation(entry: Entry) -> None:
    """C36: an optimizer has a page that can be found, a slow reference, and an example that runs."""
    assert (ROOT / "docs" / "algorithms" / f"{entry.file}.md").is_file()
    assert (ROOT / "tests" / "references" / f"{entry.file}.py").is_file()
    assert f"| [`{entry}`](docs/algorithms/{entry.file}.md) |" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"(algorithms/{entry.file}.md)" in (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    examples = doctest.DocTestFinder(recurse=False).find(entry.cls, entry.cls.__name__)
    assert examples
    assert examples[0].examples


def test_public_names_have_docstrings() -> None:
    """C36: everything public says what it is."""
    for name in torch_gfo.__all__:
        value = getattr(torch_gfo, name)
        assert not callable(value) or inspect.getdoc(value), name


def _is_optimizer(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, GradientFreeOptimizer) and not inspect.isabstract(value)
