from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from tests.algorithms.searching import build, ellipsoid, rounds, sphere
from tests.bridges.driving import Driver, bowl, forbidden
from tests.helpers import assert_identical
from tests.references import pycma as reference
from torch_gfo.bridges.pycma import PyCMA

pytestmark = pytest.mark.filterwarnings("ignore")  # of what the reference drives

OPTIONS: list[dict[str, Any]] = [
    {},
    {"popsize": 9, "CMA_active": False},
    {"CMA_diagonal": True},
    {"CMA_elitist": True, "popsize": 12},
    {"AdaptSigma": False, "CMA_mu": 3, "minstd": 0.01},
    {"CMA_stds": [1.0, 2.0, 0.5, 1.0, 3.0]},
]


def alongside(options: dict[str, Any], objective: Any, n_steps: int, **setting: Any) -> list[str]:
    """Makes steps with the bridge and with pycma, whose candidates and means must be equal, bit for bit."""
    driver, notes = Driver(PyCMA, 5, options=options, **setting), []
    slow = reference.search(driver.state["foreign_seed"], 5, notes, setting.get("deterministic", False), **options)
    rows, _ = next(slow)
    for _ in range(n_steps):
        before = driver.point
        search, z, losses = driver.step(objective)
        assert torch.equal(z, search.reflect(torch.tensor(rows, dtype=z.dtype)))
        rows, mean = slow.send(losses.tolist())
        if setting.get("deterministic"):
            assert torch.equal(driver.point, z[losses.argmin()] if losses.min() < search.loss else before)
        elif losses.isfinite().any():
            assert torch.equal(driver.point, search.reflect(torch.tensor(mean, dtype=z.dtype)))
    return notes


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "default")
def test_same_as_pycma(options: dict[str, Any]) -> None:
    alongside(options, bowl, 40)
    alongside(options, bowl, 40, deterministic=True)
    alongside(options, bowl, 40, box=(-0.2, 0.25))
    alongside(options, forbidden, 40)


def test_begins_anew_where_pycma_would_end() -> None:
    """If the model, which then keeps the best point, does not leave a good point with it."""
    assert len(alongside({"popsize": 6}, bowl, 500, deterministic=True)) >= 2
    assert alongside({"popsize": 6, "maxiter": 5}, bowl, 20, deterministic=True) == ["maxiter"] * 4
    assert alongside({"popsize": 6, "maxiter": 5}, bowl, 20) == []


def test_goes_on_where_numbers_would_underflow() -> None:
    """pycma alone fails then. The model stays where it has converged."""
    driver: Any = Driver(PyCMA, 2, options={"popsize": 6})
    radii, points = [], []
    for _ in range(2500):
        driver.step(bowl)
        radii.append(driver.optimizer._replay._live.search._strategy.sigma)
        points.append(driver.point)
    assert sum(before < 1e-49 and after > 1e-12 for before, after in pairwise(radii)) >= 2
    assert min(radii) > 1e-60
    assert (bowl(torch.stack(points[1000:])) < 1e-15).all()


def test_stays_finite_on_a_slope_without_an_end() -> None:
    driver = Driver(PyCMA, 5)
    for _ in range(1000):
        driver.step(lambda z: z.sum(-1))
        assert torch.isfinite(driver.point).all()
    assert driver.point.sum() < -1e10


def test_rebuilt_from_the_record() -> None:
    """Also where pycma has begun anew."""
    options: dict[str, Any] = {"options": {"popsize": 6, "maxiter": 15}, "deterministic": True}
    optimizer, successor = (build(PyCMA, 5 * [0.5], **options) for _ in range(2))
    for _ in rounds(optimizer, lambda x, step: ellipsoid(x), 40):
        pass
    successor.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        successor.param_groups[0]["params"][0].copy_(optimizer.param_groups[0]["params"][0])
    for _ in range(20):
        rows = optimizer.ask()
        assert_identical(successor.ask(), rows)
        optimizer.tell(ellipsoid(rows))
        successor.tell(ellipsoid(rows))


def test_only_the_order_of_a_generation_counts() -> None:
    points = []
    for transform in (lambda f, step: f, lambda f, step: torch.exp(f) + 10 * math.sin(step)):
        optimizer = build(PyCMA, [0.5, -0.2, 0.3, 0.1])
        for _ in rounds(optimizer, lambda x, step: transform(sphere(x), step), 30):
            pass
        points.append(optimizer.param_groups[0]["params"][0].detach())
    assert torch.equal(*points)
    assert points[0].norm() < 0.05


def test_options_are_kept_as_plain_values() -> None:
    optimizer = build(PyCMA, [0.0, 0.0], options={"popsize": 7, "CMA_stds": [1, 2.0], "CMA_active": False})
    expected = (("CMA_active", False), ("CMA_stds", (1, 2.0)), ("popsize", 7))
    assert optimizer.param_groups[0]["options"] == expected


def test_large_models() -> None:
    """Above 1000 parameters a scale for each by default; the full matrix only where asked for and where it fits."""
    x = nn.Parameter(torch.zeros(20_000))
    optimizer: Any = PyCMA([x], sigma=0.05, seed=0)
    for _ in range(3):
        optimizer.step(lambda: (x - 1).square().sum())
    assert optimizer._replay._live.search._strategy.opts["CMA_diagonal"] is True
    assert (x - 1).square().sum() < 20_000
    x = nn.Parameter(torch.zeros(300_000))
    with pytest.raises(RuntimeError, match=r"PyCMA would hold [\d,.]+ GiB for 300,000 parameters"):
        PyCMA([x], options={"CMA_diagonal": False})


def test_one_parameter() -> None:
    x = nn.Parameter(torch.tensor(3.0))
    optimizer = PyCMA([x], seed=0)
    for _ in range(40):
        optimizer.step(lambda: (x - 1).square())
    assert abs(float(x) - 1) < 1e-3
