from __future__ import annotations

import pytest
import torch

from tests.algorithms.searching import build, path, rosenbrock, rounds, sphere
from torch_gfo.algorithms.genetic import GA
from torch_gfo.optimizer import GradientFreeOptimizer


def memory(optimizer: GradientFreeOptimizer, name: str) -> torch.Tensor:
    return optimizer.state[optimizer.param_groups[0]["params"][0]][name]


@pytest.mark.parametrize("crossover", ["centroid", None])
def test_radii_shrink_at_a_minimum(crossover: str | None) -> None:
    optimizer = build(GA, torch.zeros(30), crossover=crossover)
    for _ in rounds(optimizer, lambda x, step: sphere(x), 150):
        pass
    assert memory(optimizer, "radii").median() < 0.1  # the minimum itself, the start, keeps its own


@pytest.mark.parametrize("crossover", ["centroid", None])
def test_radii_grow_far_from_a_minimum(crossover: str | None) -> None:
    optimizer = build(GA, torch.full((30,), 10.0), crossover=crossover, sigma=1e-3)
    for _ in rounds(optimizer, lambda x, step: sphere(x), 30):
        pass
    assert memory(optimizer, "radii").min() > 2
    assert memory(optimizer, "radii").max() <= 10


@pytest.mark.parametrize("options", [{"self_adaptive": False}, {"meta": 1.0}])
def test_radii_that_do_not_adapt(options: dict[str, float]) -> None:
    optimizer = build(GA, torch.ones(5), **options)
    for _ in rounds(optimizer, lambda x, step: sphere(x), 10):
        pass
    assert torch.equal(memory(optimizer, "radii"), torch.ones(24, dtype=torch.float64))


@pytest.mark.parametrize("selection", ["truncation", "tournament"])
def test_members_are_the_best_points_so_far(selection: str) -> None:
    optimizer = build(GA, [2.0, 2.0, 2.0], popsize=8, selection=selection)
    seen = []
    for step, rows, losses in rounds(optimizer, lambda x, step: sphere(x), 12):
        if step == 0 or len(rows) > 1:  # later looks at the model are at points that were seen
            seen.append(losses)
    assert torch.equal(memory(optimizer, "losses"), torch.cat(seen).sort().values[:8])


@pytest.mark.parametrize(("dim", "n_steps"), [(2, 150), (5, 400)])
def test_narrow_valley(dim: int, n_steps: int) -> None:
    assert rosenbrock(path(GA, rosenbrock, -torch.ones(dim), n_steps)[-1]) < 1e-6
