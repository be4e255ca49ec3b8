from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms.searching import build, path, rounds, sphere
from torch_gfo.algorithms.openai_es import OpenAIES
from torch_gfo.algorithms.pgpe import PGPE
from torch_gfo.optimizer import GradientFreeOptimizer

SLOPE = torch.tensor([3.0, -1.0, 0.5, 0.0], dtype=torch.float64)
BOTH = pytest.mark.parametrize(
    ("cls", "options"),
    [(OpenAIES, {"mirrored": False}), (OpenAIES, {"mirrored": True}), (PGPE, {}), (PGPE, {"shaping": "z_score"})],
    ids=str,
)


@BOTH
def test_first_step_goes_down_the_slope(cls: type[GradientFreeOptimizer], options: dict[str, Any]) -> None:
    """Of many candidates the estimate is the gradient: cos^2 is n / (n + dim) for n directions."""
    options = {**options, "popsize": 20_000, "update": "sgd", "lr": 1.0}
    move = path(cls, lambda x: x @ SLOPE, torch.zeros(4), 1, **options)[1]
    assert torch.cosine_similarity(-move, SLOPE, dim=0) > 0.999


def test_ranks_make_a_step_of_known_length() -> None:
    """E[rank N] along a slope is 1 / (2 sqrt(pi)) standard deviations, of ranks from -1/2 to 1/2."""
    options = {"popsize": 20_000, "update": "sgd", "lr": 1.0, "sigma": 0.1}
    move = path(OpenAIES, lambda x: x @ SLOPE, torch.zeros(4), 1, **options)[1]
    assert move.norm() == pytest.approx(0.1 * 0.2821, rel=0.02)


@pytest.mark.parametrize("cls", [OpenAIES, PGPE])
@pytest.mark.parametrize("n_pairs", [1, 5])
def test_mirrored_candidates(cls: type[GradientFreeOptimizer], n_pairs: int) -> None:
    options = {"mirrored": True} if cls is OpenAIES else {}
    optimizer = build(cls, [1.0, -2.0, 0.5], popsize=2 * n_pairs, **options)
    model = None
    for _, rows, _ in rounds(optimizer, lambda x, step: sphere(x), 4):
        if len(rows) == 1:
            model = rows[0]
        else:
            torch.testing.assert_close(rows[:n_pairs] - model, model - rows[n_pairs:])


def noise_of_the_step(mirrored: bool, curvature: float) -> Tensor:
    """Mean squared cosine of steps with a slope along the first of 50 coordinates, on a bowl of some curvature."""
    cosines = []
    for seed in range(40):
        options = {"popsize": 20, "update": "sgd", "sigma": 0.1, "seed": seed, "mirrored": mirrored}
        points = path(OpenAIES, lambda x: x[..., 0] + curvature * sphere(x), torch.zeros(50), 1, **options)
        cosines.append(-points[1][0] / points[1].norm())
    return torch.stack(cosines).mean()


def test_independent_candidates_see_more_directions_and_mirrored_ones_ignore_curvature() -> None:
    """On a slope, n independent ones are worth 2 n mirrored ones; on a steep bowl, pairs are better."""
    smooth = noise_of_the_step(False, 0.0) / noise_of_the_step(True, 0.0)
    assert 1.15 < smooth < 1.6  # sqrt(n / (n + dim)) / sqrt(n / 2 / (n / 2 + dim)) = 1.31 before ranks add theirs
    assert noise_of_the_step(False, 10.0) < 0.7 * noise_of_the_step(True, 10.0)


def distances(objective: Callable[[Tensor], Tensor], n_steps: int, **options: Any) -> list[float]:
    """The root mean square of the candidates' distances from the model in one coordinate, step by step."""
    optimizer, found = build(OpenAIES, torch.full((50,), 0.2), popsize=40, sigma=0.5, lr=1e-5, **options), []
    model = torch.zeros(0)
    for _, rows, _ in rounds(optimizer, lambda x, step: objective(x), n_steps):
        if len(rows) == 1:
            model = rows[0]
        else:
            found.append(float((rows - model).square().mean().sqrt()))
    return found


@pytest.mark.parametrize("perturbation", ["dense", "seeded"])
def test_candidates_draw_nearer_where_few_are_better(perturbation: str) -> None:
    """On a bowl, to where 0.15 of them are: the slope is 2 |x| sigma per candidate, the rise of all dim sigma^2.

    The share is that of normal numbers below -dim sigma / (2 |x|), and |x| = 0.2 sqrt(50).
    """
    balanced = 1.0364 * 2 * 0.2 / 50**0.5  # the 0.15 quantile of a normal number is -1.0364
    options = {"perturbation": perturbation}
    found = distances(sphere, 150, sigma_lr=0.3, **options)
    assert found[0] == pytest.approx(0.5, rel=0.1)
    assert sum(found[100:]) / 50 == pytest.approx(balanced, rel=0.2)
    assert distances(sphere, 150, **options)[-1] == pytest.approx(0.5, rel=0.1)


def test_candidates_stay_within_sigma_and_come_back() -> None:
    """On a slope, half of them are better: they do not go beyond their first distance, and return to it."""
    optimizer = build(OpenAIES, torch.full((50,), 0.2), popsize=40, sigma=0.5, lr=0.01, sigma_lr=0.3)
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    spreads = []
    for _ in rounds(optimizer, lambda x, step: sphere(x) if step < 40 else x[..., 0], 80):
        spreads.append(state["spread"])
    assert min(spreads) < 0.3
    assert max(spreads) == spreads[-1] == 1.0


@pytest.mark.parametrize(("update", "lr"), [("adam", 0.2), ("clipup", 0.05), ("sgd", 0.5)])
def test_a_schedule_makes_it_converge(update: str, lr: float) -> None:
    optimizer = build(OpenAIES, [2.0, -1.0, 0.5], update=update, lr=lr, sigma=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    x = optimizer.param_groups[0]["params"][0]
    for _ in range(800):
        optimizer.step(lambda: sphere(x))
        schedule.step()
    assert sphere(x) < 3e-4  # from 5.25


def test_memory_of_the_updates() -> None:
    """Two vectors for Adam, one for the others: what the guard of memory does not know is not held."""
    for update, vectors in (("adam", {"velocity", "squares"}), ("clipup", {"velocity"}), ("sgd", {"velocity"})):
        optimizer = build(OpenAIES, torch.zeros(100), update=update)
        state = optimizer.state[optimizer.param_groups[0]["params"][0]]
        held = {name for name, value in state.items() if isinstance(value, Tensor) and value.numel() == 100}
        assert held - {"x", "point"} == vectors
