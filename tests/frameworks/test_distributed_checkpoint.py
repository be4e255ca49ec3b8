"""``torch.distributed.checkpoint`` restores a search exactly, in every way that it offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from tests.helpers import assert_identical, snapshot
from tests.registry import CASES, Case

# DCP says so of any single process, even if it was told that there is but one.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

DEFAULTS = [case for case in CASES if case.name == "default"]
FLAT = {"by name": StateDictOptions(), "flattened": StateDictOptions(flatten_optimizer_state_dict=True)}


def trained(case: Case, seed: int) -> tuple[Any, Any]:
    task = case.mlp(normalize=True)
    optimizer = case.make(task.model.parameters(), seed=seed)
    task.train(optimizer, 3 if seed == 0 else 1)  # what is loaded into stands elsewhere
    return task, optimizer


def go_on(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    (task, optimizer), (restored, successor) = one, other
    assert task.train(optimizer, 3, first=3) == restored.train(successor, 3, first=3)
    assert_identical(snapshot(successor, restored.model), snapshot(optimizer, task.model))


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_the_objects_themselves(case: Case, tmp_path: Path) -> None:
    """DCP restores tensors under an index and numbers under its text; both once arrived as two states."""
    task, optimizer = trained(case, seed=0)
    restored, successor = trained(case, seed=1)
    dcp.save({"model": task.model, "optimizer": optimizer}, checkpoint_id=tmp_path, no_dist=True)
    dcp.load({"model": restored.model, "optimizer": successor}, checkpoint_id=tmp_path, no_dist=True)
    assert_identical(successor.state_dict(), optimizer.state_dict())
    go_on((task, optimizer), (restored, successor))


@pytest.mark.parametrize("name", ["GA", "CMAES", "MeZO"])
def test_their_state_dicts(name: str, tmp_path: Path) -> None:
    (case,) = (case for case in DEFAULTS if case.entry.cls.__name__ == name)
    task, optimizer = trained(case, seed=0)
    restored, successor = trained(case, seed=1)
    saved = {"model": task.model.state_dict(), "optimizer": optimizer.state_dict()}
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    loaded = {"model": restored.model.state_dict(), "optimizer": successor.state_dict()}
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    restored.model.load_state_dict(loaded["model"])
    successor.load_state_dict(loaded["optimizer"])
    go_on((task, optimizer), (restored, successor))


@pytest.mark.parametrize("options", FLAT.values(), ids=FLAT)
@pytest.mark.parametrize("name", ["GA", "CMAES", "MeZO"])
def test_state_dicts_by_parameter_names(name: str, options: StateDictOptions, tmp_path: Path) -> None:
    (case,) = (case for case in DEFAULTS if case.entry.cls.__name__ == name)
    task, optimizer = trained(case, seed=0)
    restored, successor = trained(case, seed=1)
    dcp.save(dict(states_of(task, optimizer, options)), checkpoint_id=tmp_path, no_dist=True)
    loaded = dict(states_of(restored, successor, options))
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(
        restored.model,
        successor,
        model_state_dict=loaded["model"],
        optim_state_dict=loaded["optimizer"],
        options=options,
    )
    go_on((task, optimizer), (restored, successor))


def states_of(task: Any, optimizer: Any, options: StateDictOptions) -> Any:
    return zip(("model", "optimizer"), get_state_dict(task.model, optimizer, options=options), strict=True)
