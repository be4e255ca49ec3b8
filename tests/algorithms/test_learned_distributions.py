"""What SepCMAES, LMMAES, XNES and SNES learn of a landscape, beside their equations."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor, nn

from tests.algorithms.searching import build, rosenbrock, rounds, sphere
from torch_gfo.algorithms.lm_ma_es import LMMAES
from torch_gfo.algorithms.sep_cma_es import SepCMAES
from torch_gfo.algorithms.snes import SNES
from torch_gfo.algorithms.xnes import XNES
from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.recombination import rates


def memory(optimizer: GradientFreeOptimizer, name: str) -> Tensor:
    value = optimizer.state[optimizer.param_groups[0]["params"][0]][name]
    assert isinstance(value, Tensor)
    return value


def scaled(x: Tensor) -> Tensor:
    """An ellipsoid along the axes, a hundred times as long as wide."""
    return (10.0 ** torch.linspace(0, 4, x.shape[-1], dtype=x.dtype) * x.square()).sum(-1)


def needed(cls: type[GradientFreeOptimizer], objective: object, dim: int, seed: int, limit: int) -> int:
    """Evaluations until the best loss is 1e-8."""
    optimizer = build(cls, torch.full((dim,), 2.0), seed=seed, deterministic=True)
    while optimizer.best_loss > 1e-8 and optimizer.evaluations < limit:
        optimizer.tell(objective(optimizer.ask()))  # type: ignore[operator]
    return optimizer.evaluations


def test_constants_of_a_diagonal_matrix() -> None:
    """At 20 dimensions those of pycma."""
    k = rates(20, 12, separable=True)
    assert [k.c_1, k.c_mu, k.c_c] == pytest.approx([0.03433, 0.05654, 0.25259], abs=5e-6)


@pytest.mark.parametrize("cls", [SepCMAES, SNES])
def test_scales_of_the_coordinates(cls: type[GradientFreeOptimizer]) -> None:
    """Deviations become those of the ellipsoid's axes."""
    optimizer = build(cls, torch.full((5,), 2.0))
    for _ in rounds(optimizer, lambda x, step: scaled(x), 150):
        pass
    deviations = memory(optimizer, "scales") if cls is SNES else memory(optimizer, "variances").sqrt()
    expected = 10.0 ** -torch.linspace(0, 2, 5, dtype=torch.float64)
    ratio = (deviations / deviations[0]) / expected
    assert float(ratio.min()) > 0.2
    assert float(ratio.max()) < 5


def test_separable_ellipsoid_of_twenty_dimensions() -> None:
    """A diagonal matrix learns a condition of 1e6 in 6,000 evaluations."""

    def ellipsoid(x: Tensor) -> Tensor:
        return (10.0 ** torch.linspace(0, 6, 20, dtype=x.dtype) * x.square()).sum(-1)

    assert statistics.median(needed(SepCMAES, ellipsoid, 20, seed, 10_000) for seed in range(3)) <= 6_000


def test_narrow_valley() -> None:
    """A full matrix follows Rosenbrock's valley."""
    assert statistics.median(needed(XNES, rosenbrock, 4, seed, 20_000) for seed in range(3)) < 10_000


def test_a_direction_of_its_own() -> None:
    """Remembered directions help where one direction counts a thousand times as much as all others."""

    def cigar(x: Tensor) -> Tensor:
        along = x.mean(-1, keepdim=True)
        return along[..., 0].square() * x.shape[-1] + 1e3 * sphere(x - along)

    learned = statistics.median(needed(LMMAES, cigar, 20, seed, 60_000) for seed in range(3))
    assert learned < 0.7 * statistics.median(needed(SNES, cigar, 20, seed, 60_000) for seed in range(3))


def test_steps_that_shorten_among_changing_minima() -> None:
    """Where every step has another minimum, the mean comes nearer to the middle of them all, which is the origin."""

    def distance(mean_decay: float, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        x = nn.Parameter(torch.full((200,), 0.3))
        optimizer = SNES([x], sigma=0.1, mean_decay=mean_decay, seed=seed)
        squares = []
        for _ in range(1_000):
            minimum = torch.randn(200, generator=generator) / 2
            optimizer.step(lambda at=minimum: (x - at).square().sum())
            squares.append(float(x.detach().square().sum()))
        return statistics.mean(squares[-100:])

    kept, shortened = ([distance(decay, seed) for seed in range(2)] for decay in (0.0, 0.05))
    assert max(shortened) < 0.6 * min(kept)
