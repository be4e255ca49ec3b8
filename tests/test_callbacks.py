"""Callbacks: what is recorded, when training ends, and files that survive whatever happens."""

from __future__ import annotations

import io
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import with_callbacks
from torch import nn
from torch.optim import Optimizer

import torch_gfo
from tests.helpers import Task, assert_identical, mlp, snapshot, vector
from torch_gfo.callbacks import (
    Callbacks,
    Checkpoint,
    EarlyStopping,
    History,
    Progress,
    TensorBoard,
    count_evaluations,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def sgd() -> Optimizer:
    return torch.optim.SGD([vector(3)], lr=0.1)


def call(callback: Any, optimizer: Optimizer, values: list[float], **metrics: Any) -> list[bool]:
    return [callback(optimizer, value, **metrics) for value in values]


# Records.


def test_history_records_the_steps_as_they_were() -> None:
    task = mlp()
    optimizer, history = torch_gfo.PSO(task.model.parameters(), popsize=5, seed=0), History()
    expected = []
    for batch in range(4):
        loss = optimizer.step(lambda: task.loss(batch))
        expected.append((batch + 1, optimizer.evaluations, float(loss), batch * 10))
        assert history(optimizer, loss, hits=torch.tensor(batch * 10), share=np.float64(0.1)) is False
    found = [tuple(record[key] for key in ("step", "evaluations", "loss", "hits")) for record in history.records]
    assert found == expected
    assert list(history.records[0]) == ["step", "evaluations", "seconds", "loss", "hits", "share"]
    assert history.records[0]["share"] == 0.1
    seconds = [record["seconds"] for record in history.records]
    assert 0 < seconds[0] < seconds[-1] < 60
    assert {type(value) for record in history.records for value in record.values()} == {int, float}


def test_evaluations_are_the_optimizers_or_one_a_step(sgd: Optimizer) -> None:
    x, calls = vector(3), 0
    lbfgs = torch.optim.LBFGS([x], max_iter=3)

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += 1
        lbfgs.zero_grad()
        loss = (x**4).sum()
        loss.backward()
        return loss

    history = History()
    for optimizer in (lbfgs, lbfgs):
        history(optimizer, optimizer.step(closure))
    assert history.records[-1]["evaluations"] == calls > 2
    assert count_evaluations(sgd, 7) == 7


@pytest.mark.parametrize("loss", [None, torch.ones(2), "much", torch.tensor(1j)])
def test_what_is_not_a_number_is_refused_before_anything_is_recorded(loss: Any, sgd: Optimizer) -> None:
    history = History()
    with pytest.raises(TypeError, match="one real number"):
        history(sgd, loss)
    with pytest.raises(TypeError, match="accuracy is"):
        history(sgd, 1.0, accuracy=loss)
    with pytest.raises(ValueError, match="'seconds'"):
        history(sgd, 1.0, seconds=3)
    assert (history.records, history.step) == ([], 0)


def test_a_loss_that_requires_grad_is_read_without_a_warning(sgd: Optimizer) -> None:
    history = History()
    history(sgd, vector(1))
    assert history.records[0]["loss"] == vector(1).item()


def test_the_state_goes_on_and_belongs_to_one_kind_of_callback(sgd: Optimizer) -> None:
    history, resumed = History(), History()
    call(history, sgd, [3.0, 2.0])
    history.seconds = 1000.0
    resumed.load_state_dict(history.state_dict())
    call(resumed, sgd, [1.0])
    assert [record["step"] for record in resumed.records] == [1, 2, 3]
    assert 1000 < resumed.records[-1]["seconds"] < 1060
    assert len(history.records) == 2
    with pytest.raises(ValueError, match=r"EarlyStopping remembers best.*holds step, seconds, records"):
        EarlyStopping(10).load_state_dict(history.state_dict())


def test_all_callbacks_are_called_and_each_can_end_the_training(sgd: Optimizer) -> None:
    first, last, called = History(), History(), []
    stream = Terminal()
    with Callbacks(first, lambda *_: called.append(1) or True, last, Progress(stream=stream)) as callbacks:
        assert callbacks(sgd, 1.0) is True
    assert len(first.records) == len(last.records) == len(called) == 1
    assert stream.getvalue().endswith("\n")
    assert Callbacks(first, last)(sgd, 1.0) is False


# Early stopping.


def test_stops_when_nothing_has_improved_for_the_patience(sgd: Optimizer) -> None:
    stop = EarlyStopping(patience=3, unit="step")
    assert call(stop, sgd, [5, 4, 4, 4.5, 3, math.nan, 3.1, 3]) == [False] * 7 + [True]
    assert (stop.best, stop.best_at) == (3, 5)


def test_patience_counts_evaluations() -> None:
    x = vector(3)
    optimizer, stop = torch_gfo.GA([x], popsize=9, seed=0), EarlyStopping(patience=25)
    ends = []
    for _ in range(4):
        optimizer.step(lambda: x.square().sum())
        ends.append((optimizer.evaluations, stop(optimizer, 1.0)))
    assert ends == [(10, False), (20, False), (30, False), (40, True)]


def test_small_improvements_do_not_count(sgd: Optimizer) -> None:
    stop = EarlyStopping(patience=2, unit="step", min_delta=0.5)
    assert call(stop, sgd, [5, 4.6, 4.4, 4.1, 3.95]) == [False, False, False, False, True]


def test_target_of_a_metric_to_maximize(sgd: Optimizer) -> None:
    stop = EarlyStopping(target=0.9, monitor="accuracy", maximize=True)
    assert [stop(sgd, 1.0, accuracy=value) for value in (0.5, math.nan, 0.89, 0.9)] == [False, False, False, True]
    assert stop.best == 0.9
    with pytest.raises(ValueError, match="waits for 'accuracy', and is given loss, acuracy"):
        stop(sgd, 1.0, acuracy=0.9)


def test_losses_that_are_never_numbers_end_the_training(sgd: Optimizer) -> None:
    assert call(EarlyStopping(patience=2, unit="step"), sgd, [math.nan] * 2) == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({}, "without target"), ({"patience": 0}, "patience"), ({"patience": 1, "min_delta": -1}, "min_delta")],
)
def test_early_stopping_refuses_what_makes_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**arguments)
    with pytest.raises(ValueError, match="unit"):
        EarlyStopping(1, unit="steps")


# Progress.


def test_progress_writes_one_line_again_and_again_on_a_terminal(sgd: Optimizer) -> None:
    stream = Terminal()
    with Progress(total=1500, interval=0, stream=stream) as progress:
        call(progress, sgd, [0.123456, 2.0], accuracy=0.5)
    first, second = stream.getvalue().removesuffix("\n").split("\r")[1:]
    assert re.fullmatch(r"step 1  evaluations 1/1,500  seconds \S+  loss 0\.1235  accuracy 0\.5\x1b\[K", first)
    assert second.startswith("step 2  evaluations 2/1,500")
    assert stream.getvalue().count("\n") == 1


def test_progress_fits_into_the_terminal(sgd: Optimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    call(Progress(interval=0, stream=stream), sgd, [1.0])
    assert stream.getvalue() == "\rstep 1  evaluations\x1b[K"


def test_progress_writes_rarely_into_a_file_and_always_at_the_end(
    sgd: Optimizer, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress() as progress:
        call(progress, sgd, [1.0] * 500)
    assert capsys.readouterr().err.splitlines()[0].startswith("step 500  evaluations 500  ")


# Checkpoints.


def build(cls: Any = torch_gfo.PSO) -> tuple[Task, Any, Any, History]:
    task = mlp(dropout=0.2)
    options = {} if cls is torch.optim.Adam else {"seed": 0, "evaluation": "sequential"}
    optimizer = cls(task.model.parameters(), **options)
    return task, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), History()


def train(task: Task, optimizer: Any, schedule: Any, history: History, checkpoint: Checkpoint, batches: range) -> None:
    for batch in batches:

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = task.loss(batch)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        schedule.step()
        Callbacks(history, checkpoint)(optimizer, loss)


def outcome(task: Task, optimizer: Any, schedule: Any, history: History) -> dict[str, Any]:
    records = [{key: value for key, value in record.items() if key != "seconds"} for record in history.records]
    return {**snapshot(optimizer, task.model), "lr": schedule.get_last_lr(), "records": records}


def make(path: Path, run: tuple[Task, Any, Any, History], **options: Any) -> Checkpoint:
    task, _, schedule, history = run
    return Checkpoint(path, model=task.model, schedule=schedule, history=history, **options)


@pytest.mark.parametrize("cls", [torch_gfo.PSO, torch_gfo.CMAES, torch_gfo.EGGROLL, torch.optim.Adam])
def test_a_resumed_run_equals_an_undisturbed_one(cls: Any, tmp_path: Path) -> None:
    """Bit for bit, dropout masks included."""
    whole = build(cls)
    torch.manual_seed(1)
    train(*whole, make(tmp_path / "whole.pt", whole), range(12))
    expected = outcome(*whole)

    half = build(cls)
    torch.manual_seed(1)
    train(*half, make(tmp_path / "run.pt", half, every=5, unit="step"), range(8))
    torch.manual_seed(2)
    resumed = build(cls)
    checkpoint = make(tmp_path / "run.pt", resumed)
    assert checkpoint.restore(resumed[1]) is True
    assert (checkpoint.step, len(resumed[3].records)) == (5, 5)
    train(*resumed, checkpoint, range(5, 12))
    assert_identical(outcome(*resumed), expected)
    assert [file.name for file in tmp_path.glob("run*")] == ["run.pt"]


def test_saves_every_so_many_evaluations(tmp_path: Path) -> None:
    run = build()
    checkpoint, saved = make(tmp_path / "run.pt", run, every=100), []
    for batch in range(20):
        train(*run, checkpoint, range(batch, batch + 1))
        saved.append(checkpoint.saved_at)
    counts = [record["evaluations"] for record in run[3].records]
    due = [now for before, now in zip([0, *counts], counts, strict=False) if now // 100 > before // 100]
    assert sorted(set(saved) - {0}) == due
    assert len(due) == counts[-1] // 100 > 2


class Broken(BaseException):
    pass


@pytest.mark.parametrize("where", ["save", "fsync", "replace"])
def test_whatever_interrupts_the_writing_the_last_file_stays(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build()
    file = tmp_path / "run.pt"
    checkpoint = make(file, run, every=10**9)
    checkpoint.save(run[1])
    good = file.read_bytes()
    train(*run, checkpoint, range(3))

    def interrupt(*arguments: Any) -> None:
        if where == "save":
            arguments[1].write(b"half a file")
        raise Broken

    monkeypatch.setattr(torch if where == "save" else os, where, interrupt)
    with pytest.raises(Broken):
        checkpoint.save(run[1])
    assert file.read_bytes() == good
    assert [*tmp_path.iterdir()] == [file]


def untouched(run: tuple[Task, Any, Any, History], checkpoint: Checkpoint, message: str) -> None:
    """Restoring fails with the message, and changes nothing."""
    before, states = outcome(*run), checkpoint.state_dict()
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(run[1])
    assert_identical(outcome(*run), before)
    assert {**checkpoint.state_dict(), "seconds": 0} == {**states, "seconds": 0}


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_named_and_changes_nothing(share: float, tmp_path: Path) -> None:
    run = build()
    file = tmp_path / "run.pt"
    checkpoint = make(file, run)
    checkpoint.save(run[1])
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    train(*run, checkpoint, range(2))
    untouched(run, checkpoint, r"run\.pt is truncated.*move it away")


def test_a_foreign_file_is_named_and_changes_nothing(tmp_path: Path) -> None:
    run = build()
    file = tmp_path / "run.pt"
    checkpoint = make(file, run)
    file.write_bytes(Path(__file__).read_bytes())
    untouched(run, checkpoint, "another program's file")
    torch.save(run[0].model.state_dict(), file)
    untouched(run, checkpoint, r"holds the keys 0\.weight")
    torch.save([1], file)
    untouched(run, checkpoint, "holds list")


def other_model() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Dropout(0.2), nn.Linear(3, 5))
    return {"model": model, "optimizer": torch_gfo.PSO(mlp().model.parameters(), seed=5)}


def other_optimizer() -> dict[str, Any]:
    model = mlp(dropout=0.2).model
    return {"model": model, "optimizer": torch_gfo.CMAES(model.parameters(), seed=0)}


@pytest.mark.parametrize(
    ("other", "message"), [(other_model, "model cannot be restored"), (other_optimizer, "optimizer cannot be restored")]
)
def test_a_checkpoint_of_something_else_changes_nothing(other: Any, message: str, tmp_path: Path) -> None:
    """The model's fails when the optimizer has been loaded already, and some of the layers."""
    objects = other()
    history = History()
    theirs = Checkpoint(tmp_path / "run.pt", model=objects["model"], schedule=history, history=history)
    theirs.save(objects["optimizer"])
    run = build()
    checkpoint = make(tmp_path / "run.pt", run)
    train(*run, checkpoint, range(3))
    untouched(run, checkpoint, message)


def test_a_checkpoint_of_other_objects_changes_nothing(tmp_path: Path) -> None:
    run = build()
    checkpoint = make(tmp_path / "run.pt", run)
    checkpoint.save(run[1])
    fewer = Checkpoint(tmp_path / "run.pt", model=run[0].model)
    untouched(
        run, fewer, "holds optimizer, checkpoint, model, schedule, history; there is optimizer, checkpoint, model"
    )


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    class Careless(nn.Module):
        def get_extra_state(self) -> Any:
            return np.random.RandomState(0)

        def set_extra_state(self, state: Any) -> None:
            raise NotImplementedError

    run = build()
    checkpoint = Checkpoint(tmp_path / "run.pt", careless=Careless())
    with pytest.raises(TypeError, match=r"could not be loaded again.*careless"):
        checkpoint.save(run[1])
    assert not [*tmp_path.iterdir()]


def test_without_a_file_the_training_begins(tmp_path: Path) -> None:
    run = build()
    checkpoint = make(tmp_path / "run.pt", run)
    assert checkpoint.restore(run[1]) is False
    with pytest.raises(FileNotFoundError):
        checkpoint.load()
    checkpoint.save(run[1])
    assert list(checkpoint.load()) == ["optimizer", "checkpoint", "model", "schedule", "history"]


def test_a_checkpoint_refuses_what_it_could_not_do_later(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    with pytest.raises(TypeError, match="generator is a Generator, without state_dict"):
        Checkpoint(file, generator=torch.Generator())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no folder"):
        Checkpoint(tmp_path / "nowhere" / "run.pt")
    with pytest.raises(ValueError, match="every must be"):
        Checkpoint(file, every=0)
    with pytest.raises(ValueError, match="optimizer is saved anyway"):
        Checkpoint(file, optimizer=torch.optim.SGD([vector(1)]))


# TensorBoard.


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_the_models_loss_over_evaluations(tmp_path: Path) -> None:
    task = mlp()
    optimizer, expected = torch_gfo.PSO(task.model.parameters(), popsize=5, seed=0), []
    board = TensorBoard(tmp_path)
    for batch in range(3):
        with torch.no_grad():
            before = float(task.loss(batch))
        board(optimizer, optimizer.step(lambda: task.loss(batch)), twice=2 * before)
        expected.append((optimizer.evaluations, before))
    found = scalars(tmp_path)  # also before it is closed
    board.close()
    assert found == {"loss": expected, "twice": [(count, 2 * loss) for count, loss in expected]}


def test_tensorboard_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        TensorBoard(tmp_path)


# Several ranks.


def test_ranks_other_than_the_first_write_nothing(
    sgd: Optimizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    stream, checkpoint = Terminal(), Checkpoint(tmp_path / "run.pt", every=1)
    with Callbacks(Progress(interval=0, stream=stream), checkpoint, TensorBoard(tmp_path)) as callbacks:
        assert callbacks(sgd, 1.0) is False
    assert (stream.getvalue(), [*tmp_path.iterdir()], checkpoint.saved_at) == ("", [], 1)


# Together.


def test_the_example_stops_goes_on_and_reaches_its_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = with_callbacks.train(tmp_path, evaluations=800).records[-1]
    assert 800 <= first["evaluations"] < 850
    assert "Going on" not in capsys.readouterr().out
    records = with_callbacks.train(tmp_path, evaluations=10_000, target=0.7).records
    assert f"Going on after {first['evaluations']} evaluations" in capsys.readouterr().out
    assert [record["step"] for record in records] == [*range(1, len(records) + 1)]
    assert records[-1]["accuracy"] >= 0.7 > records[-2]["accuracy"]
    assert [count for count, _ in scalars(tmp_path)["accuracy"]] == [record["evaluations"] for record in records]


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs" / "callbacks.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["history"].records[-1]["loss"] <= 0.3
    assert scope["optimizer"].evaluations < 20_000
