from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from tests.algorithms.searching import build, path, rosenbrock, rounds, sphere
from torch_gfo.algorithms.particle_swarm import PSO
from torch_gfo.optimizer import GradientFreeOptimizer


def memory(optimizer: GradientFreeOptimizer, name: str) -> Tensor:
    return optimizer.state[optimizer.param_groups[0]["params"][0]][name]


@pytest.mark.parametrize("variant", ["spso2011", "constriction"])
def test_velocity_limit(variant: str) -> None:
    fastest = {}
    for limit in (None, 0.25):
        optimizer = build(PSO, torch.full((6,), 5.0), variant=variant, velocity_limit=limit)
        fastest[limit] = 0.0
        before = None
        for _, rows, _ in rounds(optimizer, lambda x, step: sphere(x), 20):
            if len(rows) > 1:
                if before is not None:
                    fastest[limit] = max(fastest[limit], float((rows - before).abs().max()))
                before = rows
    assert fastest[0.25] <= 0.25 + 1e-12
    assert fastest[None] > 0.5


def test_personal_bests() -> None:
    optimizer = build(PSO, [2.0, -2.0, 1.0], popsize=6)
    history = []
    for _, rows, losses in rounds(optimizer, lambda x, step: rosenbrock(x), 15):
        if len(rows) > 1:
            history.append(losses)
    expected = torch.stack(history).amin(0)
    expected[0] = expected[0].clamp(max=rosenbrock(torch.tensor([2.0, -2.0, 1.0])))  # the first knows the start
    assert torch.equal(memory(optimizer, "best_losses"), expected)


def test_first_particles_lie_within_the_radius() -> None:
    optimizer = build(PSO, torch.zeros(50), sigma=3.0, variant="constriction", popsize=100)
    _, (_, rows, _) = rounds(optimizer, lambda x, step: sphere(x), 1)
    assert math.isclose(float(rows.std()), 3.0, rel_tol=0.05)


@pytest.mark.parametrize("options", [{}, {"variant": "constriction"}, {"topology": "ring"}, {"topology": "global"}])
def test_swarm_contracts_at_a_minimum_and_expands_towards_it(options: dict[str, str]) -> None:
    def spread(start: float, sigma: float, n_steps: int) -> float:
        """The distance between particles, in units of the first radius."""
        optimizer = build(PSO, torch.full((4,), start), sigma=sigma, **options)
        for _ in rounds(optimizer, lambda x, step: sphere(x), n_steps):
            pass
        return float(memory(optimizer, "positions").std(0).mean())

    assert spread(0.0, 1.0, 100) < 0.05
    assert spread(10.0, 1e-3, 40) > 10


@pytest.mark.parametrize(("dim", "n_steps"), [(2, 200), (5, 700)])
def test_narrow_valley(dim: int, n_steps: int) -> None:
    assert rosenbrock(path(PSO, rosenbrock, -torch.ones(dim), n_steps)[-1]) < 1e-4


def test_luck_is_found_out() -> None:
    """A swarm that trusts its memory of other minibatches, or evaluates all of it again, is left at 5 to 30."""

    def end(seed: int) -> float:
        def noisy(x: Tensor, step: int) -> Tensor:
            """Each minibatch has its own minimum, at a distance of 10 from that of all of them."""
            rng = torch.Generator().manual_seed(1000 * seed + step)
            return sphere(x - torch.randn(x.shape[-1], generator=rng, dtype=x.dtype))

        optimizer = build(PSO, torch.full((10,), 5.0), seed=seed)
        for _ in rounds(optimizer, noisy, 300):
            pass
        return float(sphere(optimizer.param_groups[0]["params"][0].detach()))

    assert statistics.median(end(seed) for seed in range(5)) < 4
