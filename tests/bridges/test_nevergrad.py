from __future__ import annotations

import copy
import math
import random
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.algorithms.searching import build, rounds, sphere
from tests.bridges.driving import Driver, bowl, forbidden, global_generator_restored
from tests.helpers import assert_identical, identical, snapshot, vector
from tests.references import nevergrad as reference
from torch_gfo.bridges.nevergrad import Nevergrad

# Of every kind: evolution, swarms, estimated distributions, models, designs at once, gradients by differences, scipy's
# methods in threads of their own, chains and portfolios of others, and what draws from NumPy's global generator.
NAMES = {
    "NGOpt": 4,
    "OnePlusOne": 1,
    "OptimisticNoisyOnePlusOne": 3,
    "TwoPointsDE": 5,
    "PSO": 4,
    "CMA": 8,
    "DiagonalCMA": 3,
    "TBPSA": 4,
    "EDA": 4,
    "MetaModel": 1,
    "ScrHammersleySearchPlusMiddlePoint": 4,
    "SPSA": 1,
    "Cobyla": 1,
    "NelderMead": 1,
    "Carola2": 1,
    "Portfolio": 4,
}
EACH = pytest.mark.parametrize(("name", "num_workers"), NAMES.items())


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(threading.current_thread(), "_daemonic", True)  # so that no thread outlives a failing test
    with global_generator_restored(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the reference drives
        yield


@EACH
@pytest.mark.parametrize(
    ("box", "changing", "objective"),
    [(None, False, bowl), ((-0.3, 0.4), False, bowl), (None, True, bowl), (None, False, forbidden)],
    ids=["plain", "box", "minibatches", "forbidden"],
)
def test_same_as_nevergrad(name: str, num_workers: int, box: Any, changing: bool, objective: Any) -> None:
    """Candidates are those of nevergrad's own ask and tell, bit for bit, mirrored into the box."""
    options: dict[str, Any] = {"optimizer": name, "budget": 80, "num_workers": num_workers}
    driver = Driver(Nevergrad, 5, box=box, **options)
    slow = reference.search(driver.state["foreign_seed"], 5, float(objective(driver.point)), **options)
    rows, shift = next(slow), 0.0
    for step in range(60 // num_workers):
        luck = 0.3 * math.sin(step) if changing else 0.0
        before = driver.point
        search, z, losses = driver.step(lambda z: objective(z) + luck, changed=changing and step > 0)
        assert torch.equal(z, search.reflect(torch.tensor(rows, dtype=z.dtype)))
        shift += float(search.drift)
        rows = slow.send((losses - shift).tolist())
        better = losses.min() < search.loss
        assert torch.equal(driver.point, z[losses.argmin()] if better else before)
    assert changing == (shift != 0)


@EACH
def test_rebuilt_from_the_record(name: str, num_workers: int) -> None:
    """Another optimizer that loads the state asks for what this one would have, and goes on alike."""
    options: dict[str, Any] = {"optimizer": name, "budget": 80, "num_workers": num_workers}
    optimizer, successor = (build(Nevergrad, 5 * [0.5], **options) for _ in range(2))
    for _ in rounds(optimizer, lambda x, step: sphere(x), 40 // num_workers):
        pass
    successor.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        successor.param_groups[0]["params"][0].copy_(optimizer.param_groups[0]["params"][0])
    for _ in range(12):
        rows = optimizer.ask()
        assert_identical(successor.ask(), rows)
        optimizer.tell(sphere(rows))
        successor.tell(sphere(rows))


def test_candidates_of_the_model_are_not_evaluated() -> None:
    """Most of nevergrad's optimizers begin with the initial point, whose loss is known."""
    optimizer = build(Nevergrad, [1.0, 2.0], optimizer="OnePlusOne", num_workers=2)
    model = optimizer.ask()
    optimizer.tell([5.0])
    rows = optimizer.ask()
    assert rows.shape == (2, 2)
    assert (rows != model).any(1).all()


def test_steps_without_a_finite_loss_are_told() -> None:
    """nevergrad goes on to other points, and a search that is rebuilt from the record does too."""
    optimizer, successor = (build(Nevergrad, [1.0, 2.0], optimizer="NelderMead") for _ in range(2))
    asked = []
    for _ in range(6):
        optimizer.tell(sphere(optimizer.ask()))
        asked.append(optimizer.ask())
        bad = len(asked) in (1, 3, 4)
        if bad:
            with pytest.warns(UserWarning, match="All candidates"):
                optimizer.tell([math.nan])
        else:
            optimizer.tell(sphere(asked[-1]))
        successor.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert len({tuple(rows.flatten().tolist()) for rows in asked}) == 6
    with torch.no_grad():
        successor.param_groups[0]["params"][0].copy_(optimizer.param_groups[0]["params"][0])
    for each in (optimizer, successor):
        each.tell(sphere(each.ask()))
    assert_identical(successor.ask(), optimizer.ask())


def test_luck_that_all_points_share() -> None:
    """A minibatch that is easier for every point alike is no progress."""
    points = []
    for scale in (0.0, 10.0):
        driver = Driver(Nevergrad, 4, optimizer="OnePlusOne", num_workers=1)
        for step in range(40):
            luck = scale * math.sin(5.0 * step)
            driver.step(lambda z: bowl(z) + luck, changed=scale > 0 and step > 0)
        points.append(driver.point)
    torch.testing.assert_close(*points, rtol=0, atol=1e-9)
    assert bowl(points[0]) < bowl(torch.zeros(4, dtype=torch.float64))


def test_record_has_room_for_the_budget_and_doubles() -> None:
    optimizer = build(Nevergrad, [1.0, 2.0], optimizer="OnePlusOne", num_workers=3, budget=10)
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    assert state["record"].shape == (4, 3)
    sizes = {step: len(state["record"]) for step, _, _ in rounds(optimizer, lambda x, step: sphere(x), 10)}
    assert list(sizes.values()) == 5 * [4] + 4 * [8] + [16]
    assert (state["record"][:10] < 1e20).all()
    assert (state["record"][10:] == 1e20).all()


@pytest.mark.parametrize("name", ["RotatedTwoPointsDE", "MetaModel", "OnePlusOne", "Cobyla"])
def test_global_generators(name: str) -> None:
    """NumPy's and Python's global generators do not matter to the search, and it leaves them where they are."""
    searches = []
    for seed in (1, 2):
        np.random.seed(seed)
        random.seed(seed)
        before = np.random.get_state()[1].tolist(), random.getstate()
        optimizer = build(Nevergrad, [1.0, 2.0, 3.0], optimizer=name, num_workers=1)
        searches.append([rows for _, rows, _ in rounds(optimizer, lambda x, step: sphere(x), 30)])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before
    assert_identical(*searches)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupted_in_nevergrads_own_code(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was interrupted in the middle is thrown away and rebuilt."""
    one, other = (build(Nevergrad, 4 * [0.5], optimizer="TwoPointsDE", num_workers=5) for _ in range(2))
    for optimizer in (one, other):
        for _ in rounds(optimizer, lambda x, step: sphere(x), 6):
            pass
    before, calls = snapshot(one), []
    search = one._replay._live.search  # type: ignore[attr-defined]
    tell = search._optimizer.tell

    def interrupted(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise error
        tell(*arguments)

    monkeypatch.setattr(search._optimizer, "tell", interrupted)
    with pytest.raises((error, RuntimeError)):
        one.tell(sphere(one.ask()))  # nevergrad is told the last step's losses when it is asked for more candidates
    assert len(calls) == 3
    assert_identical(snapshot(one), before)
    for optimizer in (one, other):
        for _ in rounds(optimizer, lambda x, step: sphere(x), 9):
            pass
    assert_identical(snapshot(one), snapshot(other))


def test_optimizers_that_do_not_go_on_say_why() -> None:
    """With nevergrad's own reason, and nothing has changed."""
    optimizer = build(Nevergrad, 3 * [0.0], optimizer="LHSSearch", num_workers=2, budget=4)
    for _ in rounds(optimizer, lambda x, step: sphere(x), 2):
        pass
    before = snapshot(optimizer)
    reason = "nevergrad's LHSSearch does not work for 3 parameters, budget=4 and num_workers=2: Over the budget"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=reason):
            optimizer.tell(sphere(optimizer.ask()))
        assert_identical(snapshot(optimizer), before)


def test_searches_that_cannot_be_repeated_are_found_out() -> None:
    """CmaFmin2 takes its seed from the clock; to go on from its record would mix up points and losses."""
    optimizer, successor = (build(Nevergrad, 3 * [0.5], optimizer="CmaFmin2") for _ in range(2))
    for _ in rounds(optimizer, lambda x, step: sphere(x), 20):
        pass
    successor.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    successor.ask()
    with pytest.raises(RuntimeError, match=r"asks for other points than it did.* make a new optimizer"):
        successor.tell([1.0])


def test_warnings_of_closures_are_seen() -> None:
    x = vector(3)
    optimizer = Nevergrad([x], "OnePlusOne", num_workers=2)

    def closure() -> torch.Tensor:
        warnings.warn("the closure's own", RuntimeWarning, stacklevel=1)
        return x.square().sum()

    with pytest.warns(RuntimeWarning, match="the closure's own"):
        optimizer.step(closure)


def test_seeds_of_a_search_that_begins_anew() -> None:
    """After add_param_group nevergrad begins anew, with other random numbers."""
    x, y = vector(3), vector(3)
    optimizer = Nevergrad([x], "OnePlusOne", seed=0)
    first = optimizer.state[x]["foreign_seed"]
    optimizer.step(lambda: x.square().sum())
    optimizer.add_param_group({"params": [y]})
    assert optimizer.state[x]["foreign_seed"] != first
    assert optimizer.state[x]["began_at"] == 1
    before = y.detach().clone()
    for _ in range(10):
        optimizer.step(lambda: x.square().sum() + y.square().sum())
    assert not identical(y.detach(), before)


def test_a_process_ends_while_scipy_waits() -> None:
    """scipy's methods run in threads, which wait for losses; they do not keep the interpreter from ending."""
    run(
        """
        x = torch.nn.Parameter(torch.ones(3))
        optimizer = torch_gfo.Nevergrad([x], "Cobyla", seed=0)
        for _ in range(5):
            optimizer.step(lambda: x.square().sum())
        """
    )


def test_importing_is_lazy() -> None:
    run("assert not {'nevergrad', 'cma', 'scipy', 'pandas', 'sklearn'} & set(sys.modules)")


@pytest.mark.parametrize(("cls", "package"), [("Nevergrad", "nevergrad"), ("PyCMA", "cma")])
def test_package_that_is_not_installed(cls: str, package: str) -> None:
    """The package imports without it, and its class says how to install it."""
    run(
        f"""
        sys.modules["{package}"] = None  # importing it raises ImportError
        try:
            torch_gfo.{cls}([torch.nn.Parameter(torch.ones(3))])
        except ImportError as error:
            assert "pip install torch_gfo[bridges]" in str(error)
            assert "{cls} needs the package {package}" in str(error)
        else:
            raise AssertionError
        """
    )


def run(script: str) -> None:
    """Runs lines in a process of their own."""
    preamble = "import sys, torch, torch_gfo\n"
    command = [sys.executable, "-W", "error", "-c", preamble + textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
