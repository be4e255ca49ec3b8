from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.algorithms.searching import Objective, build, rounds, sphere
from torch_gfo.algorithms.pgpe import PGPE


def deviations(objective: Objective, n_steps: int = 60, **options: object) -> Tensor:
    """The standard deviations, in units of the first, after some steps from the origin in 4 dimensions."""
    optimizer = build(PGPE, torch.zeros(4), **options)
    for _ in rounds(optimizer, lambda x, step: objective(x), n_steps):
        pass
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    scales: Tensor = state["scales"]
    return scales


@pytest.mark.parametrize("shaping", ["centered_rank", "z_score"])
def test_deviations_adapt_to_each_coordinate(shaping: str) -> None:
    """At a minimum along one coordinate and a maximum along another: one shrinks, one grows, the others stay."""
    s = deviations(lambda x: x[..., 0] ** 2 - x[..., 1] ** 2, n_steps=100, shaping=shaping, lr=1e-4, popsize=100)
    assert s[0] < 0.7
    assert s[1] > 1.4
    assert ((s[2:] > 0.75) & (s[2:] < 1.33)).all()


def test_change_of_the_deviations_is_limited() -> None:
    """Toklu et al.: by at most a fifth in a step."""
    before, limits = torch.ones(4, dtype=torch.float64), 0
    for n_steps in range(1, 5):
        s = deviations(sphere, n_steps, sigma_lr=20.0)
        ratio = s / before
        assert ((ratio > 0.8 - 1e-12) & (ratio < 1.2 + 1e-12)).all()
        limits += int((((ratio - 0.8).abs() < 1e-12) | ((ratio - 1.2).abs() < 1e-12)).sum())
        before = s
    assert limits > 4


def test_fixed_deviations() -> None:
    assert torch.equal(deviations(sphere, sigma_lr=0.0), torch.ones(4).double())


def test_steps_shrink_with_the_deviations() -> None:
    """So it converges without a schedule, at a steady rate."""
    optimizer = build(PGPE, [1.0, -2.0, 0.5], sigma=0.5)
    x = optimizer.param_groups[0]["params"][0]
    losses = [float(optimizer.step(lambda: sphere(x))) for _ in range(700)]
    assert losses[350] < 1e-4
    assert losses[-1] < 1e-4 * losses[350]


def test_z_scores_see_the_scale_of_losses_and_ranks_do_not() -> None:
    """A monotone transform changes z-scores; an affine one changes neither."""
    for shaping, same in (("centered_rank", True), ("z_score", False)):
        plain = deviations(lambda x: sphere(x - 1), shaping=shaping)
        assert torch.equal(deviations(lambda x: sphere(x - 1).exp(), shaping=shaping), plain) is same
        torch.testing.assert_close(deviations(lambda x: 4 * sphere(x - 1) + 1, shaping=shaping), plain)


def test_low_rank_adapts_rows_and_columns() -> None:
    """A row at a minimum and a row at a maximum, columns alike: the scale of one shrinks, of the other grows."""
    make: Any = PGPE
    weight = nn.Parameter(torch.zeros(4, 5, dtype=torch.float64))
    optimizer = make([weight], seed=0, sigma=1.0, perturbation="low_rank", lr=1e-4, popsize=100)
    for _ in range(40):
        optimizer.step(lambda: weight[0].square().sum() - weight[1].square().sum())
    rows, columns = optimizer.state[weight]["scales"].split_with_sizes([4, 5])
    assert rows[0] < 0.6
    assert rows[1] > 1.5
    assert ((rows[2:] > 0.75) & (rows[2:] < 1.33)).all()
    assert columns.max() / columns.min() < 1.5


def test_low_rank_converges() -> None:
    """Steps shrink with the standard deviations, as without it."""
    make: Any = PGPE
    weight = nn.Parameter(torch.linspace(-1, 1, 20, dtype=torch.float64).view(4, 5))
    optimizer = make([weight], seed=0, sigma=0.5, perturbation="low_rank")
    losses = [float(optimizer.step(lambda: weight.square().mean())) for _ in range(800)]
    assert losses[-1] < 1e-4 * losses[0]
