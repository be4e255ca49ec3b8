"""Arguments, parameter groups, and what ``lr`` means."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from tests.helpers import assert_identical, distance, identical, parameters_of, vector
from tests.registry import COMMON_FAILURES, ENTRIES, Case, Entry, Failure
from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.options import CommonOptions

FAILURES = [
    pytest.param(entry, failure, id=f"{entry}-{'-'.join(map(str, failure.options))}-{i}")
    for entry in ENTRIES
    for i, failure in enumerate((*COMMON_FAILURES, *entry.failures))
]


@pytest.mark.parametrize(("owner", "failure"), FAILURES)
def test_bad_arguments(owner: Entry, failure: Failure) -> None:
    """C1: an argument outside its range raises an error that names it."""
    options = copy.deepcopy(dict(failure.options))
    x = vector(4)
    if failure.when == "construction":
        with pytest.raises(failure.error, match=failure.match):
            owner.make([x], **options)
    else:
        optimizer = owner.make([x], **options)
        with pytest.raises(failure.error, match=failure.match):
            optimizer.step(lambda: distance([x]))


@pytest.mark.parametrize("value", ["ten", [1, 2, 3], object()], ids=["a word", "a list", "an object"])
def test_arguments_of_another_kind(entry: Entry, value: object) -> None:
    """C1: none takes what is neither a number nor a choice of its own, and the error names the argument."""
    own = [name for name in inspect.signature(entry.cls).parameters if name not in ("params", "common")]
    for name in (*own, *CommonOptions.__annotations__):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            entry.make([vector(4)], **{name: value})


def test_bad_parameters(entry: Entry) -> None:
    """C1: parameters that no torch optimizer takes are refused with torch's own errors."""
    x, y = vector(4), vector(4)
    with pytest.raises(TypeError, match="params argument given to the optimizer should be an iterable"):
        entry.make(x)
    with pytest.raises(ValueError, match="empty parameter list"):
        entry.make([])
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        entry.make([{"params": [x]}, {"params": [x, y]}])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        entry.make([{"params": [x, x]}])
    with pytest.raises(ValueError, match="should be with/without names"):
        entry.make([("x", x), y])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lr": -1.0}, "lr must be"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
        ({"sigma": 0.0}, "sigma must be"),
        ({"bounds": (3.0, 2.0)}, "bounds must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"seed": 5}, "seed holds for the whole search"),
        ({"maximize": True}, "maximize holds for the whole search"),
        ({"bounds": (50.0, 60.0)}, "outside bounds"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_groups(entry: Entry, options: dict[str, Any], match: str) -> None:
    """C1: options of a group are checked like the constructor's, at construction and later; nothing changes then."""
    x, y = vector(4), vector(3)
    with pytest.raises(ValueError, match=match):
        entry.make([{"params": [x]}, {"params": [y], **options}])
    optimizer, untroubled = entry.make([x]), entry.make([vector(4)])
    with pytest.raises(ValueError, match=match):
        optimizer.add_param_group({"params": [y], **options})
    assert_identical(optimizer.state_dict(), untroubled.state_dict())
    optimizer.step(lambda: distance([x]))
    assert_identical(y, vector(3))


def test_foreign_options_of_a_group(entry: Entry) -> None:
    """C1: unknown keys of a group, which frameworks add, are kept and ignored."""
    x, y = vector(4), vector(4)
    plain = entry.make([{"params": [y]}])
    optimizer = entry.make([{"params": [x], "initial_lr": 3.0, "is_expert": True}])
    for _ in range(3):
        optimizer.step(lambda: distance([x]))
        plain.step(lambda: distance([y]))
    assert_identical(x, y)
    assert optimizer.param_groups[0]["is_expert"] is True


@pytest.mark.parametrize("schedulers", [(), (StepLR,), (StepLR, ReduceLROnPlateau)], ids=["no", "one", "two"])
def test_groups_with_schedulers(entry: Entry, schedulers: tuple[type, ...]) -> None:
    """C3: two groups with an lr each, under schedulers, go in the right direction, and both move."""
    x, y = vector(5, 3), vector(3, seed=1)
    optimizer = entry.make([{"params": [x]}, {"params": [y], "lr": 0.3}])
    chain = [
        cls(optimizer, **({"gamma": 0.9, "step_size": 5} if cls is StepLR else {"patience": 5})) for cls in schedulers
    ]
    before, x_before, y_before = distance([x, y]).item(), x.detach().clone(), y.detach().clone()
    for _ in range(30):
        loss = optimizer.step(lambda: distance([x, y]))
        for scheduler in chain:
            scheduler.step(loss) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
    assert distance([x, y]).item() < before
    assert not identical(x.detach(), x_before)
    assert not identical(y.detach(), y_before)


@pytest.mark.parametrize("shape", [(), (1,)], ids=["0d", "1d"])
def test_tensor_lr(case: Case, shape: tuple[int, ...]) -> None:
    """C4: a Tensor lr is the same number: the same trajectory, and the Tensor is left alone."""
    x, y = vector(4, 2), vector(4, 2)
    lr = torch.full(shape, 0.3)
    ours, plain = case.make([x], lr=lr), case.make([y], lr=float(lr))
    for _ in range(8):
        ours.step(lambda: case.goal(distance([x])))
        plain.step(lambda: case.goal(distance([y])))
    assert_identical(x, y)
    assert ours.param_groups[0]["lr"] is lr
    assert_identical(lr, torch.full(shape, 0.3))


def test_repr(case: Case) -> None:
    """C11: the optimizer prints its class and every option, and no large tensor."""
    optimizer = case.make(nn.Linear(100, 10).parameters())
    text = repr(optimizer)
    assert text.startswith(type(optimizer).__name__)
    assert all(f"{name}: " in text for name in case.options)
    assert len(text) < 1500


def test_lr_zero_freezes_a_group(case: Case) -> None:
    """C14: a group with lr = 0 stays bit-identical while the others are optimised."""
    x, y = vector(4, 2), vector(3, seed=1)
    optimizer = case.make([{"params": [x]}, {"params": [y], "lr": 0.0}])
    before, x_before, y_before = distance([x, y]).item(), x.detach().clone(), y.detach().clone()
    for _ in range(20):
        optimizer.step(lambda: case.goal(distance([x, y])))
    assert_identical(y.detach(), y_before)
    assert not identical(x.detach(), x_before)
    assert distance([x, y]).item() < before


def test_lr_multiplies_displacements(case: Case) -> None:
    """C14: halving lr in mid-run halves the distance of every candidate from the model, or the model's step."""
    if case.options.get("bounds"):
        pytest.skip("the walls bend displacements")
    x, y = vector(4, 2, dtype=torch.float64), vector(4, 2, dtype=torch.float64)
    optimizers = case.make([x], deterministic=False), case.make([y], deterministic=False)
    for optimizer in optimizers:
        for step in range(6):
            _step(case, optimizer, step)
    for group in optimizers[1].param_groups:
        group["lr"] = group["lr"] * 0.5
    displacements = []
    for optimizer in optimizers:
        before = parameters_of(optimizer)[0].detach().clone()
        if case.entry.lr_is_step:
            _step(case, optimizer, 6)
            displacements.append(parameters_of(optimizer)[0].detach() - before)
        else:
            model = optimizer.ask()
            optimizer.tell(_minibatch(case, model, 6))
            displacements.append(optimizer.ask() - model)
    assert displacements[0].abs().max() > 0
    torch.testing.assert_close(displacements[1], 0.5 * displacements[0])


def _minibatch(case: Case, x: torch.Tensor, step: int) -> torch.Tensor:
    """Losses of rows on an objective that differs from step to step."""
    return case.goal((x - 1 - 0.1 * step).square().sum(1))


def _step(case: Case, optimizer: Any, step: int) -> None:
    done = int(parameters_step(optimizer)) + 1
    while int(parameters_step(optimizer)) < done:
        optimizer.tell(_minibatch(case, optimizer.ask(), step))


def parameters_step(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.state[parameters_of(optimizer)[0]]["step"])


def test_split_invariance(case: Case) -> None:
    """C30: several tensors or several equal groups, and mostly one tensor as well: the same search, bit for bit."""
    whole = vector(12)
    parts = [nn.Parameter(part.clone()) for part in whole.detach().split([3, 4, 5])]
    grouped = [nn.Parameter(part.clone()) for part in whole.detach().split([3, 4, 5])]
    searches = [
        ([whole], case.make([whole], sigma=0.3)),
        (parts, case.make(parts, sigma=0.3)),
        (grouped, case.make([{"params": [p]} for p in grouped], sigma=0.3)),
    ]
    for _ in range(10):
        for parameters, optimizer in searches:
            optimizer.step(lambda: case.goal(distance(parameters)))
        assert_identical([p.detach() for p in grouped], [p.detach() for p in parts])
        if not case.entry.knows_tensors:
            assert_identical(torch.cat([p.detach() for p in parts]), whole.detach())


def test_different_sigma_per_group(entry: Entry) -> None:
    """C30: sigma acts per group: candidates spread in proportion to it."""
    x, y = vector(200), vector(200, seed=1)
    optimizer = entry.make([{"params": [x], "sigma": 0.1}, {"params": [y], "sigma": 1.0}])
    model = torch.cat([x.detach(), y.detach()])
    spread = (entry.ask_for_candidates(optimizer) - model).square().mean(0).sqrt()
    assert 0.05 < spread[:200].mean() / spread[200:].mean() < 0.2


def test_adding_a_group_later(case: Case) -> None:
    """C30: a group that is added in mid-run is optimised from then on, together with the rest."""
    x, y = vector(4, 2), vector(3, seed=1)
    optimizer = case.make([x])
    for _ in range(5):
        optimizer.step(lambda: case.goal(distance([x, y])))
    assert_identical(y, vector(3, seed=1))
    evaluations, steps = optimizer.evaluations, parameters_step(optimizer)
    optimizer.add_param_group({"params": [y], "lr": 0.5})
    before, y_before = distance([x, y]).item(), y.detach().clone()
    for _ in range(25):
        optimizer.step(lambda: case.goal(distance([x, y])))
    assert not identical(y.detach(), y_before)
    assert distance([x, y]).item() < before
    assert optimizer.evaluations > evaluations
    assert parameters_step(optimizer) == steps + 25


def test_step_is_defined_once(entry: Entry) -> None:
    """C35: ``step`` is the base's, so hooks fire once; the class is a leaf below it, or a variant of one."""
    entry.make([vector(2)])
    assert inspect.unwrap(entry.cls.step) is inspect.unwrap(GradientFreeOptimizer.step)
    assert "__init_subclass__" not in vars(entry.cls)
    assert set(entry.cls.__subclasses__()) == {other.cls for other in ENTRIES if other.variant_of is entry.cls}
    above = (
        [GradientFreeOptimizer, Optimizer] if entry.variant_of is None else [entry.variant_of, GradientFreeOptimizer]
    )
    assert list(entry.cls.__mro__[1:3]) == above
    assert not inspect.isabstract(entry.cls)
