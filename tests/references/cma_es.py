"""CMAES: the tutorial's equations (39) to (58), candidate by candidate and coordinate by coordinate; BIPOP restarts."""

from __future__ import annotations

import math
from typing import Any

from tests.references.recombination import RankWeights, constants, length, rank_weights, times
from tests.references.step import Conversation, Point, Step

Matrix = list[Point]


def iterate(state: dict[str, Any], step: Step, **options: Any) -> Conversation:
    n, popsize, sigma, mean = len(step.point), state["popsize"], state["step_size"], state["mean"]
    k = constants(n, popsize)
    if state["generation"] - state["decomposed"] >= 1 / (2 * n * (k["c_1"] + k["c_mu"])):
        values, vectors = eigen(state["C"])
        if min(values) < 1e-15 * max(values):
            step.notes.append("flat axis")
            values = [max(value, 1e-15 * max(values)) for value in values]
            state["C"] = composed(values, vectors)
        d = [math.sqrt(value) for value in values]
        state.update(root=composed(d, vectors), longest=max(d), shortest=min(d), decomposed=state["generation"])
        step.notes.append("decomposition")
    else:
        step.notes.append("no decomposition")
    if step.lower is not None and step.upper is not None:
        for j in range(n):
            widest = (step.upper[j] - step.lower[j]) / (3 * math.sqrt(state["C"][j][j]))
            if sigma > widest:
                step.notes.append("narrow box")
            sigma = min(sigma, widest)
        state["step_size"] = sigma

    zs = step.draw("normal", popsize, n)
    ys = [times(state["root"], z) for z in zs]  # (39)
    xs = [step.mirror([mean[j] + sigma * y[j] for j in range(n)]) for y in ys]  # (40)
    fs = list((yield xs))

    w = rank_weights(k["w"], fs)
    if any(math.isinf(f) for f in fs):
        step.notes.append("infinite")
    y_w = [sum(w.positive[i] * ys[i][j] for i in range(popsize)) for j in range(n)]  # (41)
    mean = [mean[j] + sigma * y_w[j] for j in range(n)]  # (42)
    state.update(mean=mean, generation=state["generation"] + 1, **adapted(state, step, k, w, zs, ys, y_w))

    point = step.recommended(step.mirror(mean), xs, fs)
    end(state, step, fs, **options)
    return point


def adapted(
    state: dict[str, Any], step: Step, k: dict[str, Any], w: RankWeights, zs: Matrix, ys: Matrix, y_w: Point
) -> dict[str, Any]:
    n, g = len(y_w), state["generation"] + 1
    c_s, c_c, c_1, c_mu, mu_eff = (k[name] for name in ("c_sigma", "c_c", "c_1", "c_mu", "mu_eff"))
    z_w = [sum(w.positive[i] * zs[i][j] for i in range(len(zs))) for j in range(n)]  # C^(-1/2) y_w
    p_sigma = [(1 - c_s) * state["p_sigma"][j] + math.sqrt(c_s * (2 - c_s) * mu_eff) * z_w[j] for j in range(n)]  # (43)
    growth = c_s / k["d_sigma"] * (length(p_sigma) / k["chi_n"] - 1)
    if growth > 1:
        step.notes.append("growth is limited")
    sigma = state["step_size"] * math.exp(min(1, growth))  # (44)
    h = 1 if length(p_sigma) / math.sqrt(1 - (1 - c_s) ** (2 * g)) < math.sqrt((2 + 4 / (n + 1)) * n) else 0
    step.notes.append(f"h = {h}")
    p_c = [(1 - c_c) * state["p_c"][j] + h * math.sqrt(c_c * (2 - c_c) * mu_eff) * y_w[j] for j in range(n)]  # (45)
    v = [w.positive[i] + w.negative[i] * n / length(zs[i]) ** 2 for i in range(len(zs))]  # (46)
    delta = (1 - h) * c_c * (2 - c_c)
    c = [[0.0] * n for _ in range(n)]
    for a in range(n):
        for b in range(n):
            c[a][b] = (1 + c_1 * delta - c_1 - c_mu * sum(k["w"])) * state["C"][a][b] + c_1 * p_c[a] * p_c[b]
            c[a][b] += c_mu * sum(v[i] * ys[i][a] * ys[i][b] for i in range(len(ys)))  # (47)
    return {"step_size": sigma, "p_sigma": p_sigma, "p_c": p_c, "C": c}


def end(state: dict[str, Any], step: Step, fs: list[float], **options: Any) -> None:
    n, popsize, g = len(step.point), state["popsize"], state["generation"]
    history = [f + step.drift for f in state["history"]]
    memory = 10 + int(30 * n / popsize)
    if g == 1:
        history = [min(fs)] * len(history)
    history[(g - 1) % memory] = min(fs)
    state["history"] = history
    known = history[:memory]
    deviations = [state["step_size"] * math.sqrt(state["C"][j][j]) for j in range(n)]
    widest = max(deviations)
    lost = sum(state["mean"][j] + 0.2 * deviations[j] == state["mean"][j] for j in range(n))
    total = max([*fs, *known]) - min([*fs, *known])
    recent = max(known) - min(known)
    condition = (state["longest"] / state["shortest"]) ** 2
    path = max(state["step_size"] * value for value in state["p_c"])
    met = [
        total if total < options["tolfun"] else math.nan,
        recent if g > 9 and recent < 1e-12 else math.nan,
        widest if widest < options["tolx"] and path < options["tolx"] else math.nan,
        widest if widest > 1000 * state["first_step_size"] else math.nan,
        condition if condition > 1e14 else math.nan,
        lost if lost else math.nan,
        g if g >= state["maxiter"] else math.nan,
    ]
    names = ("tolfun", "tolfunhist", "tolx", "tolfacupx", "tolconditioncov", "noeffectcoord", "maxiter")
    step.notes += [name for name, value in zip(names, met, strict=True) if not math.isnan(value)]
    if not all(math.isnan(value) for value in met):
        state["stops"] = met
        if step.deterministic and options["restarts"]:
            restart(state, step, options["restarts"])


def restart(state: dict[str, Any], step: Step, regime: str) -> None:
    n, default = len(step.point), state["first_popsize"]
    state["used_large" if state["is_large"] else "used_small"] += state["generation"] * state["popsize"]
    is_large = regime == "ipop" or state["used_large"] <= state["used_small"]
    step.notes.append("large run" if is_large else "small run")
    sigma, limit = 1.0, math.inf
    if is_large:
        state["doublings"] = min(9, state["doublings"] + 1)
        popsize = default * 2 ** state["doublings"]
    else:
        u_1, u_2 = step.draw("uniform", 2)
        largest = default * 2 ** state["doublings"]
        popsize = math.floor(default * (0.5 * largest / default) ** (u_1**2))
        sigma = 10 ** (-2 * u_2)
        limit = max(1, math.floor(0.5 * state["used_large"] / popsize))
    mean = step.draw("normal", 1, n)[0]
    if step.lower is not None and step.upper is not None:
        shares, around = step.draw("uniform", 1, n)[0], step.mirror(mean)
        for j in range(n):
            inside = step.lower[j] + shares[j] * (step.upper[j] - step.lower[j])
            mean[j] = inside if math.isfinite(inside) else around[j]
    identity = [[float(a == b) for b in range(n)] for a in range(n)]
    state.update(
        mean=mean, step_size=sigma, first_step_size=sigma, C=identity, root=identity, p_sigma=[0.0] * n, p_c=[0.0] * n
    )
    state.update(popsize=popsize, generation=0, decomposed=0, longest=1.0, shortest=1.0, is_large=int(is_large))
    state.update(maxiter=min(limit, 100 + math.floor(150 * (n + 3) ** 2 / popsize**0.5)))


def composed(values: Point, vectors: Matrix) -> Matrix:
    n = range(len(values))
    return [[sum(vectors[a][j] * values[j] * vectors[b][j] for j in n) for b in n] for a in n]


def eigen(matrix: Matrix) -> tuple[Point, Matrix]:
    """Jacobi's rotations: eigenvalues, and eigenvectors as columns, of a symmetric matrix."""
    n = len(matrix)
    a = [[0.5 * (matrix[i][j] + matrix[j][i]) for j in range(n)] for i in range(n)]
    v = [[float(i == j) for j in range(n)] for i in range(n)]
    for _ in range(30):
        for p in range(n):
            for q in range(p + 1, n):
                if a[p][q] == 0:
                    continue
                angle = 0.5 * math.atan2(2 * a[p][q], a[q][q] - a[p][p])
                c, s = math.cos(angle), math.sin(angle)
                for rows in (a, v):
                    for row in rows:
                        row[p], row[q] = c * row[p] - s * row[q], s * row[p] + c * row[q]
                a[p], a[q] = (
                    [c * x - s * y for x, y in zip(a[p], a[q], strict=True)],
                    [s * x + c * y for x, y in zip(a[p], a[q], strict=True)],
                )
    return [a[i][i] for i in range(n)], v
