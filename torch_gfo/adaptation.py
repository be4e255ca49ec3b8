"""Steps taken -> lengths of steps: what a success teaches about the scale of each coordinate.

* A. Ostermeier, A. Gawelczyk, N. Hansen, "A derandomized approach to self-adaptation of evolution strategies", 1994,
  https://doi.org/10.1162/evco.1994.2.4.369.
"""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["learned_lengths"]

_RATE = 0.05
_MEAN_ABS = math.sqrt(2 / math.pi)  # E |N(0, 1)|


def learned_lengths(lengths: Tensor, step: Tensor) -> Tensor:
    """Lengths ``(dim,)`` of geometric mean 1, longer where a step that was taken went farther than most.

    Args:
        lengths: ``(dim,)``, those of before.
        step: ``(dim,)``, in units of them; standard normal, had all steps been as good.
    """
    logs = lengths.log() + _RATE / len(step) * (step.abs() - _MEAN_ABS)
    return (logs - logs.mean()).exp()
