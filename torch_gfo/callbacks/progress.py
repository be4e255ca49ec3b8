"""A line that tells how far a training is."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

from torch.optim import Optimizer

from torch_gfo.callbacks.base import Callback, Record, is_first_rank

__all__ = ["Progress"]


class Progress(Callback):
    """Shows how far the training is, in one line on stderr that is written again and again.

    In a file, where nothing can be overwritten, it is a line every ten seconds. ``close()``, or the end of a ``with``
    block, writes the last line and ends it. Only the first rank writes.

    Args:
        total: Evaluations that the training may take, to show beside those that it has. Default: None, unknown.
        interval: Seconds from one line to the next. Default: None, 0.1 on a terminal and 10 elsewhere.
        stream: Where to write. Default: None, ``sys.stderr``.

    Example:
        >>> import sys, torch, torch_gfo
        >>> from torch_gfo.callbacks import Progress
        >>> x = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = torch_gfo.GA([x], popsize=8, seed=0)
        >>> with Progress(total=900, stream=sys.stdout) as progress:
        ...     while optimizer.evaluations < 900:
        ...         _ = progress(optimizer, optimizer.step(lambda: x.square().sum()))  # doctest: +ELLIPSIS
        step 100  evaluations 900/900  seconds ...  loss ...
    """

    def __init__(
        self, total: int | None = None, *, interval: float | None = None, stream: TextIO | None = None
    ) -> None:
        super().__init__()
        self.total = total
        self._stream = stream or sys.stderr
        self._on_terminal = self._stream.isatty()
        self._interval = (0.1 if self._on_terminal else 10.0) if interval is None else interval
        self._shown = time.perf_counter()
        self._line = ""  # not shown yet

    def _take(self, optimizer: Optimizer, record: Record) -> bool:
        of_total = "" if self.total is None else f"/{self.total:,}"
        ends = {"evaluations": of_total}
        self._line = "  ".join(f"{name} {_text(value)}{ends.get(name, '')}" for name, value in record.items())
        if time.perf_counter() - self._shown >= self._interval:
            self._show()
        return False

    def _show(self) -> None:
        if self._line and is_first_rank():
            if self._on_terminal:  # a line that is wrapped could not be overwritten
                self._stream.write(f"\r{self._line[: shutil.get_terminal_size().columns - 1]}\x1b[K")
            else:
                self._stream.write(f"{self._line}\n")
            self._stream.flush()
        self._shown, self._line = time.perf_counter(), ""

    def close(self) -> None:
        """Shows the last step and ends the line."""
        self._show()
        if self._on_terminal and self.step and is_first_rank():
            self._stream.write("\n")


def _text(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
