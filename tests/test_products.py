"""Products with a factored weight against the same torch call with the sum, and populations against dense rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers import assert_identical, seeded, vector
from torch_gfo.closure import Footprints, Intercept
from torch_gfo.evaluation import Evaluator, Plan
from torch_gfo.perturbation import Layout, LowRank
from torch_gfo.products import Factored
from torch_gfo.space import ParameterVector

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-12}  # of sums of at most 100 terms of order one


def population(parameters: list[Tensor], n: int, rank: int = 1, seed: int = 1) -> LowRank:
    """Candidates around the parameters' values."""
    vector = ParameterVector(parameters)
    layout = Layout(vector.shapes, rank)
    with seeded(seed):
        return LowRank(vector.read(), 0.3 * torch.randn(n, layout.n_numbers, dtype=vector.dtype), layout)


def evaluate(closure: Callable[[], Any], parameters: list[Tensor], x: Tensor | LowRank, evaluation: str) -> Tensor:
    with Evaluator(evaluation, 3).session(closure, ParameterVector(parameters), Plan()) as session:
        return session.losses(x)


def assert_equals_dense(closure: Callable[[], Any], parameters: list[Tensor], rank: int = 1) -> None:
    """However a population of low rank is evaluated, its losses are those of its dense rows."""
    before = [parameter.detach().clone() for parameter in parameters]
    x = population(parameters, 7, rank)
    expected = evaluate(closure, parameters, x.rows(), "sequential")
    assert expected.std() > 1e-3  # the parameters matter
    tolerance = ROUNDING[x.dtype]
    for evaluation in ("sequential", "vectorized", "auto"):
        losses = evaluate(closure, parameters, x, evaluation)
        assert losses.dtype == x.dtype
        torch.testing.assert_close(losses, expected, rtol=tolerance, atol=tolerance)
    assert_identical([parameter.detach() for parameter in parameters], before)


def loss_of(y: Tensor) -> Tensor:
    """Something that depends on every entry and on its place."""
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum() + 0.1 * y.square().mean()


def data(*shape: int, dtype: torch.dtype) -> Tensor:
    with seeded(5):
        return torch.randn(shape, dtype=dtype) / 3


@DTYPES
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(9,), (5, 9), (2, 3, 9)], ids=str)
def test_linear(shape: tuple[int, ...], bias: bool, rank: int, dtype: torch.dtype) -> None:
    with seeded():
        layer = nn.Linear(9, 8, bias, dtype=dtype)
    x = data(*shape, dtype=dtype)
    assert_equals_dense(lambda: loss_of(layer(x)), list(layer.parameters()), rank)
    assert_equals_dense(lambda: loss_of(functional.linear(input=x, weight=layer.weight)), [layer.weight], rank)


CONVOLUTIONS: list[tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = [
    (nn.Conv1d, {"kernel_size": 3}, (2, 4, 9)),
    (nn.Conv1d, {"kernel_size": 3, "bias": False}, (4, 9)),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1, "stride": 2}, (2, 4, 7, 6)),
    (nn.Conv2d, {"kernel_size": (3, 2), "padding": "same", "dilation": 2}, (2, 4, 7, 6)),
    (nn.Conv2d, {"kernel_size": 3, "groups": 2}, (2, 4, 7, 6)),
    (nn.Conv2d, {"kernel_size": 3, "groups": 4, "bias": False}, (2, 4, 7, 6)),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, (4, 7, 6)),
    (nn.Conv3d, {"kernel_size": 2, "groups": 2}, (1, 4, 3, 4, 3)),
    (nn.ConvTranspose2d, {"kernel_size": 3}, (2, 4, 5, 4)),  # no product of its own
]


@DTYPES
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(("cls", "options", "shape"), CONVOLUTIONS, ids=str)
def test_convolution(cls: Any, options: dict[str, Any], shape: tuple[int, ...], rank: int, dtype: torch.dtype) -> None:
    with seeded():
        layer = cls(4, 8, dtype=dtype, **options)
    x = data(*shape, dtype=dtype)
    assert_equals_dense(lambda: loss_of(layer(x)), list(layer.parameters()), rank)


@DTYPES
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 0}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}], ids=str)
def test_embedding(options: dict[str, Any], rank: int, dtype: torch.dtype) -> None:
    with seeded():
        layer = nn.Embedding(11, 6, dtype=dtype, **options)
    index = torch.tensor([[0, 3, 3], [10, 1, 0]])
    if "max_norm" in options:  # the call modifies its weight: vmap cannot, plain calls can
        x = population([layer.weight], 5, rank)
        losses = [evaluate(lambda: loss_of(layer(index)), [layer.weight], rows, "auto") for rows in (x, x.rows())]
        torch.testing.assert_close(*losses)
    else:
        assert_equals_dense(lambda: loss_of(layer(index)), [layer.weight], rank)


@DTYPES
@pytest.mark.parametrize("rank", [1, 2])
def test_tied_weights(rank: int, dtype: torch.dtype) -> None:
    """One parameter looked up, multiplied by, and used in a way that has no product, in any order."""
    with seeded():
        embedding = nn.Embedding(12, 7, dtype=dtype)
        head = nn.Linear(7, 12, dtype=dtype)
    head.weight = embedding.weight
    parameters = [embedding.weight, head.bias]
    index = torch.tensor([[0, 3, 3], [10, 1, 0]])
    assert_equals_dense(lambda: loss_of(head(embedding(index))), parameters, rank)
    assert_equals_dense(lambda: loss_of(head(embedding(index))) + 0.1 * head.weight.square().sum(), parameters, rank)
    assert_equals_dense(lambda: 0.1 * head.weight.square().sum() + loss_of(head(embedding(index))), parameters, rank)


OTHER_USES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda x, w: loss_of(x @ w),
    "matmul of a vector": lambda x, w: loss_of(torch.matmul(x[0], w)),
    "from the left": lambda x, w: loss_of(w @ torch.ones(7, 3, dtype=w.dtype)),
    "transposed": lambda x, w: loss_of(x @ w.T.mT),
    "with itself": lambda x, w: loss_of(functional.linear(w, w)),
    "times itself": lambda x, w: loss_of(torch.matmul(w, w.mT)),
    "an entry": lambda x, w: w[1, 2] * 3,
    "a row": lambda x, w: loss_of(w[torch.tensor([1, 1, 0])]),
    "in a list": lambda x, w: loss_of(torch.cat([w, w])),
    "a norm": lambda x, w: w.norm() + torch.linalg.matrix_norm(w, 1),
    "in place": lambda x, w: loss_of(x @ w.mul_(2.0)) + loss_of(x @ w),
    "in place after a product": lambda x, w: loss_of(x @ w) + w.mul_(-0.5).sum() + loss_of(x @ w),
    "einsum": lambda x, w: loss_of(torch.einsum("ij,jk->ik", x, w)),
    "asked for": lambda x, w: loss_of((x @ w).reshape(w.shape[1], -1)) * w.size(0) * w.dim() * len(w) * w.numel(),
}


@DTYPES
@pytest.mark.parametrize("use", OTHER_USES)
def test_other_uses(use: str, dtype: torch.dtype) -> None:
    weight = vector(6, 7, dtype=dtype)
    x = data(5, 6, dtype=dtype)
    assert_equals_dense(lambda: OTHER_USES[use](x, weight), [weight])


def test_a_network() -> None:
    """Convolutions, normalization, a network's usual closure with backward()."""
    with seeded():
        layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)]
        model = nn.Sequential(*layers)
        x, targets = torch.randn(9, 1, 8, 8), torch.arange(9) % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert_equals_dense(closure, list(model.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    """Weights of low precision, whose perturbations have another exponent: equal to a few of their digits."""
    with seeded():
        layer = nn.Linear(16, 16, dtype=dtype)
    x = population(list(layer.parameters()), 4)
    inputs = data(8, 16, dtype=dtype)
    losses = [
        evaluate(lambda: layer(inputs).square().mean(), list(layer.parameters()), x, evaluation)
        for evaluation in ("sequential", "vectorized")
    ]
    torch.testing.assert_close(*losses, rtol=0.05, atol=0.0)


def test_autocast() -> None:
    """Products have the dtype that autocast gives the call."""
    with seeded():
        layer = nn.Linear(16, 12)
    weight, inputs = layer.weight.detach(), data(8, 16, dtype=torch.float32)
    for rank in (1, 2):
        a, b = torch.full((rank, 12), 0.1), torch.full((rank, 16), 0.1)
        stand_ins = {id(layer.weight): Factored(weight, a, b)}
        with torch.autocast("cpu", torch.bfloat16), Intercept(stand_ins, {nn.Parameter}, Footprints(), {}):
            assert layer(inputs).dtype == torch.bfloat16


def test_the_sum_is_formed_only_where_it_must() -> None:
    """Products and questions about shape, dtype or gradient form no sum; another use does so once."""
    layer = nn.Linear(40, 30)
    layer.weight.grad = torch.zeros_like(layer.weight)
    stand_ins = {id(layer.weight): Factored(layer.weight.detach(), torch.ones(1, 30), torch.ones(1, 40))}
    expected = layer.weight.detach() + 1
    with Intercept(stand_ins, {nn.Parameter}, Footprints(), {}):
        layer(torch.ones(40))
        layer.zero_grad()
        assert layer.weight.shape == (30, 40)
        assert layer.weight.grad is None
        assert isinstance(stand_ins[id(layer.weight)], Factored)
        layer.weight.exp()
        formed = stand_ins[id(layer.weight)]
        assert_identical(formed, expected)
        layer.weight.exp()
        assert stand_ins[id(layer.weight)] is formed
