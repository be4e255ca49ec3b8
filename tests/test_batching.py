"""Functions written out for a batch: they compute what torch computes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import seeded
from torch_gfo.batching import EVERYWHERE
from torch_gfo.evaluation import Evaluator, Plan
from torch_gfo.space import ParameterVector


def compare(module: nn.Module, forward: Callable[[], Tensor], n: int = 4) -> None:
    """Evaluates candidates of a float64 module one by one and all at once, from the same random state."""
    space = ParameterVector(list(module.parameters()))
    with seeded(1):
        rows = space.read() + 0.3 * torch.randn(n, space.dim, dtype=torch.float64)
    results = []
    for evaluation in ("sequential", "vectorized"):
        with Evaluator(evaluation, None).session(forward, space, Plan()) as session:
            results.append(session.losses(rows))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
    assert len(set(results[0].tolist())) == n


def total(value: Any) -> Tensor:
    """One number that depends on all tensors in a nested tuple, each element with a weight of its own."""
    if isinstance(value, Tensor):
        return (value.reshape(-1) * torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype)).sum()
    return sum((total(item) for item in value if item is not None), torch.zeros((), dtype=torch.float64))


LAYERS: dict[str, Callable[..., nn.RNNBase]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *args, **options: nn.RNN(*args, nonlinearity="relu", **options),
}
OPTIONS = [
    dict(zip(("num_layers", "bidirectional", "batch_first", "bias"), values, strict=True))
    for values in itertools.product((1, 2), (False, True), (False, True), (False, True))
]


@pytest.mark.parametrize("name", LAYERS)
def test_recurrent_layers(name: str) -> None:
    """Every output of a recurrent layer is torch's: all layers, directions, layouts, with and without biases."""
    for options in OPTIONS:
        with seeded():
            layer = LAYERS[name](3, 4, dtype=torch.float64, **options)
            inputs = torch.randn(5, 2, 3, dtype=torch.float64)
            single = torch.randn(5, 3, dtype=torch.float64)  # one sequence without a batch dimension
        compare(layer, lambda: total(layer(inputs)))
        compare(layer, lambda: total(layer(single)))


@pytest.mark.parametrize("name", LAYERS)
def test_initial_states(name: str) -> None:
    """A state that is given is where the recurrence begins, also if it depends on the parameters."""
    with seeded():
        layer = LAYERS[name](3, 4, num_layers=2, dtype=torch.float64)
        inputs = torch.randn(5, 2, 3, dtype=torch.float64)
        h, c = torch.randn(2, 2, 2, 4, dtype=torch.float64)

    def forward() -> Tensor:
        scale = layer.weight_hh_l0.mean()
        state = (h * scale, c) if name == "lstm" else h * scale
        return total(layer(inputs, state))

    compare(layer, forward)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_projection(bidirectional: bool) -> None:
    """An LSTM may project its state."""
    with seeded():
        layer = nn.LSTM(3, 4, 2, proj_size=2, bidirectional=bidirectional, dtype=torch.float64)
        inputs = torch.randn(5, 2, 3, dtype=torch.float64)
    compare(layer, lambda: total(layer(inputs)))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_between_layers(name: str, batch_first: bool) -> None:
    """Candidates see the masks that plain calls see; in eval mode there are none."""
    with seeded():
        layer = LAYERS[name](3, 8, 3, dropout=0.5, batch_first=batch_first, dtype=torch.float64)
        inputs = torch.randn(5, 4, 3, dtype=torch.float64)
    compare(layer, lambda: total(layer(inputs)))
    layer.eval()
    compare(layer, lambda: total(layer(inputs)))


@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_of_a_transposed_tensor(inplace: bool) -> None:
    """Masks do not depend on how a tensor lies in memory, which differs between a batch and a plain call."""
    with seeded():
        layer = nn.Linear(4, 6, dtype=torch.float64)
        inputs = torch.randn(5, 4, dtype=torch.float64)

    def forward() -> Tensor:
        outputs = layer(inputs)
        dropped = functional.dropout(outputs.T, 0.5, inplace=inplace)
        return total(outputs if inplace else dropped.square())

    compare(layer, forward)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(cell: type[nn.RNNCellBase]) -> None:
    """Cells in a loop of the user's own run in a batch too."""
    with seeded():
        layer: Any = cell(3, 4, dtype=torch.float64)  # type: ignore[call-arg]
        inputs = torch.randn(5, 2, 3, dtype=torch.float64)

    def forward() -> Tensor:
        state = None
        for x in inputs:
            state = layer(x, state)
        return total(state)

    compare(layer, forward)


def test_packed_sequences_fall_back() -> None:
    """Sequences of different lengths are evaluated one candidate after the other, correctly."""
    with seeded():
        layer = nn.LSTM(3, 4, dtype=torch.float64)
        inputs = pack_padded_sequence(torch.randn(5, 2, 3, dtype=torch.float64), torch.tensor([5, 3]))
    space = ParameterVector(list(layer.parameters()))
    rows = space.read() + 0.1 * torch.randn(3, space.dim, dtype=torch.float64)
    evaluator = Evaluator("auto", None)
    with evaluator.session(lambda: total(layer(inputs)[0].data), space, Plan()) as session:
        losses = session.losses(rows)
    for row, loss in zip(rows, losses, strict=True):
        nn.utils.vector_to_parameters(row, layer.parameters())
        assert total(layer(inputs)[0].data).item() == loss.item()


MASK = torch.ones(5, 5, dtype=torch.bool).tril()
ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "mask": {"attn_mask": MASK},
    "bias": {"attn_mask": torch.linspace(-1, 1, 25, dtype=torch.float64).reshape(5, 5)},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "dropout": {"dropout_p": 0.5},
    "grouped": {"enable_gqa": True},
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str) -> None:
    """scaled_dot_product_attention runs in a batch, with every option, and without a warning of torch's."""
    with seeded():
        project = nn.Linear(8, 8, dtype=torch.float64)
        inputs = torch.randn(2, 4, 5, 8, dtype=torch.float64)

    def forward() -> Tensor:
        keys = inputs[:, :2] if name == "grouped" else inputs
        return total(functional.scaled_dot_product_attention(project(inputs), project(keys), keys, **ATTENTION[name]))

    compare(project, forward)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(training: bool, need_weights: bool) -> None:
    """nn.MultiheadAttention, with masks and dropout, runs in a batch."""
    with seeded():
        layer = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True, dtype=torch.float64).train(training)
        inputs = torch.randn(2, 5, 8, dtype=torch.float64)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    for options in ({}, {"attn_mask": ~MASK, "is_causal": True}, {"key_padding_mask": padding}):
        compare(layer, lambda: total(layer(inputs, inputs, inputs, need_weights=need_weights, **options)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_encoder(training: bool, norm_first: bool) -> None:
    """nn.TransformerEncoder runs in a batch, in eval mode too, where torch has a fast path of its own."""
    with seeded():
        layer = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.3, batch_first=True, norm_first=norm_first, dtype=torch.float64
        )
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
        inputs = torch.randn(2, 5, 8, dtype=torch.float64)
    compare(model, lambda: total(model(inputs)))
    compare(model, lambda: total(model(inputs, mask=nn.Transformer.generate_square_subsequent_mask(5), is_causal=True)))


@pytest.mark.parametrize(("shape", "dim"), [((4,), 0), ((4, 3), 0), ((4, 3), 1), ((4, 3), -1), ((2, 3, 4, 5), 1)])
def test_weight_norm(shape: tuple[int, ...], dim: int) -> None:
    """A length for each index of one dimension, or for all."""
    with seeded():
        v = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    lengths = torch.norm_except_dim(v.detach(), 2, dim)
    parameters = nn.ParameterList([v, nn.Parameter(lengths + 0.5)])
    compare(parameters, lambda: total(torch._weight_norm(parameters[0], parameters[1], dim)))


POOLS: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3},
    {"kernel_size": (1, 4)},
    {"kernel_size": [2]},
    {"kernel_size": (3,), "stride": 3, "padding": (0,)},
    {"kernel_size": [2, 3], "stride": (2, 3)},
    {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": (1, 1)},
    {"kernel_size": 2, "stride": 1},
    {"kernel_size": 2, "padding": 1},
    {"kernel_size": 2, "dilation": 2},
    {"kernel_size": 2, "ceil_mode": True},
]


@pytest.mark.parametrize("options", POOLS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_max_pooling(options: dict[str, Any], dtype: torch.dtype) -> None:
    """To the last bit what torch's kernel finds, in images whose sides are no multiples of the windows', with NaN."""
    pool = EVERYWHERE[functional.max_pool2d]
    with seeded():
        images = (10 * torch.randn(2, 3, 11, 7)).to(dtype)
    if dtype.is_floating_point:
        images[0, 1, 4, 3], images[1, 2, 2, 2] = torch.nan, -torch.inf
    for given in (images, images[0], images.transpose(2, 3), images[..., ::2]):
        expected = functional.max_pool2d(given, **options)
        found = pool(given, **options)
        assert torch.equal(found.nan_to_num(1e9), expected.nan_to_num(1e9))
        assert found.dtype == expected.dtype


def test_max_pooling_tells_places_and_mistakes() -> None:
    """Where torch is asked for the places, or refuses an image smaller than a window, it is torch that answers."""
    pool, images = EVERYWHERE[functional.max_pool2d], torch.randn(1, 1, 4, 4)
    found, places = pool(images, 2, return_indices=True)
    assert torch.equal(images.flatten()[places.flatten()], found.flatten())
    with pytest.raises(RuntimeError, match="too small"):
        pool(images, 5)
    with pytest.raises(RuntimeError):
        pool(images[0, 0], 2)


class Operations(TorchDispatchMode):
    """The names of the operations inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_pooled_network() -> None:
    """Candidates of a network that pools, one by one and all at once, and without torch's kernel."""
    with seeded():
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 2)).double()
        images = torch.randn(5, 1, 9, 8, dtype=torch.float64)
    with Operations() as operations:
        compare(model, lambda: total(model(images)))
    assert "maximum" in operations.names
    assert not any("max_pool" in name for name in operations.names)
