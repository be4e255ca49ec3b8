"""A process that is killed again and again ends where one that is left in peace ends."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.faults import killed, saving
from tests.helpers import assert_identical

N_KILLS = 50
LONGEST = 4.0  # rounds until a kill

_processes = multiprocessing.get_context("forkserver")  # imports torch once, and has no threads to fork
_processes.set_forkserver_preload(["torch", "torch_gfo", killed.__name__])


def test_killed_at_random_times(tmp_path: Path) -> None:
    """C19: killed 50 times while it trains with all optimizers and saves, a run is the undisturbed run, bit for bit."""
    times, path = random.Random(0), tmp_path / "run.pt"
    limit, rounds = LONGEST * _seconds_a_round(tmp_path / "timing.pt"), []
    for _ in range(N_KILLS):
        born = _processes.Event()
        process = _processes.Process(target=killed.live, args=(path, born))
        process.start()
        assert born.wait(60)
        time.sleep(times.uniform(0, limit))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL  # it was alive
        rounds.append(torch.load(path, weights_only=True)["round"] if path.exists() else 0)
    assert rounds == sorted(rounds)
    assert len(set(rounds)) > N_KILLS / 10  # lives have gone on from others'
    undisturbed = killed.Run()
    torch.manual_seed(0)
    while undisturbed.round < rounds[-1]:
        undisturbed.advance()
    assert_identical(torch.load(path, weights_only=True), undisturbed.state_dict())


def _seconds_a_round(path: Path) -> float:
    run = killed.Run()
    run.advance()
    started = time.perf_counter()
    run.advance()
    saving.save(run.state_dict(), path)
    return time.perf_counter() - started


@pytest.mark.parametrize("where", ["torch.save", "os.fsync", "pathlib.Path.replace"])
def test_killed_while_saving(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C19: whatever part of saving is the last, a whole checkpoint is there: the one before."""
    path = tmp_path / "run.pt"
    saving.save({"round": 1}, path)

    def end(*args: object) -> None:
        if where == "torch.save":
            args[1].write(b"half of it")  # type: ignore[attr-defined]
        raise SystemExit

    monkeypatch.setattr(where, end)
    with pytest.raises(SystemExit):
        saving.save({"round": 2}, path)
    assert torch.load(path, weights_only=True) == {"round": 1}
    monkeypatch.undo()
    saving.save({"round": 3}, path)
    assert torch.load(path, weights_only=True) == {"round": 3}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
