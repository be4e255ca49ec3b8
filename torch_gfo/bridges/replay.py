"""A search of another package, which is rebuilt whenever needed from a record of the losses that it was told.

Such a search is an object that cannot be part of an optimizer's state. What it does next depends on its seed and on the
losses that it was told. These the state holds, and the object beside it is a cache: where it is missing (after loading,
copying, unpickling) or has been told anything else than the state says (a step that failed), another one is made from
the seed and told the record again. So resuming is exact, for the time that the other package itself takes.
"""

from __future__ import annotations

import importlib
import math
import random
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from torch_gfo.search import Search

__all__ = ["Replay", "require", "tensor_of"]

_BLOCK = 10_000  # losses that the record of a search without a budget has room for at first, and grows by
_NOISY_PACKAGES = r"(nevergrad|cma|bayes_opt|directsearch|numpy|scipy|sklearn)(\.|$)"


class Foreign(Protocol):
    """A search of another package, in unit coordinates."""

    def ask(self) -> Sequence[Any]:
        """Returns the next ``P`` rows, arrays ``(dim,)``; the same until they are told."""

    def tell(self, losses: list[float]) -> None:
        """Takes the losses of the rows, all finite."""


F_co = TypeVar("F_co", bound=Foreign, covariant=True)
F = TypeVar("F", bound=Foreign)


class Recipe(Protocol[F_co]):
    """All that a search is made from; equal recipes make searches that ask and answer alike."""

    @property
    def seed(self) -> int:
        """Of all random numbers."""

    def begin(self) -> F_co:
        """Makes a search that has not been told anything."""


def require(package: str, owner: str) -> Any:
    """Imports an optional package.

    Raises:
        ImportError: If it is not installed, with the way to install it.
    """
    try:
        with Surroundings(seed=0).entered():  # nevergrad draws some of its optimizers' constants when it is imported
            return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{owner} needs the package {package}, which cannot be imported ({error}). "
            "Install it with: pip install torch_gfo[bridges]"
        ) from error


def tensor_of(arrays: Any, search: Search) -> Tensor:
    """NumPy arrays as a tensor of the search's dtype and device."""
    import numpy

    return torch.from_numpy(numpy.array(arrays, dtype=numpy.float64)).to(search.point)


class Surroundings:
    """What the code of another package finds in the process, and what it must not change there.

    NumPy's and Python's global generators are the search's own while its code runs: it can be repeated, and the
    caller's generators stay where they are. The packages' warnings, about settings of the bridge, are hidden. Threads
    that start here (nevergrad runs scipy's methods in some) do not keep the process from ending.

    Args:
        seed: Of the global generators.
    """

    def __init__(self, seed: int) -> None:
        self._numpy = importlib.import_module("numpy.random")
        self._generators = self._numpy.RandomState(seed).get_state(), random.Random(seed).getstate()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Holds while the other package's code runs."""
        callers = self._numpy.get_state(), random.getstate()
        thread: Any = threading.current_thread()
        daemon = thread.daemon
        self._install(*self._generators)
        thread._daemonic = True  # which threads inherit
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=_NOISY_PACKAGES)
                yield
        finally:
            thread._daemonic = daemon
            self._generators = self._numpy.get_state(), random.getstate()
            self._install(*callers)

    def _install(self, of_numpy: Any, of_python: Any) -> None:
        self._numpy.set_state(of_numpy)
        random.setstate(of_python)


class Replay(Generic[F]):
    """Keeps a search of another package in step with the record in the state.

    The record is a tensor ``(rows, P)``: a row for each step since the search began, filled with ``worst`` until losses
    are noted. A step without any finite loss leaves no trace in the state, so its row stays as it is: the search is
    told that all its points were as bad as can be, and goes on to others.

    Some searches of other packages cannot be repeated: they take a seed from the clock. A sum over all that was asked
    for finds this out when such a search is rebuilt.

    Args:
        worst: What the search is told of points whose loss is not finite or even greater. Greater numbers overflow in
            the package's formulas.
    """

    def __init__(self, worst: float) -> None:
        self._worst = worst
        self._live: _Live[F] | None = None

    def beginning(self, search: Search, step: int, popsize: int, budget: int | None) -> dict[str, Any]:
        """The entries of the state, of a search that begins at a step."""
        n_rows = math.ceil((budget or _BLOCK) / popsize)
        record = search.point.new_full((n_rows, popsize), self._worst)
        seed = int(search.integers(2**31))
        return {"began_at": step, "foreign_seed": seed, "record": record, "checksum": 0.0}

    def note(self, state: dict[str, Any], losses: Tensor) -> None:
        """Writes the losses ``(P,)`` of a step's rows into its state, for the search to be told."""
        record, row = state["record"], state["step"] - state["began_at"]
        more = torch.full_like(record, self._worst) if row >= len(record) else record[:0]
        state["record"] = torch.cat([record, more])  # a copy
        state["record"][row] = losses.clamp(-self._worst, self._worst)
        if self._live is not None and self._live.is_noted(state["record"][row]):
            state["checksum"] += self._live.sum_of_rows()

    def trial(self, recipe: Recipe[F]) -> F:
        """A search to look at; raises what is wrong with the recipe."""
        with Surroundings(recipe.seed).entered():
            return recipe.begin()

    def search(self, recipe: Recipe[F], state: dict[str, Any], *, n_noted: int = 0) -> F:
        """The search after the steps before this one; with ``n_noted=1`` also after this one, which has been noted.

        Raises:
            RuntimeError: If it had to be rebuilt and asks for other points than it did.
        """
        record = state["record"][: state["step"] - state["began_at"] + n_noted]
        live, self._live = self._live, None  # what is interrupted in the middle is of no use
        if live is None or live.recipe != recipe or not torch.equal(record[: len(live.told)], live.told):
            live = _Live(recipe, record[:0], self._worst)
        live.catch_up(record)
        if not (math.isclose(live.checksum, state["checksum"], rel_tol=1e-6) or math.isnan(live.checksum)):
            raise RuntimeError(
                f"{recipe} was rebuilt from its record and asks for other points than it did, so that the record says "
                "nothing of them: it cannot be repeated, or was recorded with another version of the package. Begin a "
                "new search: make a new optimizer of the model's parameters."
            )
        self._live = live
        return live.search


class _Live(Generic[F]):
    """A search, and the rows of the record that it was told."""

    search: F

    def __init__(self, recipe: Recipe[F], told: Tensor, worst: float) -> None:
        self.recipe = recipe
        self.told = told
        self._worst = worst
        self.checksum = 0.0
        self._surroundings = Surroundings(recipe.seed)
        with self._surroundings.entered():
            self.search = recipe.begin()

    def catch_up(self, record: Tensor) -> None:
        """Tells it the rest of the record, and asks for the next rows, which it remembers."""
        with self._surroundings.entered():
            for losses in record[len(self.told) :]:
                self.search.ask()
                if self.is_noted(losses):
                    self.checksum += self.sum_of_rows()
                self.search.tell(losses.tolist())
            self.search.ask()
        self.told = record.clone()  # loading a checkpoint may write into the state's tensors

    def is_noted(self, losses: Tensor) -> bool:
        """Whether a row of the record says anything: nothing in the state depends on others."""
        return bool((losses < self._worst).any())

    def sum_of_rows(self) -> float:
        """Tells the rows that it is asked for from others."""
        return sum(float(abs(row).sum()) for row in self.search.ask())
