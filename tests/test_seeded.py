"""Populations that are drawn from seeds: against rows drawn by hand, their statistics, and their memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_gfo
from tests.helpers import assert_identical, seeded
from torch_gfo.closure import Memory
from torch_gfo.perturbation import Seeded, perturbed
from torch_gfo.search import Search, generator
from torch_gfo.space import Frame

DIM = 37
DOUBLE = torch.float64
CLASSES = pytest.mark.parametrize(
    ("name", "options"),
    [
        ("OpenAIES", {"popsize": 10}),
        ("OpenAIES", {"popsize": 10, "mirrored": True}),
        ("PGPE", {"popsize": 10}),
        ("ARS", {"n_directions": 5, "n_top": 3}),
        ("SPSA", {"n_probes": 5}),
    ],
    ids=str,
)


def search(dim: int = DIM, step: int = 0, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Search:
    rng = generator(seed, "test", step, torch.device("cpu"))
    zero = torch.zeros((), dtype=dtype)
    return Search(torch.linspace(-1, 1, dim, dtype=dtype), zero, False, zero, rng)


def within(start: Search, low: float, high: float) -> Search:
    return replace(start, lower=torch.full_like(start.point, low), upper=torch.full_like(start.point, high))


def draw(start: Search, popsize: int, **options: Any) -> Seeded:
    population = perturbed(start, popsize, "seeded", **options)
    assert isinstance(population, Seeded)
    return population


def by_hand(start: Search, popsize: int, *, mirrored: bool, signs: bool) -> Tensor:
    """The perturbations, from the key that the step's generator gives."""
    key = int(torch.randint(2**62, (), generator=start.rng))
    rows = []
    for i in range(popsize // (1 + mirrored)):
        rng = torch.Generator().manual_seed(key + i)
        signed = torch.randint(2, (DIM,), generator=rng).to(DOUBLE) * 2 - 1 if signs else None
        rows.append(torch.randn(DIM, generator=rng, dtype=DOUBLE) if signed is None else signed)
    e = torch.stack(rows)
    return torch.cat([e, -e]) if mirrored else e


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("walls", [False, True])
def test_rows_and_sums(walls: bool, scaled: bool, mirrored: bool, signs: bool) -> None:
    """Whatever part is asked for, candidates are the same to the last bit; sums are those of the rows."""
    start = within(search(), -1.5, 1.2) if walls else search()
    scale = torch.linspace(0.1, 2, DIM, dtype=DOUBLE) if scaled else None
    e = by_hand(search(), 8, mirrored=mirrored, signs=signs)
    expected = start.reflect(start.point + e * (1.0 if scale is None else scale))
    population = draw(start, 8, mirrored=mirrored, signs=signs, scale=scale)
    rows = population.rows()
    torch.testing.assert_close(rows, expected)
    assert (len(population), population.dtype, population.device) == (8, DOUBLE, start.device)
    assert_identical(torch.stack(list(population)), rows)
    for index in (slice(1, 6), torch.tensor([7, 0, 0, 4, 3]), slice(5, 5)):
        assert_identical(population[index].rows(), rows[index])
        assert_identical(population[2:][:5][1:].rows(), rows[3:7])
    for size in (1, 3, 8, 20):
        assert_identical(torch.cat([part.rows() for part in population.split(size)]), rows)

    e = (rows - start.point) / (1.0 if scale is None else scale)
    for weights in (
        torch.linspace(-0.5, 0.7, 8, dtype=DOUBLE),
        torch.tensor([0, 1, 0, 0, 0, -2, 0, 0.0], dtype=DOUBLE),
    ):
        torch.testing.assert_close(population.weighted_sum(weights), weights @ e)
        total, squares = population.moments(weights)
        torch.testing.assert_close(total, weights @ e)
        torch.testing.assert_close(squares, weights @ e.square())
    assert not population.weighted_sum(torch.zeros(8, dtype=DOUBLE)).any()


def test_sums_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any size; what has no weight is not drawn, and a mirrored pair is drawn once."""
    drawn = []
    fill = torch_gfo.perturbation._fill
    monkeypatch.setattr(
        torch_gfo.perturbation,
        "_fill",
        lambda row, rng, signs: (drawn.append(rng.initial_seed()), fill(row, rng, signs=signs)),
    )
    population = draw(search(), 40, mirrored=True)
    weights = torch.linspace(-1, 1, 40, dtype=DOUBLE)
    weights[[3, 23, 8]] = 0  # a pair, and half of one
    expected = weights @ (population.rows() - population.center)
    for numbers in (1, 5 * DIM, 10**6):
        monkeypatch.setattr(torch_gfo.perturbation, "_BLOCK", numbers)
        drawn.clear()
        torch.testing.assert_close(population.weighted_sum(weights), expected)
        assert len(set(drawn)) == 19
        assert len(drawn) <= 19 + (0 if numbers == 10**6 else 19)
    assert len(drawn) == 19


def test_center() -> None:
    center = torch.full((DIM,), 3.0, dtype=DOUBLE)
    rows = draw(search(), 6, mirrored=True, center=center).rows()
    torch.testing.assert_close(rows[:3] - center, center - rows[3:])
    assert rows.mean() == pytest.approx(3.0)


def test_a_frame_maps_the_rows() -> None:
    """In a subspace, within bounds, or neither: what rows become, without forming them all."""
    x, point = torch.linspace(2, 3, DIM, dtype=DOUBLE), search().point - 0.1
    scale = torch.linspace(0, 1, DIM, dtype=DOUBLE)
    basis = torch.linalg.qr(torch.eye(DIM, dtype=DOUBLE) + 0.1)[0]
    side = torch.full_like(x, 2.4)
    frames = (
        Frame(x, point, scale, scale),
        Frame(x, point, scale, scale, lower=-side, upper=side),
        Frame(x, point, scale, scale, basis=basis),
        Frame(x, point, scale, scale, lower=-side, upper=side, basis=basis),
    )
    for frame, start in itertools.product(frames, (search(), within(search(), -1.5, 1.2))):
        if frame.lower is None and start.lower is not None:
            continue
        population = draw(start, 6, mirrored=True)
        mapped, rows = frame.parameters(population), frame.parameters(population.rows())
        assert isinstance(mapped, Seeded)
        assert isinstance(rows, Tensor)
        torch.testing.assert_close(mapped.rows(), rows)
        torch.testing.assert_close(mapped[1:3].rows(), rows[1:3])
        if frame.basis is None:
            assert_identical(mapped[1:3].rows(), mapped.rows()[1:3])
            assert bool((mapped.rows()[:, 0] == x[0]).all())  # scale 0


# Statistics of the noise.


def noise(step: int = 0, popsize: int = 2000, dim: int = 50, **options: Any) -> Tensor:
    """Perturbations in float32, as networks have them."""
    center = torch.zeros(dim)  # so that nothing is rounded
    return draw(search(dim, step, dtype=torch.float32), popsize, center=center, **options).rows().double()


def test_moments_of_the_noise() -> None:
    """Of 100,000 normal numbers: mean within 5 / sqrt(n), variance within 5 sqrt(2 / n), kurtosis 5 sqrt(24 / n)."""
    e = noise().flatten()
    n = len(e)
    assert abs(e.mean()) < 5 / math.sqrt(n)
    assert abs(e.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs(e.pow(3).mean()) < 5 * math.sqrt(15 / n)
    assert abs(e.pow(4).mean() - 3) < 5 * math.sqrt(96 / n)
    signs = noise(signs=True)
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs))
    assert abs(signs.mean()) < 5 / math.sqrt(n)


@pytest.mark.parametrize("signs", [False, True])
def test_candidates_coordinates_and_steps_are_independent(signs: bool) -> None:
    """Correlations of neighbouring seeds, of coordinates (so of tensors), and of steps, against 1 / sqrt(n).

    Squares of normal numbers too: they show what correlations of symmetric numbers hide.
    """
    popsize, dim = 400, 3000
    first, second = (noise(step, popsize, dim, signs=signs) for step in (0, 1))
    pairs = [(first, second)] if signs else [(first, second), (first.square() - 1, second.square() - 1)]
    for a, b in pairs:
        a, b = (v / v.square().mean().sqrt() for v in (a, b))
        between = a @ a.T / dim
        between.fill_diagonal_(0)
        assert between.abs().max() < 7 / math.sqrt(dim)  # of 80,000 pairs
        assert between.square().mean().sqrt() * math.sqrt(dim) == pytest.approx(1, abs=0.03)
        along = a.T @ a / popsize
        along.fill_diagonal_(0)
        assert along.square().mean().sqrt() * math.sqrt(popsize) == pytest.approx(1, abs=0.03)
        across = a @ b.T / dim
        assert across.square().mean().sqrt() * math.sqrt(dim) == pytest.approx(1, abs=0.03)
    assert len(first.unique(dim=0)) == popsize


def test_draws_depend_on_the_key_alone() -> None:
    with seeded():
        first = draw(search(), 4).rows()
    torch.randn(3)
    assert_identical(first, draw(search(), 4).rows())
    assert not (first == draw(search(step=1), 4).rows()).any()
    assert not (first == draw(search(seed=1), 4).rows()).any()


def test_seeds_that_torch_cannot_tell_apart() -> None:
    """Its generator on a CPU knows 32 bits of a seed: drawn at random, of 100,000 of them two would be alike."""
    seeds = draw(search(2), 100_000).draws[:, 0]
    assert len((seeds % 2**32).unique()) == 100_000


# In a search.


def network() -> tuple[nn.Module, Callable[[], Tensor]]:
    with seeded():
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        inputs = torch.randn(20, 6)
    return model, lambda: nn.functional.mse_loss(model(inputs), inputs.prod(1, keepdim=True))


def trained(name: str, n_steps: int = 5, **options: Any) -> Tensor:
    model, closure = network()
    optimizer = getattr(torch_gfo, name)(model.parameters(), seed=0, perturbation="seeded", **options)
    for _ in range(n_steps):
        optimizer.step(closure)
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@CLASSES
@pytest.mark.parametrize("common", [{}, {"bounds": (-2.0, 2.0)}, {"subspace": 7}, {"weight_decay": 0.1}], ids=str)
def test_chunks_change_nothing(common: dict[str, Any], name: str, options: dict[str, Any]) -> None:
    """Plain calls, or a batch in chunks of any size: the same search, up to rounding."""
    options = {**options, **common}
    plain = trained(name, evaluation="sequential", **options)
    for chunk_size in (1, 3, None):
        batched = trained(name, evaluation="vectorized", chunk_size=chunk_size, **options)
        torch.testing.assert_close(batched, plain, rtol=1e-3, atol=1e-5)  # Adam divides by what is nearly nothing


@CLASSES
@pytest.mark.parametrize("evaluation", ["sequential", "vectorized"])
def test_memory_of_a_step(evaluation: str, name: str, options: dict[str, Any]) -> None:
    """A population of 64 x 0.5 MB in all, of which never more than some rows are held."""
    popsize = 64
    options = {**options, "popsize": popsize} if "popsize" in options else {**options}
    options |= {key: popsize // 2 for key in ("n_directions", "n_probes") if key in options}
    with seeded():
        weight = nn.Parameter(torch.randn(128, 1024))
    row = weight.numel() * weight.element_size()

    def peak(perturbation: str) -> float:
        optimizer = getattr(torch_gfo, name)(
            [weight], seed=0, perturbation=perturbation, evaluation=evaluation, chunk_size=2, **options
        )
        optimizer.step(lambda: weight.square().mean())  # the batched pass examines the closure
        with Memory() as memory:
            optimizer.step(lambda: weight.square().mean())
        return memory.peak / row

    assert peak("seeded") < 25  # 8 of them in a block of a sum, a few in a chunk, vectors of the update
    assert peak("dense") > popsize


def test_a_population_of_400_megabytes() -> None:
    """Its step takes less memory than 20 of its 200 rows, of 500,000 numbers each."""
    weight = nn.Parameter(torch.ones(500, 1000))
    optimizer = torch_gfo.OpenAIES([weight], seed=0, popsize=200, perturbation="seeded", evaluation="sequential")
    with Memory() as memory:
        optimizer.step(lambda: weight.square().mean())
    assert memory.peak < 20 * 4 * weight.numel()


def test_more_candidates_than_memory() -> None:
    """The guard of memory knows that seeds are small: a dense population would take 4 TB."""
    weight = nn.Parameter(torch.zeros(1000, 100))
    with pytest.raises(RuntimeError, match="would hold"):
        torch_gfo.OpenAIES([weight], popsize=10**7)
    torch_gfo.OpenAIES([weight], popsize=10**7, perturbation="seeded")
