"""Private random numbers, and mirrors at the walls of a box."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import assert_identical, identical
from torch_gfo import search as module
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


def many(index: int = 0, dtype: torch.dtype = torch.float32, seed: int = 0) -> Search:
    zero = torch.zeros((), dtype=dtype)
    return Search(zero.repeat(3), zero, False, zero, generator(seed, "test", index, CPU))


MANY = (400, 5_003)  # several blocks, the last of them not full, and of no power of two


def test_many_normal_numbers() -> None:
    """Moments, the shares beyond 1 to 4 deviations, and 2^16 levels.

    Standard errors are sqrt(var / n) for n = 2 million; the bounds are 5 of them.
    """
    z = many().normal(*MANY)
    assert (z.shape, z.dtype) == (MANY, torch.float32)
    numbers, n = z.double().flatten(), z.numel()
    for power, (expected, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96), 6: (15, 10170)}.items():
        assert float(numbers.pow(power).mean()) == pytest.approx(expected, abs=5 * math.sqrt(variance / n)), power
    for limit in (1.0, 2.0, 3.0, 4.0):
        share = math.erfc(limit / math.sqrt(2))
        for side in (numbers > limit, numbers < -limit):
            assert float(side.double().mean()) == pytest.approx(share / 2, abs=5 * math.sqrt(share / 2 / n) + 2**-17)
    levels = numbers.unique()
    assert len(levels) == 2**16  # a level is missed with probability exp(-30)
    assert_identical(levels, -levels.flip(0))


def test_table_of_normal_numbers() -> None:
    """The 65,536 values have mean zero and variance one, which quantiles alone miss by 2e-5."""
    values = module._quantiles().double()
    assert len(values.unique()) == 2**16
    assert abs(float(values.mean())) < 1e-8
    assert float(values.square().mean()) == pytest.approx(1, abs=1e-6)  # of float32


def test_many_uniform_numbers() -> None:
    """In 256 classes of equal width the counts differ as they should: chi squared, 255 +- 5 * 22.6; never 0 or 1."""
    u = many().uniform(*MANY)
    assert 0 < u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    counts = torch.histc(u, 256, 0, 1).double()
    mean = u.numel() / 256
    assert float(((counts - mean) ** 2 / mean).sum()) == pytest.approx(255, abs=5 * math.sqrt(2 * 255))
    assert float(u.double().mean()) == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / u.numel()))


def test_many_numbers_are_independent() -> None:
    """Neither rows, columns, neighbours, numbers of one 64-bit word, squares, blocks nor steps are correlated.

    A correlation of n independent pairs has the standard error 1 / sqrt(n).
    """
    s = many()
    z = s.normal(*MANY)
    z = (z / z.std()).double()
    for matrix in (z[:, :400], z[:400, -400:].T, z[:, :400].square().sub(1).div(math.sqrt(2))):
        correlations = (matrix @ matrix.T / matrix.shape[1]).fill_diagonal_(0)
        assert float(correlations.abs().max()) < 6.5 / math.sqrt(400)  # squares have long tails
        assert float(correlations.square().mean()) * 400 == pytest.approx(1, abs=0.05)
    flat, n = z.flatten(), z.numel()
    for lag in (1, 2, 3, 4, 5, 8, 624, 1248, 2496, 5_003, 2**16, 2**18, 2**20):
        one, other = flat[:-lag], flat[lag:]
        assert abs(float(one @ other)) / (n - lag) < 5 / math.sqrt(n - lag), lag
        assert abs(float((one**2 - 1) @ (other**2 - 1))) / 2 / (n - lag) < 5 / math.sqrt(n - lag), lag
    for other in (s.normal(*MANY), many(1).normal(*MANY), many(seed=1).normal(*MANY)):
        assert abs(float(flat @ other.double().flatten())) / n < 5 / math.sqrt(n)


def test_many_numbers_depend_on_the_key_alone() -> None:
    one, same = many(), many()
    assert_identical(one.normal(*MANY), same.normal(*MANY))
    assert_identical(one.uniform(*MANY), same.uniform(*MANY))
    assert not identical(many().normal(*MANY), many(1).normal(*MANY))
    assert not identical(same.normal(*MANY), many().normal(*MANY))


def test_many_numbers_in_double_precision() -> None:
    """Where digits matter, all are random."""
    s = many(dtype=torch.float64)
    assert len(s.normal(300_000).unique()) > 299_990
    assert len(s.uniform(300_000).unique()) > 299_990


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
