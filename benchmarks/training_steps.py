"""One interface to all optimizers of ``training.py``: a step on a minibatch, and how many evaluations it took.

Every evaluation of the loss counts, also those of the model itself and of losses that are computed again. One with
``backward`` counts as one, although it takes about three times as long.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Batch", "Closures", "Gradients", "Trainer"]


@dataclass(frozen=True)
class Batch:
    """A minibatch; calling it evaluates the model as it stands, which makes it a closure.

    Attributes:
        model: The model.
        inputs: Its inputs.
        targets: What it should answer.
        objective: Of outputs and targets.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    objective: Callable[[Tensor, Tensor], Tensor]

    def __call__(self) -> Tensor:
        """Returns the loss."""
        return self.objective(self.model(self.inputs), self.targets)


class Trainer(Protocol):
    """An optimizer with its model."""

    def step(self, batch: Batch) -> int:
        """Makes a step, after which the model is what the optimizer recommends; returns the evaluations it took."""


class Closures:
    """An optimizer that calls a closure, once for each candidate or, if it counts ``evaluations``, as it likes."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @torch.no_grad()
    def step(self, batch: Batch) -> int:
        """Makes a step."""
        calls = 0

        def counted() -> Tensor:
            nonlocal calls
            calls += 1
            return batch()

        if not hasattr(self.optimizer, "evaluations"):
            self.optimizer.step(counted)
            return calls
        before = int(self.optimizer.evaluations)
        self.optimizer.step(batch)  # one call may evaluate many candidates, and a counter would keep it from compiling
        return int(self.optimizer.evaluations) - before


class Gradients:
    """An optimizer that needs a gradient: that of cross-entropy, through surrogates of operations that have none."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, batch: Batch) -> int:
        """Makes a step with one evaluation and its gradient."""
        batch.model.train()  # the same outputs, with surrogate gradients
        self.optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(batch.model(batch.inputs), batch.targets))
        self.optimizer.step()
        batch.model.eval()
        return 1
