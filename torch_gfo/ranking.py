"""Losses -> weights: what a search learns from the losses of a population.

Pure functions of losses ``(n,)``. Equal losses have equal weights, losses that are not finite are the worst, and the
weights sum to zero, the best loss having the lowest: ``weights @ points`` points uphill.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["centred_ranks", "z_scores"]


def centred_ranks(losses: Tensor) -> Tensor:
    """Ranks from -1/2 for the best loss to 1/2 for the worst; equal losses share the mean of their ranks.

    Example:
        >>> centred_ranks(torch.tensor([3.0, 1.0, torch.inf, 1.0, torch.nan]))
        tensor([ 0.0000, -0.3750,  0.3750, -0.3750,  0.3750])
    """
    losses = torch.where(torch.isfinite(losses), losses, torch.inf)
    in_order = losses.sort().values
    first = torch.searchsorted(in_order, losses)
    last = torch.searchsorted(in_order, losses, right=True) - 1
    return (first + last).to(losses.dtype) / (2 * max(1, len(losses) - 1)) - (0.5 if len(losses) > 1 else 0.0)


def z_scores(losses: Tensor) -> Tensor:
    """Losses less their mean, divided by their standard deviation; zero where all are equal.

    Those that are not finite count as worse than the worst, by as much as the worst is worse than the best.

    Example:
        >>> z_scores(torch.tensor([3.0, 1.0, 3.0, 1.0]))
        tensor([ 1., -1.,  1., -1.])
    """
    finite = torch.isfinite(losses)
    if not bool(finite.any()):
        return torch.zeros_like(losses)
    losses = losses / losses[finite].abs().max().clamp_min(torch.finfo(losses.dtype).tiny)  # squares must not overflow
    losses = losses - losses[finite].min()  # equal losses are exactly zero
    spread = losses[finite].max()
    losses = torch.where(finite, losses, torch.where(spread > 0, 2 * spread, 1))
    deviation = losses.std(correction=0)
    return (losses - losses.mean()) / deviation if deviation > 0 else torch.zeros_like(losses)
