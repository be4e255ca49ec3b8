"""The CMA-ES of pycma.

* N. Hansen, Y. Akimoto, P. Baudis, "CMA-ES/pycma on Github", 2019, https://doi.org/10.5281/zenodo.2559634.
* N. Hansen, "The CMA evolution strategy: a tutorial", 2016, https://arxiv.org/abs/1604.00772.

Differences from pycma: see ``PyCMA``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from torch_gfo.bridges.replay import Replay, require, tensor_of
from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.options import CommonOptions, check_integer, invalid
from torch_gfo.search import Search

__all__ = ["PyCMA"]

_WORST = 1e38
_LEAST, _MOST = 1e-10, 1e10  # radii to go on with where pycma's has left the range of their fifth powers
_MANY = 1000  # parameters, from which on the covariance is diagonal by default

# Options that the optimizer answers for: what to do instead.
_TAKEN = {
    "bounds": "give bounds=(low, high) to the optimizer",
    "seed": "give seed= to the optimizer",
    "randn": "give seed= to the optimizer",
    "BoundaryHandler": "bounds are kept by mirroring",
    "fixed_variables": "freeze parameters with requires_grad_(False)",
    "ftarget": "end the loop when optimizer.best_loss is low enough",
    "timeout": "a search must not depend on the clock; end the loop",
    "signals_filename": "a search must not depend on files",
    "termination_callback": "end the loop",
}
_QUIET = {"verbose": -9, "verb_log": 0, "verb_disp": 0, "signals_filename": None}


class PyCMA(GradientFreeOptimizer):
    """pycma's CMA-ES, the reference implementation, with all its options that are plain values.

    Use it for its options, or to compare with. It searches up to some hundred parameters well, of any conditioning; of
    more than 1000 it adapts a scale for each parameter only (``CMA_diagonal``), unless told otherwise. A step costs
    pycma's own time, about a millisecond in few dimensions, and much more where the covariance matrix is large.

    A step is one generation: pycma's ``ask()``, one evaluation of all candidates, ``tell()``. The model is pycma's
    mean. With ``deterministic=True`` it is the best point known, and where pycma's ``stop()`` says that a search is
    over, another one begins at a random point around the first. Otherwise the model, at the mean, would leave a good
    point with it: the search goes on, whatever ``stop()`` says.

    Only the order of the losses of one generation counts, so that minibatches may change from step to step. ``bounds``
    are kept by mirroring candidates, of which pycma does not know. Losses above 1e38, or not finite, count as 1e38.

    Needs the package cma: ``pip install torch_gfo[bridges]``.

    Args:
        params: Parameters, parameter groups or named parameters.
        options: Of pycma, by name, for example ``{"popsize": 20, "CMA_active": False}``; ``cma.CMAOptions()`` lists
            them. Values are numbers, strings, None, or lists of these. Default: None, pycma's defaults.
        budget: Number of candidates that the record in the state has room for, which otherwise grows. Default: None.
        lr: Multiplies every displacement. Default: 1.
        sigma: First standard deviation in parameter units. Default: None, 0.2 standard deviations of each tensor's
            initial values.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist, or an option that is no plain value.
        ValueError: For a value outside its range, or an option that pycma does not have.
        ImportError: If pycma is not installed.
        RuntimeError: If pycma refuses these options, with its own reason, or the covariance matrix does not fit into
            memory.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
        >>> optimizer = torch_gfo.PyCMA([x], options={"popsize": 10}, seed=0)
        >>> for _ in range(100):
        ...     loss = optimizer.step(lambda: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)
        >>> bool(loss < 1e-6)
        True
    """

    _replay: Replay[_Search]

    _auto_sigma: ClassVar[float] = 0.2

    def __init__(
        self,
        params: ParamsT,
        options: Mapping[str, Any] | None = None,
        budget: int | None = None,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "budget": budget, "options": _checked(options or {})}
        check_integer("budget", budget, 1, optional=True)
        super().__init__(params, own, common)

    def _reset_caches(self) -> None:
        super()._reset_caches()
        self._replay = Replay(_WORST)

    def _n_stored(self, dim: int) -> int:
        options = self._options(dim)
        popsize = options.get("popsize", 20)
        linear = 10 * dim * (popsize if isinstance(popsize, int) else 20)
        return linear if options.get("CMA_diagonal") is True else linear + 10 * dim**2  # in float64

    def _init_state(self, search: Search) -> dict[str, Any]:
        step, budget = int(self._shared["step"]), self.param_groups[0]["budget"]
        popsize = self._replay.trial(self._recipe(0, search.dim)).popsize
        return self._replay.beginning(search, step, popsize, budget)

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        recipe = self._recipe(state["foreign_seed"], search.dim)
        z = search.reflect(tensor_of(self._replay.search(recipe, state).ask(), search))
        losses = yield z
        self._replay.note(state, losses)
        mean = tensor_of(self._replay.search(recipe, state, n_noted=1).mean, search)
        return search.recommend(search.reflect(mean), z, losses)

    def _recipe(self, seed: int, dim: int) -> _Recipe:
        return _Recipe(seed, dim, tuple(self._options(dim).items()), self.param_groups[0]["deterministic"])

    def _options(self, dim: int) -> dict[str, Any]:
        return {**({"CMA_diagonal": True} if dim > _MANY else {}), **dict(self.param_groups[0]["options"])}


@dataclass(frozen=True)
class _Recipe:
    """What a search of pycma is made from.

    Attributes:
        restarts: Whether it begins anew where pycma would end.
    """

    seed: int
    dim: int
    options: tuple[tuple[str, Any], ...]
    restarts: bool

    def __str__(self) -> str:
        return "pycma's search"

    def begin(self) -> _Search:
        return _Search(self)


class _Search:
    """A search of pycma."""

    def __init__(self, recipe: _Recipe) -> None:
        import numpy

        self._make = require("cma", "PyCMA").CMAEvolutionStrategy
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in recipe.options}
        self._recipe = recipe
        self._randn = numpy.random.RandomState(recipe.seed).randn
        self._options = {**options, **_QUIET, "seed": math.nan, "randn": self._randn}
        self._asked: Any = None
        try:
            self._strategy = self._make(numpy.zeros(recipe.dim), 1.0, self._options)
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            raise RuntimeError(
                f"pycma does not take options={dict(recipe.options)} for {recipe.dim:,} parameters: {reason}"
            ) from error

    @property
    def popsize(self) -> int:
        return int(self._strategy.popsize)

    @property
    def mean(self) -> Any:
        return self._strategy.mean

    def ask(self) -> Any:
        if self._asked is None:
            self._asked = self._strategy.ask()
        return self._asked

    def tell(self, losses: list[float]) -> None:
        self._strategy.tell(self._asked, losses)
        self._asked = None
        sigma = self._strategy.sigma
        if self._recipe.restarts and self._strategy.stop():
            self._strategy = self._make(self._randn(self._recipe.dim), 1.0, self._options)
        elif not _LEAST**5 < sigma < _MOST**5:  # the numbers would underflow or overflow
            self._strategy = self._make(self._strategy.mean, min(max(sigma, _LEAST), _MOST), self._options)


def _checked(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The options as a group of parameters may hold them."""
    if not isinstance(options, Mapping):
        raise invalid("options", options, "a dictionary, from names of pycma's options to values")
    known = require("cma", "PyCMA").CMAOptions.defaults()
    for name in options:
        if name in _TAKEN or name.startswith("verb"):
            raise ValueError(
                f"options[{name!r}] has no effect here: {_TAKEN.get(name, 'nothing is printed or logged')}."
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f". Did you mean {near[0]!r}?" if near else ", see cma.CMAOptions()."
            raise ValueError(f"options[{name!r}] is no option of pycma{hint}")
    return tuple((name, _plain(name, options[name])) for name in sorted(options))


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(_plain(name, item) for item in value)
    raise TypeError(
        f"options[{name!r}] is a {type(value).__name__}; it must be a number, a string, None, or a list of these: a "
        "checkpoint holds it."
    )
