"""Private random numbers, and mirrors at the walls of a box."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import assert_identical, identical
from torch_gfo.search import Search, generator

CPU = torch.device("cpu")


def search(lower: Tensor | None = None, upper: Tensor | None = None, dtype: torch.dtype = torch.float64) -> Search:
    rng = generator(0, "test", 0, CPU)
    zero = torch.tensor(0.0, dtype=dtype)
    return Search(zero.repeat(3), zero, changed=False, drift=zero, rng=rng, lower=lower, upper=upper)


def box(low: float, high: float) -> Search:
    return search(torch.full((1,), low, dtype=torch.float64), torch.full((1,), high, dtype=torch.float64))


@given(st.integers(), st.text(max_size=5), st.integers(0, 10**9))
def test_generators_depend_on_their_key_alone(seed: int, stream: str, index: int) -> None:
    """The same key gives the same numbers, another key others, and the global generator is not touched."""
    before = torch.get_rng_state()
    one, same = (torch.rand(4, generator=generator(seed, stream, index, CPU)) for _ in range(2))
    assert_identical(one, same)
    for other in ((seed + 1, stream, index), (seed, stream + "x", index), (seed, stream, index + 1)):
        assert not identical(torch.rand(4, generator=generator(*other, CPU)), one)
    assert_identical(torch.get_rng_state(), before)


def test_draws() -> None:
    """Draws have the shape asked for, the search's dtype, and the distribution that they are named after."""
    for dtype in (torch.float32, torch.float64):
        s = search(dtype=dtype)
        normal, uniform = s.normal(2000, 3), s.uniform(2000, 3)
        assert normal.dtype == uniform.dtype == s.dtype == dtype
        assert normal.shape == uniform.shape == (2000, 3)
        assert float(normal.mean()) == pytest.approx(0, abs=0.06)
        assert float(normal.std()) == pytest.approx(1, abs=0.05)
        assert 0 <= uniform.min() < uniform.max() < 1
        assert float(uniform.mean()) == pytest.approx(0.5, abs=0.03)
        assert s.dim == 3
        assert s.device == CPU
    assert set(search().integers(3, 200).tolist()) == {0, 1, 2}
    assert sorted(search().permutation(7).tolist()) == list(range(7))


finite = st.floats(-1e3, 1e3)


@given(finite, st.floats(1e-2, 1e3), st.floats(-1e4, 1e4))
def test_mirrors_keep_inside(low: float, width: float, z: float) -> None:
    """A mirrored point lies in the box, and a point of the box stays where it is."""
    s = box(low, low + width)
    mirrored = float(s.reflect(torch.tensor([z], dtype=torch.float64)))
    tolerance = 1e-9 * (abs(z) + abs(low) + width)
    assert low - tolerance <= mirrored <= low + width + tolerance
    if low <= z <= low + width:
        assert mirrored == z


@given(finite, st.floats(1e-2, 1e2), st.floats(-1e3, 1e3), st.floats(-1e-3, 1e-3))
def test_mirrors_are_continuous(low: float, width: float, z: float, move: float) -> None:
    """Points that lie close together stay so: a mirror never tears, and never stretches."""
    s = box(low, low + width)
    one, other = (float(s.reflect(torch.tensor([value], dtype=torch.float64))) for value in (z, z + move))
    assert abs(one - other) <= abs(move) + 1e-9 * (abs(z) + abs(low) + width)


@given(finite, st.floats(0, 1e3))
def test_one_wall(wall: float, beyond: float) -> None:
    """A single wall mirrors; there is no other side to fold at."""
    outside = torch.tensor([wall - beyond], dtype=torch.float64)
    assert float(box(wall, math.inf).reflect(outside)) == pytest.approx(wall + beyond)
    assert float(box(-math.inf, wall).reflect(2 * wall - outside)) == pytest.approx(wall - beyond)
    assert float(box(wall, math.inf).reflect(outside + 2 * beyond)) == pytest.approx(wall + beyond)


def test_no_walls() -> None:
    """Without bounds, or with infinite ones, a point stays bit for bit."""
    z = torch.tensor([[1e30, -5.0, math.pi]], dtype=torch.float64)
    assert search().reflect(z) is z
    infinite = torch.full((3,), math.inf, dtype=torch.float64)
    assert_identical(search(-infinite, infinite).reflect(z), z)


@given(st.floats(-1e2, 1e2), st.floats(1e-2, 10.0), st.floats(-1e3, 1e3))
def test_mirrors_in_single_precision(low: float, width: float, z: float) -> None:
    """In float32 too a mirrored point lies in the box."""
    lower, upper = torch.full((3,), low), torch.full((3,), low + width)
    mirrored = search(lower, upper, torch.float32).reflect(torch.full((1, 3), z))
    tolerance = 1e-6 * (abs(z) + abs(low) + width)
    assert ((mirrored >= lower - tolerance) & (mirrored <= upper + tolerance)).all()
