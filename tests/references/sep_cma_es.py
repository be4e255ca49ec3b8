"""SepCMAES: the tutorial's equations (39) to (47) with a diagonal matrix, candidate by candidate."""

from __future__ import annotations

import math
from typing import Any

from tests.references.recombination import constants, length, rank_weights
from tests.references.step import Conversation, Step


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    n, m, c, sigma = len(step.point), state["mean"], state["variances"], state["step_size"]
    popsize = options["popsize"] or 4 + math.floor(3 * math.log(n))
    k = constants(n, popsize, separable=True)
    if step.lower is not None and step.upper is not None:
        for j in range(n):
            widest = (step.upper[j] - step.lower[j]) / (3 * math.sqrt(c[j]))
            if sigma > widest:
                step.notes.append("narrow box")
            sigma = min(sigma, widest)

    zs = step.draw("normal", popsize, n)
    ys = [[math.sqrt(c[j]) * z[j] for j in range(n)] for z in zs]  # (39)
    xs = [step.mirror([m[j] + sigma * y[j] for j in range(n)]) for y in ys]  # (40)
    fs = list((yield xs))

    w = rank_weights(k["w"], fs)
    y_w = [sum(w.positive[i] * ys[i][j] for i in range(popsize)) for j in range(n)]  # (41)
    m = [m[j] + sigma * y_w[j] for j in range(n)]  # (42)
    g = state["generation"] + 1
    c_s, c_c, c_1, c_mu, mu_eff = (k[name] for name in ("c_sigma", "c_c", "c_1", "c_mu", "mu_eff"))
    new = math.sqrt(c_s * (2 - c_s) * mu_eff)
    p_sigma = [(1 - c_s) * state["p_sigma"][j] + new * y_w[j] / math.sqrt(c[j]) for j in range(n)]  # (43)
    sigma *= math.exp(min(1, c_s / k["d_sigma"] * (length(p_sigma) / k["chi_n"] - 1)))  # (44)
    h = 1 if length(p_sigma) / math.sqrt(1 - (1 - c_s) ** (2 * g)) < math.sqrt((2 + 4 / (n + 1)) * n) else 0
    step.notes.append(f"h = {h}")
    p_c = [(1 - c_c) * state["p_c"][j] + h * math.sqrt(c_c * (2 - c_c) * mu_eff) * y_w[j] for j in range(n)]  # (45)
    v = [w.positive[i] + w.negative[i] * n / length(zs[i]) ** 2 for i in range(popsize)]  # (46)
    keep = 1 + (1 - h) * c_1 * c_c * (2 - c_c) - c_1 - c_mu * sum(k["w"])
    c = [
        max(keep * c[j] + c_1 * p_c[j] ** 2 + c_mu * sum(v[i] * ys[i][j] ** 2 for i in range(popsize)), 1e-30)
        for j in range(n)
    ]  # (47)
    state.update(mean=m, step_size=sigma, p_sigma=p_sigma, p_c=p_c, variances=c, generation=g)
    return step.recommended(step.mirror(m), xs, fs)
