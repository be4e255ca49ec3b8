"""PSO, equations (1) to (5) of its docstring, particle by particle and coordinate by coordinate."""

from __future__ import annotations

import math
from typing import Any

from tests.references.step import Conversation, Step


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    x, v, p = state["positions"], state["velocities"], state["best_positions"]
    f = list(state["best_losses"])
    n, dim = len(x), len(x[0])
    stale = step.changed and not all(loss == math.inf for loss in f)
    if not stale:
        f = step.renewed(f)
    n_elite = max(2, n // 4) if stale else 0
    elite = sorted(range(n), key=lambda k: f[k])[:n_elite]
    w, c = options["inertia"], options["acceleration"]
    informants = choose_informants(step, n, **options)
    l = [p[min(informants[i], key=lambda k: f[k])] for i in range(n)]  # noqa: E741

    v_new = []
    if options["variant"] == "constriction":
        u = step.draw("uniform", n, dim)
        for i in range(n):
            u_1, u_2 = u[i], u[i - 1]  # U_2 is another particle's U_1
            v_new.append(
                [
                    w * v[i][j] + c * u_1[j] * (p[i][j] - x[i][j]) + c * u_2[j] * (l[i][j] - x[i][j])  # (5)
                    for j in range(dim)
                ]
            )
    else:
        m = min(1.0, (n - 1) / dim)
        if m < 1:
            radii, noise = step.draw("uniform", n, 1), step.draw("normal", n, dim)
        if m < 0.1:
            step.notes.append("differences")
            one, other = step.draw("integers", n, 2, n)
        else:
            xi = step.draw("normal", n, n)
        for i in range(n):
            big_g = [x[i][j] + c * (p[i][j] + l[i][j] - 2 * x[i][j]) / 3 for j in range(dim)]  # (1)
            distance = math.sqrt(sum((big_g[j] - x[i][j]) ** 2 for j in range(dim)))
            velocity = []
            for j in range(dim):
                s = 0.0
                if m < 1:
                    s = math.sqrt(1 - m) * radii[i][0] * distance * noise[i][j] / math.sqrt(dim)  # (3)
                if m < 0.1:
                    b = math.sqrt(m) * (p[one[i]][j] - p[other[i]][j]) / 2  # (4) on a network
                else:
                    mean = sum(p[k][j] for k in range(n)) / n
                    b = math.sqrt(m / 2) * sum(xi[i][k] * (p[k][j] - mean) for k in range(n)) / math.sqrt(n)  # (4)
                velocity.append(w * v[i][j] + big_g[j] - x[i][j] + s + b)  # (2)
            v_new.append(velocity)

    x_new = []
    for i in range(n):
        limit = options["velocity_limit"]
        if limit is not None:
            v_new[i] = [min(max(velocity, -limit), limit) for velocity in v_new[i]]
        flown = [x[i][j] + v_new[i][j] for j in range(dim)]
        mirrored = step.mirror(flown)
        for j in range(dim):
            if flown[j] != mirrored[j]:
                step.notes.append("wall")
                v_new[i][j] = -v_new[i][j] / 2
        x_new.append(mirrored)

    losses = yield x_new

    if stale:
        step.notes.append("evaluation of the elite")
        again = dict(zip(elite, (yield [p[k] for k in elite]), strict=True))
        rises = [again[k] - f[k] for k in elite if math.isfinite(again[k] - f[k])]
        rise = sum(rises) / len(rises) if rises else 0.0
        f = [again.get(k, f[k] + rise) for k in range(n)]
    points = list(x_new)
    for i in range(n):
        if losses[i] < f[i]:
            p[i], f[i] = x_new[i], losses[i]
    if stale:
        elite = sorted(range(n), key=lambda k: f[k])[:n_elite]
        points.append([sum(p[k][j] for k in elite) / n_elite for j in range(dim)])
        losses += yield points[-1:]
    state.update(positions=x_new, velocities=v_new, best_positions=p, best_losses=f)
    return step.better(points, losses)


def choose_informants(step: Step, n: int, **options: Any) -> list[list[int]]:
    """The particles that each one hears of, itself first."""
    if options["topology"] == "global":
        return [list(range(n)) for _ in range(n)]
    if options["topology"] == "ring":
        return [[i, (i - 1) % n, (i + 1) % n] for i in range(n)]
    drawn = step.draw("integers", n, options["informants"], n)
    return [[i, *(row[i] for row in drawn)] for i in range(n)]
