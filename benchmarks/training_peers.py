"""Other packages' optimizers for ``training.py``, each with its defaults or with what its authors use for MNIST.

A function here takes a name within the package, the model, the seed, the budget in evaluations and the options.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from training_steps import Batch, Closures, Trainer

import torch_gfo
from torch_gfo.evaluation import Evaluator, Plan
from torch_gfo.space import ParameterVector

__all__ = ["PEERS"]

# At least so many of its steps evaluate candidates. Of 5, 10, 20 and 100, tried once each on mlp and binary, 20 had the
# best mean at 50,000 evaluations; at 5,000, where it hardly learns, 5 had.
_PROBED_STEPS = 20


class Evotorch:
    """A searcher of evotorch; its candidates are evaluated as this library evaluates its own, so as fast."""

    def __init__(self, model: nn.Module, seed: int, make: Callable[[Any, Tensor], Any]) -> None:
        """Makes the searcher by calling ``make`` with the problem and the model's parameters."""
        from evotorch import Problem

        self.parameters = list(model.parameters())
        self.vector, self.evaluator, self.plan = ParameterVector(self.parameters), Evaluator("auto", None), Plan()
        self.batch: Batch | None = None
        self.evaluations = 0
        start = parameters_to_vector(self.parameters).detach()
        around = (start - 0.05, start + 0.05)  # where a genetic algorithm's first population is drawn
        problem = Problem(
            "min", self._losses, solution_length=len(start), initial_bounds=around, vectorized=True, seed=seed
        )
        self.searcher = make(problem, start)

    def _losses(self, population: Tensor) -> Tensor:
        if self.batch is None:
            raise RuntimeError("evotorch evaluates before the first step")
        self.evaluations += len(population)
        with self.evaluator.session(self.batch, self.vector, self.plan) as session:
            losses = session.losses(population.as_subclass(Tensor))
        self.plan = session.plan
        return losses

    @torch.no_grad()
    def step(self, batch: Batch) -> int:
        """Makes a step, after which the model is the distribution's centre, or the best of the population."""
        self.batch, before = batch, self.evaluations
        self.searcher.step()
        status = self.searcher.status
        found = status["center"] if "center" in status else status["pop_best"].values
        vector_to_parameters(torch.Tensor.clone(found), self.parameters)
        return self.evaluations - before


def evotorch(name: str, model: nn.Module, seed: int, budget: int, **options: Any) -> Trainer:
    """Returns PGPE, SNES or GA of evotorch.

    PGPE has radius, learning rates and Adam of evotorch's notebook on MNIST, and SNES its radius. The notebook's
    3,200 candidates a step would leave 15 steps of 50,000 evaluations: PGPE has 200, and SNES as many as it chooses. GA
    has no operators of its own: these are a simulated binary crossover and a normal mutation, as evotorch's
    documentation combines them, with numbers chosen here.
    """
    from evotorch import algorithms, operators

    def make(problem: Any, start: Tensor) -> Any:
        if name == "GA":
            crossover = operators.SimulatedBinaryCrossOver(problem, tournament_size=4, cross_over_rate=1.0, eta=8)
            mutation = operators.GaussianMutation(problem, stdev=0.03)
            return algorithms.GeneticAlgorithm(problem, operators=[crossover, mutation], **{"popsize": 100} | options)
        arguments = {"radius_init": 2.25, "center_init": start}
        if name == "PGPE":
            arguments |= {"popsize": 200, "optimizer": "adam", "center_learning_rate": 0.01, "stdev_learning_rate": 0.1}
        return getattr(algorithms, name)(problem, **arguments | options)

    return Evotorch(model, seed, make)


class PolyStep:
    """PolyStep's optimizer."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def step(self, batch: Batch) -> int:
        """Makes a step."""
        before = int(self.optimizer.candidate_evals)
        self.optimizer.step_batch(batch.inputs, batch.targets, loss_fn=batch.objective)
        return int(self.optimizer.candidate_evals) - before


def polystep(name: str, model: nn.Module, seed: int, budget: int, **options: Any) -> Trainer:
    """Returns PolyStep's optimizer as in its example on MNIST, with schedules that end with the budget.

    The example's subspace of rank 8 makes it score about 10,000 candidates of the network 784-128-10 in every fifth
    step; the others go on without. Where that would leave fewer than 20 such steps, the subspace is cut to as many
    dimensions as leave 20. The option ``max_subspace_dim=None`` keeps the example's.
    """
    from polystep import HybridSubspace, ParamLayout, PolyStepOptimizer
    from polystep.epsilon import CosineEpsilon

    candidates_per_dim = 9 / 8  # the corners of a simplex in each 8 dimensions
    affordable = max(1, int(budget / _PROBED_STEPS / candidates_per_dim))
    subspace = HybridSubspace.from_layout(
        ParamLayout.from_module(model),
        rank=8,
        max_subspace_dim=options.pop("max_subspace_dim", affordable),
        rotation_interval=0,
        absorb_interval=0,
    )
    options = {"solver": "softmax", "num_probe": 1, "amortize_steps": 5, "amortize_ema": 0.7, **options}
    n_steps = options["amortize_steps"] * budget / (candidates_per_dim * subspace.subspace_dim)

    def schedule(first: float, last: float) -> Any:
        return CosineEpsilon(init=first, target=last, decay=(first - last) / n_steps)

    schedules = {
        "epsilon": schedule(10.0, 0.5),
        "step_radius": schedule(5.0, 1.0),
        "probe_radius": schedule(10.0, 2.0),
    }
    return PolyStep(PolyStepOptimizer(model, subspace=subspace, seed=seed, **schedules | options))


def swarmtorch(name: str, model: nn.Module, seed: int, budget: int, **options: Any) -> Trainer:
    """Returns an optimizer of swarmtorch with its defaults."""
    import swarmtorch as package

    return Closures(getattr(package, name)(model.parameters(), **options))


def torch_pso(name: str, model: nn.Module, seed: int, budget: int, **options: Any) -> Trainer:
    """Returns torch_pso's particle swarm with its defaults."""
    from torch_pso import ParticleSwarmOptimizer

    return Closures(ParticleSwarmOptimizer(model.parameters(), **options))


def nevergrad(name: str, model: nn.Module, seed: int, budget: int, **options: Any) -> Trainer:
    """Returns an optimizer of nevergrad behind this library's bridge, without which it knows nothing of minibatches.

    It proposes one candidate at a time, nevergrad's own default, where no ``num_workers`` is given: of a generation,
    ``NGOpt`` makes searches that fail on the digits, or that take longer for a candidate of 101,770 parameters than its
    evaluation. A step evaluates the model too, so that nevergrad plans for fewer candidates than evaluations.
    """
    n_workers = options.setdefault("num_workers", 1)
    n_candidates = budget * n_workers // (n_workers + 1)
    return Closures(torch_gfo.Nevergrad(model.parameters(), name, budget=n_candidates, seed=seed, **options))


PEERS: dict[str, Callable[..., Trainer]] = {
    "polystep": polystep,
    "evotorch": evotorch,
    "swarmtorch": swarmtorch,
    "torch_pso": torch_pso,
    "nevergrad": nevergrad,
}
