from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.algorithms.searching import build, rounds, sphere
from torch_gfo.algorithms.differential_evolution import DE, _others
from torch_gfo.search import Search, generator

DOUBLE = torch.float64


def search_with(seed: int, dim: int = 5) -> Search:
    zero = torch.zeros((), dtype=DOUBLE)
    point = torch.zeros(dim, dtype=DOUBLE)
    return Search(point, zero, False, zero, generator(seed, "test", 0, point.device))


def state_of(optimizer: DE) -> dict[str, Tensor]:
    return optimizer.state[optimizer.param_groups[0]["params"][0]]


def rastrigin(x: Tensor) -> Tensor:
    return (x.square() - 10 * torch.cos(2 * math.pi * x) + 10).sum(-1)


def turned(x: Tensor) -> Tensor:
    """An ellipsoid whose axes, of lengths 1 to 1000, are not those of the coordinates."""
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=DOUBLE))[0]
    return (10.0 ** torch.linspace(0, 6, 5, dtype=DOUBLE) * (x @ turn).square()).sum(-1)


def test_rows_of_a_difference_are_different_and_equally_likely() -> None:
    n, archived, counts = 6, 3, torch.zeros(6, 9)
    for seed in range(2000):
        r_1, r_2 = _others(search_with(seed), n, n, n + archived)
        rows = torch.stack([torch.arange(n), r_1, r_2])
        assert all(len(column.unique()) == 3 for column in rows.T)
        assert int(r_1.max()) < n
        counts[r_1, r_2] += 1
    possible = counts[counts > 0]
    assert len(possible) == 6 * 5 + 6 * 3  # pairs of members, and of a member and one of the archive
    expected = (
        torch.where(torch.arange(9) < 6, 4, 5) * (1 - torch.eye(6, 9)) * 2000 / (5 * 7)
    )  # by how many rows i may have it
    chi_squared = ((counts - expected) ** 2 / expected.clamp(min=1e-9))[expected > 0].sum()
    assert chi_squared < 85  # 0.999 of 47 degrees of freedom is 82.7; the rows of one draw are not quite independent


def test_factors_have_the_published_distributions() -> None:
    """F is Cauchy about 0.5, drawn again while it is negative; CR normal about 0.5, both of scale 0.1."""
    optimizer = build(DE, torch.zeros(5), popsize=4000)
    x = search_with(1).normal(4000, 5)
    _, (f, cr) = optimizer._trials(x, state_of(optimizer), search_with(0))
    negative = 0.5 - math.atan(5) / math.pi
    for bound in (0.2, 0.4, 0.5, 0.7, 0.999):
        below = (0.5 + math.atan((bound - 0.5) / 0.1) / math.pi - negative) / (1 - negative)
        assert abs(float((f < bound).double().mean()) - below) < 0.03  # about four standard deviations
    assert f.min() > 0
    assert f.max() == 1
    assert abs(float(cr.mean()) - 0.5) < 0.01
    assert abs(float(cr.std()) - 0.1) < 0.005


def test_crossover_rate_adapts_to_dependent_coordinates() -> None:
    """Where coordinates can be improved one by one, few are exchanged; where they depend on each other, nearly all."""
    rates = []
    for objective, n_steps in ((rastrigin, 250), (turned, 250)):
        optimizer = build(DE, torch.full((5,), 2.5), deterministic=True, sigma=2.0)
        for _ in rounds(optimizer, lambda x, step: objective(x), n_steps):
            if state_of(optimizer)["step"] == n_steps - 150:
                break
        rates.append(float(state_of(optimizer)["memory"][1].mean()))
    assert rates[0] < 0.5 < 0.7 < rates[1], rates


def test_population_shrinks_linearly() -> None:
    optimizer = build(DE, torch.ones(3), popsize=20, max_evaluations=1000, deterministic=True)
    state, sizes = state_of(optimizer), []
    for _ in rounds(optimizer, lambda x, step: sphere(x), 150):
        used = optimizer.evaluations
        if used > 1:
            assert state["size"] == max(4, 4 + round(16 * (1 - used / 1000)))
        sizes.append(state["size"])
        assert state["n_archived"] <= state["size"]
    assert sizes[0] == 20
    assert sizes[-1] == 4
    assert state["members"].shape == (20, 3)
    assert optimizer.best_loss < 1e-8


def test_restarts_leave_a_local_minimum_and_keep_the_best_point() -> None:
    found = {}
    for restarts in (True, False):
        optimizer = build(DE, [2.2, -2.9], popsize=12, restarts=restarts, strategy="best1bin", sigma=2.0)
        best, losses = math.inf, []
        for _, rows, values in rounds(optimizer, lambda x, step: rastrigin(x), 600):
            if len(rows) == 1:
                losses.append(float(values[0]))
                best = min(best, losses[-1])
                assert losses[-1] == best  # the model's
        found[restarts] = best
    assert found[False] > 0.9  # a local minimum
    assert found[True] < 1e-12


def test_many_minima() -> None:
    """The best of 10^5 minima, from most starts."""
    reached = []
    for seed in range(5):
        optimizer = build(DE, torch.full((5,), 2.5), deterministic=True, sigma=2.0, seed=seed)
        while optimizer.evaluations < 10_000:
            optimizer.tell(rastrigin(optimizer.ask()))
        reached.append(optimizer.best_loss < 1e-8)
    assert sum(reached) >= 4
