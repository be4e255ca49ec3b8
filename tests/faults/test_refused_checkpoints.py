"""What is no checkpoint of this search is refused, with what differs, and the optimizer goes on as if never asked."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import assert_identical, distance, snapshot, vector
from tests.registry import ENTRIES, Entry
from torch_gfo.optimizer import GradientFreeOptimizer

SOURCES = sorted((Path(__file__).parents[2] / "torch_gfo").rglob("*.py"))

Damage = Callable[[dict[str, Any]], object]

DAMAGES: dict[str, tuple[Damage, str]] = {
    "no_state": (lambda c: c.pop("state"), "lacks state; it holds 'param_groups'"),
    "no_groups": (lambda c: c.pop("param_groups"), "lacks param_groups; it holds 'state'"),
    "nothing": (lambda c: c.clear(), "lacks param_groups and state; it holds nothing"),
    "a_models": (lambda c: (c.clear(), c.update(weight=torch.ones(3))), "lacks .* it holds 'weight'"),
    "no_first_parameter": (lambda c: c["state"].pop(0), "lacks .*of parameter 0"),
    "no_second_parameter": (lambda c: c["state"].pop(1), "lacks .*of parameter 1"),
    "no_point": (lambda c: c["state"][0].pop("point"), "lacks point of parameter 0"),
    "no_step": (lambda c: c["state"][1].pop("step"), "lacks step of parameter 1"),
    "another_part": (lambda c: c["state"][0].update(exp_avg=torch.ones(3)), "holds exp_avg, which"),
    "fewer_parameters": (lambda c: c["param_groups"][0]["params"].pop(), "doesn't match the size"),
    "fewer_groups": (lambda c: c["param_groups"].pop(), "different number of parameter groups"),
    "larger": (lambda c: c["state"][1].update(numel=4), "Parameter 1 of the checkpoint holds 4 numbers, here 3"),
    "subspace": (lambda c: c["param_groups"][0].update(subspace=2), "saved with subspace=2, here None"),
    "maximize": (lambda c: c["param_groups"][0].update(maximize=True), "saved with maximize=True, here False"),
}


def _search(entry: Entry, **options: Any) -> tuple[list[nn.Parameter], GradientFreeOptimizer]:
    parameters = [vector(4, 2), vector(3, seed=1)]
    optimizer = entry.make(parameters, **{**entry.small, **options})
    for _ in range(2):
        optimizer.step(lambda: distance(parameters))
    return parameters, optimizer


def _assert_refused(entry: Entry, checkpoint: dict[str, Any], match: str) -> None:
    parameters, optimizer = _search(entry)
    others, untroubled = _search(entry)
    before, given = snapshot(optimizer), copy.deepcopy(checkpoint)
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(checkpoint)
    assert_identical(checkpoint, given)
    assert_identical(snapshot(optimizer), before)
    for search, moved in ((optimizer, parameters), (untroubled, others)):
        search.step(lambda: distance(moved))
    assert_identical(snapshot(optimizer), snapshot(untroubled))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged(entry: Entry, damage: str) -> None:
    """C19: a checkpoint that lacks something, or holds something else, is refused."""
    _, other = _search(entry)
    checkpoint = copy.deepcopy(other.state_dict())
    spoil, match = DAMAGES[damage]
    spoil(checkpoint)
    _assert_refused(entry, checkpoint, match)


def test_another_class(entry: Entry) -> None:
    """C19: a checkpoint of any other class is refused, torch's own included."""
    for other in ENTRIES:
        if other is not entry:
            _assert_refused(entry, _search(other)[1].state_dict(), "another optimizer has saved it")
    parameters = [vector(4, 2), vector(3, seed=1)]
    adam = torch.optim.Adam(parameters)
    distance(parameters).backward()
    adam.step()
    _assert_refused(entry, adam.state_dict(), "another optimizer has saved it")


def test_other_options(entry: Entry) -> None:
    """C19: a checkpoint of a search with other options than numbers like ``lr`` is refused: ``popsize``, for one."""
    own = _search(entry)[1].param_groups[0]
    n_refused = 0
    for options in entry.inputs.values():
        _, other = _search(entry, **options)
        saved = other.param_groups[0]
        differing = [name for name in options if saved[name] != own[name] and name != "deterministic"]
        if any(isinstance(options[name], (int, str, tuple)) for options in (saved, own) for name in differing):
            _assert_refused(entry, other.state_dict(), "The checkpoint .*(saved with|saved it)")
            n_refused += 1
        else:
            _search(entry)[1].load_state_dict(other.state_dict())
    assert n_refused > 0


def test_numbers_may_differ(entry: Entry) -> None:
    """C7: what may change in mid-run, the seed, and how candidates are evaluated are the checkpoint's, as in torch."""
    _, other = _search(entry, lr=0.25, sigma=0.5, weight_decay=0.1, seed=7, bounds=(-9.0, 9.0), evaluation="auto")
    _, optimizer = _search(entry)
    optimizer.load_state_dict(other.state_dict())
    assert_identical(optimizer.state_dict(), other.state_dict())
    assert optimizer.param_groups[0]["seed"] == 7


@pytest.mark.parametrize("n_parts", [2, 3, 10, 100])
def test_truncated_file(n_parts: int, tmp_path: Path) -> None:
    """C19: of a file whose end is lost nothing is read, so nothing is loaded."""
    parameters, optimizer = _search(ENTRIES[0])
    path = tmp_path / "checkpoint.pt"
    torch.save(optimizer.state_dict(), path)
    content, before = path.read_bytes(), snapshot(optimizer)
    for i in range(n_parts):
        path.write_bytes(content[: len(content) * i // n_parts])
        with pytest.raises((RuntimeError, EOFError)):
            optimizer.load_state_dict(torch.load(path, weights_only=True))
    assert_identical(snapshot(optimizer), before)
    path.write_bytes(content)
    optimizer.load_state_dict(torch.load(path, weights_only=True))
    optimizer.step(lambda: distance(parameters))


def test_nothing_of_a_checkpoint_is_run(entry: Entry, tmp_path: Path) -> None:
    """C8: text in a checkpoint's options, which a bridge would hand to a package that evaluates it, is refused."""
    trap = f"__import__('pathlib').Path({str(tmp_path / 'sprung')!r}).touch() or 6"
    parameters, optimizer = _search(entry)
    checkpoint = copy.deepcopy(optimizer.state_dict())
    options = [name for name, value in checkpoint["param_groups"][0].items() if isinstance(value, (str, tuple))]
    for name in {"options", "optimizer", "budget", "popsize", "num_workers", *options} & set(optimizer.defaults):
        for value in (trap, (("popsize", trap),)):
            spoiled = copy.deepcopy(checkpoint)
            spoiled["param_groups"][0][name] = value
            if name in ("evaluation", "bounds"):
                continue  # never handed on
            with pytest.raises(ValueError, match=f"saved with {name}="):
                optimizer.load_state_dict(spoiled)
            optimizer.step(lambda: distance(parameters))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_code_is_loaded(path: Path) -> None:
    """C8: the library neither unpickles nor evaluates anything, and tells torch not to."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle"} & {n.partition(".")[0] for n in names}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "__import__"), f"line {node.lineno}"
            if called == "torch.load":
                only = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "weights_only"]
                assert only == ["True"], f"line {node.lineno}"
