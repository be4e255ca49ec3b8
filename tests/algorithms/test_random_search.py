from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.algorithms.searching import build, rounds, sphere, two_wells
from torch_gfo.algorithms.random_search import RandomSearch


@pytest.mark.parametrize("aim", [0.1, 0.2, 0.4])
def test_radius_is_steered_to_the_success_rate(aim: float) -> None:
    """Whatever it begins with. Where the search closes in slowly, as in many dimensions, the radius changes slowly."""
    for sigma in (1e-2, 10.0):
        optimizer = build(RandomSearch, torch.ones(300), success_rate=aim, sigma=sigma)
        shares, loss = [], None
        for step, rows, losses in rounds(optimizer, lambda x, step: sphere(x), 200):
            if len(rows) == 32 and step >= 60:
                shares.append(float((losses < loss).double().mean()))
            elif len(rows) == 1 and (loss is None or losses[0] <= loss):
                loss = losses[0]  # the model's point, or the sum: then the next round looks at the model
        assert abs(sum(shares) / len(shares) - aim) < 0.05


def test_radius_grows_on_a_slope() -> None:
    optimizer = build(RandomSearch, torch.zeros(10), sigma=1e-3)
    for _ in rounds(optimizer, lambda x, step: x.sum(-1), 20):
        pass
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["radius"] > 20


def test_uniform_proposals_fill_the_box() -> None:
    optimizer = build(RandomSearch, [0.5, 0.0, -1.0], proposal="uniform", bounds=(-2.0, 6.0), popsize=500)
    drawn = torch.cat([rows for _, rows, _ in rounds(optimizer, lambda x, step: sphere(x), 8) if len(rows) > 1])
    assert drawn.shape == (4000, 3)
    expected = 400
    for column in drawn.T:
        chi_squared = (torch.histc(column, 10, -2.0, 6.0) - expected).square().sum() / expected
        assert chi_squared < 27.9  # 0.999 of nine degrees of freedom
    correlations = torch.corrcoef(drawn.T) - torch.eye(3)
    assert correlations.abs().max() < 0.06  # about four standard deviations


def wells(restarts: bool) -> tuple[Tensor, int]:
    """The model's losses, and how often the radius went back to one."""
    optimizer = build(RandomSearch, [0.1, 0.1], restarts=restarts, sigma=0.7, seed=1)
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    losses, n_restarts = [], 0
    for step, rows, values in rounds(optimizer, lambda x, step: two_wells(x), 700):
        if len(losses) <= step:
            assert len(rows) == 1
            losses.append(values[0])  # of the model
            n_restarts += step > 0 and state["radius"] == 1.0
    return torch.stack(losses), n_restarts


def test_restarts_leave_a_local_minimum_and_keep_the_best_point() -> None:
    losses, n_restarts = wells(restarts=True)
    assert n_restarts >= 2
    assert (losses.diff() <= 0).all()
    assert losses[-1] < 1e-12
    losses, n_restarts = wells(restarts=False)
    assert n_restarts == 0
    assert losses[-1] >= 1


def test_sum_of_successes_is_worth_its_evaluation() -> None:
    """In many dimensions the model mostly moves to the sum."""
    optimizer = build(RandomSearch, torch.ones(200))
    best, sums, wins = None, 0, 0
    for _, rows, losses in rounds(optimizer, lambda x, step: sphere(x), 60):
        if len(rows) > 1:
            best = losses.min()
        elif best is not None:
            sums, wins, best = sums + 1, wins + int(losses[0] < best), None
    assert sums > 40
    assert wins > 0.7 * sums
