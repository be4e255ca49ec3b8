from __future__ import annotations

import math

import pytest
import torch

from tests.algorithms.searching import build, path, rosenbrock, rounds, sphere, two_wells
from torch_gfo.algorithms.nelder_mead import NelderMead


@pytest.mark.parametrize(("dim", "n_evaluations"), [(2, 250), (4, 700)])
def test_narrow_valley(dim: int, n_evaluations: int) -> None:
    optimizer = build(NelderMead, -torch.ones(dim), deterministic=True)
    x = optimizer.param_groups[0]["params"][0]
    while optimizer.evaluations < n_evaluations:
        optimizer.step(lambda: rosenbrock(x))
    assert rosenbrock(x) < 1e-8


def test_infinite_vertices() -> None:
    """More than half of the first simplex may lie where there is no loss; the minimum is beside such points."""

    def objective(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.amin(-1) < 0, math.inf, sphere(x - 0.05))

    for seed in range(5):
        points = path(NelderMead, objective, [0.3, 0.2, 0.1], 100, seed=seed)
        assert sphere(points[-1] - 0.05) < 1e-8


def test_first_simplex_is_regular() -> None:
    optimizer = build(NelderMead, torch.arange(5.0), sigma=0.3)
    (_, model, _), (_, others, _), *_ = rounds(optimizer, lambda x, step: sphere(x), 1)
    edges = torch.pdist(torch.cat([model, others]))
    torch.testing.assert_close(edges, torch.full_like(edges, 0.3))


def test_one_move_a_step_where_nothing_changes_and_all_vertices_where_it_does() -> None:
    sizes: dict[int, list[int]] = {}
    optimizer = build(NelderMead, torch.ones(6))
    objective = lambda x, step: sphere(x) + (0 if step < 20 else step)  # noqa: E731
    for step, rows, _ in rounds(optimizer, objective, 25):
        sizes.setdefault(step, []).append(len(rows))
    assert sizes[0][:2] == [1, 6]  # the model, then the other vertices of the first simplex
    for step in range(1, 20):
        assert sizes[step] in ([1, 1], [1, 1, 1], [1, 1, 1, 6])
    for step in range(20, 25):
        assert sizes[step][:2] == [1, 6]
        assert 6 <= sum(sizes[step][2:]) <= 13  # moves that cost as much


def test_minibatches_do_not_freeze_it() -> None:
    """The first batches are lucky: vertices that kept their old losses would win forever."""
    points = path(NelderMead, sphere, [2.0, 2.0, 2.0], 40, luck=lambda step: float(step))
    assert sphere(points[-1]) < 1e-6


def wells(restarts: bool) -> torch.Tensor:
    return two_wells(path(NelderMead, two_wells, [0.1, 0.1], 1500, sigma=2.0, restarts=restarts))


def test_restarts_leave_a_local_minimum_and_keep_the_best_point() -> None:
    losses = wells(restarts=True)
    assert (losses.diff() <= 0).all()
    assert losses[-1] < 1e-12
    assert wells(restarts=False)[-1] >= 1
