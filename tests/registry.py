"""One entry for each optimizer: its configurations, its promises, and what it can do.

Every contract test runs over this table. Where optimizers differ, the difference is an entry's datum; no test asks for
a name.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tests.helpers import Task, mlp
from torch_gfo.algorithms.genetic import GA
from torch_gfo.algorithms.nelder_mead import NelderMead
from torch_gfo.algorithms.particle_swarm import PSO
from torch_gfo.algorithms.random_search import RandomSearch
from torch_gfo.bridges.nevergrad import Nevergrad
from torch_gfo.bridges.pycma import PyCMA
from torch_gfo.optimizer import GradientFreeOptimizer

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """Arguments that must be refused.

    Attributes:
        options: Keyword arguments of the constructor.
        error: The type of the exception.
        match: What its message says, a regular expression.
        when: Whether the constructor raises, or the first step.
    """

    options: Options
    error: type[Exception]
    match: str
    when: Literal["construction", "step"] = "construction"


@dataclass(frozen=True)
class Entry:
    """What the tests know about one optimizer.

    Attributes:
        cls: The class.
        inputs: Named constructor arguments, beside those that every class takes.
        candidates: The least and the most candidates in one step, from all options, the number of coordinates, and
            whether the objective changes in every step.
        small: Arguments that make a step cheap; those of all inputs but the default.
        failures: Arguments that must be refused.
        budgets: Evaluations within which the median of five seeds reaches 1e-8 in five dimensions, by objective.
        elitist: Whether the model never moves to a worse point of an objective that does not change.
        has_momentum: Whether schedulers may cycle a ``momentum`` of it.
    """

    cls: type[GradientFreeOptimizer]
    inputs: Mapping[str, Options]
    candidates: Callable[[Options, int, bool], tuple[int, int]]
    small: Options = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    budgets: Mapping[str, int] = field(default_factory=dict)
    elitist: bool = True
    has_momentum: bool = False

    def __str__(self) -> str:
        return self.cls.__name__

    @property
    def file(self) -> str:
        """The name of the module, and of the page and the reference that belong to it."""
        return self.cls.__module__.rpartition(".")[2]

    def make(self, params: Iterable[Any], **options: Any) -> GradientFreeOptimizer:
        """Builds an optimizer that is reproducible bit for bit: "auto" chooses by the clock."""
        build: Any = self.cls
        optimizer: GradientFreeOptimizer = build(params, **{"seed": 0, "evaluation": "sequential", **options})
        return optimizer


@dataclass(frozen=True)
class Case:
    """An optimizer with one of its configurations."""

    entry: Entry
    name: str
    options: Options

    def __str__(self) -> str:
        return f"{self.entry}-{self.name}"

    def make(self, params: Iterable[Any], **options: Any) -> GradientFreeOptimizer:
        """Builds an optimizer; a Tensor in the options is its own."""
        return self.entry.make(params, **{**copy.deepcopy(dict(self.options)), **options})

    def mlp(self, *, normalize: bool = False, dropout: float = 0.0) -> Task:
        """A network to train with this configuration: one batch if it promises so, a sign if it maximises."""
        n_batches = 1 if self.options.get("deterministic") else 4
        sign = -1 if self.options.get("maximize") else 1
        return mlp(n_batches=n_batches, normalize=normalize, dropout=dropout, sign=sign)

    def goal(self, loss: Tensor) -> Tensor:
        """Something to minimise, as this configuration wants to see it."""
        return -loss if self.options.get("maximize") else loss


COMMON_INPUTS: dict[str, Options] = {
    "default": {},
    "tensor_lr_and_sigma": {"lr": torch.tensor(0.5), "sigma": 0.2},
    "maximize": {"maximize": True},
    "weight_decay": {"weight_decay": 0.1},
    "bounds": {"bounds": (-4.0, 4.0)},
    "deterministic": {"deterministic": True},
    "vectorized": {"evaluation": "vectorized"},
    "subspace": {"subspace": 5, "subspace_refresh": 3},
}

COMMON_FAILURES = (
    Failure({"lr": -0.1}, ValueError, "lr must be"),
    Failure({"lr": float("nan")}, ValueError, "lr must be"),
    Failure({"lr": torch.tensor([0.1, 0.1])}, ValueError, "Tensor lr must be 1-element"),
    Failure({"sigma": 0.0}, ValueError, "sigma must be"),
    Failure({"sigma": -1.0}, ValueError, "sigma must be"),
    Failure({"bounds": (1.0, 1.0)}, ValueError, "bounds must be"),
    Failure({"bounds": (2.0, 1.0)}, ValueError, "bounds must be"),
    Failure({"bounds": (10.0, 20.0)}, ValueError, r"4 of 4 initial values .* outside bounds=\(10.0, 20.0\)"),
    Failure({"weight_decay": -0.1}, ValueError, "weight_decay must be"),
    Failure({"seed": 0.5}, ValueError, "seed must be"),
    Failure({"subspace": 0}, ValueError, "subspace must be"),
    Failure({"subspace": 5}, ValueError, "subspace must be at most the number of parameters, 4, got 5"),
    Failure({"subspace_refresh": 3}, ValueError, "subspace is None"),
    Failure({"subspace": 2, "subspace_refresh": 0}, ValueError, "subspace_refresh must be"),
    Failure({"evaluation": "parallel"}, ValueError, "evaluation must be one of 'auto', 'sequential', 'vectorized'"),
    Failure({"chunk_size": 0}, ValueError, "chunk_size must be"),
    Failure({"sigmas": 0.1}, TypeError, "unexpected keyword argument 'sigmas'. Did you mean 'sigma'?"),
    Failure({"foreach": True}, TypeError, "unexpected keyword argument 'foreach'"),
)


def _popsize(options: Options, dim: int, changing: bool) -> tuple[int, int]:
    """A generation in every step."""
    return options["popsize"], options["popsize"]


def _particles(options: Options, dim: int, changing: bool) -> tuple[int, int]:
    """Particles; on another objective than the remembered one also a quarter of the personal bests, and their mean."""
    n = options["popsize"]
    return n, n + (max(2, n // 4) + 1 if changing else 0)


def _popsize_and_sum(options: Options, dim: int, changing: bool) -> tuple[int, int]:
    """Proposals, and the sum of those that succeed."""
    return options["popsize"], options["popsize"] + 1


def _simplex(options: Options, dim: int, changing: bool) -> tuple[int, int]:
    """A simplex where there is a new one or its losses are stale, and moves that cost as much; else one move."""
    return 2 * dim if changing else 1, 3 * dim + 1


def _workers(options: Options, dim: int, changing: bool) -> tuple[int, int]:
    """As many as nevergrad is asked for at a time."""
    n = options["num_workers"] or 4 + int(3 * math.log(dim))
    return n, n


def _generation(options: Options, dim: int, changing: bool) -> tuple[int, int]:
    """A generation of pycma."""
    n = dict(options["options"]).get("popsize", 4 + int(3 * math.log(dim)))
    return n, n


ENTRIES = (
    Entry(
        GA,
        small={"popsize": 6},
        inputs={
            "uniform": {"crossover": "uniform"},
            "sbx": {"crossover": "sbx"},
            "blend": {"crossover": "blend"},
            "no_crossover": {"crossover": None},
            "tournament": {"selection": "tournament"},
            "fixed_radius": {"self_adaptive": False, "crossover": None},
            "all_are_parents": {"elite": 1.0},
        },
        failures=(
            Failure({"popsize": 1}, ValueError, "popsize must be an integer of at least 2"),
            Failure({"popsize": 8.0}, ValueError, "popsize must be an integer of at least 2"),
            Failure({"elite": 0.0}, ValueError, "elite must be"),
            Failure({"elite": 1.5}, ValueError, "elite must be"),
            Failure({"selection": "roulette"}, ValueError, "selection must be one of 'truncation', 'tournament'"),
            Failure({"crossover": "two_point"}, ValueError, "crossover must be one of 'centroid', 'uniform'"),
            Failure({"meta": 0.5}, ValueError, "meta must be a finite number >= 1"),
        ),
        candidates=_popsize,
        budgets={"sphere": 6_000, "ellipsoid": 8_500, "rosenbrock": 8_500},
    ),
    Entry(
        PSO,
        small={"popsize": 6},
        inputs={
            "constriction": {"variant": "constriction"},
            "ring": {"topology": "ring"},
            "global": {"topology": "global"},
            "one_informant": {"informants": 1},
            "velocity_limit": {"velocity_limit": 0.5},
            "constants": {"inertia": 0.6, "acceleration": 1.4},
        },
        failures=(
            Failure({"popsize": 1}, ValueError, "popsize must be an integer of at least 2"),
            Failure({"variant": "spso2007"}, ValueError, "variant must be one of 'spso2011', 'constriction'"),
            Failure({"topology": "star"}, ValueError, "topology must be one of 'random', 'ring', 'global'"),
            Failure({"informants": 0}, ValueError, "informants must be an integer of at least 1"),
            Failure({"inertia": 1.0}, ValueError, "inertia must be"),
            Failure({"acceleration": 0.0}, ValueError, "acceleration must be"),
            Failure({"velocity_limit": 0.0}, ValueError, "velocity_limit must be"),
        ),
        candidates=_particles,
        budgets={"sphere": 10_500, "ellipsoid": 15_000, "rosenbrock": 18_000},
    ),
    Entry(
        RandomSearch,
        small={"popsize": 6},
        inputs={
            "one_proposal": {"popsize": 1},
            "success_rate": {"success_rate": 0.3},
            "no_restarts": {"restarts": False},
        },
        failures=(
            Failure({"popsize": 0}, ValueError, "popsize must be an integer of at least 1"),
            Failure({"proposal": "cauchy"}, ValueError, "proposal must be one of 'gaussian', 'uniform'"),
            Failure({"proposal": "uniform"}, ValueError, "Give finite bounds"),
            Failure({"proposal": "uniform", "bounds": (-9.0, float("inf"))}, ValueError, "Give finite bounds"),
            Failure({"proposal": "uniform", "bounds": (-9.0, 9.0), "subspace": 2}, ValueError, "no subspace"),
            Failure({"success_rate": 1.0}, ValueError, "success_rate must be"),
            Failure({"restarts": 1}, ValueError, "restarts must be True or False"),
        ),
        candidates=_popsize_and_sum,
        budgets={"sphere": 3_500, "ellipsoid": 14_000, "rosenbrock": 12_000},
    ),
    Entry(
        NelderMead,
        inputs={
            "adaptive": {"adaptive": True},
            "constant_coefficients": {"adaptive": False},
            "no_restarts": {"restarts": False},
        },
        failures=(
            Failure({"adaptive": "yes"}, ValueError, "adaptive must be True, False, or None"),
            Failure({"restarts": 1}, ValueError, "restarts must be True or False"),
            Failure({"popsize": 10}, TypeError, "unexpected keyword argument 'popsize'"),
        ),
        candidates=_simplex,
        budgets={"sphere": 300, "ellipsoid": 1_100, "rosenbrock": 1_700},
    ),
    Entry(
        Nevergrad,
        small={"optimizer": "OnePlusOne", "num_workers": 4},
        inputs={
            "in_turn": {"num_workers": 1},
            "de": {"optimizer": "TwoPointsDE", "num_workers": 6, "budget": 60},
            "cma": {"optimizer": "CMA", "num_workers": 5},
        },
        failures=(
            Failure({"optimizer": "OnePlusTwo"}, ValueError, "optimizer must be a name .* nearest are 'OnePlusOne'"),
            Failure({"budget": 0}, ValueError, "budget must be None or an integer of at least 1"),
            Failure({"num_workers": 0}, ValueError, "num_workers must be None or an integer of at least 1"),
            Failure({"optimizer": "Cobyla", "num_workers": 2}, ValueError, "Cobyla allows no parallelism, got 2"),
            Failure({"optimizer": "BO", "budget": 1.5}, ValueError, "budget must be None or an integer"),
        ),
        candidates=_workers,
        budgets={"sphere": 2_000, "ellipsoid": 4_000, "rosenbrock": 4_000},
    ),
    Entry(
        PyCMA,
        small={"options": {"popsize": 6}},
        inputs={
            "diagonal": {"options": {"popsize": 6, "CMA_diagonal": True}},
            "elitist": {"options": {"popsize": 6, "CMA_elitist": True}},
            "options": {"options": {"CMA_active": False, "CMA_mu": 3, "conditioncov_alleviate": [1e6, 1e9]}},
        },
        failures=(
            Failure({"options": {"popsiez": 6}}, ValueError, "is no option of pycma. Did you mean 'popsize'?"),
            Failure({"options": {"bounds": [0, 1]}}, ValueError, r"has no effect here: give bounds=\(low, high\)"),
            Failure({"options": {"seed": 1}}, ValueError, "has no effect here: give seed="),
            Failure({"options": {"verb_log": 1}}, ValueError, "has no effect here: nothing is printed or logged"),
            Failure({"options": {"CMA_sampler": object()}}, TypeError, "is a object; it must be a number, a string"),
            Failure({"options": {"popsize": "a dozen"}}, RuntimeError, "pycma does not take options="),
            Failure({"budget": 0}, ValueError, "budget must be None or an integer of at least 1"),
        ),
        candidates=_generation,
        budgets={"sphere": 1_000, "ellipsoid": 3_000, "rosenbrock": 3_000},
        elitist=False,
    ),
)

CASES = tuple(
    Case(entry, name, {**({} if name == "default" else entry.small), **options})
    for entry in ENTRIES
    for name, options in {**COMMON_INPUTS, **entry.inputs}.items()
)
