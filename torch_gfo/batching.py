"""Torch functions written out where torch cannot run them for all candidates at once, or slowly.

``torch.vmap`` has no batching rule for recurrent layers (pytorch#134606) and weight normalisation, and on a CPU it
calls the attention kernel for one candidate after the other. BatchNorm and InstanceNorm would update running statistics
that candidates share, and dropout would draw other masks in a batch than in plain calls. On a CPU, the largest of a few
neighbours are found sooner by comparing slices than by torch's kernel of max pooling, which tells their places too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["EVERYWHERE", "REWRITES", "STATELESS", "batched_attention"]

Cell = Callable[..., tuple[Tensor, ...]]


@contextmanager
def batched_attention(device: torch.device) -> Iterator[None]:
    """Has ``scaled_dot_product_attention`` computed from operations that run in a batch, on devices that need it."""
    if device.type == "cuda":  # its kernels have batching rules
        yield
    else:
        with sdpa_kernel(SDPBackend.MATH):
            yield


# Random masks. Torch draws them in the order of the memory, which differs between plain calls and a batch, and by other
# means where the call is compiled.


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return input
    noise = torch.empty(input.shape, dtype=input.dtype, device=input.device).bernoulli_(1 - p)
    if p < 1:
        noise.div_(1 - p)
    return input.mul_(noise) if inplace else input * noise


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if dropout_p == 0:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        key, value = (t.repeat_interleave(query.size(-3) // t.size(-3), -3) for t in (key, value))
    scores = query @ key.mT * (query.size(-1) ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if masked else scores + attn_mask
    return _dropout(scores.softmax(-1), dropout_p) @ value


# Torch's own function, with the two above in the place of those that it calls: calls inside it are not seen otherwise.
_attention_as_torch = FunctionType(
    functional.multi_head_attention_forward.__code__,
    {name: value for name, value in vars(functional).items() if name != "__name__"}
    | {"dropout": _dropout, "scaled_dot_product_attention": _attention, "has_torch_function": lambda _: False},
    "multi_head_attention_forward",
    functional.multi_head_attention_forward.__defaults__,
)


def _multi_head_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Has the inputs in the order of the memory.

    Torch multiplies others, such as those of ``batch_first``, word by word with weights that do not require grad.
    """
    ordered = {id(tensor): tensor.contiguous() for tensor in (query, key, value)}  # one may be all three
    return _attention_as_torch(ordered[id(query)], ordered[id(key)], ordered[id(value)], *args, **kwargs)


# Max pooling. Where windows do not overlap, the largest of each row's and each column's neighbours.


def _both(value: Any) -> tuple[int, ...]:
    """What torch takes for two dimensions: one number, or one or two in a sequence."""
    values = tuple(value) if isinstance(value, Iterable) else (value,)
    return values * 2 if len(values) == 1 else values


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    sizes = _both(kernel_size)
    tiles = (stride is None or _both(stride) == sizes) and _both(padding) == (0, 0) and _both(dilation) == (1, 1)
    plain = tiles and not ceil_mode and not return_indices and input.ndim in (3, 4) and input.device.type == "cpu"
    counts = [extent // size for extent, size in zip(input.shape[-2:], sizes, strict=True)] if plain else [0]
    if not all(counts):
        pool: Callable[..., Any] = functional.max_pool2d
        return pool(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    for dim, count, size in zip((-2, -1), counts, sizes, strict=True):
        neighbours = torch.unflatten(input.narrow(dim, 0, count * size), dim, (count, size)).unbind(dim)
        input = reduce(torch.maximum, neighbours)
    return input


# Normalisation by the statistics of the minibatch, without running statistics.


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training:
        running_mean = running_var = None
    return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if use_input_stats:
        running_mean = running_var = None
    return functional.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """A weight from its directions and their lengths: one for each index of ``dim``, one for all with ``dim=-1``."""
    others = [i for i in range(v.dim() + 1) if i != dim]  # the dimension that is added leaves none empty
    lengths: Tensor = torch.linalg.vector_norm(v[..., None], dim=others, keepdim=True)[..., 0]
    return v * (g / lengths)


# Recurrent layers. A cell takes a step's input gates, the state, and the weights that act on the state.


def _lstm_cell(
    gates: Tensor, state: tuple[Tensor, ...], weight: Tensor, projection: Tensor | None
) -> tuple[Tensor, ...]:
    h, c = state
    i, f, g, o = (gates + h @ weight).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if projection is None else h @ projection), c


def _gru_cell(gates: Tensor, state: tuple[Tensor, ...], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    (h,) = state
    r, z, n = gates.chunk(3, -1)
    recurrent = h @ weight if bias is None else h @ weight + bias
    h_r, h_z, h_n = recurrent.chunk(3, -1)
    z = (z + h_z).sigmoid()
    n = (n + (r + h_r).sigmoid() * h_n).tanh()
    return (n + z * (h - n),)


def _tanh_cell(gates: Tensor, state: tuple[Tensor, ...], weight: Tensor, _: None) -> tuple[Tensor, ...]:
    return ((gates + state[0] @ weight).tanh(),)


def _relu_cell(gates: Tensor, state: tuple[Tensor, ...], weight: Tensor, _: None) -> tuple[Tensor, ...]:
    return ((gates + state[0] @ weight).relu(),)


def _direction(
    cell: Cell, inputs: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor], has_biases: bool, reverse: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction: outputs ``(time, batch, size)`` and the last state."""
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if has_biases else (None, None)
    last: Tensor | None = weights[-1].T if len(weights) % 2 else None  # the LSTM's projection
    if cell is _gru_cell:
        last = b_hh  # of a gate that is scaled by another
    elif b_ih is not None and b_hh is not None:
        b_ih = b_ih + b_hh
    steps: Sequence[Tensor] = functional.linear(inputs, w_ih, b_ih).unbind(0)
    outputs = []
    for gates in reversed(steps) if reverse else steps:
        state = cell(gates, state, w_hh.T, last)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state


def _layers(
    function: Callable[..., Any],
    cell: Cell,
    input: Tensor,
    hx: Any,
    params: Any,
    has_biases: Any,
    num_layers: Any,
    dropout: Any,
    train: Any,
    bidirectional: Any,
    batch_first: Any,
) -> Any:
    """The recurrent layers of ``torch.lstm``, ``gru``, ``rnn_tanh`` and ``rnn_relu``."""
    if not isinstance(has_biases, bool):  # the overload for packed sequences
        return function(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)
    states = list(zip(*(hx if function is torch.lstm else (hx,)), strict=True))
    n_directions = 2 if bidirectional else 1
    n_weights = len(params) // (num_layers * n_directions)
    outputs = input.transpose(0, 1) if batch_first else input
    last = []
    for layer in range(num_layers):
        directions = []
        for direction in range(n_directions):
            i = layer * n_directions + direction
            weights = params[i * n_weights : (i + 1) * n_weights]
            output, state = _direction(cell, outputs, states[i], weights, has_biases, direction == 1)
            directions.append(output)
            last.append(state)
        outputs = torch.cat(directions, -1) if bidirectional else directions[0]
        if dropout and train and layer < num_layers - 1:
            outputs = _dropout(outputs, dropout)
    outputs = outputs.transpose(0, 1) if batch_first else outputs
    return outputs, *(torch.stack(parts) for parts in zip(*last, strict=True))


def _lstm(*args: Any) -> Any:
    return _layers(torch.lstm, _lstm_cell, *args)


def _gru(*args: Any) -> Any:
    return _layers(torch.gru, _gru_cell, *args)


def _rnn_tanh(*args: Any) -> Any:
    return _layers(torch.rnn_tanh, _tanh_cell, *args)


def _rnn_relu(*args: Any) -> Any:
    return _layers(torch.rnn_relu, _relu_cell, *args)


def _one_step(cell: Cell) -> Callable[..., Any]:
    """The function behind ``nn.LSTMCell``, ``GRUCell`` or ``RNNCell``."""

    def step(
        input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
    ) -> Any:
        state = tuple(hx) if cell is _lstm_cell else (hx,)
        weights = [w_ih, w_hh] if b_ih is None or b_hh is None else [w_ih, w_hh, b_ih, b_hh]
        _, state = _direction(cell, input[None], state, weights, b_ih is not None, False)
        return state if cell is _lstm_cell else state[0]

    return step


Rewrites = dict[Callable[..., Any], Callable[..., Any]]

EVERYWHERE: Rewrites = {
    functional.dropout: _dropout,
    functional.scaled_dot_product_attention: _attention,
    functional.multi_head_attention_forward: _multi_head_attention,
    functional.max_pool2d: _max_pool2d,
}
"""What takes the place of a function in every evaluation."""

STATELESS: Rewrites = {
    **EVERYWHERE,
    functional.batch_norm: _batch_norm,
    functional.instance_norm: _instance_norm,
}
"""What takes the place of a function wherever candidates are evaluated."""

REWRITES: Rewrites = {
    **STATELESS,
    torch._weight_norm: _weight_norm,
    torch.lstm: _lstm,
    torch.gru: _gru,
    torch.rnn_tanh: _rnn_tanh,
    torch.rnn_relu: _rnn_relu,
    torch.lstm_cell: _one_step(_lstm_cell),
    torch.gru_cell: _one_step(_gru_cell),
    torch.rnn_tanh_cell: _one_step(_tanh_cell),
    torch.rnn_relu_cell: _one_step(_relu_cell),
}
"""What takes the place of a function where all candidates are evaluated at once."""
