"""Parameters and the flat vector, radii, directions, and the map of search coordinates."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers import assert_identical, seeded, vector
from torch_gfo.space import Directions, Frame, ParameterVector, as_real, automatic_scales, searchable

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


def test_nothing_to_read() -> None:
    """Without parameters the vector is empty."""
    space = ParameterVector([])
    assert space.dim == 0
    assert space.read().shape == (0,)


def test_searchable() -> None:
    """What may be moved: what requires grad and is not empty."""
    assert searchable(vector(2))
    assert searchable(vector(2, dtype=torch.complex64))
    assert not searchable(nn.Parameter(torch.ones(2), requires_grad=False))
    assert not searchable(nn.Parameter(torch.arange(2), requires_grad=False))
    assert not searchable(nn.Parameter(torch.empty(0, 3)))


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
    "nothing_known": ([torch.zeros(3), torch.zeros(())], [1.0, 1.0]),
    "not_finite": ([torch.tensor([math.nan, 1.0]), torch.tensor([-2.0, 2.0])], [2.0, 2.0]),
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


def test_frame_without_scale() -> None:
    """Coordinates whose scale is zero stay, bounds or not, and have no walls."""
    x = torch.tensor([5.0, 0.1])
    frame = Frame(x, torch.zeros(2), *2 * [torch.tensor([0.0, 1.0])], torch.tensor(-1.0), torch.tensor(1.0))
    values = frame.parameters(torch.tensor([[3.0, 9.0]]))
    assert_identical(values, torch.tensor([[5.0, 1.0]]))
    low, high = frame.box()
    assert_identical(low, torch.tensor([-math.inf, -1.1]))
    assert_identical(high, torch.tensor([math.inf, 0.9]))


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
