"""Products with a weight ``W + A^T B`` that is never formed: ``x (W + A^T B)^T = x W^T + (x B^T) A``.

For a whole population W is common, and ``x W^T`` may be one large product; only A and B differ. This is what makes
perturbations of low rank cheap to evaluate. Calls that are not listed here get the dense sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["METADATA", "PRODUCTS", "Factored", "StandIn"]


class StandIn:
    """The value of a parameter that is not a tensor until a call needs one.

    Attributes:
        common: Answers questions about shape and dtype.
        kept: Whether the tensor takes its place for the rest of an evaluation, or is made again for every call.
    """

    common: Tensor
    kept: ClassVar[bool]

    def dense(self) -> Tensor:
        """The value."""
        raise NotImplementedError


@dataclass(frozen=True)
class Factored(StandIn):
    """The value ``W + A^T B`` of one candidate's weight.

    Attributes:
        common: W, of any shape; its first dimension has m entries, the others together n.
        a: ``(r, m)``.
        b: ``(r, n)``.
    """

    kept: ClassVar[bool] = True

    common: Tensor
    a: Tensor
    b: Tensor

    def dense(self) -> Tensor:
        """The sum, in the shape of W."""
        return self.common + (self.a.mT @ self.b).view(self.common.shape)


def _linear(weight: Factored, input: Tensor, bias: Tensor | None = None) -> Tensor:
    y = _add_product(functional.linear(input, weight.common), input @ weight.b.mT, weight.a)
    return y if bias is None else y.add_(bias)


def _matmul(weight: Factored, input: Tensor) -> Tensor:
    return _add_product(input @ weight.common, input @ weight.a.mT, weight.b)


def _convolution(
    convolve: Callable[..., Tensor],
    weight: Factored,
    input: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Convolves with r filters, then with one of size one that mixes their outputs; in each group of channels."""
    r, n_dims = len(weight.b), weight.common.ndim - 2
    filters = weight.b.view(r, *weight.common.shape[1:]).repeat(groups, *[1] * (n_dims + 1))
    y = convolve(input, weight.common, None, stride, padding, dilation, groups)
    u = convolve(input, filters, None, stride, padding, dilation, groups)
    u = u.reshape(*u.shape[: -n_dims - 1], groups, r, -1)
    y = y + (weight.a.mT.reshape(groups, -1, r) @ u).view(y.shape)
    return y if bias is None else y.add_(bias.view(-1, *[1] * n_dims))


def _embedding(
    weight: Factored,
    input: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *args: Any,  # these and padding_idx matter to gradients alone
    **kwargs: Any,
) -> Tensor:
    if max_norm is not None:  # the call modifies its weight
        return NotImplemented  # type: ignore[no-any-return]
    return _add_product(functional.embedding(input, weight.common), functional.embedding(input, weight.a.mT), weight.b)


def _add_product(y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """``y + u v`` for u ``(..., r)`` and v ``(r, n)``, in y's dtype; where r is one, in one pass: twice as fast."""
    return torch.addcmul(y, u, v[0].to(y.dtype)) if len(v) == 1 else (u @ v).add_(y)


# Torch's call -> the function that takes the factored weight, the second argument, first.
PRODUCTS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    functional.linear: _linear,
    functional.embedding: _embedding,
    functional.conv1d: partial(_convolution, functional.conv1d),
    functional.conv2d: partial(_convolution, functional.conv2d),
    functional.conv3d: partial(_convolution, functional.conv3d),
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
}

# Calls that ask for no values: W answers them as the sum would.
METADATA = frozenset(
    [Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.is_complex, Tensor.__len__]
    + [getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "layout", "is_nested")]
    + [getattr(Tensor, name).__get__ for name in ("requires_grad", "is_leaf", "grad_fn", "grad")]
    + [getattr(Tensor, name).__set__ for name in ("requires_grad", "grad")]
)
