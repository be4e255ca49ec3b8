"""Populations: factors against the algebra of dense rows, and the statistics of the noise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.helpers import assert_identical, seeded
from torch_gfo.perturbation import Dense, Layout, LowRank, Population, as_rows, perturbed
from torch_gfo.search import Search, generator
from torch_gfo.space import Frame

SHAPES = [(4, 5), (7,), (), (3, 2, 2, 2), (1, 9), (2, 2)]
FACTORED = {1: [0, 3], 2: [0, 3], 3: []}  # those that r (m + n) numbers stand for
SIZES = [math.prod(shape) for shape in SHAPES]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
RANKS = pytest.mark.parametrize("rank", [1, 2, 3])


def search(shapes: list[tuple[int, ...]] | None, dim: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Search:
    rng = generator(seed, "test", 0, torch.device("cpu"))
    zero = torch.zeros((), dtype=dtype)
    return Search(torch.linspace(-1, 1, dim, dtype=dtype), zero, False, zero, rng, shapes=shapes)


def low_rank(popsize: int, rank: int, dtype: torch.dtype = torch.float64, *, mirrored: bool = False) -> LowRank:
    population = perturbed(search(SHAPES, sum(SIZES), dtype), popsize, mirrored=mirrored, rank=rank)
    assert isinstance(population, LowRank)
    return population


def by_hand(population: LowRank, rank: int) -> Tensor:
    """The perturbations, entry by entry, from the documented order of the numbers."""
    rows = []
    for numbers in population.numbers.tolist():
        row: list[float] = []
        for index, (shape, size) in enumerate(zip(SHAPES, SIZES, strict=True)):
            if index in FACTORED[rank]:
                m, n = shape[0], size // shape[0]
                a, b, numbers = numbers[: rank * m], numbers[rank * m : rank * (m + n)], numbers[rank * (m + n) :]
                row += [sum(a[k * m + i] * b[k * n + j] for k in range(rank)) for i in range(m) for j in range(n)]
            else:
                row, numbers = row + numbers[:size], numbers[size:]
        assert not numbers
        rows.append(row)
    return torch.tensor(rows, dtype=population.dtype)


@DTYPES
@RANKS
@pytest.mark.parametrize("mirrored", [False, True])
def test_factors_equal_dense_algebra(mirrored: bool, rank: int, dtype: torch.dtype) -> None:
    """Rows, single candidates, parts and weighted sums, as those of the products formed by hand."""
    population = low_rank(6, rank, dtype, mirrored=mirrored)
    e = by_hand(population, rank)
    torch.testing.assert_close(population.rows(), population.center + e)
    torch.testing.assert_close(torch.stack(list(population)), population.center + e)
    assert (len(population), population.dtype, population.device) == (6, dtype, e.device)
    for index in (slice(1, 4), torch.tensor([5, 0, 0])):
        torch.testing.assert_close(population[index].rows(), population.center + e[index])
    pieces = population.split(4)
    assert [len(piece) for piece in pieces] == [4, 2]
    torch.testing.assert_close(torch.cat([piece.rows() for piece in pieces]), population.center + e)
    weights = torch.linspace(-0.5, 0.7, 6, dtype=dtype)
    torch.testing.assert_close(population.weighted_sum(weights), weights @ e)
    if mirrored:
        torch.testing.assert_close(e[:3], -e[3:])


@DTYPES
@pytest.mark.parametrize("origin", [False, True])
def test_dense_rows_are_made_when_they_are_asked_for(origin: bool, dtype: torch.dtype) -> None:
    """Rows, single candidates, parts and weighted sums; with scale 0, exactly the common point."""
    dim, weights = 7, torch.linspace(-0.5, 0.7, 6, dtype=dtype)
    with seeded():
        center, numbers, where = (torch.randn(*shape, dtype=dtype) for shape in ((dim,), (6, dim), (dim,)))
    given, e = numbers.clone(), numbers - where if origin else numbers
    scale = torch.arange(dim, dtype=dtype)
    whole = Dense(center, numbers, origin=where if origin else None)
    for population, factor in ((whole, 1), (whole.placed(center, scale), scale), (whole.placed(center, scale[2]), 2)):
        torch.testing.assert_close(population.rows(), center + factor * e)
        torch.testing.assert_close(torch.stack(list(population)), center + factor * e)
        torch.testing.assert_close(population.rows(torch.empty(6, dim, dtype=dtype)), center + factor * e)
        for index in (slice(1, 4), torch.tensor([5, 0, 0])):
            torch.testing.assert_close(population[index].rows(), center + factor * e[index])
        torch.testing.assert_close(population.weighted_sum(weights), factor * (weights @ e))
        assert (len(population), population.dtype, population.device) == (6, dtype, e.device)
        population.rows().zero_()
        assert_identical(numbers, given)
    assert_identical(whole.placed(center, scale).rows()[:, 0], center[:1].expand(6))


@RANKS
def test_frame_gives_each_tensor_its_scale(rank: int) -> None:
    """What low rank becomes as parameters is what its rows become; with scale 0, exactly the model's values."""
    population = low_rank(5, rank)
    dim = sum(SIZES)
    scale = torch.cat([torch.full((size,), factor) for size, factor in zip(SIZES, range(len(SIZES)), strict=True)])
    x = torch.linspace(2, 3, dim, dtype=torch.float64)
    for factors in (scale.double(), torch.tensor(0.3, dtype=torch.float64)):
        frame = Frame(x, population.center - 0.1, factors, factors)
        mapped = frame.parameters(population)
        assert isinstance(mapped, LowRank)
        rows = frame.parameters(population.rows())
        assert isinstance(rows, Tensor)
        torch.testing.assert_close(mapped.rows(), rows)
        assert not factors.ndim or bool((mapped.rows()[:, : SIZES[0]] == x[: SIZES[0]]).all())


@RANKS
def test_a_frame_that_knows_no_matrices(rank: int) -> None:
    """Within bounds, and in a subspace, the rows are mapped."""
    population, dim = low_rank(5, rank), sum(SIZES)
    one = torch.ones((), dtype=torch.float64)
    frame = Frame(torch.zeros(dim, dtype=torch.float64), population.center, one, one)
    side = torch.full((dim,), 0.5, dtype=torch.float64)
    for other in (replace(frame, lower=-side, upper=side), replace(frame, basis=torch.eye(dim, dtype=torch.float64))):
        assert_identical(other.parameters(population), other.parameters(population.rows()))


def test_what_is_dense() -> None:
    """No rank, walls, or coordinates that belong to no matrices."""
    start = search(SHAPES, sum(SIZES))
    assert isinstance(perturbed(start, 4), Dense)
    walls = torch.full_like(start.point, 1.5)
    inside = perturbed(replace(start, lower=-walls, upper=walls), 4, rank=1)
    assert isinstance(inside, Dense)
    assert bool((inside.rows().abs() <= 1.5).all())
    weights = torch.tensor([0.5, -0.25, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(inside.weighted_sum(weights), weights @ (inside.rows() - start.point))
    numbers, vector = (perturbed(search(shapes, 12), 4, rank=1) for shapes in (None, [(12,)]))
    assert isinstance(numbers, LowRank)
    assert numbers.numbers.shape == (4, 12)
    assert_identical(numbers.rows(), vector.rows())


def test_numbers_of_a_candidate() -> None:
    """r (m + n) for a matrix, where that is less than m n."""
    assert Layout([(100, 30, 3, 3)], 2).n_numbers == 2 * (100 + 270)
    assert Layout([(4, 4)], 2).n_numbers == 16
    assert Layout([(4, 5)], 2).n_numbers == 18
    assert Layout([(128, 784), (128,), (10, 128), (10,)], 1).n_numbers == 912 + 128 + 138 + 10
    assert Layout([], 1).n_numbers == 0


def entries(rank: int | None, popsize: int, mirrored: bool = False) -> Tensor:
    """Perturbations of a matrix 5 x 6 and a vector of 3, in many candidates."""
    start = search([(5, 6), (3,)], 33)
    population: Population = perturbed(start, popsize, mirrored=mirrored, rank=rank)
    return as_rows(population) - start.point


@pytest.mark.parametrize("rank", [None, 1, 2])
@pytest.mark.parametrize("mirrored", [False, True])
def test_moments(mirrored: bool, rank: int | None) -> None:
    """Mean 0, variance 1, uncorrelated, as the estimate of a gradient takes for granted.

    The standard error of a covariance is sqrt(E[x^2 y^2] / n), at most sqrt(9 / n) for entries of rank one: 1 % for
    n = 90,000 independent ones. Of 561 of them, none is 5 errors away.
    """
    n = 90_000
    e = entries(rank, n * (1 + mirrored), mirrored)
    assert float(e.mean(0).abs().max()) < (1e-12 if mirrored else 5 / math.sqrt(n))
    covariance = e.T @ e / len(e)
    assert float((covariance - torch.eye(33)).abs().max()) < 5 * 3 / math.sqrt(n)
    assert float((covariance - torch.eye(33)).abs().mean()) < 1.2 * 3 / math.sqrt(n)


@pytest.mark.parametrize(("rank", "kurtosis"), [(None, 3.0), (1, 9.0), (2, 6.0)])
def test_entries_of_low_rank_are_not_normal(rank: int | None, kurtosis: float) -> None:
    """E[x^4] is 3 + 6 / r: a sum of r products of two normal numbers. The vector's entries are normal."""
    fourth = entries(rank, 200_000).pow(4).mean(0)
    assert float(fourth[:30].mean()) == pytest.approx(kurtosis, rel=0.05)
    assert float(fourth[30:].mean()) == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("rank", [1, 2])
def test_rank_of_the_matrices(rank: int) -> None:
    assert set(torch.linalg.matrix_rank(entries(rank, 50)[:, :30].view(-1, 5, 6)).tolist()) == {rank}


def test_population_is_small() -> None:
    """1,024 candidates of a layer take less than a twentieth of the memory of their rows."""
    shapes = [(1024, 256), (1024,), (256, 1024), (256,)]
    numbers = Layout(shapes, 1).n_numbers
    assert numbers < 0.05 * sum(math.prod(shape) for shape in shapes)


def test_draws_depend_on_the_key_alone() -> None:
    with seeded():
        first = low_rank(4, 1).numbers
    torch.randn(3)
    assert_identical(first, low_rank(4, 1).numbers)
