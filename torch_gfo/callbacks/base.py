"""What all callbacks have in common: a record of numbers for every step, and a state to go on from."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import Self

__all__ = ["COUNTS", "Callback", "Callbacks", "Record", "count_evaluations", "is_first_rank"]

Record = dict[str, float]

COUNTS = ("step", "evaluations", "seconds")  # what every record has beside the loss and the metrics


def count_evaluations(optimizer: Optimizer, n_steps: int) -> int:
    """Returns how many evaluations of the loss ``n_steps`` steps have taken.

    The optimizers of this library count them, and so does LBFGS; the others of ``torch.optim`` take one a step.

    Example:
        >>> import torch, torch_gfo
        >>> from torch_gfo.callbacks import count_evaluations
        >>> x = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = torch_gfo.RandomSearch([x], popsize=4, seed=0)
        >>> _ = optimizer.step(lambda: x.square().sum())
        >>> count_evaluations(optimizer, n_steps=1), count_evaluations(torch.optim.SGD([x]), n_steps=1)
        (6, 1)
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate and Fabric wrap it
    if hasattr(optimizer, "evaluations"):
        return int(optimizer.evaluations)
    return sum(state.get("func_evals", 0) for state in optimizer.state.values()) or n_steps


class Callback(ABC):
    """Base of the callbacks: turns what it is called with into a record of numbers.

    A record has the keys ``"step"``, ``"evaluations"``, ``"seconds"`` (since the callback was made) and ``"loss"``, and
    one for each metric. ``state_dict()`` and ``load_state_dict()`` let all of them go on in a resumed run.
    """

    _remembered: ClassVar[tuple[str, ...]] = ()  # attributes that belong into a checkpoint, beside step and seconds

    def __init__(self) -> None:
        self.step = 0
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """The time since the callback was made, in all runs that it was resumed in."""
        return time.perf_counter() - self._started

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._started = time.perf_counter() - value

    def __call__(self, optimizer: Optimizer, loss: Any, **metrics: Any) -> bool:
        """Takes note of a step.

        Args:
            optimizer: The optimizer that made it.
            loss: What ``optimizer.step`` returned, the loss of the model before the step; one real number.
            **metrics: Other numbers to take note of, by name.

        Returns:
            Whether the training should end.

        Raises:
            TypeError: If the loss or a metric is not one real number.
            ValueError: If a metric has a name that records have anyway, or one that the callback needs is missing.
        """
        for name in metrics:
            if name in COUNTS:
                raise ValueError(f"A metric is called {name!r}, which every record has anyway. Give it another name.")
        numbers = {name: number_of(name, value) for name, value in {"loss": loss, **metrics}.items()}
        self.step += 1
        counts = (self.step, count_evaluations(optimizer, self.step), self.seconds)
        return self._take(optimizer, {**dict(zip(COUNTS, counts, strict=True)), **numbers})

    @abstractmethod
    def _take(self, optimizer: Optimizer, record: Record) -> bool:
        """Does what the callback is for; returns whether the training should end."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs to go on."""
        return {name: copy.deepcopy(getattr(self, name)) for name in ("step", "seconds", *self._remembered)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from where ``state_dict`` was taken.

        Raises:
            ValueError: If it is of another callback; nothing is changed then.
        """
        names = {"step", "seconds", *self._remembered}
        if state_dict.keys() != names:
            raise ValueError(
                f"{type(self).__name__} remembers {', '.join(sorted(names))}; this state holds "
                f"{', '.join(map(str, state_dict))}. Load it into the callback that it was taken from."
            )
        for name, value in state_dict.items():
            setattr(self, name, copy.deepcopy(value))

    def close(self) -> None:  # noqa: B027  most have nothing to end
        """Ends what is under way: a line, a file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Callbacks:
    """Several callbacks as one: all are called, in their order, and each may end the training.

    ``close()``, or the end of a ``with`` block, closes them.

    Args:
        *callbacks: Callbacks of this module, or functions with the same arguments.

    Example:
        >>> import torch, torch_gfo
        >>> from torch_gfo.callbacks import Callbacks, EarlyStopping, History
        >>> x = torch.nn.Parameter(torch.ones(3))
        >>> optimizer, history = torch_gfo.CMAES([x], seed=0), History()
        >>> with Callbacks(history, EarlyStopping(target=1e-6)) as callbacks:
        ...     while not callbacks(optimizer, optimizer.step(lambda: x.square().sum())):
        ...         pass
        >>> history.records[-1]["loss"] <= 1e-6
        True
    """

    def __init__(self, *callbacks: Callable[..., bool]) -> None:
        self.callbacks = callbacks

    def __call__(self, optimizer: Optimizer, loss: Any, **metrics: Any) -> bool:
        """Calls all of them; returns whether one of them wants the training to end."""
        ends = [callback(optimizer, loss, **metrics) for callback in self.callbacks]
        return any(ends)

    def close(self) -> None:
        """Closes all that can be closed."""
        for callback in self.callbacks:
            if isinstance(callback, Callback):
                callback.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def is_first_rank() -> bool:
    """Whether this process is the one that prints and writes: the first of torchrun's, or the only one."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def number_of(name: str, value: Any) -> float:
    """Returns a loss or a metric as a Python number.

    Raises:
        TypeError: If it is not one real number.
    """
    try:
        number = value.item() if isinstance(value, Tensor) else value
        return int(number) if isinstance(number, int) else float(number)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{name} is {value!r} of type {type(value).__name__}; a callback takes one real number. Give it the "
            "loss that optimizer.step returned, or 1-element tensors and Python numbers."
        ) from error
