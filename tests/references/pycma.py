"""pycma's own ask and tell, without a record and without a bridge."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import cma
import numpy as np

from tests.references.step import Point


def search(
    seed: int, dim: int, notes: list[str], deterministic: bool, **options: Any
) -> Generator[tuple[list[Point], Point], list[float], None]:
    """Yields the rows of each step and the mean that they are drawn around, and receives their losses."""
    randn = np.random.RandomState(seed).randn
    options = {**options, "randn": randn, "seed": np.nan, "verbose": -9, "signals_filename": None}
    strategy = cma.CMAEvolutionStrategy(dim * [0.0], 1.0, options)
    while True:
        rows = strategy.ask()
        losses = yield [row.tolist() for row in rows], strategy.mean.tolist()
        strategy.tell(rows, [min(loss, 1e38) for loss in losses])
        if deterministic and strategy.stop():
            notes.append(next(iter(strategy.stop())))
            strategy = cma.CMAEvolutionStrategy(randn(dim), 1.0, options)
