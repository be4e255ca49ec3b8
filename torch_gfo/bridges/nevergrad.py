"""The optimizers of nevergrad.

* J. Rapin, O. Teytaud, "Nevergrad - A gradient-free optimization platform", 2018,
  https://github.com/facebookresearch/nevergrad.

Differences from nevergrad: see ``Nevergrad``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from torch_gfo.bridges.replay import Replay, require, tensor_of
from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.options import CommonOptions, check_integer, invalid
from torch_gfo.recombination import default_popsize
from torch_gfo.search import Search

__all__ = ["Nevergrad"]

_BUDGET = 10_000
_WORST = 1e20  # nevergrad itself takes nothing above 5e20


class Nevergrad(GradientFreeOptimizer):
    """Any optimizer of nevergrad's registry: more than 500 names, from ``"OnePlusOne"`` to ``"NGOpt"``.

    Use it to compare with, or for a method that this library does not have. A step costs nevergrad's own time, one or
    more milliseconds a candidate, and its optimizers know nothing of minibatches: where there is a class of this
    library for the method, it is faster and trains networks better.

    In every step nevergrad is asked for ``num_workers`` candidates, which are evaluated together, and told their losses
    before the next step. It searches around the model's first point, with a first step of ``sigma``. The model moves to
    a candidate whose loss is lower than its own on the same minibatch.

    nevergrad remembers losses of earlier minibatches and takes them for losses of one function. When the minibatch
    changes, what it is told is shifted by the change of the model's own loss: luck that all points share does not count
    as progress, but luck of a single point does. ``bounds`` are kept by mirroring candidates, of which nevergrad does
    not know. Losses above 1e20, or not finite, count as 1e20.

    Needs the package nevergrad: ``pip install torch_gfo[bridges]``.

    Args:
        params: Parameters, parameter groups or named parameters.
        optimizer: A name of ``nevergrad.optimizers.registry``. Default: ``"NGOpt"``, which chooses by the dimension,
            the budget and ``num_workers``.
        budget: Number of candidates that nevergrad plans for. The search may go on beyond, except with methods that
            draw all points in advance. Default: None, 10,000.
        num_workers: Number of candidates in a step, of which nevergrad knows. Default: None, a generation of CMA-ES,
            4 + 3 log(dim), or 1 for methods that allow no parallelism.
        lr: Multiplies every displacement. Default: 1.
        sigma: Radius of the first mutations in parameter units. Default: None, 0.2 standard deviations of each tensor's
            initial values.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range, or an optimizer that nevergrad does not have.
        ImportError: If nevergrad is not installed.
        RuntimeError: If nevergrad's optimizer refuses these parameters, with its own reason.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
        >>> optimizer = torch_gfo.Nevergrad([x], "CMA", num_workers=8, seed=0, deterministic=True)
        >>> for _ in range(150):
        ...     loss = optimizer.step(lambda: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)
        >>> bool(loss < 1e-6)
        True
    """

    _replay: Replay[_Search]

    _auto_sigma: ClassVar[float] = 0.2

    def __init__(
        self,
        params: ParamsT,
        optimizer: str = "NGOpt",
        budget: int | None = None,
        num_workers: int | None = None,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "optimizer": optimizer, "budget": budget}
        own |= {"num_workers": num_workers}
        check_integer("budget", budget, 1, optional=True)
        check_integer("num_workers", num_workers, 1, optional=True)
        registry = _registry()
        if str(optimizer) not in registry:  # a list has no hash
            near = difflib.get_close_matches(str(optimizer), registry, n=3)
            hint = f"; the nearest are {', '.join(map(repr, near))}" if near else ""
            raise invalid("optimizer", optimizer, f"a name of nevergrad.optimizers.registry{hint}")
        if num_workers is not None and num_workers > 1 and registry[optimizer].no_parallelization:
            raise invalid("num_workers", num_workers, f"1, because {optimizer} allows no parallelism")
        super().__init__(params, own, common)

    def _reset_caches(self) -> None:
        super()._reset_caches()
        self._replay = Replay(_WORST)

    def _n_stored(self, dim: int) -> int:
        name = self.param_groups[0]["optimizer"]
        quadratic = "CMA" in name and "Diagonal" not in name
        return 1000 * dim + 10 * dim**2 * quadratic  # nevergrad keeps the best few hundred points, in float64

    def _init_state(self, search: Search) -> dict[str, Any]:
        recipe = self._recipe({"foreign_seed": 0, "first_loss": 0.0}, search)
        self._replay.trial(recipe)  # what nevergrad refuses, it refuses at once
        step, budget = int(self._shared["step"]), self.param_groups[0]["budget"]
        beginning = self._replay.beginning(search, step, recipe.num_workers, budget)
        return {**beginning, "first_loss": math.nan, "shift": 0.0}

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        if math.isnan(state["first_loss"]):
            state["first_loss"] = min(float(search.loss), _WORST)
        rows = self._replay.search(self._recipe(state, search), state).ask()
        z = search.reflect(tensor_of(rows, search))
        losses = yield z
        state["shift"] += float(search.drift)
        self._replay.note(state, losses - state["shift"])
        best = losses.argmin()
        return (z[best].clone(), losses[best]) if losses[best] < search.loss else (search.point, search.loss)

    def _recipe(self, state: dict[str, Any], search: Search) -> _Recipe:
        group, dim = self.param_groups[0], search.dim
        n = group["num_workers"]
        if n is None:
            n = 1 if _registry()[group["optimizer"]].no_parallelization else default_popsize(dim)
        budget = group["budget"] or _BUDGET
        return _Recipe(state["foreign_seed"], group["optimizer"], dim, budget, n, state["first_loss"])


def _registry() -> Any:
    return require("nevergrad", "Nevergrad").optimizers.registry


@dataclass(frozen=True)
class _Recipe:
    """What a search of nevergrad is made from.

    Attributes:
        first_loss: The loss at the origin.
    """

    seed: int
    optimizer: str
    dim: int
    budget: int
    num_workers: int
    first_loss: float

    def __str__(self) -> str:
        return f"nevergrad's {self.optimizer}"

    def begin(self) -> _Search:
        return _Search(self)


class _Search:
    """A search of nevergrad."""

    def __init__(self, recipe: _Recipe) -> None:
        import numpy

        nevergrad = require("nevergrad", "Nevergrad")
        space = nevergrad.p.Array(shape=(recipe.dim,))
        space.random_state = numpy.random.RandomState(recipe.seed)
        make = nevergrad.optimizers.registry[recipe.optimizer]
        self._recipe = recipe
        self._asked: list[Any] = []
        try:
            self._optimizer = make(space, budget=recipe.budget, num_workers=recipe.num_workers)
        except Exception as error:
            raise self._failed(error) from error

    def ask(self) -> Any:
        try:
            while len(self._asked) < self._recipe.num_workers:
                candidate = self._optimizer.ask()
                if self._optimizer.num_ask == 1 and not candidate.value.any():  # its loss is known
                    self._optimizer.tell(candidate, self._recipe.first_loss)
                else:
                    self._asked.append(candidate)
        except Exception as error:
            raise self._failed(error) from error
        return [candidate.value for candidate in self._asked]

    def tell(self, losses: list[float]) -> None:
        try:
            for candidate, loss in zip(self._asked, losses, strict=True):
                self._optimizer.tell(candidate, loss)
        except Exception as error:
            raise self._failed(error) from error
        self._asked = []

    def _failed(self, error: Exception) -> RuntimeError:
        recipe, reason = self._recipe, str(error).strip() or type(error).__name__
        return RuntimeError(
            f"nevergrad's {recipe.optimizer} does not work for {recipe.dim:,} parameters, budget={recipe.budget} and "
            f"num_workers={recipe.num_workers}: {reason.rstrip('.')}. Try num_workers=1 or another budget, or take "
            "another optimizer of nevergrad's registry."
        )
