"""Runs a function on several ranks of ``torch.distributed``: one-threaded processes of this machine that never hang."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
import uuid
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["run"]

_TIMEOUT = 60.0  # seconds of a job, on a busy machine; one takes about 2

_processes = multiprocessing.get_context("forkserver")  # imports torch once, and has no threads to fork
_processes.set_forkserver_preload(["torch", "torch_gfo", __name__])


def run(job: Callable[..., Any], n_ranks: int, folder: Path, *arguments: Any) -> list[Any]:
    """Calls ``job(rank, *arguments)`` on every rank and returns the results; None of a rank that was killed.

    Raises:
        AssertionError: If a rank fails, with its traceback, or hangs.
    """
    files = [folder / f"{uuid.uuid4()}.pt" for _ in range(n_ranks)]
    store = folder / str(uuid.uuid4())
    ranks = [
        _processes.Process(target=_rank, args=(job, rank, n_ranks, store, file, arguments))
        for rank, file in enumerate(files)
    ]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + _TIMEOUT
    try:
        for process in ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        hanging = [rank for rank, process in enumerate(ranks) if process.is_alive()]
        assert not hanging, f"ranks {hanging} hang"
    finally:
        for process in ranks:
            process.kill()
            process.join()
    results = []
    for rank, (process, file) in enumerate(zip(ranks, files, strict=True)):
        assert process.exitcode in (0, -9), f"rank {rank} ended with {process.exitcode}"
        result = torch.load(file, weights_only=False) if file.exists() else None
        assert not isinstance(result, _Failure), f"rank {rank}: {result.traceback}"
        results.append(result)
    return results


class _Failure:
    def __init__(self) -> None:
        self.traceback = traceback.format_exc()


def _rank(
    job: Callable[..., Any], rank: int, n_ranks: int, store: Path, file: Path, arguments: tuple[Any, ...]
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # the loopback, whatever the machine's name resolves to
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    timeout = timedelta(seconds=_TIMEOUT / 2)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(store), n_ranks), rank=rank, world_size=n_ranks, timeout=timeout
    )
    try:
        result = job(rank, *arguments)
    except BaseException:
        result = _Failure()
    torch.save(result, file)
    dist.destroy_process_group()
