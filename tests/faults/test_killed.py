"""A process that is killed again and again ends where one that is left in peace ends."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from pathlib import Path
from typing import Any

import torch

from tests.faults import killed
from tests.helpers import assert_identical
from torch_gfo.callbacks import Checkpoint

N_KILLS = 50
LONGEST = 2.5  # rounds until a kill

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
        rounds.append(saved(path)["round"] if path.exists() else 0)
    assert rounds == sorted(rounds)
    assert len(set(rounds)) > N_KILLS / 10  # lives have gone on from others'
    undisturbed = killed.Run()
    torch.manual_seed(0)
    while undisturbed.round < rounds[-1]:
        undisturbed.advance()
    assert_identical(saved(path), undisturbed.state_dict())


def saved(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = Checkpoint(path).load()["run"]
    return state


def _seconds_a_round(path: Path) -> float:
    run = killed.Run()
    run.advance()
    started = time.perf_counter()
    run.advance()
    run.checkpoint(path).save(run.optimizer)
    return time.perf_counter() - started
