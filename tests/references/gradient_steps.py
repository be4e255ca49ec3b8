"""What algorithms that take steps along a gradient share: weights of losses, and the updates, number by number."""

from __future__ import annotations

import math
from typing import Any

from tests.references.step import Point


def centred_ranks(losses: list[float]) -> list[float]:
    """Salimans et al., section 2: ranks, here of losses, scaled to [-1/2, 1/2]; a tie counts as half below."""
    n = len(losses)
    below = [sum(other < loss for other in losses) for loss in losses]
    ties = [sum(other == loss for other in losses) - 1 for loss in losses]
    return [(b + t / 2) / (n - 1) - 0.5 for b, t in zip(below, ties, strict=True)]


def z_scores(losses: list[float]) -> list[float]:
    """Losses less their mean, over their standard deviation; infinite ones lie beyond the worst, by the range."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite or len(set(losses)) == 1:
        return [0.0] * len(losses)
    beyond = 2 * max(finite) - min(finite) if max(finite) > min(finite) else max(finite) + 1
    losses = [loss if math.isfinite(loss) else beyond for loss in losses]
    mean = sum(losses) / len(losses)
    spread = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / len(losses))
    return [(loss - mean) / spread for loss in losses]


def descend(state: dict[str, Any], g: Point, *, update: str, momentum: float, lr_decay: float) -> Point:
    """The step in units of lr, against the gradient g."""
    m, v, dim, t = momentum, state["velocity"], len(g), state["n_updates"] + 1
    if update == "sgd":
        v = [m * v[j] + g[j] for j in range(dim)]
        u = [-v[j] for j in range(dim)]
    elif update == "clipup":
        length = root_mean_square(g)
        v = [m * v[j] + (g[j] / length if length else 0.0) for j in range(dim)]
        speed = root_mean_square(v)
        if speed > 2:
            v = [2 * v_j / speed for v_j in v]
        u = [-v[j] for j in range(dim)]
    else:
        s = state["squares"]
        v = [m * v[j] + (1 - m) * g[j] for j in range(dim)]
        s = [0.999 * s[j] + 0.001 * g[j] ** 2 for j in range(dim)]
        v_hat = [v_j / (1 - m**t) for v_j in v]
        s_hat = [s_j / (1 - 0.999**t) for s_j in s]
        u = [-v_hat[j] / (math.sqrt(s_hat[j]) + 1e-8) for j in range(dim)]
        state.update(squares=s)
    state.update(velocity=v, n_updates=t)
    return [u_j / math.sqrt(1 + lr_decay * (t - 1)) for u_j in u]


def root_mean_square(v: Point) -> float:
    return math.sqrt(sum(v_j**2 for v_j in v) / len(v))
