"""Curves of a training in TensorBoard."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from torch_gfo.callbacks.base import COUNTS, Callback, Record, is_first_rank
from torch_gfo.options import check_choice

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoard"]


class TensorBoard(Callback):
    """Writes the loss and the metrics for TensorBoard.

    Needs the package tensorboard: ``pip install tensorboard``. Only the first rank writes.

    Args:
        writer: A folder, or a ``torch.utils.tensorboard.SummaryWriter``.
        unit: What the horizontal axis counts: ``"evaluations"`` (default), at which optimizers can be compared,
            ``"step"`` or ``"seconds"``.

    Raises:
        ImportError: If tensorboard is not installed.
        ValueError: For another ``unit``.

    Example:
        >>> import tempfile, torch, torch_gfo
        >>> from torch_gfo.callbacks import TensorBoard
        >>> x, folder = torch.nn.Parameter(torch.ones(3)), tempfile.TemporaryDirectory()
        >>> optimizer = torch_gfo.GA([x], popsize=8, seed=0)
        >>> with TensorBoard(folder.name) as board:
        ...     for _ in range(10):
        ...         _ = board(optimizer, optimizer.step(lambda: x.square().sum()))
        >>> folder.cleanup()
    """

    def __init__(self, writer: SummaryWriter | str | os.PathLike[str], *, unit: str = "evaluations") -> None:
        super().__init__()
        check_choice("unit", unit, COUNTS)
        self.unit = unit
        self._writer: SummaryWriter | None = None
        if is_first_rank():
            self._writer = _make_writer(writer) if isinstance(writer, (str, os.PathLike)) else writer

    def _take(self, optimizer: Optimizer, record: Record) -> bool:
        if self._writer is not None:
            for name, value in record.items():
                if name not in COUNTS:
                    self._writer.add_scalar(name, value, int(record[self.unit]))
            self._writer.flush()  # a training that is killed leaves its curves
        return False

    def close(self) -> None:
        """Closes the writer."""
        if self._writer is not None:
            self._writer.close()


def _make_writer(folder: str | os.PathLike[str]) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"TensorBoard needs the package tensorboard, which cannot be imported ({error}). Install it with: "
            "pip install tensorboard"
        ) from error
    return SummaryWriter(os.fspath(folder))
