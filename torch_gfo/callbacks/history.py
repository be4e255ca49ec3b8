"""A record of a training."""

from __future__ import annotations

from torch.optim import Optimizer

from torch_gfo.callbacks.base import Callback, Record

__all__ = ["History"]


class History(Callback):
    """Keeps the record of every step, to plot, print or save.

    Attributes:
        records: One dictionary a step, with the keys ``"step"``, ``"evaluations"``, ``"seconds"``, ``"loss"`` and those
            of the metrics that were given at that step.

    Example:
        >>> import torch, torch_gfo
        >>> from torch_gfo.callbacks import History
        >>> x = torch.nn.Parameter(torch.ones(3))
        >>> optimizer, history = torch_gfo.GA([x], popsize=8, seed=0), History()
        >>> for _ in range(3):
        ...     loss = optimizer.step(lambda: x.square().sum())
        ...     _ = history(optimizer, loss, largest=x.abs().max())
        >>> [record["evaluations"] for record in history.records], history.records[0]["loss"]
        ([9, 18, 27], 3.0)
    """

    _remembered = ("records",)

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Record] = []

    def _take(self, optimizer: Optimizer, record: Record) -> bool:
        self.records.append(record)
        return False
