"""nevergrad's own ask and tell, without a record and without a bridge."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import nevergrad
import numpy as np

from tests.references.step import Point


def search(seed: int, dim: int, loss_of_origin: float, **options: Any) -> Generator[list[Point], list[float], None]:
    """Yields the rows of each step, and receives their losses; from NumPy's global generator, seeded."""
    np.random.seed(seed)
    space = nevergrad.p.Array(shape=(dim,))
    space.random_state = np.random.RandomState(seed)
    optimizer = nevergrad.optimizers.registry[options["optimizer"]](
        space, budget=options["budget"], num_workers=options["num_workers"]
    )
    first = optimizer.ask()
    if (first.value == 0).all():  # the model, whose loss is known
        optimizer.tell(first, loss_of_origin)
        first = optimizer.ask()
    while True:
        candidates = [first, *(optimizer.ask() for _ in range(options["num_workers"] - 1))]
        losses = yield [candidate.value.tolist() for candidate in candidates]
        for candidate, loss in zip(candidates, losses, strict=True):
            optimizer.tell(candidate, min(loss, 1e20))
        first = optimizer.ask()
