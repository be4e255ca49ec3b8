"""What the layers of a model are given: the directions in which their weights make a difference.

A weight makes a difference only in the span of its inputs, and most in the few directions in which these vary most.
Perturbations that are to change the outputs alike in all of some directions are divided by the inputs' variation there,
as the natural gradient is:

* J. Martens, R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015,
  https://arxiv.org/abs/1503.05671: the second moments of a layer's inputs.
* R. Grosse, J. Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers", 2016,
  https://arxiv.org/abs/1602.01407: those of the patches of a convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Inputs", "whitened"]

_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
_RIDGE = 1e-3  # of the largest moment, added to all: few rows underestimate the small ones


class Inputs:
    """Some rows of what a plain call of the closure multiplies its weights by.

    Args:
        parameters: Those that may be weights.
        span: The number of directions that are asked for; of each weight's inputs, twice as many rows are kept.
    """

    def __init__(self, parameters: Sequence[Tensor], span: int) -> None:
        self._parameters = parameters
        self._span = span
        self._rows: list[list[Tensor]] = [[] for _ in parameters]
        self._places = {id(p): i for i, p in enumerate(parameters)}  # also of what is computed from them
        self._kept: list[Tensor] = []  # lest an id be used again

    def see(self, call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Takes note of a torch call that multiplies its input by a weight."""
        x = args[0] if args else kwargs.get("input")
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        if id(weight) not in self._places or not isinstance(weight, Tensor):
            return
        if not isinstance(x, Tensor) or not x.numel() or not x.is_floating_point():
            return
        if call is functional.linear:
            rows = x.detach().reshape(-1, x.shape[-1])
        elif call in _CONVOLUTIONS:
            images = x.detach().reshape(-1, weight.shape[1], *x.shape[2 - weight.ndim :])  # of any group of channels
            dilation = args[5] if len(args) > 5 else kwargs.get("dilation", 1)
            rows = _patches(self._some(images), weight, dilation)
        else:
            return
        self._rows[self._places[id(weight)]].append(self._some(rows).clone())

    def follow(self, result: Any, args: Sequence[Any]) -> None:
        """Takes note of what a torch call computes from a weight in its shape: rounded, masked or normalised."""
        for given in args:
            place = self._places.get(id(given))
            if place is not None and isinstance(result, Tensor) and result.shape == self._parameters[place].shape:
                self._places[id(result)] = place
                self._kept.append(result)
                return

    def directions(self, like: Tensor) -> list[Tensor | None]:
        """The directions of each parameter's inputs, see ``whitened``; None where nothing is known of them."""
        self._kept.clear()
        return [whitened(self._some(torch.cat(rows)).to(like), self._span) if rows else None for rows in self._rows]

    def _some(self, rows: Tensor) -> Tensor:
        """Rows from all over: neighbours may be alike."""
        return rows[:: max(1, -(-len(rows) // (2 * self._span)))]


def _patches(images: Tensor, weight: Tensor, dilation: int | Sequence[int]) -> Tensor:
    """What a convolution multiplies its weight by, ``(N, n)``, but for the images' rims."""
    sizes = weight.shape[2:]
    dilations = [dilation] * len(sizes) if isinstance(dilation, int) else dilation
    for i, (size, d) in enumerate(zip(sizes, dilations, strict=True)):
        extent = d * (size - 1) + 1
        if images.shape[2 + i] < extent:  # all patches reach beyond the rims
            return images.new_zeros(0, weight[0].numel())
        images = images.unfold(2 + i, extent, 1)[..., ::d]
    return images.movedim(1, 1 + len(sizes)).flatten(0, len(sizes)).flatten(1)


def whitened(x: Tensor, k: int) -> Tensor | None:
    """The principal directions of inputs, each with a length such that all of them change the outputs alike.

    With the eigenvectors v_j and eigenvalues m_1 > m_2 > ... of the moments x^T x, the directions are::

        d_j = s v_j / sqrt(m_j + 0.001 m_1),  s such that the sum of |x d_j|^2 is |x|^2,  j = 1, ..., k

    so that a combination of them with normal numbers changes the outputs as much as a vector of normal numbers does.

    Args:
        x: ``(N, n)``, the inputs.
        k: The most directions.

    Returns:
        ``(k, n)``, fewer where the inputs span fewer; None where they are all zero, or not finite.
    """
    total = x.square().sum()
    if not 0 < float(total) < float("inf"):
        return None
    moments, u = torch.linalg.eigh(x @ x.T)  # x^T x has the same, and is larger
    moments, u = moments[-k:], u[:, -k:]
    known = moments > torch.finfo(x.dtype).eps ** 0.5 * moments[-1]  # the others are rounding
    moments, u = moments[known], u[:, known]
    damped = moments + _RIDGE * moments[-1]
    scale = (total / (moments / damped).sum()).sqrt()
    directions: Tensor = (u * (scale / (moments * damped).sqrt())).T @ x
    return directions
