from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.algorithms.searching import build, path, sphere
from tests.helpers import Task, join, mlp, parameters_of
from tests.references.step import Recording
from torch_gfo.algorithms import deep_ga
from torch_gfo.algorithms.deep_ga import DeepGA
from torch_gfo.search import Search, generator

Bounds = tuple[float, float] | None


def mutated(x: Tensor, seed: int) -> Tensor:
    """The dense mutation: a whole vector of noise is added."""
    rng = generator(seed, "mutation", 0, x.device)
    return x + torch.randn(x.shape, generator=rng, dtype=x.dtype)


def make(dim: int, dtype: torch.dtype = torch.float64, **options: Any) -> DeepGA:
    return DeepGA([nn.Parameter(torch.zeros(dim, dtype=dtype))], seed=0, **options)


def one_step(
    optimizer: DeepGA, state: dict[str, Any], point: Tensor, step: int, objective: Callable[[Tensor], Tensor]
) -> tuple[Recording, list[Tensor], Tensor]:
    """Makes a step in search coordinates: what it has drawn, the pieces of its population, the model's next point."""
    zero, rng = point.new_zeros(()), generator(0, "test", step, point.device)
    search = Recording(point, objective(point), False, zero, rng)
    algorithm, pieces = optimizer._iterate(state, search), []
    try:
        z = next(algorithm)
        while True:
            pieces.append(z)
            z = algorithm.send(objective(z))
    except StopIteration as stop:
        return search, pieces, stop.value[0]


@pytest.mark.parametrize("pieces", [1, 5, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_members_are_those_of_a_dense_algorithm(
    dtype: torch.dtype, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, over many generations: one that stores all members, and makes no vector twice."""
    dim, n, n_parents = 300, 30, 4
    monkeypatch.setattr(deep_ga, "_AT_A_TIME", dim * n // pieces)
    monkeypatch.setattr(deep_ga, "_BLOCK", 7)  # genomes grow beyond it
    optimizer = make(dim, dtype, popsize=n, n_parents=n_parents)
    point = torch.zeros(dim, dtype=dtype)
    zero = point.new_zeros(())
    state = optimizer._init_state(Search(point, zero, False, zero, generator(0, "init", 0, point.device)))

    def objective(z: Tensor) -> Tensor:
        return (z - 9).square().sum(-1).sqrt()

    parents, moves = [point] * n_parents, 0
    for step in range(60):
        search, asked, following = one_step(optimizer, state, point, step, objective)
        (_, _, ks), (_, _, seeds) = search.draws
        children = [mutated(parents[k], seed + 1) for k, seed in zip(ks.tolist(), seeds.tolist(), strict=True)]
        assert len(asked) == pieces
        assert torch.equal(torch.cat(asked), torch.stack(children))
        parents = sorted([point, *children], key=lambda member: float(objective(member)))[:n_parents]
        assert torch.equal(state["parents"], torch.stack(parents))
        assert torch.equal(following, parents[0])
        moves += following is not point and not torch.equal(following, point)
        point = following
    assert moves > 30
    for parent, genome in zip(parents, state["genomes"].tolist(), strict=True):
        z = torch.zeros(dim, dtype=dtype)
        for seed in filter(None, genome):
            z = mutated(z, seed)
        assert torch.equal(z, parent)


def trained(seed: int, **options: Any) -> tuple[Task, DeepGA]:
    task = mlp()
    optimizer = DeepGA(task.model.parameters(), seed=seed, popsize=12, evaluation="sequential", **options)
    task.train(optimizer, 80)
    return task, optimizer


@pytest.mark.parametrize("options", [{}, {"bounds": (-0.8, 0.8)}, {"subspace": 5}, {"lr": 0.5, "sigma": 0.2}], ids=str)
def test_network_from_its_genome(options: dict[str, Any]) -> None:
    """In search coordinates bit for bit; in parameters up to the rounding of one sum for each move of the model."""
    task, optimizer = trained(0, **options)
    genome, point = optimizer.genome(), optimizer.state[parameters_of(optimizer)[0]]["point"]
    assert len(genome) > 10
    if "bounds" not in options:  # where mutants are mirrored
        z = torch.zeros_like(point)
        for seed in genome:
            z = mutated(z, seed)
        assert torch.equal(z, point)

    again = mlp().model
    initial = join(list(again.parameters())).clone()
    DeepGA(again.parameters(), seed=0, **options).rebuild(genome)
    found, expected = join(list(again.parameters())), join(list(task.model.parameters()))
    rounding = 80 * torch.finfo(torch.float32).eps * max(1.0, float(point.abs().max()))
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
    assert (found - initial).norm() > 0.1


def test_genome_survives_a_checkpoint_and_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = trained(0)
    monkeypatch.setattr(deep_ga, "_BLOCK", 30)
    task = mlp()
    optimizer = DeepGA(task.model.parameters(), seed=0, popsize=12, evaluation="sequential")
    task.train(optimizer, 45)
    successor = DeepGA(task.model.parameters(), seed=1, popsize=12, evaluation="sequential")
    successor.load_state_dict(optimizer.state_dict())
    task.train(successor, 35, first=45)
    assert successor.genome() == expected.genome()


def test_rebuilding_is_for_initial_parameters() -> None:
    _, optimizer = trained(0)
    with pytest.raises(RuntimeError, match=r"this search has made 1,040 evaluations"):
        optimizer.rebuild([1, 2, 3])


class Largest(TorchDispatchMode):
    """The largest number of elements of any tensor that is made within it."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.parametrize(("dim", "popsize"), [(2**20, 32), (2**23, 2), (10, 50_000)])
def test_memory_does_not_depend_on_the_population(dim: int, popsize: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor is larger than a piece of the population, or one vector; no piece outlives the next."""
    limit = max(2**18, dim)
    assert dim * popsize > 1.9 * limit
    monkeypatch.setattr(deep_ga, "_AT_A_TIME", 2**18)
    optimizer = make(dim, torch.float32, popsize=popsize, n_parents=1)
    state = optimizer.state[parameters_of(optimizer)[0]]
    point, zero, rng = state["point"], torch.zeros(()), generator(0, "test", 0, torch.device("cpu"))
    made, n, losses, earlier = Largest(), 0, None, None
    with made:
        algorithm = optimizer._iterate(state, Search(point, zero, False, zero, rng))
        while n < popsize:
            z = next(algorithm) if losses is None else algorithm.send(losses)
            assert earlier is None or earlier() is None
            n, losses, earlier = n + len(z), z[:, 0].clone(), weakref.ref(z)
            del z
        with pytest.raises(StopIteration):
            algorithm.send(losses)
    assert n == popsize
    assert made.elements <= limit
    assert state["parents"].numel() == dim


def test_halts_at_the_radius_until_the_schedule_lowers_it() -> None:
    def end(decay: float) -> float:
        optimizer = build(DeepGA, torch.ones(5), sigma=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
        (x,) = parameters_of(optimizer)
        for _ in range(300):
            optimizer.step(lambda: sphere(x))
            schedule.step()
        return float(sphere(x.detach()))

    assert 1e-5 < end(1.0) < 1e-2  # five coordinates, each of about a tenth of the radius
    assert end(0.96) < 1e-6


def test_depends_on_the_order_of_losses_alone() -> None:
    plain = path(DeepGA, sphere, [2.0, -1.0, 0.5], 25)
    assert torch.equal(path(DeepGA, lambda x: sphere(x).log(), [2.0, -1.0, 0.5], 25), plain)
    assert torch.equal(path(DeepGA, sphere, [2.0, -1.0, 0.5], 25, luck=lambda step: 2.0 ** (step % 5)), plain)
    assert sphere(plain[-1]) < 0.5 * sphere(plain[0])


def test_mutations_are_normal_with_the_given_power() -> None:
    optimizer = build(DeepGA, torch.ones(500), sigma=0.02, popsize=200)
    optimizer.tell(torch.zeros(len(optimizer.ask())))
    noise = (optimizer.ask() - 1) / 0.02
    assert abs(noise.mean()) < 4 / math.sqrt(noise.numel())
    assert abs(noise.std() - 1) < 4 / math.sqrt(2 * noise.numel())
    correlations = torch.corrcoef(noise) - torch.eye(200)
    assert correlations.abs().max() < 0.25  # 5.6 standard deviations, of 19,900 pairs
