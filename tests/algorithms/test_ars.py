from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.algorithms.searching import build, path, rounds, sphere
from torch_gfo.algorithms.ars import ARS

SLOPE = torch.tensor([3.0, -1.0, 0.5, 0.0], dtype=torch.float64)


def test_first_step_is_the_gradient_of_known_length() -> None:
    """On a slope, f+ - f- is 2 sigma g delta and sigma_R is sigma |g|: the mean step is lr * 2 sigma along -g."""
    move = path(ARS, lambda x: x @ SLOPE, torch.zeros(4), 1, n_directions=20_000, sigma=0.1, lr=0.5)[1]
    torch.testing.assert_close(move, -0.1 * SLOPE / SLOPE.norm(), rtol=0, atol=0.004)


def test_candidates_are_mirrored() -> None:
    optimizer = build(ARS, [1.0, -2.0, 0.5], n_directions=5)
    model = None
    for _, rows, _ in rounds(optimizer, lambda x, step: sphere(x), 4):
        if len(rows) == 1:
            model = rows[0]
        else:
            torch.testing.assert_close(rows[:5] - model, model - rows[5:])


@pytest.mark.parametrize("worst", [1e6, float("inf")])
def test_top_directions_alone_move_the_model(worst: float) -> None:
    """V1-t: what the others' losses are does not matter, as long as both their ends are worse."""

    def step(spoilt: float) -> tuple[Tensor, Tensor]:
        optimizer = build(ARS, [1.0, -2.0, 0.5], n_directions=6, n_top=2)
        x = optimizer.param_groups[0]["params"][0]
        start, kept = x.detach().clone(), torch.zeros(0)
        for _, rows, losses in rounds(optimizer, lambda x, step: sphere(x), 1):
            if len(rows) > 1:
                top = losses.view(2, 6).amin(0).argsort()[:2]
                kept = rows[top] - start
                others = torch.ones(6, dtype=torch.bool)
                others[top] = False
                losses.view(2, 6)[:, others] = losses.view(2, 6)[:, others] * spoilt
        return x.detach() - start, kept

    move, kept = step(1.0)
    spoilt, _ = step(worst)
    assert torch.equal(move, spoilt)
    in_their_plane = torch.linalg.lstsq(kept.T, move[:, None])
    assert move.norm() > 0
    torch.testing.assert_close(kept.T @ in_their_plane.solution, move[:, None])


def test_affine_transforms_of_the_loss() -> None:
    """sigma_R takes the scale of the losses out of the steps."""
    plain = path(ARS, sphere, [1.0, -2.0, 0.5])
    torch.testing.assert_close(path(ARS, lambda x: 1000 * sphere(x) - 7, [1.0, -2.0, 0.5]), plain)
    assert not torch.allclose(path(ARS, lambda x: sphere(x).exp(), [1.0, -2.0, 0.5]), plain)


def test_it_remembers_nothing() -> None:
    optimizer = build(ARS, torch.zeros(100))
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    assert {name for name, value in state.items() if isinstance(value, Tensor) and value.numel() == 100} <= {
        *("x", "point", "step")
    }
