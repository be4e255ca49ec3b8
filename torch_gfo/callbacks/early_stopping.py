"""The end of a training that is good enough, or gets no better."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from torch_gfo.callbacks.base import COUNTS, Callback, Record
from torch_gfo.options import check_choice, check_number

__all__ = ["EarlyStopping"]


class EarlyStopping(Callback):
    """Ends the training when a value is good enough, or has not improved for too long.

    The losses of minibatches improve by luck: give it a validation loss, as a metric at every step, or as ``loss`` to a
    callback that is called only where the model is validated. For the rounds between, count in ``"evaluations"`` or
    ``"seconds"``. On several ranks it decides alike if the value is the same on all, as the loss from ``step`` is.

    Args:
        patience: How long to wait for an improvement, in ``unit``. Default: None, for ever.
        unit: ``"evaluations"`` (default), ``"step"`` or ``"seconds"``.
        target: The value that is good enough. Default: None, none is.
        min_delta: By how much a value must be better than the best one to be an improvement, at least 0. Default: 0.
        monitor: The name of the value: ``"loss"`` (default) or a metric's.
        maximize: Whether high values are good. Default: False.

    Attributes:
        best: The best value so far.
        best_at: When it was found, in ``unit``.

    Raises:
        ValueError: For an argument outside its range, or if there is neither a patience nor a target.

    Example:
        >>> import torch, torch_gfo
        >>> from torch_gfo.callbacks import EarlyStopping
        >>> x = torch.nn.Parameter(torch.ones(3))
        >>> optimizer, stop = torch_gfo.CMAES([x], seed=0), EarlyStopping(patience=1000, target=1e-6)
        >>> while not stop(optimizer, optimizer.step(lambda: x.square().sum())):
        ...     pass
        >>> stop.best <= 1e-6, stop.best_at < 1000
        (True, True)
    """

    _remembered = ("best", "best_at")

    def __init__(
        self,
        patience: float | None = None,
        *,
        unit: str = "evaluations",
        target: float | None = None,
        min_delta: float = 0.0,
        monitor: str = "loss",
        maximize: bool = False,
    ) -> None:
        super().__init__()
        check_choice("unit", unit, COUNTS)
        if patience is None and target is None:
            raise ValueError("EarlyStopping without patience and without target never ends a training. Give one.")
        check_number("patience", patience, "(0, inf]", " to wait for ever", optional=True)
        check_number("min_delta", min_delta, "[0, inf)")
        self.patience, self.unit, self.target, self.min_delta = patience, unit, target, min_delta
        self.monitor, self.maximize = monitor, maximize
        self.best = -math.inf if maximize else math.inf
        self.best_at: float = 0

    def _take(self, optimizer: Optimizer, record: Record) -> bool:
        if self.monitor not in record:
            given = ", ".join(name for name in record if name not in COUNTS)
            raise ValueError(
                f"EarlyStopping waits for {self.monitor!r}, and is given {given}. Call it with {self.monitor}=..., or "
                "only where there is one."
            )
        value, now = record[self.monitor], record[self.unit]
        gain = value - self.best if self.maximize else self.best - value
        if gain > self.min_delta:
            self.best, self.best_at = value, now
        if self.target is not None and (value >= self.target if self.maximize else value <= self.target):
            return True
        return self.patience is not None and now - self.best_at >= self.patience
