"""The state is complete from the start, and a checkpoint of it is exact."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contract import resume
from tests.helpers import Task, assert_identical, distance, identical, parameters_of, snapshot, twin, vector
from tests.registry import Case, Entry
from torch_gfo.optimizer import GradientFreeOptimizer

ROOT = Path(__file__).parents[2]

Copy = Callable[[Any], Any]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Trains every case, and then as long again both here and in one new process: both ends."""
    folder = tmp_path_factory.mktemp("checkpoints")
    uninterrupted = {}
    for name, (case, evaluation) in resume.RUNS.items():
        task, optimizer = resume.build(case, evaluation)
        n_steps = resume.steps(case)
        task.train(optimizer, n_steps)
        torch.save(resume.state_of(task, optimizer), folder / f"{name}.pt")
        uninterrupted[name] = {
            "losses": task.train(optimizer, n_steps, first=n_steps),
            **resume.state_of(task, optimizer),
        }
    subprocess.run([sys.executable, "-m", resume.__name__, str(folder)], cwd=ROOT, check=True)
    continued = torch.load(folder / "results.pt")
    return {name: (uninterrupted[name], continued[name]) for name in uninterrupted}


@pytest.mark.parametrize("name", resume.RUNS)
def test_resuming_in_a_new_process(name: str, resumed: dict[str, Any]) -> None:
    """C19: n steps, a checkpoint, and n steps in a new process are 2n steps, bit for bit."""
    assert_identical(*resumed[name])


def test_checkpoints_do_not_interfere(case: Case) -> None:
    """C6: a copy made of a checkpoint, stepped in turns with the original, stays equal to it."""
    original = case.mlp(normalize=True)
    optimizer = case.make(original.model.named_parameters())
    original.train(optimizer, 3)
    (restored,) = twin(original)
    successor = case.make(restored.model.named_parameters(), seed=99)
    checkpoint = optimizer.state_dict()
    before = copy.deepcopy(checkpoint)
    successor.load_state_dict(checkpoint)
    assert_identical(checkpoint, before)
    assert_identical(successor.state_dict(), before)
    for step in range(3, 7):
        original.train(optimizer, 1, first=step)
        restored.train(successor, 1, first=step)
        assert_identical(snapshot(optimizer, original.model), snapshot(successor, restored.model))
    assert not identical(before["state"], optimizer.state_dict()["state"])


def test_named_and_unnamed_checkpoints(entry: Entry) -> None:
    """C6: a checkpoint of named parameters loads into an optimizer of unnamed ones, and the other way round."""
    for saved_named, loaded_named in ((True, False), (False, True)):
        one = Case(entry, "default", {}).mlp()
        (other,) = twin(one)
        saver, loader = entry.make(_parameters(one, saved_named)), entry.make(_parameters(other, loaded_named), seed=1)
        one.train(saver, 3)
        other.model.load_state_dict(one.model.state_dict())
        loader.load_state_dict(saver.state_dict())
        assert loader.param_groups[0]["param_names"][0] == "0.weight"
        assert one.train(saver, 3) == other.train(loader, 3)


def test_older_checkpoints(case: Case) -> None:
    """C7: a checkpoint that lacks options which came later loads; they get their defaults."""
    task = case.mlp()
    optimizer = case.make(task.model.parameters())
    task.train(optimizer, 2)
    older = copy.deepcopy(optimizer.state_dict())
    later = [name for name in ("chunk_size", "subspace_refresh", "deterministic") if name not in case.options]
    for group in older["param_groups"]:
        for name in later:
            del group[name]
    (successor_task,) = twin(task)
    successor = case.make(successor_task.model.parameters())
    successor.load_state_dict(older)
    assert all(successor.param_groups[0][name] == successor.defaults[name] for name in later)
    assert successor_task.train(successor, 3) == task.train(optimizer, 3)


def test_weights_only(case: Case, tmp_path: Path) -> None:
    """C8: what torch.load(weights_only=True) reads of a checkpoint is what was saved."""
    task = case.mlp()
    optimizer = case.make(task.model.parameters())
    task.train(optimizer, 3)
    torch.save(optimizer.state_dict(), tmp_path / "checkpoint.pt")
    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert_identical(loaded, optimizer.state_dict())


@pytest.mark.parametrize("kind", [int, float, torch.tensor], ids=["int", "float", "tensor"])
def test_step_of_another_type(entry: Entry, kind: Callable[[float], Any]) -> None:
    """C9: the step counter of a checkpoint may be an int, a float or a tensor."""
    task = Case(entry, "default", {}).mlp()
    optimizer = entry.make(task.model.parameters())
    task.train(optimizer, 3)
    checkpoint = copy.deepcopy(optimizer.state_dict())
    for state in checkpoint["state"].values():
        state["step"] = kind(float(state["step"]))
    (successor_task,) = twin(task)
    successor = entry.make(successor_task.model.parameters())
    successor.load_state_dict(checkpoint)
    assert successor_task.train(successor, 3) == task.train(optimizer, 3)


def test_state_is_complete_at_once(case: Case) -> None:
    """C15, C17: at construction every parameter has its state, and it keeps its keys, types, shapes and dtypes."""
    parameters = [
        vector(3, 2),
        vector(2, dtype=torch.bfloat16),
        vector(2, dtype=torch.float64),
        nn.Parameter(torch.ones(2), requires_grad=False),
    ]
    optimizer = case.make(parameters)
    layout = _layout(optimizer)
    assert list(optimizer.state) == parameters
    assert all(optimizer.state[p] for p in parameters)
    assert set(map(len, optimizer.state.values())) != {len(optimizer.state[parameters[0]])}
    for _ in range(5):
        optimizer.step(lambda: case.goal(distance(parameters)))
        assert _layout(optimizer) == layout


def test_state_holds_plain_values(case: Case) -> None:
    """C20: state holds tensors, ints and floats alone, groups plain values, and nothing new appears on the object."""
    task = case.mlp()
    optimizer = case.make(task.model.parameters())
    attributes = set(vars(optimizer))
    task.train(optimizer, 3)
    optimizer.load_state_dict(optimizer.state_dict())
    task.train(optimizer, 3)
    optimizer.ask()
    assert set(vars(optimizer)) == attributes
    for state in optimizer.state.values():
        assert {type(value) for value in state.values()} <= {Tensor, int, float}
        assert not any(value.requires_grad for value in state.values() if isinstance(value, Tensor))
    options = {name: value for name, value in optimizer.param_groups[0].items() if name not in ("params", "lr")}
    assert all(value is None or isinstance(value, (bool, int, float, str, tuple)) for value in options.values())


def test_exact_dtypes(case: Case) -> None:
    """C18: loading a checkpoint keeps every dtype and every bit, whatever the parameters' dtypes."""
    for dtypes in ((torch.bfloat16, torch.float64), (torch.float16, torch.bfloat16)):
        parameters = [vector(3, dtype=dtype) for dtype in dtypes]
        optimizer = case.make(parameters)
        for _ in range(2):
            optimizer.step(lambda: case.goal(distance(parameters)))
        others = [nn.Parameter(p.detach().clone()) for p in parameters]
        successor = case.make(others)
        successor.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert_identical(successor.state_dict(), optimizer.state_dict())
        optimizer.step(lambda: case.goal(distance(parameters)))
        successor.step(lambda: case.goal(distance(others)))
        assert_identical(snapshot(successor)["optimizer"], snapshot(optimizer)["optimizer"])
        assert_identical(others, parameters)


def test_deep_copies_go_on(case: Case) -> None:
    """C19: a deep copy of model and optimizer, stepped, equals the original, stepped."""
    _assert_copies_go_on(case, copy.deepcopy)


def test_pickles_go_on(case: Case) -> None:
    """C19: so does a pickle."""
    _assert_copies_go_on(case, lambda value: pickle.loads(pickle.dumps(value)))


def _assert_copies_go_on(case: Case, duplicate: Copy) -> None:
    task = case.mlp()
    optimizer = case.make(task.model.parameters())
    task.train(optimizer, 2)
    model, successor = duplicate((task.model, optimizer))
    copied = Task(model, task.inputs, task.targets, sign=task.sign)
    assert all(p is q for p, q in zip(model.parameters(), parameters_of(successor), strict=True))
    assert task.train(optimizer, 2) == copied.train(successor, 2)
    assert_identical(snapshot(optimizer, task.model), snapshot(successor, model))


def test_copies_of_a_fresh_optimizer(entry: Entry) -> None:
    """C19: an optimizer that has made no step can be saved, copied and loaded."""
    x, y = vector(5), vector(5)
    optimizer, loaded = entry.make([x]), entry.make([y], seed=7)
    loaded.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        optimizer.step(lambda: distance([x]))
        loaded.step(lambda: distance([y]))
    assert_identical(x, y)


def test_checkpoint_of_another_model(entry: Entry) -> None:
    """C19: a checkpoint of another model is refused with a reason, and nothing changes."""
    other = entry.make([vector(7)])
    fewer = entry.make([vector(5), vector(2)])
    x = vector(5)
    optimizer = entry.make([x])
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="Parameter 0 of the checkpoint holds 7 numbers, here 5"):
        optimizer.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(fewer.state_dict())
    adam = torch.optim.Adam([vector(5)])
    with pytest.raises(ValueError, match="another optimizer has saved it"):
        optimizer.load_state_dict(adam.state_dict())
    assert_identical(snapshot(optimizer), before)


def _parameters(task: Task, named: bool) -> Any:
    return task.model.named_parameters() if named else task.model.parameters()


def _layout(optimizer: GradientFreeOptimizer) -> list[dict[str, Any]]:
    return [
        {
            name: (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)
            for name, value in optimizer.state[parameter].items()
        }
        for parameter in parameters_of(optimizer)
    ]
