"""From a swarm to its next velocities, block by block: large temporaries cost more than what is done with them.

A rule takes the positions x ``(n, dim)``, the velocities v, the personal bests p, for each particle the index ``best``
``(n,)`` of the particle with the best of those that it knows, the constants w and c, and the step. The numbers of the
equations are those of ``PSO``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torch_gfo.search import Search

__all__ = ["VELOCITIES"]

_FEW = 0.1  # directions of all, that the swarm spans: below it, (4) has two terms
_BLOCK = 2**20  # numbers


def _spso2011(x: Tensor, v: Tensor, p: Tensor, best: Tensor, w: float, c: float, search: Search) -> Tensor:
    n, dim = x.shape
    m = min(1.0, (n - 1) / dim)
    radius = search.uniform(n, 1) if m < 1 else x.new_zeros(n, 1)
    new = search.normal(n, dim) if m < 1 else torch.zeros_like(v)
    blocks = _blocks(n, dim)
    memory = torch.empty_like(x[blocks[0]])
    for i in blocks:
        g = torch.index_select(p, 0, best[i], out=memory[: len(x[i])]).add_(p[i]).sub_(x[i], alpha=2)  # (1)
        length = torch.linalg.vector_norm(g, dim=1, keepdim=True).mul_(radius[i])
        new[i].mul_(length.mul_(c / 3 * math.sqrt((1 - m) / dim)))  # (3)
        new[i].add_(v[i], alpha=w).add_(g, alpha=c / 3)  # (2)
    if m >= _FEW:
        return new.addmm_(search.normal(n, n), p - p.mean(0), alpha=math.sqrt(m / (2 * n)))  # (4)
    for sign, chosen in zip((1, -1), search.integers(n, 2, n), strict=True):
        for i in blocks:
            difference = torch.index_select(p, 0, chosen[i], out=memory[: len(x[i])])
            new[i].add_(difference, alpha=sign * math.sqrt(m) / 2)  # (4) on a network
    return new


def _constriction(x: Tensor, v: Tensor, p: Tensor, best: Tensor, w: float, c: float, search: Search) -> Tensor:
    u, new = search.uniform(*x.shape), search.empty(*x.shape)
    for i in _blocks(*x.shape):
        u_2 = u[torch.arange(i.start, i.stop, device=u.device) - 1]  # of another particle: at half the price
        torch.mul(v[i], w, out=new[i])
        new[i].addcmul_(u[i], p[i] - x[i], value=c).addcmul_(u_2, p[best[i]] - x[i], value=c)  # (5)
    return new


def _blocks(n: int, dim: int) -> list[slice]:
    """Parts of ``n`` rows that fit into the cache."""
    size = max(1, _BLOCK // dim)
    return [slice(first, min(n, first + size)) for first in range(0, n, size)]


VELOCITIES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, float, float, Search], Tensor]] = {
    "spso2011": _spso2011,
    "constriction": _constriction,
}
