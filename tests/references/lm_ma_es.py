"""LMMAES, Algorithm 1 of the paper: each candidate goes through the memory vectors one after the other."""

from __future__ import annotations

import math
from typing import Any

from tests.references.recombination import rank_weights
from tests.references.step import Conversation, Step


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    n, y, sigma, ms, t = (len(step.point), *(state[name] for name in ("mean", "step_size", "memory", "generation")))
    popsize = options["popsize"] or 4 + math.floor(3 * math.log(n))
    raw = [math.log((popsize + 1) / 2) - math.log(i + 1) for i in range(popsize)]
    w = [max(0, value) / sum(value for value in raw if value > 0) for value in raw]
    mu_w = 1 / sum(value**2 for value in w)
    if step.lower is not None and step.upper is not None:
        widest = min(high - low for low, high in zip(step.lower, step.upper, strict=True)) / 3
        if sigma > widest:
            step.notes.append("narrow box")
        sigma = min(sigma, widest)

    zs, ds = step.draw("normal", popsize, n), []
    for z in zs:
        d = z
        for i in range(min(t, len(ms))):
            c_d, along = min(0.5, 1 / (1.5**i * n)), sum(ms[i][j] * d[j] for j in range(n))
            d = [(1 - c_d) * d[j] + c_d * ms[i][j] * along for j in range(n)]  # (2)
        ds.append(d)
    xs = [step.mirror([y[j] + sigma * d[j] for j in range(n)]) for d in ds]  # (1)
    fs = list((yield xs))

    w = rank_weights(w, fs).positive
    z_w = [sum(w[i] * zs[i][j] for i in range(popsize)) for j in range(n)]
    y = [y[j] + sigma * sum(w[i] * ds[i][j] for i in range(popsize)) for j in range(n)]  # (3)
    c = min(0.5, 2 * popsize / n)
    p = [(1 - c) * state["p_sigma"][j] + math.sqrt(mu_w * c * (2 - c)) * z_w[j] for j in range(n)]  # (4)
    moved = []
    for i, m_i in enumerate(ms):
        c_c = min(0.5, popsize / (4**i * n))
        moved.append([(1 - c_c) * m_i[j] + math.sqrt(mu_w * c_c * (2 - c_c)) * z_w[j] for j in range(n)])  # (5)
    growth = c / 2 * (sum(value**2 for value in p) / n - 1)
    if growth > 1:
        step.notes.append("growth is limited")
    sigma *= math.exp(min(1, growth))  # (6)
    state.update(mean=y, step_size=sigma, memory=moved, p_sigma=p, generation=t + 1)
    return step.recommended(step.mirror(y), xs, fs)
