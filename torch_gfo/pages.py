"""Memory that is used again: on a CPU, the pages of a new large tensor take longer to get than to fill."""

from __future__ import annotations

import math
import mmap
import sys

import torch
from torch import Tensor

__all__ = ["Pages"]

_LARGE = 2**20  # bytes; smaller tensors the allocator itself gives quickly


class Pages:
    """Gives memory as ``torch.empty`` does, on a CPU in the place of large tensors that nobody refers to any more.

    Each piece of memory is an object that the storages of all tensors in it refer to, views of them included: no tensor
    is ever overwritten that somebody can still see.
    """

    def __init__(self) -> None:
        self._pieces: list[mmap.mmap] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uninitialised memory."""
        n_bytes = math.prod(shape) * dtype.itemsize
        if device.type != "cpu" or n_bytes < _LARGE:
            return torch.empty(shape, dtype=dtype, device=device)
        free = {i for i in range(len(self._pieces)) if _references(self._pieces, i) == _UNUSED}
        fitting = [i for i in free if len(self._pieces[i]) >= n_bytes]
        if fitting:
            piece = self._pieces[min(fitting, key=lambda i: len(self._pieces[i]))]
        else:  # in the place of those that are too small
            piece = mmap.mmap(-1, n_bytes)
            self._pieces = [old for i, old in enumerate(self._pieces) if i not in free] + [piece]
        return torch.frombuffer(piece, dtype=dtype, count=n_bytes // dtype.itemsize).view(shape)


def _references(objects: list[mmap.mmap], i: int) -> int:
    return sys.getrefcount(objects[i])


_UNUSED = _references([mmap.mmap(-1, 1)], 0)  # the list's own, and what counting adds
