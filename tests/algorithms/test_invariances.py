"""What must not matter to a search: where the origin is, the unit, the order of coordinates, the scale of losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms.searching import build, ellipsoid, path, rosenbrock, rounds, sphere
from torch_gfo.algorithms.ars import ARS
from torch_gfo.algorithms.cma_es import CMAES
from torch_gfo.algorithms.differential_evolution import DE
from torch_gfo.algorithms.genetic import GA
from torch_gfo.algorithms.lm_ma_es import LMMAES
from torch_gfo.algorithms.nelder_mead import NelderMead
from torch_gfo.algorithms.openai_es import OpenAIES
from torch_gfo.algorithms.particle_swarm import PSO
from torch_gfo.algorithms.pgpe import PGPE
from torch_gfo.algorithms.random_search import RandomSearch
from torch_gfo.algorithms.sep_cma_es import SepCMAES
from torch_gfo.algorithms.simulated_annealing import SimulatedAnnealing
from torch_gfo.algorithms.snes import SNES
from torch_gfo.algorithms.spsa import SPSA
from torch_gfo.algorithms.xnes import XNES
from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.perturbation import as_rows
from torch_gfo.search import Search, generator

START = torch.tensor([0.5, -1.0, 1.5, 0.25], dtype=torch.float64)

CASES = [
    (GA, {"popsize": 7}),
    (GA, {"popsize": 30}),
    (GA, {"popsize": 7, "crossover": "uniform", "selection": "tournament"}),
    (GA, {"popsize": 7, "crossover": "sbx"}),
    (GA, {"popsize": 7, "crossover": "blend"}),
    (PSO, {"popsize": 3}),
    (PSO, {"popsize": 7, "topology": "ring"}),
    (PSO, {"popsize": 7, "variant": "constriction"}),
    (RandomSearch, {"popsize": 7}),
    (NelderMead, {}),
    (NelderMead, {"adaptive": True}),
    (CMAES, {"popsize": 7}),
    (DE, {"popsize": 7, "strategy": "rand1bin"}),
    (DE, {"popsize": 7, "strategy": "best1bin"}),
    (OpenAIES, {"popsize": 7}),
    (OpenAIES, {"popsize": 6, "mirrored": True, "update": "clipup", "lr": 0.05}),
    (PGPE, {"popsize": 6}),
    (PGPE, {"popsize": 6, "update": "sgd"}),
    (SepCMAES, {"popsize": 7}),
    (LMMAES, {"popsize": 7}),
    (SNES, {"popsize": 7}),
    (SNES, {"popsize": 8, "antithetic": True}),
    (XNES, {"popsize": 7}),
]
MEASURING = [  # how much better counts as well
    (ARS, {"n_directions": 5, "n_top": 3}),
    (PGPE, {"popsize": 6, "shaping": "z_score"}),
    (DE, {"popsize": 7}),
    (SimulatedAnnealing, {"popsize": 7}),
    (SPSA, {"n_probes": 3}),
    (SPSA, {"n_probes": 3, "curvature": 0.2, "blocking": 1.0}),
]


def _each(cases: list[tuple[type[GradientFreeOptimizer], dict[str, Any]]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("cls", "options"), cases, ids=lambda value: getattr(value, "__name__", str(value)))


EACH = _each(CASES + MEASURING)


@_each(CASES)
def test_strictly_monotone_transforms_of_the_loss(cls: type[GradientFreeOptimizer], options: dict[str, Any]) -> None:
    """Only comparisons count, so the paths are equal bit for bit."""
    plain = path(cls, rosenbrock, START, **options)
    assert len(plain.unique(dim=0)) > 2  # it moves
    assert torch.equal(path(cls, lambda x: torch.log1p(rosenbrock(x)), START, **options), plain)
    assert torch.equal(path(cls, lambda x: rosenbrock(x) ** 3 - 7, START, **options), plain)


@_each([case for case in MEASURING if "curvature" not in case[1]])  # the weights of curvatures have a floor
def test_affine_transforms_of_the_loss(cls: type[GradientFreeOptimizer], options: dict[str, Any]) -> None:
    """Steps are measured by the first gradients, so the loss has no unit."""
    plain = path(cls, sphere, START, **options)
    assert torch.equal(path(cls, lambda x: 2.0**-40 * sphere(x), START, **options), plain)
    torch.testing.assert_close(path(cls, lambda x: 1e6 * sphere(x) - 7, START, **options), plain)


@EACH
def test_translation(cls: type[GradientFreeOptimizer], options: dict[str, Any]) -> None:
    there = path(cls, lambda x: rosenbrock(x - 100), START + 100, **options)
    torch.testing.assert_close(there - 100, path(cls, rosenbrock, START, **options), rtol=0, atol=1e-9)


@EACH
def test_unit_of_the_parameters(cls: type[GradientFreeOptimizer], options: dict[str, Any]) -> None:
    """``sigma`` is in parameter units; a power of two rounds nothing."""
    wide = path(cls, lambda x: rosenbrock(x / 64), START * 64, sigma=64.0, **options)
    assert torch.equal(wide / 64, path(cls, rosenbrock, START, **options))


class Permuted(Search):
    """Draws numbers whose coordinates are in another order."""

    order: list[int]

    def _in_order(self, drawn: Tensor) -> Tensor:
        return drawn[..., self.order] if drawn.shape[-1] == self.dim else drawn

    def normal(self, *shape: int) -> Tensor:
        return self._in_order(super().normal(*shape))

    def uniform(self, *shape: int) -> Tensor:
        return self._in_order(super().uniform(*shape))

    def integers(self, high: int, *shape: int) -> Tensor:
        return self._in_order(super().integers(high, *shape))


@EACH
def test_order_of_the_coordinates(cls: type[GradientFreeOptimizer], options: dict[str, Any]) -> None:
    """With popsize != dim, as here, what has as many columns as there are coordinates belongs to them."""

    def points(order: list[int]) -> Tensor:
        kind = type("Ordered", (Permuted,), {"order": order})
        optimizer = build(cls, torch.zeros(4), **options)
        point, loss, zero, state = START[order], None, torch.zeros((), dtype=torch.float64), None
        visited = []
        for step in range(-1, 25):
            where = torch.empty(4, dtype=torch.long)
            where[order] = torch.arange(4)
            loss = ellipsoid(point[where])
            search = kind(point, loss, False, zero, generator(0, "test", step, point.device))
            if state is None:
                state = optimizer._init_state(search)
                continue
            conversation = optimizer._iterate(state, search)
            z = next(conversation)
            try:
                while True:
                    z = conversation.send(ellipsoid(as_rows(z)[:, where]))
            except StopIteration as stop:
                point, _ = stop.value
            visited.append(point[where])
        return torch.stack(visited)

    plain = points([0, 1, 2, 3])
    assert len(plain.unique(dim=0)) > 1
    torch.testing.assert_close(points([2, 0, 3, 1]), plain, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("cls", "options"), [case for case in CASES if case[0] in (GA, PSO, DE)], ids=str)
def test_luck_that_all_points_share(cls: type[GradientFreeOptimizer], options: dict[str, Any]) -> None:
    """A minibatch that is easier for every point alike is no progress, and its memory no obstacle to the next."""
    paths = [path(cls, sphere, START, luck=luck, **options) for luck in (wave, lambda step: 3.0 * math.cos(step))]
    assert torch.equal(*paths)
    assert len(paths[0].unique(dim=0)) > 3


@pytest.mark.parametrize(("cls", "options"), [case for case in CASES if case[0] in (GA, DE)], ids=str)
def test_luck_changes_nothing(cls: type[GradientFreeOptimizer], options: dict[str, Any]) -> None:
    """Where nothing is evaluated again, the search is that of an objective that does not change."""
    assert torch.equal(path(cls, sphere, START, luck=wave, **options), path(cls, sphere, START, **options))


def wave(step: int) -> float:
    return 10.0 * math.sin(5.0 * step)


@pytest.mark.parametrize(
    ("cls", "options", "n_steps"),
    [
        *((GA, {"crossover": crossover}, 40) for crossover in ("centroid", "uniform", "sbx", "blend", None)),
        (DE, {}, 60),
        (PSO, {}, 60),
        (PSO, {"variant": "constriction"}, 60),
        (RandomSearch, {}, 60),
        (SimulatedAnnealing, {}, 150),
        (NelderMead, {}, 60),
        (CMAES, {}, 60),
        (SepCMAES, {}, 60),
        (LMMAES, {}, 100),
        (SNES, {}, 60),
        (XNES, {}, 60),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_points_do_not_glue_to_walls(cls: type[GradientFreeOptimizer], options: dict[str, Any], n_steps: int) -> None:
    """The best point of the box is its corner: the search closes in on it, and no coordinate of any point is on it."""
    optimizer = build(cls, [0.2, -0.3, 0.4], bounds=(-1.0, 1.0), **options)
    for _, rows, _ in rounds(optimizer, lambda x, step: sphere(x + 3), n_steps):
        assert (rows.abs() < 1).all()
    x = optimizer.param_groups[0]["params"][0]
    assert (x + 1).max() < 0.05
