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
from torch_gfo.algorithms.ars import ARS
from torch_gfo.algorithms.cma_es import CMAES
from torch_gfo.algorithms.deep_ga import DeepGA
from torch_gfo.algorithms.differential_evolution import DE
from torch_gfo.algorithms.eggroll import EGGROLL
from torch_gfo.algorithms.genetic import GA
from torch_gfo.algorithms.lm_ma_es import LMMAES
from torch_gfo.algorithms.mezo import MeZO
from torch_gfo.algorithms.nelder_mead import NelderMead
from torch_gfo.algorithms.openai_es import OpenAIES
from torch_gfo.algorithms.particle_swarm import PSO
from torch_gfo.algorithms.pgpe import PGPE
from torch_gfo.algorithms.random_search import RandomSearch
from torch_gfo.algorithms.sep_cma_es import SepCMAES
from torch_gfo.algorithms.simulated_annealing import SimulatedAnnealing
from torch_gfo.algorithms.snes import SNES
from torch_gfo.algorithms.spsa import SPSA
from torch_gfo.algorithms.xnes import XNES
from torch_gfo.bridges.nevergrad import Nevergrad
from torch_gfo.bridges.pycma import PyCMA
from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.recombination import default_popsize

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
        targets: The losses that the budgets are for, where they are not 1e-8; with the reason beside it.
        elitist: Whether the model never moves to a worse point of an objective that does not change.
        lr_is_step: Whether ``lr`` is the length of the model's step: the model's displacement follows a schedule then,
            instead of the candidates'.
        looks_first: Whether a step evaluates the model before its candidates, and returns that value. Where it would
            cost too much, a step returns the mean of the closure's values at the candidates.
        refused: The inputs of ``COMMON_INPUTS`` that it does not take, each with the reason.
        knows_tensors: Whether a search depends on how its numbers are divided into tensors.
        variant_of: The optimizer whose mathematics it is, with other defaults; None for one of its own.
        has_momentum: Whether schedulers may cycle a ``momentum`` of it.
    """

    cls: type[GradientFreeOptimizer]
    inputs: Mapping[str, Options]
    candidates: Callable[[Options, int, bool], tuple[int, int]]
    small: Options = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    budgets: Mapping[str, int] = field(default_factory=dict)
    targets: Mapping[str, float] = field(default_factory=dict)
    elitist: bool = True
    variant_of: type[GradientFreeOptimizer] | None = None
    has_momentum: bool = False
    lr_is_step: bool = False
    looks_first: bool = True
    refused: Mapping[str, str] = field(default_factory=dict)
    knows_tensors: bool = False

    def __str__(self) -> str:
        return self.cls.__name__

    @property
    def batches(self) -> bool:
        """Whether it can evaluate all candidates at once."""
        return "vectorized" not in self.refused

    @property
    def file(self) -> str:
        """The name of the module, and of the page and the reference that belong to it."""
        return self.cls.__module__.rpartition(".")[2]

    def make(self, params: Iterable[Any], **options: Any) -> GradientFreeOptimizer:
        """Builds an optimizer that is reproducible bit for bit: "auto" chooses by the clock."""
        build: Any = self.cls
        optimizer: GradientFreeOptimizer = build(params, **{"seed": 0, "evaluation": "sequential", **options})
        return optimizer

    def ask_for_candidates(self, optimizer: GradientFreeOptimizer, loss: float = 1.0) -> Tensor:
        """The first candidates of a step; if it looks at the model first, whose loss is given."""
        if self.looks_first:
            optimizer.ask()
            optimizer.tell([loss])
        return optimizer.ask()


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


def _default_popsize(options: Options, dim: int, changing: bool) -> tuple[int, int]:
    """A generation in every step, whose default size depends on the number of coordinates."""
    popsize = options["popsize"] or default_popsize(dim)
    return popsize, popsize


def _population(options: Options, dim: int, changing: bool) -> tuple[int, int]:
    """A generation in every step, as large as the population still is."""
    n = options["popsize"] or min(dim + 25, 50)
    return (n, n) if options["max_evaluations"] is None else (4, n)


def _default_popsize_in_pairs(options: Options, dim: int, changing: bool) -> tuple[int, int]:
    """The same; candidates come in pairs."""
    popsize = options["popsize"] or default_popsize(dim)
    popsize += options["antithetic"] and popsize % 2
    return popsize, popsize


def _particles(options: Options, dim: int, changing: bool) -> tuple[int, int]:
    """Particles; on another objective than the remembered one also a quarter of the personal bests, and their mean."""
    n = options["popsize"] or min(32, 8 + 2 * dim)
    return n, n + (max(2, n // 4) + 1 if changing else 0)


def _popsize_and_sum(options: Options, dim: int, changing: bool) -> tuple[int, int]:
    """Proposals, and the sum of those that succeed."""
    return options["popsize"], options["popsize"] + 1


def _pairs(options: Options, dim: int, changing: bool) -> tuple[int, int]:
    """Pairs, and a trial of the step if steps may be given up; every step looks at the model, which is no candidate."""
    n = 2 * options["n_probes"] + (options["blocking"] is not None)
    return n - (options["blocking"] is not None), n + (not changing)


def _pairs_alone(options: Options, dim: int, changing: bool) -> tuple[int, int]:
    """Pairs; no step looks at the model."""
    return 2 * options["n_probes"], 2 * options["n_probes"]


def _popsize_and_model(options: Options, dim: int, changing: bool) -> tuple[int, int]:
    """A generation; and a look at the model in every step: it goes where no candidate was, so its loss is unknown."""
    return options["popsize"], options["popsize"] + (not changing)


def _pairs_and_model(options: Options, dim: int, changing: bool) -> tuple[int, int]:
    """Both ends of the directions; and a look at the model in every step."""
    n = 2 * options["n_directions"]
    return n, n + (not changing)


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
        DeepGA,
        small={"popsize": 6},
        inputs={
            "one_parent": {"n_parents": 1},
            "all_are_parents": {"popsize": 5, "n_parents": 5},
        },
        failures=(
            Failure({"popsize": 1}, ValueError, "popsize must be an integer of at least 2"),
            Failure({"popsize": 8.0}, ValueError, "popsize must be an integer of at least 2"),
            Failure({"n_parents": 0}, ValueError, "n_parents must be an integer from 1 to popsize=24"),
            Failure({"n_parents": 9, "popsize": 8}, ValueError, "n_parents must be an integer from 1 to popsize=8"),
        ),
        candidates=_popsize,
        budgets={"sphere": 1_500, "ellipsoid": 3_000, "rosenbrock": 2_500},
        # The radius stays as it is: it comes about as near as this, from 7, 1e6 and 1e3 at the start.
        targets={"sphere": 1e-2, "ellipsoid": 100.0, "rosenbrock": 5.0},
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
        budgets={"sphere": 4_500, "ellipsoid": 6_000, "rosenbrock": 8_000},
    ),
    Entry(
        DE,
        small={"popsize": 6},
        inputs={
            "rand1bin": {"strategy": "rand1bin"},
            "best1bin": {"strategy": "best1bin"},
            "more_members_than_coordinates": {"popsize": 12},
            "shrinking": {"popsize": 12, "max_evaluations": 50},
            "no_restarts": {"restarts": False},
        },
        failures=(
            Failure({"popsize": 3}, ValueError, "popsize must be None or an integer of at least 4"),
            Failure({"popsize": 8.0}, ValueError, "popsize must be None or an integer of at least 4"),
            Failure({"strategy": "rand2bin"}, ValueError, "strategy must be one of 'lshade', 'rand1bin', 'best1bin'"),
            Failure({"max_evaluations": 0}, ValueError, "max_evaluations must be None or an integer of at least 1"),
            Failure({"restarts": "yes"}, ValueError, "restarts must be one of True, False"),
        ),
        candidates=_population,
        budgets={"sphere": 4_000, "ellipsoid": 5_500, "rosenbrock": 8_000},
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
        SimulatedAnnealing,
        small={"popsize": 6},
        inputs={
            "one_proposal": {"popsize": 1, "temperature": 1e-3},  # cold: so few proposals show progress only then
            "temperature": {"temperature": 0.1},
            "acceptance": {"acceptance": 0.3},
            "no_restarts": {"restarts": False},
        },
        failures=(
            Failure({"popsize": 0}, ValueError, "popsize must be an integer of at least 1"),
            Failure({"temperature": 0.0}, ValueError, "temperature must be a finite number > 0, or None"),
            Failure({"temperature": float("inf")}, ValueError, "temperature must be a finite number > 0, or None"),
            Failure({"cooling": 0.0}, ValueError, "cooling must be"),
            Failure({"cooling": 1.1}, ValueError, "cooling must be"),
            Failure({"acceptance": 1.0}, ValueError, "acceptance must be"),
            Failure({"restarts": 1}, ValueError, "restarts must be True or False"),
        ),
        candidates=_popsize,
        elitist=False,  # it goes uphill while it is hot
        budgets={"sphere": 4_000, "ellipsoid": 14_000, "rosenbrock": 16_000},
        targets={"rosenbrock": 1e-2},  # isotropic moves creep along the valley: 1e-6 takes about 40,000
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
        SPSA,
        small={"n_probes": 3},
        inputs={
            "one_probe": {"n_probes": 1},
            "fast_decay": {"stability": 0.0},
            "curvature": {"curvature": 0.1},
            "blocking": {"blocking": 1.0},
            "no_decay": {"alpha": 0.0, "gamma": 0.0},
            "low_rank": {"perturbation": "low_rank"},
            "seeded": {"perturbation": "seeded", "blocking": 1.0},
        },
        failures=(
            Failure(
                {"perturbation": "sparse"}, ValueError, "perturbation must be one of 'dense', 'low_rank', 'seeded'"
            ),
            Failure({"rank": 2}, TypeError, "unexpected keyword argument 'rank'"),
            Failure({"n_probes": 0}, ValueError, "n_probes must be an integer of at least 1"),
            Failure({"stability": -1.0}, ValueError, "stability must be"),
            Failure({"alpha": -0.1}, ValueError, "alpha must be"),
            Failure({"gamma": float("nan")}, ValueError, "gamma must be"),
            Failure({"curvature": -1.0}, ValueError, "curvature must be"),
            Failure({"reg": 0.0}, ValueError, "reg must be"),
            Failure({"blocking": -1.0}, ValueError, "blocking must be"),
        ),
        candidates=_pairs,
        elitist=False,
        lr_is_step=True,
        budgets={"sphere": 2_000, "ellipsoid": 5_000, "rosenbrock": 3_500},
        targets={"ellipsoid": 1e3, "rosenbrock": 5.0},  # first-order steps do not follow a narrow valley
    ),
    Entry(
        CMAES,
        inputs={
            "few_candidates": {"popsize": 5},
            "many_candidates": {"popsize": 30},
            "ipop": {"deterministic": True, "restarts": "ipop"},
            "no_restarts": {"deterministic": True, "restarts": None},
            "tolerances": {"deterministic": True, "tolfun": 1e-3, "tolx": 1e-3},
        },
        failures=(
            Failure({"popsize": 1}, ValueError, "popsize must be None or an integer of at least 2"),
            Failure({"popsize": 8.0}, ValueError, "popsize must be None or an integer of at least 2"),
            Failure({"restarts": "lpop"}, ValueError, "restarts must be one of 'bipop', 'ipop', None"),
            Failure({"tolfun": -1.0}, ValueError, "tolfun must be a finite number >= 0"),
            Failure({"tolx": float("nan")}, ValueError, "tolx must be a finite number >= 0"),
        ),
        candidates=_default_popsize,
        budgets={"sphere": 1_000, "ellipsoid": 2_000, "rosenbrock": 2_500},
        elitist=False,
    ),
    Entry(
        SepCMAES,
        inputs={"few_candidates": {"popsize": 5}, "many_candidates": {"popsize": 30}},
        failures=(
            Failure({"popsize": 1}, ValueError, "popsize must be None or an integer of at least 2"),
            Failure({"popsize": 8.0}, ValueError, "popsize must be None or an integer of at least 2"),
        ),
        candidates=_default_popsize,
        elitist=False,
        budgets={"sphere": 1_000, "ellipsoid": 1_500, "rosenbrock": 9_000},
        targets={"rosenbrock": 1e-1},  # on along the valley, not an axis, it takes 85,000
    ),
    Entry(
        LMMAES,
        inputs={
            "few_candidates": {"popsize": 5},
            "many_candidates": {"popsize": 30},
            "short_memory": {"memory": 2},
        },
        failures=(
            Failure({"popsize": 1}, ValueError, "popsize must be None or an integer of at least 2"),
            Failure({"popsize": 8.0}, ValueError, "popsize must be None or an integer of at least 2"),
            Failure({"memory": 0}, ValueError, "memory must be None or an integer of at least 1"),
        ),
        candidates=_default_popsize,
        elitist=False,
        budgets={"sphere": 1_500, "ellipsoid": 20_000, "rosenbrock": 6_000},
        targets={"ellipsoid": 1e-1, "rosenbrock": 5.0},  # made for hundreds of dimensions: it learns few directions
    ),
    Entry(
        SNES,
        inputs={
            "few_candidates": {"popsize": 5},
            "many_candidates": {"popsize": 30},
            "mirrored": {"antithetic": True},
            "rates": {"mean_rate": 2.0, "mean_decay": 0.5, "sigma_rate": 0.05},
        },
        failures=(
            Failure({"popsize": 1}, ValueError, "popsize must be None or an integer of at least 2"),
            Failure({"popsize": 8.0}, ValueError, "popsize must be None or an integer of at least 2"),
            Failure({"mean_rate": 0.0}, ValueError, "mean_rate must be"),
            Failure({"mean_decay": -0.1}, ValueError, "mean_decay must be a finite number >= 0"),
            Failure({"sigma_rate": -0.1}, ValueError, "sigma_rate must be"),
            Failure({"antithetic": 1}, ValueError, "antithetic must be True or False"),
        ),
        candidates=_default_popsize_in_pairs,
        elitist=False,
        budgets={"sphere": 1_500, "ellipsoid": 3_000, "rosenbrock": 20_000},
        targets={"rosenbrock": 1.0},
    ),
    Entry(
        XNES,
        inputs={
            "few_candidates": {"popsize": 5},
            "many_candidates": {"popsize": 30},
            "rates": {"mean_rate": 0.8, "sigma_rate": 0.1, "shape_rate": 0.0},
        },
        failures=(
            Failure({"popsize": 1}, ValueError, "popsize must be None or an integer of at least 2"),
            Failure({"popsize": 8.0}, ValueError, "popsize must be None or an integer of at least 2"),
            Failure({"mean_rate": 0.0}, ValueError, "mean_rate must be"),
            Failure({"sigma_rate": -0.1}, ValueError, "sigma_rate must be"),
            Failure({"shape_rate": float("inf")}, ValueError, "shape_rate must be"),
        ),
        candidates=_default_popsize,
        elitist=False,
        budgets={"sphere": 2_000, "ellipsoid": 3_000, "rosenbrock": 3_500},
    ),
    Entry(
        OpenAIES,
        small={"popsize": 6},
        inputs={
            "mirrored": {"mirrored": True},
            "clipup": {"update": "clipup", "lr": 0.05},
            "sgd": {"update": "sgd"},
            "no_momentum": {"momentum": 0.0},
            "steps_of_one_length": {"lr": 0.2, "lr_decay": 0.0},
            "low_rank": {"perturbation": "low_rank"},
            "seeded_with_weight_decay": {"perturbation": "seeded", "weight_decay": 0.1},
            "seeded_mirrored_vectorized": {"perturbation": "seeded", "mirrored": True, "evaluation": "vectorized"},
            "radius_by_successes": {"sigma_lr": 0.5},
            "seeded_radius_by_successes": {"sigma_lr": 0.5, "perturbation": "seeded"},
        },
        failures=(
            Failure({"perturbation": "sparse"}, ValueError, "perturbation must be one of 'dense', 'low_rank'"),
            Failure({"sigma_lr": -0.1}, ValueError, "sigma_lr must be"),
            Failure({"popsize": 1}, ValueError, "popsize must be an integer of at least 2"),
            Failure({"popsize": 7, "mirrored": True}, ValueError, "popsize must be an integer of at least 2, even"),
            Failure({"update": "rmsprop"}, ValueError, "update must be one of 'adam', 'clipup', 'sgd'"),
            Failure({"momentum": 1.0}, ValueError, "momentum must be"),
            Failure({"lr_decay": -0.1}, ValueError, "lr_decay must be a finite number >= 0"),
            Failure({"mirrored": 1}, ValueError, "mirrored must be True or False"),
        ),
        candidates=_popsize_and_model,
        budgets={"sphere": 3_000, "ellipsoid": 3_000, "rosenbrock": 3_000},
        # Steps and radius stay as long as they are: it comes about as near as this, from 7, 1e6 and 1e3 at the start.
        targets={"sphere": 1e-2, "ellipsoid": 300.0, "rosenbrock": 5.0},
        elitist=False,
        has_momentum=True,
        lr_is_step=True,
    ),
    Entry(
        EGGROLL,
        small={"popsize": 6, "lr": 0.4},  # good values grow with popsize
        inputs={
            "rank_2_mirrored": {"rank": 2, "mirrored": True},
            "clipup": {"update": "clipup", "lr": 0.05},
            "adam": {"update": "adam", "lr": 0.25, "input_span": None},
            "no_momentum": {"momentum": 0.0},
            "fixed_radius": {"sigma_lr": 0.0},
        },
        failures=(
            Failure({"input_span": 0}, ValueError, "input_span must be an integer of at least 1"),
            Failure({"rank": 0}, ValueError, "rank must be an integer of at least 1"),
            Failure({"popsize": 1}, ValueError, "popsize must be an integer of at least 2"),
            Failure({"update": "rmsprop"}, ValueError, "update must be one of 'adam', 'clipup', 'sgd'"),
        ),
        candidates=_popsize_and_model,
        budgets={"sphere": 3_000, "ellipsoid": 6_000, "rosenbrock": 3_000},  # its update knows no scales of coordinates
        targets={"sphere": 1e-2, "ellipsoid": 300.0, "rosenbrock": 5.0},  # as OpenAIES, for the same reason
        elitist=False,
        variant_of=OpenAIES,
        has_momentum=True,
        lr_is_step=True,
    ),
    Entry(
        PGPE,
        small={"popsize": 6},
        inputs={
            "z_score": {"shaping": "z_score"},
            "clipup": {"update": "clipup", "lr": 0.05},
            "sgd": {"update": "sgd"},
            "fixed_deviations": {"sigma_lr": 0.0},
            "low_rank": {"perturbation": "low_rank"},
            "seeded": {"perturbation": "seeded"},
            "seeded_in_a_subspace": {"perturbation": "seeded", "subspace": 5, "subspace_refresh": 3},
        },
        failures=(
            Failure(
                {"perturbation": "sparse"}, ValueError, "perturbation must be one of 'dense', 'low_rank', 'seeded'"
            ),
            Failure({"rank": 2}, TypeError, "unexpected keyword argument 'rank'"),
            Failure({"popsize": 7}, ValueError, "popsize must be an even integer of at least 2"),
            Failure({"update": "rmsprop"}, ValueError, "update must be one of 'adam', 'clipup', 'sgd'"),
            Failure({"momentum": -0.1}, ValueError, "momentum must be"),
            Failure({"lr_decay": float("inf")}, ValueError, "lr_decay must be a finite number >= 0"),
            Failure({"shaping": "raw"}, ValueError, "shaping must be one of 'centered_rank', 'z_score'"),
            Failure({"sigma_lr": -1.0}, ValueError, "sigma_lr must be"),
        ),
        candidates=_popsize_and_model,
        budgets={"sphere": 11_000, "ellipsoid": 24_000, "rosenbrock": 3_500},
        targets={"rosenbrock": 5.0},  # the valley; the deviations shrink before it has gone along it
        elitist=False,
        has_momentum=True,
        lr_is_step=True,
    ),
    Entry(
        ARS,
        small={"n_directions": 4},
        inputs={
            "top": {"n_top": 2},
            "one_direction": {"n_directions": 1, "lr": 0.2},
            "low_rank": {"perturbation": "low_rank", "rank": 2},
            "seeded": {"perturbation": "seeded"},
            "seeded_within_bounds": {"perturbation": "seeded", "bounds": (-4.0, 4.0), "n_top": 3},
        },
        failures=(
            Failure({"perturbation": "sparse"}, ValueError, "perturbation must be one of 'dense', 'low_rank'"),
            Failure({"n_directions": 0}, ValueError, "n_directions must be an integer of at least 1"),
            Failure({"n_top": 0}, ValueError, "n_top must be None or an integer from 1 to n_directions=16"),
            Failure({"n_top": 5, "n_directions": 4}, ValueError, "n_top must be"),
            Failure({"popsize": 8}, TypeError, "unexpected keyword argument 'popsize'"),
        ),
        candidates=_pairs_and_model,
        budgets={"sphere": 3_000, "ellipsoid": 4_000, "rosenbrock": 3_000},
        targets={"sphere": 1e-2, "ellipsoid": 300.0, "rosenbrock": 5.0},  # as OpenAIES, for the same reason
        elitist=False,
        lr_is_step=True,
    ),
    Entry(
        MeZO,
        small={"n_probes": 2},
        inputs={
            "one_probe": {"n_probes": 1},
            "normal": {"distribution": "normal"},
        },
        failures=(
            Failure({"n_probes": 0}, ValueError, "n_probes must be an integer of at least 1"),
            Failure({"n_probes": 1.5}, ValueError, "n_probes must be an integer of at least 1"),
            Failure({"distribution": "cauchy"}, ValueError, "distribution must be one of 'rademacher', 'normal'"),
            Failure({"evaluation": "vectorized"}, ValueError, "evaluation must be 'auto' or 'sequential' for MeZO"),
            Failure({"evaluation": "compiled"}, ValueError, "evaluation must be 'auto' or 'sequential' for MeZO"),
            Failure({"subspace": 2}, ValueError, "subspace must be None for MeZO, got 2"),
            Failure({"chunk_size": 4}, ValueError, "chunk_size must be None for MeZO, got 4"),
        ),
        candidates=_pairs_alone,
        budgets={"sphere": 150, "ellipsoid": 100, "rosenbrock": 700},
        # Only candidates are evaluated, which stay sigma away, and lr stays as it is: from 7, 1e6 and 1e3 at the start.
        targets={"sphere": 0.2, "ellipsoid": 5e4, "rosenbrock": 10.0},
        elitist=False,
        lr_is_step=True,
        looks_first=False,  # a step is to cost two evaluations, not three
        refused={
            "vectorized": "a batch would hold all perturbed models at a time",
            "subspace": "its directions would be stored",
        },
        knows_tensors=True,  # noise is drawn tensor by tensor, when one is used
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
    if name not in entry.refused
)
