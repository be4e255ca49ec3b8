"""A long run takes no more memory, and no more objects, than a short one."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.helpers import distance, vector
from tests.registry import ENTRIES, Entry
from torch_gfo.algorithms.mezo import MeZO
from torch_gfo.algorithms.nelder_mead import NelderMead

N_STEPS, WARM_UP = 3000, 200

LONG = [entry for entry in ENTRIES if entry.cls in (MeZO, NelderMead)]  # a few evaluations a step


@pytest.fixture(autouse=True)
def _only_new_objects() -> Iterator[None]:
    """Hides what there was before the test from the collector, which then is quick."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("long", LONG, ids=str)
def test_memory_does_not_grow(long: Entry) -> None:
    """D2: 3,000 more steps, on objectives that change, leave no more tensors and no more blocks of Python's memory."""
    x = vector(4)
    optimizer = long.make([x], **long.small)
    _step(optimizer, x, WARM_UP)
    n_tensors, n_blocks = _n_tensors(), sys.getallocatedblocks()
    _step(optimizer, x, N_STEPS)
    assert _n_tensors() == n_tensors
    assert sys.getallocatedblocks() - n_blocks < N_STEPS / 2  # one a step, and caches that fill
    assert torch.isfinite(x).all()


def test_tensors_do_not_pile_up(entry: Entry) -> None:
    """D2: the same number of tensors after 20 steps as after 60, for every optimizer."""
    x = vector(4)
    optimizer = entry.make([x], evaluation="vectorized" if entry.batches else "sequential", **entry.small)
    _step(optimizer, x, 20)
    n_tensors = _n_tensors()
    _step(optimizer, x, 40)
    assert _n_tensors() == n_tensors > 1


def _step(optimizer: torch.optim.Optimizer, x: Tensor, n_steps: int) -> None:
    for step in range(n_steps):
        optimizer.step(lambda: distance([x]) + step // 100)


def _n_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
