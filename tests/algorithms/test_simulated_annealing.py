from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from tests.algorithms.searching import build, ellipsoid, path, rounds, sphere, two_wells
from tests.helpers import parameters_of
from torch_gfo.algorithms.simulated_annealing import SimulatedAnnealing


def bumps(x: Tensor) -> Tensor:
    """A bowl with a minimum every 0.52 in each coordinate, behind hills as high as 2."""
    return (x.square() + 1 - torch.cos(12 * x)).sum(-1)


def best(start: list[float], evaluations: int, seed: int, **options: float) -> float:
    optimizer = build(SimulatedAnnealing, start, seed=seed, deterministic=True, restarts=False, **options)
    while optimizer.evaluations < evaluations:
        optimizer.tell(bumps(optimizer.ask()))
    return optimizer.best_loss


def test_metropolis_chain_has_boltzmanns_distribution() -> None:
    """One proposal at a constant temperature: x of loss x^2 is normal with variance T / 2, however long the steps."""
    for temperature in (0.5, 8.0):
        options = {"popsize": 1, "cooling": 1.0, "temperature": temperature, "acceptance": 0.4}
        points = path(SimulatedAnnealing, sphere, [0.0], 5000, **options)[200:, 0]
        variance = temperature / 2
        assert abs(points.mean()) < 0.15 * math.sqrt(variance)  # about 900 independent samples
        assert abs(points.var() / variance - 1) < 0.15
        assert abs((points.abs() > math.sqrt(variance)).double().mean() - 0.317) < 0.03


@pytest.mark.parametrize("aim", [0.2, 0.5])
def test_radius_keeps_the_share_of_accepted_proposals(aim: float) -> None:
    """At a constant temperature the radius is a stationary function of it, and so is about the square root of it."""
    radii = []
    for temperature in (1e-4, 1.0):
        optimizer = build(SimulatedAnnealing, [0.0] * 3, acceptance=aim, cooling=1.0, temperature=temperature)
        (x,) = parameters_of(optimizer)
        radius = []
        for step, _, _ in rounds(optimizer, lambda x, step: sphere(x), 1000):
            if step > 100:
                radius.append(math.log(optimizer.state[x]["radius"]))
        radii.append(statistics.mean(radius))
    assert radii[1] - radii[0] == pytest.approx(math.log(100), abs=0.3)


def test_more_acceptance_makes_steps_smaller() -> None:
    def radius(acceptance: float) -> float:
        optimizer = build(SimulatedAnnealing, torch.ones(20), acceptance=acceptance)
        for _ in rounds(optimizer, lambda x, step: sphere(x), 60):
            pass
        return float(optimizer.state[parameters_of(optimizer)[0]]["radius"])

    assert radius(0.1) > 1.5 * radius(0.4)


def test_lengths_learn_the_axes() -> None:
    """The longest axis is 100 times the shortest."""
    optimizer = build(SimulatedAnnealing, torch.ones(5), restarts=False)
    for _ in rounds(optimizer, lambda x, step: ellipsoid(x), 1500):
        pass
    lengths = optimizer.state[parameters_of(optimizer)[0]]["lengths"]
    assert lengths.prod() == pytest.approx(1)
    assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)
    assert 20 < lengths[0] / lengths[-1] < 500


def test_first_temperature_accepts_a_mean_rise_one_time_in_five() -> None:
    optimizer = build(SimulatedAnnealing, [0.0] * 10, popsize=2000, cooling=1.0)
    step = rounds(optimizer, lambda x, step: 1e6 * (1 + 1e-3 * x.sum(-1)), 1)
    _, _, model = next(step)
    _, _, losses = next(step)
    assert list(step) == []
    rises = losses[losses > model] - model
    temperature = optimizer.state[parameters_of(optimizer)[0]]["temperature"]
    assert math.exp(-rises.mean() / temperature) == pytest.approx(0.2)


def test_temperature_waits_for_a_loss_that_rises() -> None:
    """On a plateau, or where all proposals are better, there is nothing to measure yet."""
    optimizer = build(SimulatedAnnealing, [0.0, 0.0], cooling=0.5)
    (x,) = parameters_of(optimizer)
    for step, _, _ in rounds(optimizer, lambda x, step: sphere(x) * (step > 4), 8):
        assert math.isnan(optimizer.state[x]["temperature"]) == (step <= 5)


def test_crosses_hills_while_it_is_hot() -> None:
    """A cold search stays in the first of many minima."""
    start, seeds = [1.5, 1.5, 1.5], range(5)
    cold = statistics.median(best(start, 4000, seed, sigma=0.1, temperature=1e-6) for seed in seeds)
    hot = statistics.median(best(start, 4000, seed, sigma=0.1, temperature=1.0, cooling=0.99) for seed in seeds)
    assert cold > 5
    assert hot < 1


def test_slow_cooling_finds_better_minima() -> None:
    start, seeds = [1.5] * 5, range(5)
    fast, slow = (
        statistics.mean(best(start, 8000, seed, sigma=0.3, cooling=cooling) for seed in seeds)
        for cooling in (0.8, 0.99)
    )
    assert slow < 0.7 * fast


def test_model_goes_uphill_unless_the_objective_is_deterministic() -> None:
    free, kept = (
        bumps(path(SimulatedAnnealing, bumps, [1.5, 1.0], 60, popsize=2, temperature=5.0, deterministic=deterministic))
        for deterministic in (False, True)
    )
    assert (free.diff() > 0).sum() > 5
    assert (kept.diff() <= 0).all()
    assert kept[-1] < kept[0]


def test_luck_that_all_points_share() -> None:
    """A minibatch that is easier for every point alike is no progress: only differences within one count."""
    start, lucks = [0.5, -1.0, 1.5], (lambda step: 10 * math.sin(5 * step), lambda step: 3 * math.cos(step))
    paths = [path(SimulatedAnnealing, sphere, start, luck=luck) for luck in lucks]
    torch.testing.assert_close(*paths)
    assert len(paths[0].unique(dim=0)) > 10


@pytest.mark.parametrize("restarts", [True, False])
def test_restarts_leave_a_local_minimum_and_keep_the_best_point(restarts: bool) -> None:
    options = {"sigma": 0.3, "temperature": 1e-3, "cooling": 0.8, "bounds": (-1.0, 6.0), "restarts": restarts}
    losses = two_wells(path(SimulatedAnnealing, two_wells, [0.1, 0.1], 1500, deterministic=True, **options))
    assert (losses.diff() <= 0).all()
    assert (losses[-1] < 1e-12) == restarts


def test_restart_without_a_promise_keeps_the_model() -> None:
    """A converged search looks around, cold, and does not lose what it has found."""
    optimizer = build(SimulatedAnnealing, [1.0, 1.0])
    (x,) = parameters_of(optimizer)
    losses, radii = [], []
    for _, rows, values in rounds(optimizer, lambda x, step: sphere(x), 1500):
        if len(rows) == 1:
            losses.append(float(values))
            radii.append(optimizer.state[x]["radius"])
    assert radii[1:].count(1.0) >= 1
    first = radii.index(1.0, 1)
    assert max(losses[first:]) < 1e-18
