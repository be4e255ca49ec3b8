"""What PyTorch's own tests ask of every optimizer, where the other files of the contract do not ask it already.

The table in ``docs/torch_compatibility.md`` names, for each of PyTorch's tests, the one here.
"""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.swa_utils import AveragedModel

from tests.helpers import assert_identical, distance, identical, mlp, snapshot, twin, vector
from tests.registry import Case, Entry

ROOT = Path(__file__).parents[2]


def test_public_attributes_are_copied(entry: Entry) -> None:
    """A deep copy has every public attribute of the original, and there are no others than torch's."""
    optimizer = entry.make([vector(3)])
    optimizer.step(lambda: distance(optimizer.param_groups[0]["params"]))
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    assert public == {"defaults", "param_groups", "state"}
    assert public == {name for name in vars(copy.deepcopy(optimizer)) if not name.startswith("_")}


def test_repeated_groups_are_saved_alike(entry: Entry) -> None:
    """Groups that hold the same parameters again have the same form in a checkpoint."""
    optimizer = entry.make([vector(3), vector(2)])
    optimizer.param_groups.extend(optimizer.param_groups)
    first, second = optimizer.state_dict()["param_groups"]
    assert_identical(first, second)


def test_one_type_from_all_ways_out(entry: Entry) -> None:
    """A step returns a tensor where the closure does, whether it moves the model, finds nothing better, or nothing."""
    x = vector(3)
    optimizer = entry.make([x], deterministic=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [
            optimizer.step(lambda: distance([x]).detach()),
            optimizer.step(lambda: 0 * distance([x]).detach()),
            optimizer.step(lambda: float("nan") * distance([x]).detach()),
        ]
        x.requires_grad_(False)
        results.append(optimizer.step(lambda: distance([x]).detach()))
        results.append(entry.make([x]).step(lambda: distance([x]).detach()))
    assert {type(result) for result in results} == {Tensor}


def test_every_option_may_be_younger_than_a_checkpoint(entry: Entry) -> None:
    """A checkpoint that lacks any one option loads, and the search goes on."""
    task = Case(entry, "small", entry.small).mlp()
    optimizer = entry.make(task.model.parameters(), **entry.small)
    task.train(optimizer, 2)
    for name in optimizer.param_groups[0]:
        if name == "params":
            continue
        older = copy.deepcopy(optimizer.state_dict())
        del older["param_groups"][0][name]
        (successor_task,) = twin(task)
        successor = entry.make(successor_task.model.parameters(), **entry.small)
        successor.load_state_dict(older)
        (other_task, other) = twin(task, optimizer)
        assert successor_task.train(successor, 1) == other_task.train(other, 1)


def test_groups_added_after_loading(entry: Entry) -> None:
    """A group that is added after loading has the options of the others, and so has its copy: once it got one more."""
    optimizer = entry.make([vector(3)])
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": [vector(2)]})
    for search in (optimizer, copy.deepcopy(optimizer)):
        first, second = search.param_groups
        assert set(first) == set(second) == {"params", *optimizer.defaults}


def test_profiler_ranges(entry: Entry) -> None:
    """A step and ``zero_grad`` appear in torch's profiler under the optimizer's name."""
    x = vector(3)
    optimizer = entry.make([x])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step(lambda: distance([x]))
        optimizer.zero_grad()
    names = {event.name for event in profile.events() or []}
    assert {f"Optimizer.step#{entry}.step", f"Optimizer.zero_grad#{entry}.zero_grad"} <= names


def test_averaged_models(entry: Entry) -> None:
    """``AveragedModel`` averages what the model holds after each step."""
    task = mlp(n_batches=1)
    optimizer = entry.make(task.model.parameters(), **entry.small)
    averaged = AveragedModel(task.model)
    seen = []
    for _ in range(4):
        task.train(optimizer, 2)
        averaged.update_parameters(task.model)
        seen.append(nn.utils.parameters_to_vector(task.model.parameters()).detach().clone())
    mean = nn.utils.parameters_to_vector(averaged.module.parameters())
    torch.testing.assert_close(mean, torch.stack(seen).mean(0))
    assert not identical(seen[0], seen[-1])


def test_step_inside_a_compiled_function(entry: Entry) -> None:
    """C37: a step called from a compiled function is not traced, and is the same step."""
    points = []
    for compiled in (True, False):
        x = vector(3)
        optimizer = entry.make([x])

        def train() -> None:
            for _ in range(2):
                optimizer.step(lambda: distance([x]))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dynamo's own
            (torch.compile(train, backend="eager") if compiled else train)()
        points.append(x.detach())
    assert_identical(*points)


def test_compiled_models(entry: Entry) -> None:
    """C37: a compiled model in the closure is trained as the model itself is."""
    tasks = [Case(entry, "small", entry.small).mlp() for _ in range(2)]
    plain = tasks[1].model
    tasks[1].model = torch.compile(plain, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = [task.train(entry.make(task.model.parameters(), **entry.small), 2) for task in tasks]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(dict(tasks[0].model.state_dict()), dict(plain.state_dict()))


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
def test_distributed_checkpoints(entry: Entry, flat: bool, tmp_path: Path) -> None:
    """C21: ``torch.distributed.checkpoint`` saves the state and fills a fresh optimizer with it; the search goes on."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    task = Case(entry, "small", entry.small).mlp()
    (other,) = twin(task)
    optimizer = entry.make(task.model.parameters(), **entry.small)
    task.train(optimizer, 3)
    before = snapshot(optimizer, task.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a single process
        saved = {"optimizer": get_optimizer_state_dict(task.model, optimizer, options=options)}
        assert_identical(snapshot(optimizer, task.model), before)
        dcp.save(saved, checkpoint_id=tmp_path)
        successor = entry.make(other.model.parameters(), **entry.small)
        target = {"optimizer": get_optimizer_state_dict(other.model, successor, options=options)}
        dcp.load(target, checkpoint_id=tmp_path)
        set_optimizer_state_dict(other.model, successor, target["optimizer"], options=options)
    other.model.load_state_dict(task.model.state_dict())
    assert_identical(successor.state_dict()["state"], optimizer.state_dict()["state"])
    assert other.train(successor, 3) == task.train(optimizer, 3)


def test_table_of_torchs_tests() -> None:
    """Every test that the table of deviations names exists."""
    page = (ROOT / "docs" / "torch_compatibility.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(\w+\.py)::(test_\w+)`", page))
    assert len(names) > 30
    for file, name in names:
        sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob(file)]
        assert any(f"\ndef {name}(" in source for source in sources), f"{file}::{name}"
