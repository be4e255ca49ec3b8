"""Where a step begins: the parameters and the schedule as they stand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_gfo.space import Frame, ParameterVector

__all__ = ["Start", "agree"]


@dataclass(frozen=True)
class Start:
    """Where a step begins.

    Attributes:
        vector: The parameters that the search moves.
        groups: The parameter group of each of them.
        x: ``(dim,)``, their values.
        scales: ``lr * sigma`` of each of them, 0 while it is frozen.
        stale: Whether the values or scales are not those that the last step left.
        known: Whether the loss at ``x`` is remembered and need not be evaluated.
    """

    vector: ParameterVector
    groups: list[dict[str, Any]]
    x: Tensor
    scales: list[float]
    stale: bool
    known: bool

    def penalty(self, x: Tensor) -> Tensor:
        """The weight decay of parameter vectors ``(..., dim)``."""
        decays = [float(group["weight_decay"]) for group in self.groups]
        return 0.5 * (x.square() * self.vector.expand(decays)).sum(-1) if any(decays) else x.new_zeros(())

    def frame(self, point: Tensor, basis: Tensor | None) -> Frame:
        """Search coordinates around ``x``."""
        lower = upper = None
        if any(group["bounds"] is not None for group in self.groups):
            bounds = [group["bounds"] or (-math.inf, math.inf) for group in self.groups]
            lower = self.vector.expand([low for low, _ in bounds])
            upper = self.vector.expand([high for _, high in bounds])
        return Frame(self.x, point, self.vector.expand(self.scales), lower, upper, basis)


def agree(remembered: float, loss: float, dtype: torch.dtype) -> bool:
    """Whether two losses of one point agree up to rounding, or nothing is remembered."""
    if math.isnan(remembered) or remembered == loss:
        return True
    rounding: float = torch.finfo(dtype).eps ** (2 / 3)
    return abs(remembered - loss) <= rounding * max(abs(remembered), abs(loss))
