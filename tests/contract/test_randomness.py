"""Random numbers depend on the seed and the step alone."""

from __future__ import annotations

import torch

from tests.helpers import assert_identical, distance, identical, vector
from tests.registry import Case, Entry


def test_global_seed_does_not_matter(case: Case) -> None:
    """C29: the same seed gives the same search whatever torch's global generator does."""
    trajectories = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        x = vector(4, 2)
        optimizer = case.make([x])
        for _ in range(6):
            torch.rand(global_seed)
            optimizer.step(lambda: case.goal(distance([x])))
        trajectories.append(x.detach())
    assert_identical(*trajectories)


def test_seeds_differ(case: Case) -> None:
    """C29: another seed gives another search."""
    trajectories = []
    for seed in (1, 2):
        x = vector(4, 2)
        optimizer = case.make([x], seed=seed)
        for _ in range(10):
            optimizer.step(lambda: case.goal(distance([x])))
        trajectories.append(x.detach())
    assert not identical(*trajectories)


def test_seed_by_default(entry: Entry) -> None:
    """C29: without a seed every optimizer draws its own, keeps it as a plain number, and moves no generator."""
    before = torch.get_rng_state()
    optimizers = [entry.make([vector(3)], seed=None) for _ in range(3)]
    seeds = {optimizer.param_groups[0]["seed"] for optimizer in optimizers}
    assert len(seeds) == 3
    assert all(type(seed) is int for seed in seeds)
    assert_identical(torch.get_rng_state(), before)


def test_interleaving_does_not_matter(entry: Entry) -> None:
    """C29: optimizers that take turns search as each does alone."""
    alone, turns, other = vector(5), vector(5), vector(5)
    one, two, another = entry.make([alone]), entry.make([turns]), entry.make([other], seed=2)
    for _ in range(5):
        one.step(lambda: distance([alone]))
    for _ in range(5):
        two.step(lambda: distance([turns]))
        another.step(lambda: distance([other]))
    assert_identical(alone, turns)
    assert not identical(other, turns)


def test_steps_differ(entry: Entry) -> None:
    """C29: no two steps draw the same numbers, even where nothing was learnt in between."""
    optimizer = entry.make([vector(5)])
    candidates = []
    for _ in range(2):
        candidates.append(entry.ask_for_candidates(optimizer, loss=0.0))
        while int(optimizer.state[optimizer.param_groups[0]["params"][0]]["step"]) < len(candidates):
            optimizer.tell(torch.ones(len(optimizer.ask())))
    assert not identical(*candidates)
