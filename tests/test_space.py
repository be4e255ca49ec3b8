"""Parameters and the flat vector, radii, directions, and the map of search coordinates."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers import assert_identical, seeded, vector
from torch_gfo.layout import Layout
from torch_gfo.pages import Pages
from torch_gfo.perturbation import Dense, LowRank, Seeded, as_rows
from torch_gfo.products import Factored
from torch_gfo.search import generator
from torch_gfo.space import Directions, Frame, ParameterVector, as_real, automatic_scales, searchable, with_groups

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]


@st.composite
def zoos(draw: st.DrawFn, dtypes: list[torch.dtype] = DTYPES) -> list[nn.Parameter]:
    """Lists of parameters of mixed dtypes, shapes (zero-dimensional too) and strides."""
    zoo = []
    for i in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(dtypes))
        shape = draw(st.lists(st.integers(1, 4), max_size=3))
        value = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(i))
        if value.dim() and draw(st.booleans()):
            value = torch.stack([value, value], -1)[..., 0].transpose(0, -1)  # not contiguous
        zoo.append(nn.Parameter(value))
    return zoo


@given(zoos())
def test_reading_and_writing(zoo: list[nn.Parameter]) -> None:
    """Values survive the way into the vector and back, bit for bit and in place."""
    space = ParameterVector(zoo)
    before, places = [p.detach().clone() for p in zoo], [(p.data_ptr(), p.stride()) for p in zoo]
    x = space.read()
    assert x.shape == (space.dim,)
    assert x.dtype == (torch.float64 if {p.dtype for p in zoo} & {torch.float64, torch.complex128} else torch.float32)
    for p in zoo:
        p.detach().zero_()
    space.write(x)
    assert_identical([p.detach() for p in zoo], before)
    assert places == [(p.data_ptr(), p.stride()) for p in zoo]
    assert_identical(space.read(), x)


@given(zoos())
def test_stand_ins(zoo: list[nn.Parameter]) -> None:
    """The tensors that a vector stands for have each parameter's values, shape and dtype."""
    space = ParameterVector(zoo)
    stand_ins = space.tensors(space.read())
    assert list(stand_ins) == [id(p) for p in zoo]
    for p in zoo:
        assert_identical(stand_ins[id(p)].contiguous(), p.detach().contiguous())
        assert not stand_ins[id(p)].requires_grad


def test_stand_ins_of_factors() -> None:
    """Candidates of low rank stand for the same values as their dense rows; large real matrices stay factors."""
    parameters = [vector(5, 4), vector(6, 4, 3, seed=1), vector(3, seed=2), vector(9, 8, seed=3, dtype=torch.complex64)]
    space = ParameterVector(parameters)
    layout = Layout(space.shapes, 1)
    population = LowRank(space.read(), torch.randn(3, layout.n_numbers), layout)
    numbers, values = space.batch(population)
    dense_numbers, dense_values = space.batch(population.rows())
    for row, dense_row in zip(numbers, dense_numbers, strict=True):
        stand_ins, expected = values(row), dense_values(dense_row)
        for p in parameters:
            value = stand_ins[id(p)]
            assert isinstance(value, Factored) == (p.ndim > 1 and not p.is_complex())
            torch.testing.assert_close(value.dense() if isinstance(value, Factored) else value, expected[id(p)])


@given(zoos([torch.float32, torch.bfloat16]), st.integers(0, 3))
def test_merging(zoo: list[nn.Parameter], which: int) -> None:
    """The vector keeps digits that a parameter rounds away, and takes what somebody has changed."""
    space = ParameterVector(zoo)
    x = space.read() * (1 + 2**-12)
    space.write(x)
    merged, changed = space.merge(x)
    assert not changed
    assert_identical(merged, x)
    target = zoo[which % len(zoo)]
    target.detach().reshape(-1)[:1].copy_(target.detach().reshape(-1)[:1])
    first = target.detach()[(0,) * target.dim()]
    first.add_(1.0)
    merged, changed = space.merge(x)
    assert changed
    start = sum(space.sizes[: which % len(zoo)])
    assert float(merged[start]) == float(first)
    others = torch.arange(space.dim) != start
    assert_identical(merged[others], x[others])


def test_merging_keeps_the_rest_of_a_changed_tensor() -> None:
    """Values of a changed tensor that were not touched keep their digits."""
    parameter = nn.Parameter(torch.full((3,), 100.0, dtype=torch.bfloat16))
    space = ParameterVector([parameter])
    x = torch.tensor([100.1, 99.9, 100.05])
    parameter.detach()[1] = 7.0
    merged, changed = space.merge(x)
    assert changed
    assert_identical(merged, torch.tensor([100.1, 7.0, 100.05]))


def test_expanding_numbers() -> None:
    """One number a parameter, over the vector; a single one where all agree."""
    space = ParameterVector([vector(2), vector(1, dtype=torch.complex64)])
    assert_identical(space.expand([1.0, 2.0]), torch.tensor([1.0, 1.0, 2.0, 2.0]))
    assert_identical(space.expand([3.0, 3.0]), torch.tensor(3.0))
    assert_identical(ParameterVector([vector(2)]).expand([3.0]), torch.tensor(3.0))


def test_expanding_one_number_of_many() -> None:
    space = ParameterVector([vector(2), vector(3), vector(1)])
    assert_identical(space.expand([1.0, 2.0, 1.0]), torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0, 1.0]))


def test_nothing_to_read() -> None:
    """Without parameters the vector is empty."""
    space = ParameterVector([])
    assert space.dim == 0
    assert space.read().shape == (0,)
    merged, changed = space.merge(space.read())
    assert merged.shape == (0,)
    assert not changed


def test_searchable() -> None:
    """What may be moved: what requires grad and is not empty."""
    assert searchable(vector(2))
    assert searchable(vector())
    assert searchable(vector(1))
    assert searchable(vector(2, dtype=torch.complex64))
    assert not searchable(nn.Parameter(torch.ones(2), requires_grad=False))
    assert not searchable(nn.Parameter(torch.arange(2), requires_grad=False))
    assert not searchable(nn.Parameter(torch.empty(0, 3)))


def test_forms_of_parameters() -> None:
    """Tensors, named tensors, and groups of one or of several, each with its group."""
    a, b, c = (vector(2, seed=i) for i in range(3))
    for params in ([a, b], [("a", a), ("b", b)]):
        assert [tensor for tensor, _ in with_groups(params)] == [a, b]
    groups = [{"params": a, "lr": 1}, {"params": [("b", b), ("c", c)], "lr": 2}]
    assert [(id(tensor), group["lr"]) for tensor, group in with_groups(groups)] == [(id(a), 1), (id(b), 2), (id(c), 2)]


def test_real_views_share_memory() -> None:
    """The real view of a complex tensor writes through."""
    z = vector(3, dtype=torch.complex64)
    as_real(z).zero_()
    assert_identical(z.detach(), torch.zeros(3, dtype=torch.complex64))


SCALES: dict[str, tuple[list[Tensor], list[float]]] = {
    "standard_deviation": ([torch.tensor([1.0, 3.0])], [1.0]),
    "one_number": ([torch.tensor(-4.0)], [4.0]),
    "all_equal": ([torch.full((5,), 2.0)], [2.0]),
    "zeros_beside_others": (
        [torch.tensor([-3.0, 3.0]), torch.zeros(4), torch.tensor(4.0)],
        [3.0, math.sqrt(12.5), 4.0],
    ),
    "zeros_beside_small_numbers": ([torch.zeros(2), torch.tensor([-0.1, 0.1])], [0.1, 0.1]),
    "nothing_known": ([torch.zeros(3), torch.zeros(())], [1.0, 1.0]),
    "not_finite": ([torch.tensor([math.nan, 1.0]), torch.tensor([-2.0, 2.0])], [2.0, 2.0]),
    "too_large_to_square": (
        [torch.tensor([-1e200, 1e200], dtype=torch.float64), torch.tensor([-2.0, 2.0])],
        [2.0, 2.0],
    ),
    "complex": ([torch.tensor([1 + 3j])], [1.0]),
    "half": ([torch.tensor([-200.0, 200.0], dtype=torch.float16)], [200.0]),
}


@pytest.mark.parametrize("name", SCALES)
def test_automatic_scales(name: str) -> None:
    """The radius follows the documented rules, and the fraction."""
    tensors, expected = SCALES[name]
    assert automatic_scales(tensors, 1.0) == pytest.approx(expected)
    assert automatic_scales(tensors, 0.25) == pytest.approx([0.25 * scale for scale in expected])


@given(zoos([torch.float32, torch.float64]), st.floats(0.01, 100.0))
def test_automatic_scales_follow_the_scale(zoo: list[nn.Parameter], factor: float) -> None:
    """Parameters ten times as large are explored ten times as far."""
    larger = [nn.Parameter(factor * p.detach()) for p in zoo]
    expected = [factor * scale for scale in automatic_scales(zoo, 0.3)]
    assert automatic_scales(larger, 0.3) == pytest.approx(expected, rel=1e-4)


def drawn(dim: int, k: int, seed: int, dtype: torch.dtype, step: int = 0, refresh: int | None = None) -> Tensor:
    basis = Directions(seed, k, refresh).basis(torch.zeros(dim, dtype=dtype), step)
    assert basis is not None
    return basis


def test_directions_are_renewed() -> None:
    """Others are drawn every ``refresh`` steps, and only then."""
    assert_identical(drawn(9, 3, 0, torch.float64, 3, 2), drawn(9, 3, 0, torch.float64, 2, 2))
    assert not torch.equal(drawn(9, 3, 0, torch.float64, 3, 2), drawn(9, 3, 0, torch.float64, 4, 2))
    assert_identical(drawn(9, 3, 0, torch.float64, 100), drawn(9, 3, 0, torch.float64, 0))


def test_directions_are_drawn_once() -> None:
    """The same tensor as long as the step needs the same directions; a vector of another kind gets its own."""
    directions = Directions(0, 2, 5)
    basis = directions.basis(torch.zeros(4), 0)
    assert directions.basis(torch.ones(4), 4) is basis
    other = directions.basis(torch.zeros(4, dtype=torch.float64), 4)
    assert other is not None
    assert other.dtype == torch.float64
    larger = directions.basis(torch.zeros(6), 4)
    assert larger is not None
    assert larger.shape == (6, 2)
    again = directions.basis(torch.zeros(4), 0)
    assert again is not None
    assert_identical(again, basis)


def test_directions_without_a_subspace() -> None:
    """None where there is no subspace."""
    assert Directions(0, None, None).basis(torch.zeros(4), 0) is None


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 5))
def test_basis(dim: int, k: int, seed: int) -> None:
    """Directions are orthogonal, of norm sqrt(dim / k), and depend on the seed alone."""
    k = min(k, dim)
    basis, again = (drawn(dim, k, seed, torch.float64) for _ in range(2))
    assert basis.shape == (dim, k)
    torch.testing.assert_close(basis.T @ basis, dim / k * torch.eye(k, dtype=torch.float64))
    assert_identical(basis, again)


def test_basis_moves_each_parameter_by_one() -> None:
    """A standard normal vector of few coordinates displaces each parameter by about one unit."""
    basis = drawn(500, 10, 0, torch.float32)
    with seeded():
        displacement = torch.randn(1000, 10) @ basis.T
    assert displacement.square().mean().sqrt() == pytest.approx(1.0, abs=0.05)


@settings(max_examples=50)
@given(st.integers(1, 8), st.booleans(), st.integers(0, 1000))
def test_frame(dim: int, bounded: bool, seed: int) -> None:
    """Coordinates of the model map to its parameters bit for bit; displacements scale; walls hold."""
    with seeded(seed):
        x, point, z = torch.randn(dim), torch.randn(dim), 3 * torch.randn(4, dim)
        scale = torch.rand(dim) + 0.01
    lower, upper = (x - 0.5, x + torch.rand(dim)) if bounded else (None, None)
    frame = Frame(x, point, scale, scale, lower, upper)
    assert_identical(frame.parameters(point[None])[0], x)
    values = frame.parameters(z)
    if not bounded:
        torch.testing.assert_close(values - x, scale * (z - point), rtol=1e-4, atol=1e-5)
        assert frame.box() == (None, None)
        return
    assert ((values >= lower) & (values <= upper)).all()
    low, high = frame.box()
    assert low is not None
    assert high is not None
    assert ((low <= point) & (point <= high)).all()
    torch.testing.assert_close(frame.parameters(low[None])[0], lower, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(frame.parameters(high[None])[0], upper, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [4, 70_000])
def test_populations_in_a_frame(n: int) -> None:
    """Whatever the candidates are, and however many, they map to the same parameters."""
    with seeded():
        x, point, center, z = torch.randn(2), torch.randn(2), torch.randn(2), torch.randn(n, 2)
    scale = torch.tensor([0.5, 2.0])
    expected = x + scale * (center + 0.3 * z - point)
    draws = torch.stack([torch.arange(3), torch.tensor([1, -1, 1])], 1)
    population = Seeded(center, draws, torch.tensor(0.3))
    for lower, upper in ((None, None), (torch.tensor(-0.5), torch.tensor(0.7))):
        frame = Frame(x, point, scale, scale, lower, upper)
        for candidates in (center + 0.3 * z, Dense(center, z, torch.tensor(0.3))):
            rows = as_rows(frame.parameters(candidates))
            torch.testing.assert_close(rows, expected.clamp(lower, upper) if lower is not None else expected)
        drawn = x + scale * (population.rows() - point)
        torch.testing.assert_close(
            as_rows(frame.parameters(population)), drawn.clamp(lower, upper) if lower is not None else drawn
        )


def test_many_rows_are_made_when_they_are_asked_for() -> None:
    """A population that fills the cache takes no second piece of memory; a small one is rows at once."""
    frame = Frame(torch.zeros(2), torch.zeros(2), *2 * [torch.tensor(0.5)])
    assert isinstance(frame.parameters(torch.ones(2**16, 2)), Dense)
    assert isinstance(frame.parameters(torch.ones(2**4, 2)), Tensor)


def test_seeded_candidates_stay_seeds() -> None:
    """Also within bounds and in a subspace they are drawn when they are asked for, not held as rows."""
    population = Seeded(torch.zeros(2), torch.tensor([[0, 1], [1, 1]]))
    walls = {"lower": torch.tensor(-1.0), "upper": torch.tensor(1.0)}
    for options in ({}, walls, {"basis": torch.eye(2)}):
        frame = Frame(torch.zeros(2), torch.zeros(2), *2 * [torch.tensor(0.5)], **options)
        assert isinstance(frame.parameters(population), Seeded)


def test_frame_without_scale() -> None:
    """Coordinates whose scale is zero stay, bounds or not, and have no walls."""
    x = torch.tensor([5.0, 0.1])
    frame = Frame(x, torch.zeros(2), *2 * [torch.tensor([0.0, 1.0])], torch.tensor(-1.0), torch.tensor(1.0))
    values = frame.parameters(torch.tensor([[3.0, 9.0]]))
    assert_identical(values, torch.tensor([[5.0, 1.0]]))
    low, high = frame.box()
    assert_identical(low, torch.tensor([-math.inf, -1.1]))
    assert_identical(high, torch.tensor([math.inf, 0.9]))


def test_box() -> None:
    """The bounds are displaced by the point, and count in units of each parameter's scale."""
    x, point, scale = torch.tensor([1.0, -2.0]), torch.tensor([10.0, 20.0]), torch.tensor([0.5, 4.0])
    low, high = Frame(x, point, scale, scale, torch.tensor([0.0, -4.0]), torch.tensor([3.0, math.inf])).box()
    torch.testing.assert_close(low, torch.tensor([8.0, 19.5]))
    torch.testing.assert_close(high, torch.tensor([14.0, math.inf]))


def test_bounds_in_a_subspace() -> None:
    """Parameters stay within their bounds there too, but no box is known in search coordinates."""
    basis = torch.tensor([[1.0, 0.5], [-0.3, 2.0], [0.7, -1.0]])
    frame = Frame(
        torch.zeros(3), torch.zeros(2), *2 * [torch.tensor(0.5)], torch.tensor(-1.0), torch.tensor(2.0), basis
    )
    z = torch.tensor([[1.0, -2.0], [30.0, 40.0]])
    torch.testing.assert_close(frame.parameters(z), (0.5 * z @ basis.T).clamp(-1, 2))
    assert frame.box() == (None, None)


def test_units_of_length() -> None:
    """A unit is the scale; in a subspace one number, of a typical parameter, whatever the tensors' scales."""
    x, scale, rate = torch.zeros(2), torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])
    frame = Frame(x, torch.zeros(2), scale, scale)
    assert_identical(frame.unit, scale)
    assert_identical(frame.stride, torch.ones(2))
    torch.testing.assert_close(Frame(x, torch.zeros(2), scale, rate).stride, torch.tensor([1 / 3, 0.5]))
    frame = Frame(x, torch.zeros(1), scale, scale, basis=torch.ones(2, 1))
    torch.testing.assert_close(frame.unit, torch.tensor(math.sqrt(12.5)))


def test_stride_of_the_model() -> None:
    """A candidate at ``point + stride * u`` is the model after a step ``u``, whatever ``lr`` is; frozen, it stays."""
    x, u = torch.zeros(3), torch.tensor([1.0, -2.0, 5.0])
    scale, rate = torch.tensor([0.5, 2.0, 0.0]), torch.tensor([0.1, 3.0, 0.0])
    frame = Frame(x, torch.zeros(3), scale, rate)
    torch.testing.assert_close(frame.parameters((frame.stride * u)[None])[0], frame.moved(u))
    assert frame.moved(u)[2] == 0
    basis = torch.eye(3)[:, :2]
    frame = Frame(x, torch.zeros(2), torch.tensor(0.5), torch.tensor(0.1), basis=basis)
    torch.testing.assert_close(frame.parameters((frame.stride * u[:2])[None])[0], frame.moved(u[:2]))


def test_stride_of_the_model_in_a_subspace() -> None:
    """Each tensor moves in proportion to its own scale there too, as its candidates do; frozen, it stays."""
    basis = torch.tensor([[1.0, 0.5], [-0.3, 2.0], [0.7, -1.0]])
    scale, rate, u = torch.tensor([0.5, 2.0, 0.0]), torch.tensor([0.1, 0.1, 0.0]), torch.tensor([1.0, -2.0])
    frame = Frame(torch.zeros(3), torch.zeros(2), scale, rate, basis=basis)
    torch.testing.assert_close(frame.parameters((frame.stride * u)[None])[0], frame.moved(u))
    one_scale = scale.square().mean().sqrt()  # of the typical parameter, which moves by its lr
    torch.testing.assert_close(frame.moved(u), 0.1 * scale / one_scale * (basis @ u))
    small = Frame(torch.zeros(3), torch.zeros(2), 0.01 * scale, rate, basis=basis)
    torch.testing.assert_close(small.moved(u), frame.moved(u))
    frame = Frame(torch.zeros(3), torch.zeros(2), scale, scale, basis=basis)  # the model moves as a candidate does
    torch.testing.assert_close(frame.moved(u), frame.parameters(u[None])[0])


def test_a_frozen_model_has_no_stride() -> None:
    """Where the scale is zero it moves nowhere, and no number is lost to a division by zero."""
    zero = torch.zeros(())
    for basis in (None, torch.eye(2)):
        frame = Frame(torch.ones(2), torch.zeros(2), zero, zero.clone(), basis=basis)
        assert_identical(frame.stride, torch.zeros(()))
        assert_identical(frame.moved(torch.tensor([3.0, 4.0])), torch.ones(2))


def test_search_in_a_frame() -> None:
    """The step knows the box, the unit and the shapes, and by how much the loss has drifted since the last one."""
    x, scale = torch.tensor([1.0, 2.0]), torch.tensor(0.5)
    rng, pages = generator(0, "step", 0, x.device), Pages()
    walls = Frame(x, torch.zeros(2), scale, scale, torch.tensor(0.0), torch.tensor(2.5), shapes=[(1, 2)])
    search = walls.search(rng, torch.tensor(3.0), None, pages, deterministic=True)
    assert_identical([search.lower, search.upper], list(walls.box()))
    assert (search.shapes, search.deterministic, search.unit, search.pages) == ([(1, 2)], True, scale, pages)
    assert not search.changed
    assert_identical(search.drift, torch.tensor(0.0))
    search = walls.search(rng, torch.tensor(3.0), 5.0, pages, deterministic=False)
    assert search.changed
    assert not search.deterministic
    assert_identical(search.drift, torch.tensor(-2.0))
    for loss, remembered in ((math.nan, 1.0), (math.inf, 1.0), (1.0, math.inf), (math.inf, math.inf)):
        search = walls.search(rng, torch.tensor(loss), remembered, pages, deterministic=False)
        assert search.changed
        assert_identical(search.drift, torch.tensor(0.0))
    frame = Frame(x, torch.zeros(1), scale, scale, basis=torch.ones(2, 1), shapes=[(1, 2)])
    assert frame.search(rng, torch.tensor(3.0), None, pages, deterministic=False).shapes is None
