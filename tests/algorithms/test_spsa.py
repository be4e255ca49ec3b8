from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.algorithms.searching import build, path, rosenbrock, rounds, sphere
from tests.helpers import seeded
from torch_gfo.algorithms.spsa import SPSA


def test_gains_are_spalls() -> None:
    """On a slope, in one dimension, the gradient is exact: steps are lr a_k long, candidates c_k away."""
    optimizer = build(SPSA, [0.0], sigma=0.5, lr=0.8, n_probes=1, stability=3.0)
    moves, distances, model = [], [], torch.zeros(1, 1, dtype=torch.float64)
    for step, rows, _ in rounds(optimizer, lambda x, step: x.sum(-1), 21):
        if len(rows) == 1:
            moves.append(float(model - rows))
            model = rows
        else:
            assert len(moves) == step + 1
            distances.append(float((rows - model).abs().max()))
    k = torch.arange(21)
    torch.testing.assert_close(torch.tensor(distances), 0.5 / (k + 1.0) ** 0.101)
    torch.testing.assert_close(torch.tensor(moves[1:]), 0.8 * 0.5 * (4 / (k[:20] + 4.0)) ** 0.602)


def test_a_first_step_moves_each_parameter_by_lr_sigma() -> None:
    """With one pair in every coordinate alike, whatever the loss."""
    for scale in (1e-9, 1.0, 1e9):
        moved = path(SPSA, lambda x: scale * rosenbrock(x), torch.ones(7) * 0.3, 1, n_probes=1, lr=0.1, sigma=0.2)
        torch.testing.assert_close((moved[1] - moved[0]).abs(), torch.full((7,), 0.02, dtype=torch.float64))


def test_steps_follow_the_gradient() -> None:
    """The mean of first steps from one point points downhill, by sigma: curvature cancels out of the differences."""
    start = torch.tensor([1.0, -2.0, 0.5, 3.0])
    steps = [path(SPSA, sphere, start, 1, seed=seed, sigma=0.7).diff(dim=0)[0] for seed in range(200)]
    mean = torch.stack(steps).mean(0)
    cosine = torch.nn.functional.cosine_similarity(mean, -start.double(), dim=0)
    assert cosine > 0.99  # 8 pairs, 4 coordinates: the spread of one step is 0.6 of its mean, that of 200 is 0.04


def test_blocking_gives_up_steps_that_raise_the_loss() -> None:
    start = -torch.ones(4)
    rises = {
        blocking: rosenbrock(path(SPSA, rosenbrock, start, 60, lr=0.5, blocking=blocking)).diff().max()
        for blocking in (None, 0.0)
    }
    assert rises[0.0] <= 0
    assert rises[None] > 0


def test_blocking_tries_the_model_that_it_proposes() -> None:
    """Where it is, whatever lr and sigma are in each coordinate."""
    make: Any = SPSA
    x, y = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    optimizer = make([{"params": [x], "lr": 0.3, "sigma": 0.1}, {"params": [y], "sigma": 2.0}], seed=0, blocking=1e9)
    trial = None
    for _, rows, _ in rounds(optimizer, lambda z, step: rosenbrock(z - 1), 10):
        if len(rows) == 1:
            model = torch.cat([x.detach(), y.detach()])
            if trial is not None and torch.equal(rows[0], model):
                torch.testing.assert_close(model, trial)
            trial = rows[0]
    assert model.abs().min() > 0


def test_noise_averages_out_as_steps_shrink() -> None:
    """Every evaluation has its own noise: constant steps keep the model at a distance, Spall's gains do not."""

    def final(**options: float) -> float:
        losses = []
        for seed in range(3):
            with seeded(seed):
                points = path(SPSA, noisy, torch.full((6,), 2.0), 1500, seed=seed, lr=0.5, n_probes=2, **options)
            losses.append(sphere(points[-200:]).mean())
        return float(torch.stack(losses).mean())

    def noisy(x: Tensor) -> Tensor:
        return sphere(x) + torch.randn(x.shape[:-1], dtype=x.dtype)

    decaying, constant = final(stability=10.0), final(alpha=0.0, gamma=0.0)
    assert decaying < 0.05
    assert decaying < 0.3 * constant


def test_memory_does_not_grow_with_the_model() -> None:
    optimizer = build(SPSA, torch.zeros(1000))
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    own = optimizer._init_state(None)  # type: ignore[arg-type]
    assert own.keys() <= state.keys()
    assert all(type(value) in (int, float) for value in own.values())


def test_many_dimensions() -> None:
    start = torch.ones(300)
    assert sphere(path(SPSA, sphere, start, 400, sigma=0.15)[-1]) < 0.1


def test_a_minimum_beyond_a_wall() -> None:
    """All candidates lie inside the box, in pairs of full distance, and the model ends in the corner."""
    optimizer = build(SPSA, [0.2, -0.3, 0.4], bounds=(-1.0, 1.0), sigma=0.2)
    for step, rows, _ in rounds(optimizer, lambda x, step: sphere(x + 3), 60):
        assert (rows.abs() <= 1 + 1e-12).all()
        if len(rows) > 1:
            plus, minus = rows.split(8)
            torch.testing.assert_close((plus - minus).abs(), torch.full_like(plus, 0.4 / (step + 1) ** 0.101))
    assert (optimizer.param_groups[0]["params"][0] + 1).max() < 1e-6


def test_low_rank_perturbs_by_signs() -> None:
    """A matrix of signs of rank one, in pairs; its entries are uncorrelated, so that the estimate is the gradient."""
    make: Any = SPSA
    weight = nn.Parameter(torch.zeros(4, 5, dtype=torch.float64))
    slope = torch.linspace(-1, 2, 20, dtype=torch.float64)
    optimizer = make([weight], seed=0, sigma=0.5, n_probes=2000, perturbation="low_rank")
    for _, rows, _ in rounds(optimizer, lambda x, step: x @ slope, 1):
        if len(rows) > 1:
            candidates = rows
    torch.testing.assert_close(candidates.abs(), torch.full_like(candidates, 0.5))
    torch.testing.assert_close(candidates[:2000], -candidates[2000:])
    assert set(torch.linalg.matrix_rank(candidates[:50].view(-1, 4, 5)).tolist()) == {1}
    step = weight.detach().flatten()
    assert torch.nn.functional.cosine_similarity(step, -slope, dim=0) > 0.99  # cos^2 is n / (n + dim)
