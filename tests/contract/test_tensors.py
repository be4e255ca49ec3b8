"""Parameters of all kinds: complex, frozen, tied, strided, empty, of mixed precision; bounds."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import assert_identical, distance, identical, mlp, parameters_of, vector
from tests.registry import Case, Entry


def test_complex(case: Case) -> None:
    """C5: a complex parameter is searched as its real view is, at every call of the closure."""
    z, mixed = vector(2, 3, dtype=torch.complex64), vector(3, seed=1)
    real, beside = nn.Parameter(torch.view_as_real(z.detach().clone())), vector(3, seed=1)
    one, other = (case.make(p, sigma=0.3, evaluation="sequential") for p in ([z, mixed], [real, beside]))
    points: list[Tensor] = []
    real_points: list[Tensor] = []

    def closure() -> Tensor:
        points.append(torch.view_as_real(z.detach().clone()))
        return case.goal(distance([z, mixed]))

    def real_closure() -> Tensor:
        real_points.append(real.detach().clone())
        return case.goal(distance([real, beside]))

    for _ in range(5):
        one.step(closure)
        other.step(real_closure)
    assert_identical(points, real_points)
    assert_identical(torch.view_as_real(z.detach()), real.detach())
    assert_identical(mixed, beside)
    assert not identical(mixed, vector(3, seed=1))


def test_complex_vectorized(batching: Entry) -> None:
    """C5: the same holds when all candidates are evaluated at once."""
    z = vector(2, 3, dtype=torch.complex64)
    real = nn.Parameter(torch.view_as_real(z.detach().clone()))
    one, other = (batching.make([p], sigma=0.3, evaluation="vectorized") for p in (z, real))
    for _ in range(5):
        assert_identical(one.step(lambda: distance([z])), other.step(lambda: distance([real])))
    assert_identical(torch.view_as_real(z.detach()), real.detach())


def test_frozen_parameters(case: Case) -> None:
    """C31: a parameter that does not require grad keeps every bit; the others are searched as if alone."""
    x, alone = vector(4, 2), vector(4, 2)
    frozen = nn.Parameter(vector(3, seed=1).detach(), requires_grad=False)
    optimizer, reference = case.make([frozen, x]), case.make([alone])
    for _ in range(6):
        optimizer.step(lambda: case.goal(distance([x])))
        reference.step(lambda: case.goal(distance([alone])))
    assert_identical(frozen.detach(), vector(3, seed=1).detach())
    assert_identical(x, alone)


def test_freezing_in_mid_run(case: Case) -> None:
    """C31: a layer that is frozen for some steps stands still in them, in the model and in every candidate."""
    x, y = vector(4, 2), vector(3, seed=1)
    optimizer = case.make([x, y], evaluation="sequential")
    seen: list[Tensor] = []

    def closure() -> Tensor:
        seen.append(y.detach().clone())
        return case.goal(distance([x, y]))

    for step in range(8):
        y.requires_grad_(not 3 <= step < 6)
        before, x_before = y.detach().clone(), x.detach().clone()
        seen.clear()
        optimizer.step(closure)
        assert any(not identical(value, before) for value in seen) is y.requires_grad
        if not y.requires_grad:
            assert_identical(y.detach(), before)
    start = [vector(4, 2).detach(), vector(3, seed=1).detach()]
    assert not identical(x_before, start[0])
    assert distance([x, y]) < distance(start)


def test_unfreezing_in_mid_run(case: Case) -> None:
    """C31: a parameter that was frozen at construction is searched, with a warning, once it requires grad."""
    x, y = vector(4, 2), vector(3, seed=1)
    y.requires_grad_(False)
    optimizer = case.make([x, y])
    for _ in range(3):
        optimizer.step(lambda: case.goal(distance([x, y])))
    before = y.detach().clone()
    y.requires_grad_(True)
    with pytest.warns(UserWarning, match="requires grad that did not when the search began"):
        optimizer.step(lambda: case.goal(distance([x, y])))
    start = distance([x, y]).item()
    for _ in range(20):
        optimizer.step(lambda: case.goal(distance([x, y])))
    assert not identical(y.detach(), before)
    assert distance([x, y]).item() < start


def test_zoo(case: Case) -> None:
    """C32: zero-dimensional, empty, strided and plain tensors of four precisions, all in one search."""
    zoo = [
        nn.Parameter(torch.tensor(0.5, dtype=torch.float16)),
        nn.Parameter(torch.empty(0, 3)),
        nn.Parameter(vector(3, 2).detach().bfloat16().t()),
        nn.Parameter(vector(2, 4, seed=1).detach()[:, ::2]),
        vector(3, seed=2, dtype=torch.float64),
    ]
    layout = [(p.dtype, p.shape, p.stride()) for p in zoo]
    before = [p.detach().clone() for p in zoo]
    optimizer = case.make(zoo)
    for _ in range(15):
        optimizer.step(lambda: case.goal(distance(zoo)))
    assert layout == [(p.dtype, p.shape, p.stride()) for p in zoo]
    assert distance(zoo) < distance(before)
    for parameter, value in zip(zoo, before, strict=True):
        assert parameter.numel() == 0 or case.options.get("bounds") or not identical(parameter.detach(), value)


def test_strides_do_not_matter(case: Case) -> None:
    """C32: a parameter that is not contiguous is searched as its contiguous copy is."""
    plain = vector(3, 4)
    strided = nn.Parameter(plain.detach().clone().t().contiguous().t())
    assert not strided.is_contiguous()
    one, other = case.make([plain]), case.make([strided])
    for _ in range(6):
        one.step(lambda: case.goal(distance([plain])))
        other.step(lambda: case.goal(distance([strided])))
    assert_identical(plain.detach(), strided.detach())


def test_tied_weights(case: Case) -> None:
    """C32: a weight that two layers share stays shared, and is one set of coordinates."""
    task = mlp(n_batches=1, sign=-1 if case.options.get("maximize") else 1)
    first, last = nn.Linear(2, 2), nn.Linear(2, 2)
    last.weight = first.weight
    task.model = nn.Sequential(first, nn.Tanh(), last)
    optimizer = case.make(task.model.parameters())
    assert sum(p.numel() for p in parameters_of(optimizer)) == 4 + 2 + 2
    before = task.total()
    task.train(optimizer, 20)
    assert last.weight is first.weight
    assert task.total() < before


def test_low_precision_keeps_digits(case: Case) -> None:
    """C32: the search remembers more digits than bfloat16 holds: steps below its resolution add up."""
    x = nn.Parameter(torch.full((6,), 100.0, dtype=torch.bfloat16))
    optimizer = case.make([x], lr=1.0, sigma=0.05, bounds=(0.0, 200.0), weight_decay=0.0)
    start = x.detach().clone()
    for step in range(60):
        while int(optimizer.state[x]["step"]) == step:
            optimizer.tell(case.goal(optimizer.ask().sum(1)))
    assert (x < start).any()


def test_bounds(case: Case) -> None:
    """D4: every candidate and the model keep within the bounds of their group, also where the best lies outside."""
    x, y = nn.Parameter(0.2 * vector(4, 2).detach()), nn.Parameter(0.2 * vector(3, seed=1).detach())
    groups = [{"params": [x], "bounds": (-0.5, 0.6)}, {"params": [y], "bounds": (-math.inf, 0.9)}]
    optimizer = case.make(groups, evaluation="sequential")
    seen: list[Tensor] = []

    def closure() -> Tensor:
        seen.append(x.detach().clone())
        return case.goal(distance([x, y]))

    for _ in range(15):
        optimizer.step(closure)
        assert ((x >= -0.5) & (x <= 0.6)).all()
        assert (y <= 0.9).all()
    assert all(((value >= -0.5) & (value <= 0.6)).all() for value in seen)
    assert distance([x, y]) < distance([0.2 * vector(4, 2), 0.2 * vector(3, seed=1)])


def test_changes_from_outside(entry: Entry) -> None:
    """D5: parameters that somebody changes between steps count as they stand, also with deterministic=True."""
    x = vector(5)
    optimizer = entry.make([x], deterministic=True)
    for _ in range(3):
        optimizer.step(lambda: distance([x]))
    with torch.no_grad():
        x.add_(10.0)
    moved = distance([x]).detach()
    calls = []
    loss = optimizer.step(lambda: calls.append(1) or distance([x]))
    torch.testing.assert_close(loss, moved, rtol=0.0 if entry.looks_first else 0.1, atol=0.0)
    for _ in range(20):
        optimizer.step(lambda: distance([x]))
    assert distance([x]) < moved


def test_weight_decay_acts_per_group(entry: Entry) -> None:
    """D4: weight decay draws its group, and no other, towards zero."""
    x, y = vector(6), vector(6)
    optimizer = entry.make([{"params": [x], "weight_decay": 1.0}, {"params": [y]}])
    before = x.detach().norm().item()
    for _ in range(40):
        optimizer.step(lambda: torch.zeros(()))
    assert x.norm() < 0.8 * before
    assert x.norm() < 0.8 * y.norm()


def test_master_copy_is_saved(entry: Entry) -> None:
    """C18: the digits that bfloat16 parameters cannot hold survive a checkpoint."""
    x = nn.Parameter(torch.full((4,), 100.0, dtype=torch.bfloat16))
    optimizer = entry.make([x], sigma=0.05)
    while int(optimizer.state[x]["step"]) < 10:
        optimizer.tell(optimizer.ask().sum(1))
    y = nn.Parameter(x.detach().clone())
    successor = entry.make([y], sigma=0.05)
    successor.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_identical(successor.ask(), optimizer.ask())
    assert not identical(optimizer.ask()[0], optimizer.ask()[0].bfloat16().float())
