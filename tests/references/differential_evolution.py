"""DE, equations (1) to (7) of its docstring, member by member and coordinate by coordinate."""

from __future__ import annotations

import math
import sys
from typing import Any

from tests.references.step import Conversation, Point, Step

H = 6  # entries of the memories
EPS = sys.float_info.epsilon


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    n, dim, n_0 = state["size"], len(step.point), len(state["members"])
    xs, rest = state["members"][:n], state["members"][n:]
    fs, rest_of_losses = state["losses"][:n], state["losses"][n:]
    fresh = all(f == math.inf for f in fs)
    if fresh:
        step.notes.append("new population")
        center = xs[0]
        fs = [step.loss if center == step.point else math.inf] + [math.inf] * (n - 1)
        us = [[center[j] + noise[j] for j in range(dim)] for noise in step.draw("normal", n, dim)]
        factors = []
    else:
        fs = [f + step.drift for f in fs]
        us, factors = trials(state, step, xs, **options)
    us = [step.mirror(u) for u in us]

    gs = yield us

    if not fresh and options["strategy"] == "lshade" and any(g < f for f, g in zip(fs, gs, strict=True)):
        remember(state, step, [f - g if g < f else 0.0 for f, g in zip(fs, gs, strict=True)], factors)
        archive = state["archive"][: state["n_archived"]] + [xs[i] for i in range(n) if gs[i] < fs[i]]
        if len(archive) > n:
            step.notes.append("full archive")
        archive = [archive[k] for k in step.draw("permutation", len(archive))[:n]]
        state["archive"] = archive + state["archive"][len(archive) :]
        state["n_archived"] = len(archive)
    survivors = [(gs[i], us[i]) if gs[i] <= fs[i] else (fs[i], xs[i]) for i in range(n)]
    survivors.sort(key=lambda survivor: survivor[0])
    fs, xs = [f for f, _ in survivors], [x for _, x in survivors]
    state["members"], state["losses"] = xs + rest, fs + rest_of_losses
    point, loss = step.better(us, gs)
    if options["max_evaluations"] is not None:
        left = max(0.0, 1 - state["evaluations"] / options["max_evaluations"])
        n = state["size"] = min(n, 4 + round((n_0 - 4) * left))  # (7)
        state["n_archived"] = min(state["n_archived"], n)
    if options["restarts"] and collapsed(xs, fs):
        step.notes.append("restart")
        center = point if step.changed else step.mirror(step.draw("normal", dim))
        state.update(members=[center] * n_0, losses=[math.inf] * n_0, archive=[step.point] * n_0)
        state.update(n_archived=0, memory=[[0.5] * H, [0.5] * H])
    return point, loss


def trials(state: dict[str, Any], step: Step, xs: list[Point], **options: Any) -> tuple[list[Point], list[Any]]:
    n, dim, a = len(xs), len(xs[0]), state["n_archived"]
    everyone = xs + state["archive"][:a]
    if options["strategy"] == "lshade":
        factors = success_history(state, step, n)
        others = choose(step, n, n, n + a)
        best = step.draw("integers", max(2, round(0.11 * n)), n) if n > dim else [0] * n
    else:
        factors = [(0.5, 0.9)] * n
        others, best = choose(step, n, n, n, n), []
    elite = xs[: max(2, n // 4)]
    us = []
    for i, randoms in enumerate(step.draw("uniform", n, dim)):
        f, cr = factors[i]
        u = list(xs[i])
        for j in range(dim):
            if not (randoms[j] <= cr or randoms[j] == min(randoms)):  # (3)
                continue
            x = [everyone[r][j] for r in others[i]]
            if options["strategy"] == "rand1bin":
                u[j] = x[0] + f * (x[1] - x[2])  # (2)
            elif options["strategy"] == "best1bin":
                u[j] = xs[0][j] + f * (x[1] - x[2])
            elif n > dim:
                step.notes.append("current-to-pbest")
                u[j] = xs[i][j] + f * (xs[best[i]][j] - xs[i][j] + x[0] - x[1])  # (1)
            else:
                step.notes.append("mean")
                u[j] = sum(member[j] for member in elite) / len(elite) + f * (x[0] - x[1])  # (1')
        us.append(u)
    return us, factors


def success_history(state: dict[str, Any], step: Step, n: int) -> list[tuple[float, float]]:
    """F and CR of each member."""
    ks, uniforms, normals = step.draw("integers", H, n), step.draw("uniform", n), step.draw("normal", n)
    m_fs, m_crs = state["memory"]
    factors = []
    for k, u, normal in zip(ks, uniforms, normals, strict=True):
        at_zero = 0.5 + math.atan(-m_fs[k] / 0.1) / math.pi  # Cauchy's distribution function
        quantile = at_zero + (1 - at_zero) * u  # uniform in what is above
        f = m_fs[k] + 0.1 * math.tan(math.pi * (quantile - 0.5))
        cr = m_crs[k] + 0.1 * normal
        factors.append((min(max(f, 1e-3), 1.0), min(max(cr, 0.0), 1.0)))  # (4), (5)
    return factors


def choose(step: Step, n: int, *sizes: int) -> list[list[int]]:
    """Different rows for each member: the draw counts those that are left."""
    chosen: list[list[int]] = [[] for _ in range(n)]
    for taken, size in enumerate(sizes, start=1):
        for i, draw in enumerate(step.draw("integers", size - taken, n)):
            left = [row for row in range(size) if row != i and row not in chosen[i]]
            chosen[i].append(left[draw])
    return chosen


def remember(state: dict[str, Any], step: Step, gains: list[float], factors: list[tuple[float, float]]) -> None:
    finite = max(gain for gain in gains if gain < math.inf)
    if math.inf in gains:
        step.notes.append("infinite gain")
        gains = [min(gain, finite) if finite > 0 else float(gain > 0) for gain in gains]
    means = []
    for s in zip(*factors, strict=True):
        below = sum(w * value for w, value in zip(gains, s, strict=True))
        above = sum(w * value**2 for w, value in zip(gains, s, strict=True))
        means.append(above / below if below > 0 else -1.0)  # (6)
    for memory, mean in zip(state["memory"], means, strict=True):
        oldest = memory.pop(0)
        if oldest < 0 or mean < 0:
            step.notes.append("CR is 0 for good")
            mean = -1.0
        memory.append(mean)


def collapsed(xs: list[Point], fs: list[float]) -> bool:
    width = max(abs(x[j] - xs[0][j]) for x in xs for j in range(len(x)))
    flat = fs[-1] - fs[0] <= EPS**0.75 * abs(fs[0])
    return width <= EPS**0.75 or (flat and width <= EPS**0.25)
