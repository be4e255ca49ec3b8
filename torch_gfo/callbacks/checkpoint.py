"""Files from which a training goes on."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from torch_gfo.callbacks.base import COUNTS, Callback, Record, is_first_rank
from torch_gfo.options import check_choice, check_number

__all__ = ["Checkpoint"]

_FORMAT = "torch_gfo.callbacks.Checkpoint"


class Restorable(Protocol):
    """What a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        """Returns all that ``load_state_dict`` needs."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Goes on from a state."""


class Checkpoint(Callback):
    """Saves the training every so often, and restores it exactly.

    The file holds the optimizer, the objects and torch's global random state. It is replaced when the next one is
    complete, so that whatever interrupts the writing, there is a good one. Call it last, after ``scheduler.step()`` and
    the other callbacks, so that it saves what they have done. On several ranks the first one writes, all restore.

    What is not an object here is not restored: a ``DataLoader`` begins a new epoch. For a run that is bit-identical to
    one without interruption, save at the end of an epoch, or give an order of minibatches that has a ``state_dict``.

    Args:
        path: The file. Its folder must exist.
        every: How much of ``unit`` lies between two checkpoints. Default: 1000.
        unit: ``"evaluations"`` (default), ``"step"`` or ``"seconds"``.
        **objects: What to save beside the optimizer, by name: the model, a scheduler, a ``History``; everything that
            has ``state_dict`` and ``load_state_dict``.

    Raises:
        TypeError: If an object has no ``state_dict`` or ``load_state_dict``.
        ValueError: For an argument outside its range, or a folder that does not exist.

    Example:
        >>> import tempfile, torch, torch_gfo
        >>> from torch_gfo.callbacks import Checkpoint
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer, folder = torch_gfo.PSO(model.parameters(), seed=0), tempfile.TemporaryDirectory()
        >>> checkpoint = Checkpoint(f"{folder.name}/run.pt", every=500, model=model)
        >>> checkpoint.restore(optimizer)  # there is none yet
        False
        >>> for _ in range(50):
        ...     loss = optimizer.step(lambda: (model.weight - 1).square().sum())
        ...     _ = checkpoint(optimizer, loss)
        >>> checkpoint.restore(optimizer)
        True
        >>> folder.cleanup()
    """

    _remembered = ("saved_at",)

    def __init__(
        self, path: str | os.PathLike[str], *, every: float = 1000, unit: str = "evaluations", **objects: Restorable
    ) -> None:
        super().__init__()
        check_choice("unit", unit, COUNTS)
        check_number("every", every, "(0, inf]")
        for name, value in objects.items():
            if name in ("optimizer", "checkpoint"):
                raise ValueError(f"{name} is saved anyway: give the object another name, or leave it out.")
            if not (hasattr(value, "state_dict") and hasattr(value, "load_state_dict")):
                raise TypeError(f"{name} is a {type(value).__name__}, without state_dict and load_state_dict.")
        self.path = Path(path)
        if not self.path.absolute().parent.is_dir():
            raise ValueError(f"{self.path}: there is no folder {self.path.parent}. Make it first.")
        self.every, self.unit, self.objects = every, unit, objects
        self.saved_at: float = 0

    def _take(self, optimizer: Optimizer, record: Record) -> bool:
        now = record[self.unit]
        if now // self.every > self.saved_at // self.every:
            self.saved_at = now
            self.save(optimizer)
        return False

    def save(self, optimizer: Optimizer) -> None:
        """Saves the training as it is now, for example after the loop.

        Raises:
            TypeError: If a state holds what ``torch.load(weights_only=True)`` would not load; the file stays as it was.
        """
        if is_first_rank():
            _write(self.path, {name: value.state_dict() for name, value in self._all(optimizer).items()})

    def load(self) -> dict[str, Any]:
        """Returns the states in the file by name, without restoring anything.

        Raises:
            OSError: If there is no such file, or it may not be read.
            ValueError: If it is truncated, or no checkpoint.
        """
        states: dict[str, Any] = _read(self.path)["states"]
        return states

    def restore(self, optimizer: Optimizer) -> bool:
        """Goes on from the file, if there is one; or else begins anew.

        Returns:
            Whether there was one.

        Raises:
            ValueError: If the file is truncated, no checkpoint, or one of something else; nothing is changed then.
        """
        if not self.path.exists():
            return False
        content = _read(self.path)
        _restore(self.path, content["states"], self._all(optimizer))
        _set_random_state(content["random"])
        return True

    def _all(self, optimizer: Optimizer) -> dict[str, Restorable]:
        return {"optimizer": optimizer, "checkpoint": self, **self.objects}


def _write(path: Path, states: dict[str, Any]) -> None:
    """Writes a file beside the one that there is, and puts it in its place when it is complete and can be read."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            torch.save({"format": _FORMAT, "states": states, "random": _random_state()}, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            torch.load(part, weights_only=True, mmap=True)  # reads the structure, and of the tensors nothing
        except Exception as error:
            raise TypeError(
                f"What is to be saved in {path} could not be loaded again: {_first_line(error)} The state_dict of "
                f"{', '.join(states)} may hold tensors, numbers, strings, lists and dicts."
            ) from error
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # bytes of any origin can raise anything
            raise ValueError(
                f"{path} is truncated, or another program's file ({type(error).__name__}: {_first_line(error)}). Put "
                "a copy of the checkpoint in its place, or move it away to begin anew."
            ) from error
    if not (isinstance(content, dict) and content.get("format") == _FORMAT):
        holds = f"the keys {', '.join(map(str, content))}" if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} was not written by {_FORMAT}: it holds {holds}. Load it with the program that wrote it, or give "
            "the checkpoint another path."
        )
    return content


def _restore(path: Path, states: dict[str, Any], targets: dict[str, Restorable]) -> None:
    """Loads all states, or none."""
    if states.keys() != targets.keys():
        raise ValueError(
            f"{path} holds {', '.join(states)}; there is {', '.join(targets)} to restore. Give the checkpoint the "
            "objects that were saved."
        )
    before = {name: copy.deepcopy(target.state_dict()) for name, target in targets.items()}
    name = ""
    try:
        for name, target in targets.items():
            target.load_state_dict(states[name])
    except BaseException as error:
        for other, target in targets.items():
            target.load_state_dict(before[other])
        if not isinstance(error, Exception):
            raise
        raise ValueError(
            f"{path}: {name} cannot be restored, and nothing was: {error} Build what is restored as it was when it was "
            "saved."
        ) from error


def _random_state() -> dict[str, Any]:
    """The state of torch's global generators: dropout, and the order of a ``DataLoader``, depend on it."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
