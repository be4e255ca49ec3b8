"""Whom the BBOB benchmark compares: the library's classes, and optimizers of other packages.

A solver is a function ``solve(problem)`` that evaluates ``problem(x)`` until that raises ``Finished``.
"""

import math
import warnings
from collections.abc import Callable
from itertools import count
from typing import Any

import cma.bbobbenchmarks
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import torch_gfo

try:
    import cocoex
except ImportError:
    cocoex = None

__all__ = ["TARGETS", "Finished", "Problem", "solver"]

TARGETS = [10 ** (2 - 0.2 * i) for i in range(51)]  # of f - f_opt: 1e2, ..., 1e-8
SIDE = 5.0  # the box of all 24 functions is [-5, 5]^d
SIGMA = 2.0

# One setting a class for all functions; what is not named is the class's default.
SETTINGS: dict[str, dict[str, Any]] = {
    "DE": {"sigma": 2.5, "bounds": (-SIDE, SIDE)},  # its first population
    "NelderMead": {"sigma": 4.0},  # the edge of its simplex
}
DEFAULT: dict[str, Any] = {"sigma": SIGMA}
PATIENCE = 400  # evaluations a dimension

Array = NDArray[np.float64]


class Finished(Exception):  # noqa: N818
    """The last target is reached, or the budget is spent."""


class Problem:
    """One instance of a BBOB function, with a budget; it notes when the best value passes the targets.

    Args:
        function: 1 to 24.
        instance: Of the function: where its optimum lies, and how it is rotated.
        dimension: Of ``x``.
        budget: Most evaluations.
    """

    def __init__(self, function: int, instance: int, dimension: int, budget: int) -> None:
        pure, self.f_opt = cma.bbobbenchmarks.instantiate(function, instance)
        self._f = pure if cocoex is None else cocoex.BareProblem("bbob", function, dimension, instance)
        self._budget = budget
        self.dimension = dimension
        self.seed = 1000 * function + instance
        self.rng = np.random.default_rng(self.seed)
        self.evaluations = 0
        self.best = math.inf  # the lowest value so far
        self.hits: list[int] = []  # evaluations until the first, second, ... target

    def __call__(self, x: Array) -> float:
        """Evaluates the function."""
        if self.evaluations >= self._budget:
            raise Finished
        self.evaluations += 1
        value = float(self._f(x))
        if value < self.best:
            self.best = value
            while value - self.f_opt <= TARGETS[len(self.hits)]:
                self.hits.append(self.evaluations)
                if len(self.hits) == len(TARGETS):
                    raise Finished
        return value

    def start(self) -> Array:
        """Draws a point to start from, uniform in [-4, 4]^d."""
        return self.rng.uniform(-4, 4, self.dimension)


class Model(nn.Module):
    """A model whose parameter is ``x``."""

    def __init__(self, x: Array) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.from_numpy(x.copy()))


def ours(problem: Problem, name: str) -> None:
    """Trains a model by the public ``step``, as a user would."""
    patience = PATIENCE * problem.dimension
    for run in count():
        model = Model(problem.start())
        x = model.x.detach().numpy()  # the same memory: candidates are written into the parameter
        options = {**DEFAULT, **SETTINGS.get(name, {})}
        optimizer = getattr(torch_gfo, name)(
            model.parameters(),
            **options,
            deterministic=True,
            evaluation="sequential",
            seed=1_000_000 * problem.seed + run,
        )
        best, last = math.inf, 0
        while optimizer.evaluations - last < patience or optimizer.defaults.get("restarts"):
            optimizer.step(lambda: problem(x))
            if optimizer.best_loss < best - 1e-9:
                best, last = optimizer.best_loss, optimizer.evaluations


def scipy_solver(problem: Problem, name: str) -> None:
    """Runs ``scipy.optimize`` with its default settings, again and again; the tolerances are those of rounding."""
    from scipy import optimize

    box = [(-SIDE, SIDE)] * problem.dimension
    while True:
        if name == "nelder_mead":
            options = {"xatol": 1e-11, "fatol": 1e-11, "maxfev": 10**7, "maxiter": 10**7}
            optimize.minimize(problem, problem.start(), method="Nelder-Mead", options=options)
        elif name == "dual_annealing":
            optimize.dual_annealing(problem, box, maxiter=10**6, maxfun=1e9, rng=problem.rng)
        else:
            optimize.differential_evolution(problem, box, maxiter=10**6, tol=0, atol=1e-11, rng=problem.rng)


def pycma(problem: Problem, name: str) -> None:
    """Runs pycma's CMA-ES with BIPOP restarts."""
    while True:
        seed = int(problem.rng.integers(1, 2**31))
        options = {"verbose": -9, "seed": seed}
        cma.fmin2(problem, problem.start, SIGMA, options, restarts=9, bipop=True)


def nevergrad(problem: Problem, name: str) -> None:
    """Runs an optimizer of nevergrad's registry by ``ask`` and ``tell``, once."""
    import nevergrad as ng

    space = ng.p.Array(init=problem.start(), lower=-SIDE, upper=SIDE)
    space.set_mutation(sigma=SIGMA)
    space.random_state = np.random.RandomState(problem.seed)
    optimizer = ng.optimizers.registry[name](space, budget=problem._budget)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while True:
            candidate = optimizer.ask()
            optimizer.tell(candidate, problem(candidate.value))


def pyswarms(problem: Problem, name: str) -> None:
    """Runs the swarm of pyswarms, of 32 particles and the constants of Clerc and Kennedy, with restarts."""
    from pyswarms.single import GlobalBestPSO

    options = {"c1": 1.49618, "c2": 1.49618, "w": 0.7298}
    box = (np.full(problem.dimension, -SIDE), np.full(problem.dimension, SIDE))
    while True:
        np.random.seed(int(problem.rng.integers(2**31)))
        swarm = GlobalBestPSO(32, problem.dimension, options, bounds=box, ftol=1e-11, ftol_iter=50)
        swarm.optimize(lambda rows: np.array([problem(row) for row in rows]), 10**6, verbose=False)


_OTHERS: dict[str, Callable[[Problem, str], None]] = {
    "scipy": scipy_solver,
    "pycma": pycma,
    "nevergrad": nevergrad,
    "pyswarms": pyswarms,
}


def solver(name: str) -> Callable[[Problem], None]:
    """Finds a solver by its name: a class of ours, or ``package`` or ``package:optimizer``.

    Raises:
        ImportError: If its package is not installed.
        ValueError: If there is no such optimizer.
    """
    package, _, optimizer = name.partition(":")
    if package in _OTHERS:
        __import__({"pycma": "cma"}.get(package, package))
        return lambda problem: _OTHERS[package](problem, optimizer)
    if name not in torch_gfo.__all__:
        raise ValueError(f"no optimizer {name}; there are {', '.join(torch_gfo.__all__)} and {', '.join(_OTHERS)}")
    return lambda problem: ours(problem, name)
