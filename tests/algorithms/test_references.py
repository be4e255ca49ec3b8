"""Each algorithm against its slow reference, on the same random numbers: candidates, next point and state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.references import (
    ars,
    cma_es,
    deep_ga,
    differential_evolution,
    eggroll,
    genetic,
    lm_ma_es,
    nelder_mead,
    openai_es,
    particle_swarm,
    pgpe,
    random_search,
    sep_cma_es,
    simulated_annealing,
    snes,
    spsa,
    xnes,
)
from tests.references.step import Recording, Step, assert_close, plain
from torch_gfo.algorithms.ars import ARS
from torch_gfo.algorithms.cma_es import CMAES
from torch_gfo.algorithms.deep_ga import DeepGA
from torch_gfo.algorithms.differential_evolution import DE
from torch_gfo.algorithms.eggroll import EGGROLL
from torch_gfo.algorithms.genetic import GA
from torch_gfo.algorithms.lm_ma_es import LMMAES
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
from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.perturbation import as_rows
from torch_gfo.search import generator

Objective = Callable[[Tensor], Tensor]  # (P, dim) -> (P,)
DOUBLE = torch.float64


def bowl(z: Tensor) -> Tensor:
    weights = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    return (weights * (z - 0.3) ** 2).sum(-1)


def valley(z: Tensor) -> Tensor:
    return (100 * (z[..., 1:] - z[..., :-1] ** 2) ** 2 + (1 - z[..., :-1]) ** 2).sum(-1)


def forbidden(z: Tensor) -> Tensor:
    """A bowl with a wall in it."""
    return torch.where(z[..., 0] > 0.2, math.inf, bowl(z))


def noise(z: Tensor) -> Tensor:
    """No structure at all: every comparison goes either way."""
    return torch.frac(0.6 + (z * 1e4).sum(-1).abs())


def stairs(z: Tensor) -> Tensor:
    """Many ties."""
    return torch.floor(3 * bowl(z))


def flat(z: Tensor) -> Tensor:
    return torch.ones(z.shape[:-1], dtype=z.dtype)


OBJECTIVES = (bowl, valley, forbidden, noise, stairs)


def run(
    cls: type[GradientFreeOptimizer],
    reference: Any,
    options: dict[str, Any],
    *,
    objective: Objective = bowl,
    dim: int = 4,
    n_steps: int = 6,
    changing: bool = False,
    box: tuple[float, float] | None = None,
    start: float = 0.0,
    units: Sequence[float] = (1.0,),
    edit: Callable[[dict[str, Any]], None] = lambda state: None,
    seed: int = 0,
    shapes: list[tuple[int, ...]] | None = None,
) -> list[str]:
    """Makes steps with the algorithm, each of them also with the reference, and returns the branches that this took.

    Args:
        changing: Whether every second step has another objective.
        box: The sides of the box, in search coordinates.
        start: The first coordinates of the model.
        units: The lengths of a unit along the coordinates, in turn.
        edit: Changes the first state.
        shapes: Of the tensors whose entries the coordinates are.
    """
    build: Any = cls
    bounds = (-9.0, 9.0) if options.get("proposal") == "uniform" else None
    optimizer = build([nn.Parameter(torch.zeros(dim, dtype=DOUBLE))], seed=seed, bounds=bounds, **options)
    settings = optimizer.param_groups[0]
    point = torch.full((dim,), start, dtype=DOUBLE)
    lower, upper = (None, None) if box is None else (torch.full((dim,), side, dtype=DOUBLE) for side in box)

    unit = torch.tensor(units, dtype=DOUBLE).repeat(dim)[:dim]

    def search_at(step: int, loss: Tensor, drift: Tensor, changed: bool) -> Recording:
        rng = generator(seed, "test", step, point.device)
        deterministic = settings["deterministic"]
        return Recording(point, loss, changed, drift, rng, lower, upper, unit, deterministic, shapes=shapes)

    zero, notes, remembered = torch.zeros((), dtype=DOUBLE), [], None
    state = optimizer._init_state(search_at(-1, torch.full_like(zero, math.nan), zero, False))
    edit(state)
    for step in range(n_steps):
        slow_state = copy.deepcopy(plain(state))
        changed = changing and step % 2 == 1
        shift = (step + 1) // 2 if changing else 0

        def losses_of(z: Tensor) -> Tensor:
            return objective(z + 0.05 * shift) + 0.5 * shift

        loss = losses_of(point)
        drift = loss - remembered if changed and remembered is not None else zero
        search = search_at(step, loss, torch.where(torch.isfinite(drift), drift, 0), changed)
        fast, asked, told = optimizer._iterate(state, search), [], []
        try:
            z = next(fast)
            while True:
                asked.append(as_rows(z))
                told.append(losses_of(asked[-1]))
                z = fast.send(told[-1].clone())
        except StopIteration as stop:
            point, loss = stop.value

        replay = Step.replaying(search)
        slow = reference.iterate(slow_state, replay, **settings)
        try:
            z_slow = next(slow)
            for z, losses in zip(asked, told, strict=True):
                assert_close(z, z_slow, f"candidates of step {step}")
                z_slow = slow.send(losses.tolist())
            pytest.fail(f"step {step}: the reference asks for {z_slow}, the algorithm has ended")
        except StopIteration as stop:
            slow_point, slow_loss = stop.value
        assert not replay.recorded, f"step {step}: numbers that the reference does not draw"
        assert_close(point, slow_point, f"point of step {step}")
        assert_close(loss, slow_loss, f"loss of step {step}")
        assert set(state) == set(slow_state)
        for name in state:
            assert_close(state[name], slow_state[name], f"{name} of step {step}")
        remembered = loss
        if lower is not None and upper is not None:
            point = point.clamp(lower, upper)  # as the model is kept
        notes += replay.notes
    return notes


SETTINGS = pytest.mark.parametrize(
    "setting",
    [
        {},
        {"changing": True},
        {"objective": valley, "dim": 3},
        {"objective": forbidden, "changing": True},
        {"objective": forbidden, "start": 0.5},  # the model's own loss is infinite
        {"objective": noise, "changing": True, "dim": 6},
        {"objective": stairs},
        {"box": (-0.6, 0.5)},
        {"box": (-0.02, 0.03), "changing": True},  # mirrored many times
        {"box": (-math.inf, 0.1)},
    ],
    ids=lambda setting: "-".join(getattr(v, "__name__", f"{k}={v}") for k, v in setting.items()) or "plain",
)


@SETTINGS
@pytest.mark.parametrize("selection", ["truncation", "tournament"])
@pytest.mark.parametrize("crossover", ["centroid", "uniform", "sbx", "blend", None])
def test_ga(crossover: str | None, selection: str, setting: dict[str, Any]) -> None:
    run(GA, genetic, {"popsize": 5, "crossover": crossover, "selection": selection}, **setting)


@pytest.mark.parametrize(
    "options",
    [
        {"popsize": 25},  # the members span the space: m = 1
        {"popsize": 2},
        {"popsize": 8, "elite": 1.0},
        {"popsize": 8, "elite": 0.5, "crossover": "blend"},
        {"popsize": 6, "meta": 1.0},
        {"popsize": 6, "meta": 5.0, "crossover": None},
        {"popsize": 6, "self_adaptive": False},
    ],
    ids=str,
)
def test_ga_options(options: dict[str, Any]) -> None:
    run(GA, genetic, options, changing=True)


@pytest.mark.parametrize("radius", [1e-30, 10.0])
def test_ga_limits_of_the_radius(radius: float) -> None:
    def edit(state: dict[str, Any]) -> None:
        state["radii"] = torch.full_like(state["radii"], radius)

    run(GA, genetic, {"popsize": 6, "meta": 3.0}, edit=edit)


@SETTINGS
@pytest.mark.parametrize("n_parents", [1, 3, 5])
def test_deep_ga(n_parents: int, setting: dict[str, Any]) -> None:
    if "box" not in setting:
        setting = {"start": -2.0, **setting}  # farther than a mutation from the minimum: there is a way to go
    notes = run(DeepGA, deep_ga, {"popsize": 5, "n_parents": n_parents}, n_steps=20, **setting)
    assert ("wall" in notes) == ("box" in setting)
    assert {"the model stays", "the model moves"} <= set(notes) or "box" in setting
    assert n_parents > 1 or "child of another parent" not in notes


def test_deep_ga_takes_every_branch() -> None:
    notes = run(DeepGA, deep_ga, {"popsize": 9, "n_parents": 4}, objective=noise, n_steps=30, changing=True)
    assert {"the model stays", "the model moves", "child of another parent", "the model is no parent"} <= set(notes)
    assert run(DeepGA, deep_ga, {"popsize": 3, "n_parents": 3}, objective=flat, n_steps=2) == 2 * ["the model stays"]


@SETTINGS
@pytest.mark.parametrize("strategy", ["lshade", "rand1bin", "best1bin"])
@pytest.mark.parametrize("popsize", [4, 9])  # at most, and more than, the dimension
def test_de(popsize: int, strategy: str, setting: dict[str, Any]) -> None:
    notes = run(DE, differential_evolution, {"popsize": popsize, "strategy": strategy}, n_steps=8, **setting)
    if strategy == "lshade":
        assert ("current-to-pbest" in notes) == (popsize > setting.get("dim", 4))
        assert ("mean" in notes) == (popsize <= setting.get("dim", 4))


def test_de_with_infinite_losses_and_a_full_archive() -> None:
    """A parent with an infinite loss is beaten by any other; its gain counts as the largest finite one."""
    notes = run(DE, differential_evolution, {"popsize": 9}, objective=forbidden, n_steps=20)
    assert {"infinite gain", "full archive"} <= set(notes)


def test_de_loses_its_crossover_rates() -> None:
    def edit(state: dict[str, Any]) -> None:
        state["memory"][1] = torch.tensor([-1.0, 0.0, 0.0, -1.0, 0.0, 0.5])

    notes = run(DE, differential_evolution, {"popsize": 6}, n_steps=20, edit=edit)
    assert notes.count("CR is 0 for good") > 2


def test_de_shrinks() -> None:
    def edit(state: dict[str, Any]) -> None:
        state["evaluations"] = 70  # of the reference's and the algorithm's state alike

    run(DE, differential_evolution, {"popsize": 9, "max_evaluations": 100}, edit=edit)
    run(DE, differential_evolution, {"popsize": 9, "max_evaluations": 50}, edit=edit)


@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("box", [None, (-0.6, 0.5)])
@pytest.mark.parametrize("restarts", [True, False])
def test_de_restarts(restarts: bool, box: tuple[float, float] | None, changing: bool) -> None:
    def edit(state: dict[str, Any]) -> None:
        state["losses"] = torch.full_like(state["losses"], bowl(state["members"][0]))

    options = {"popsize": 6, "restarts": restarts}
    for strategy in ("lshade", "rand1bin"):
        notes = run(
            DE, differential_evolution, {**options, "strategy": strategy}, changing=changing, box=box, edit=edit
        )
        assert (notes.count("restart"), notes.count("new population")) == ((1, 1) if restarts else (0, 0))


def test_de_converges_and_restarts_as_the_reference() -> None:
    """The population shrinks to rounding errors, where a difference of one would show."""
    notes = run(
        DE, differential_evolution, {"popsize": 5}, objective=lambda z: (z - 0.3).abs().sum(-1), n_steps=150, dim=1
    )
    assert notes.count("restart") >= 1


@SETTINGS
@pytest.mark.parametrize("topology", ["random", "ring", "global"])
@pytest.mark.parametrize("variant", ["spso2011", "constriction"])
@pytest.mark.parametrize("popsize", [3, 8])  # below and above the dimension
def test_pso(popsize: int, variant: str, topology: str, setting: dict[str, Any]) -> None:
    notes = run(PSO, particle_swarm, {"popsize": popsize, "variant": variant, "topology": topology}, **setting)
    assert ("wall" in notes) == ("box" in setting)
    assert ("evaluation of the elite" in notes) == ("changing" in setting)


@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("topology", ["random", "ring"])
def test_pso_in_many_dimensions(topology: str, changing: bool) -> None:
    """A swarm that spans few of them takes differences, also where its rows come in several blocks."""
    notes = run(PSO, particle_swarm, {"popsize": 3, "topology": topology}, dim=21, changing=changing)
    assert notes.count("differences") == 6


@pytest.mark.parametrize("variant", ["spso2011", "constriction"])
def test_pso_in_blocks(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that do not fit into the cache together, in blocks of two and a rest."""
    monkeypatch.setattr("torch_gfo.velocities._BLOCK", 50)
    run(PSO, particle_swarm, {"popsize": 3, "variant": variant}, dim=25)


@pytest.mark.parametrize(
    "options",
    [
        {"informants": 1},
        {"informants": 6},
        {"velocity_limit": 0.3},
        {"inertia": 0.5, "acceleration": 1.0},
        {"inertia": 0.5, "acceleration": 1.0, "variant": "constriction", "velocity_limit": 0.3},
    ],
    ids=str,
)
def test_pso_options(options: dict[str, Any]) -> None:
    run(PSO, particle_swarm, {"popsize": 5, **options}, changing=True)


@SETTINGS
@pytest.mark.parametrize("options", [{}, {"popsize": 1}, {"success_rate": 0.35}, {"restarts": False}], ids=str)
def test_random_search(options: dict[str, Any], setting: dict[str, Any]) -> None:
    run(RandomSearch, random_search, {"popsize": 6, **options}, n_steps=12, **setting)


def test_random_search_in_more_dimensions() -> None:
    notes = run(RandomSearch, random_search, {"popsize": 12}, dim=8, n_steps=40)
    assert notes.count("success") > 10
    assert notes.count("sum") > 5


@pytest.mark.parametrize("restarts", [True, False])
@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("box", [None, (-0.6, 0.5)])
def test_random_search_restarts(box: tuple[float, float] | None, changing: bool, restarts: bool) -> None:
    def edit(state: dict[str, Any]) -> None:
        state["radius"] = 3e-12  # just above float64's end

    options = {"popsize": 6, "restarts": restarts, "success_rate": 0.9}
    notes = run(RandomSearch, random_search, options, objective=noise, changing=changing, box=box, edit=edit)
    assert ("restart" in notes) == restarts


@pytest.mark.parametrize("objective", [bowl, forbidden])
def test_uniform_random_search(objective: Objective) -> None:
    run(RandomSearch, random_search, {"popsize": 6, "proposal": "uniform"}, objective=objective, box=(-0.6, 0.5))


@SETTINGS
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"popsize": 1}, {"temperature": 2.0}, {"cooling": 1.0}, {"acceptance": 0.6}, {"restarts": False}],
    ids=str,
)
def test_simulated_annealing(options: dict[str, Any], deterministic: bool, setting: dict[str, Any]) -> None:
    options = {"popsize": 6, "deterministic": deterministic, **options}
    notes = run(SimulatedAnnealing, simulated_annealing, options, n_steps=15, **setting)
    assert {"down", "up"} <= set(notes) or options["popsize"] == 1 or setting.get("objective") is forbidden


def test_simulated_annealing_takes_every_branch() -> None:
    def branches(**options: Any) -> set[str]:
        setting = {name: options.pop(name) for name in ("objective", "edit", "n_steps") if name in options}
        return set(run(SimulatedAnnealing, simulated_annealing, {"popsize": 6, **options}, **setting))

    def hot(state: dict[str, Any]) -> None:
        state["temperature"] = 1e6

    def frozen(state: dict[str, Any]) -> None:
        state["temperature"] = 1e-320

    assert {"measured", "down", "up"} <= branches(n_steps=20)
    assert {"the model gets worse", "the model gets no worse"} <= branches(popsize=1, n_steps=40)
    assert branches(objective=flat) == {"nothing rises"}
    assert {"level", "up"} <= branches(objective=stairs, n_steps=20)
    assert "largest radius" in branches(edit=hot, n_steps=8)
    assert branches(edit=frozen, cooling=0.1, n_steps=20) == {"down", "the model gets no worse"}
    assert {"frozen", "wider"} <= branches(objective=flat, temperature=1e-20)
    assert {"frozen", "elsewhere"} <= branches(objective=flat, temperature=1e-20, deterministic=True)


@pytest.mark.parametrize("restarts", [True, False])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("box", [None, (-0.6, 0.5)])
def test_simulated_annealing_restarts(box: tuple[float, float] | None, deterministic: bool, restarts: bool) -> None:
    def edit(state: dict[str, Any]) -> None:
        state["radius"] = 2e-12  # just above float64's end

    options = {"popsize": 6, "restarts": restarts, "acceptance": 0.9, "deterministic": deterministic}
    notes = run(SimulatedAnnealing, simulated_annealing, options, objective=noise, box=box, edit=edit)
    assert ("elsewhere" in notes) == (restarts and deterministic)
    assert ("wider" in notes) == (restarts and not deterministic)


@SETTINGS
@pytest.mark.parametrize("adaptive", [True, False, None])
def test_nelder_mead(adaptive: bool | None, setting: dict[str, Any]) -> None:
    notes = run(NelderMead, nelder_mead, {"adaptive": adaptive}, n_steps=30, **setting)
    assert notes.count("evaluation of all") >= (15 if "changing" in setting else 1)


@pytest.mark.parametrize("dim", [1, 2, 10])  # from 10 on, coefficients depend on the dimension
def test_nelder_mead_in_other_dimensions(dim: int) -> None:
    run(NelderMead, nelder_mead, {}, dim=dim, n_steps=25, changing=True)


@pytest.mark.parametrize("objective", [forbidden, stairs])
def test_nelder_mead_with_ties(objective: Objective) -> None:
    """A reflected point that is exactly as bad as the worst vertex, infinite or not, is contracted inside."""
    for seed in range(4):
        run(NelderMead, nelder_mead, {}, objective=objective, dim=3, n_steps=40, start=-0.5, seed=seed)


def test_nelder_mead_made_every_move() -> None:
    notes = set()
    for objective in OBJECTIVES:
        notes |= set(run(NelderMead, nelder_mead, {}, objective=objective, dim=3, n_steps=40))
    assert notes >= {
        *("reflection", "expansion", "reflection after expansion"),
        *("outside contraction", "inside contraction", "shrinkage"),
    }


def test_nelder_mead_restarts() -> None:
    """All losses are equal: every simplex counts as collapsed."""
    notes = run(NelderMead, nelder_mead, {}, objective=flat, n_steps=12)
    assert {"restart elsewhere", "restart at the best point"} <= set(notes)
    notes = run(NelderMead, nelder_mead, {}, objective=flat, n_steps=12, box=(-0.3, 0.4))
    assert {"restart elsewhere", "restart at the best point"} <= set(notes)
    run(NelderMead, nelder_mead, {}, objective=flat, n_steps=12, changing=True)  # from a minibatch, only at the best
    notes = run(NelderMead, nelder_mead, {"restarts": False}, objective=flat, n_steps=12)
    assert not any(note.startswith("restart") for note in notes)


def test_nelder_mead_converges_and_restarts_as_the_reference() -> None:
    """The simplex shrinks to rounding errors, where a difference of one would show."""
    notes = run(NelderMead, nelder_mead, {}, objective=lambda z: (z - 0.3).abs().sum(-1), dim=1, n_steps=120)
    kinds = ["restart" if note.startswith("restart") else "move" for note in notes]
    assert ("move", "restart") in set(pairwise(kinds))


@SETTINGS
@pytest.mark.parametrize("options", [{}, {"curvature": 0.3}, {"blocking": 0.0}], ids=str)
@pytest.mark.parametrize("n_probes", [1, 4])
def test_spsa(n_probes: int, options: dict[str, Any], setting: dict[str, Any]) -> None:
    notes = run(SPSA, spsa, {"n_probes": n_probes, **options}, n_steps=14, **setting)
    assert ("wall" in notes) == ("box" in setting)
    if setting.get("objective") is forbidden:
        assert "not finite" in notes


@pytest.mark.parametrize(
    "options",
    [{"stability": 0.0}, {"alpha": 0.0}, {"gamma": 0.5}, {"curvature": 1.0, "reg": 0.5}, {"blocking": 2.0}],
    ids=str,
)
def test_spsa_options(options: dict[str, Any]) -> None:
    run(SPSA, spsa, {"n_probes": 3, **options}, n_steps=14, changing=True)


def test_spsa_takes_every_branch() -> None:
    notes = run(SPSA, spsa, {"n_probes": 2, "blocking": 0.0}, objective=valley, dim=3, n_steps=40)
    assert {"taken", "given up", "shortened"} <= set(notes)
    assert run(SPSA, spsa, {"n_probes": 2}, objective=flat, n_steps=3) == 3 * ["flat"]


@SETTINGS
@pytest.mark.parametrize("options", [{}, {"deterministic": True}, {"popsize": 2}, {"popsize": 5}], ids=str)
def test_cma_es(options: dict[str, Any], setting: dict[str, Any]) -> None:
    notes = run(CMAES, cma_es, options, n_steps=15, **setting)
    assert {"decomposition", "h = 1"} <= set(notes)
    assert ("infinite" in notes) == (setting.get("objective") is forbidden)
    assert ("narrow box" in notes) == (math.isfinite(setting.get("box", (-math.inf, 0))[0]))


@pytest.mark.parametrize("popsize", [2, None, 40])
@pytest.mark.parametrize("dim", [1, 2, 13])
def test_cma_es_in_other_dimensions(dim: int, popsize: int | None) -> None:
    notes = run(CMAES, cma_es, {"popsize": popsize}, dim=dim, n_steps=30 if popsize == 2 else 8, changing=True)
    assert "decomposition" in notes
    assert ("no decomposition" in notes[2:]) == (popsize != 40)  # the first step needs none


def test_cma_es_on_a_slope() -> None:
    """The step size grows as fast as it may, and the path of C waits."""
    notes = run(CMAES, cma_es, {"popsize": 30}, objective=lambda z: z.sum(-1), dim=2, n_steps=12)
    assert {"h = 0", "growth is limited"} <= set(notes)


def collapsed(state: dict[str, Any]) -> None:
    state["step_size"] = 1e-12


def exploded(state: dict[str, Any]) -> None:
    state["first_step_size"] = 1e-4


def flattened(state: dict[str, Any]) -> None:
    state["C"] = torch.diag(torch.tensor([1.0, 2.0, 1e-18, 4.0], dtype=DOUBLE))
    state["decomposed"] = -100


def lost(state: dict[str, Any]) -> None:
    state["mean"] = torch.tensor([0.05, 0.0, -0.3, 0.0], dtype=DOUBLE)
    state["step_size"] = 1e-18


def old(state: dict[str, Any]) -> None:
    state["maxiter"] = 1


@pytest.mark.parametrize("restarts", ["bipop", "ipop", None])
@pytest.mark.parametrize("box", [None, (-0.6, 0.5), (-math.inf, 0.1)])
@pytest.mark.parametrize(
    ("reason", "objective", "edit"),
    [
        ("tolfun", flat, lambda state: None),
        ("tolx", noise, collapsed),
        ("tolfacupx", noise, exploded),
        ("tolconditioncov", noise, flattened),
        ("noeffectcoord", noise, lost),
        ("maxiter", noise, old),
    ],
)
def test_cma_es_restarts(
    reason: str,
    objective: Objective,
    edit: Callable[[dict[str, Any]], None],
    box: tuple[float, float] | None,
    restarts: str | None,
) -> None:
    n_steps = 1 if edit is flattened else 4  # rounding decides what is left of a flat axis
    notes = run(CMAES, cma_es, {"restarts": restarts}, objective=objective, edit=edit, box=box, n_steps=n_steps)
    assert reason in notes
    assert ("flat axis" in notes) == (edit is flattened)
    assert not {"large run", "small run"} & set(notes)  # the objective may be another in the next step
    options = {"restarts": restarts, "deterministic": True}
    notes = run(CMAES, cma_es, options, objective=objective, edit=edit, box=box, n_steps=n_steps)
    assert reason in notes
    assert ("large run" in notes) == (restarts is not None)


def test_cma_es_alternates_between_the_regimes() -> None:
    """All losses are equal: each run is of one step."""
    notes = run(CMAES, cma_es, {"deterministic": True}, objective=flat, n_steps=14, dim=3)
    runs = [note for note in notes if note.endswith("run")]
    assert len(runs) == 14
    assert runs[:2] == ["large run", "small run"]
    assert runs.count("small run") > runs.count("large run") > 2
    notes = run(CMAES, cma_es, {"deterministic": True, "restarts": "ipop"}, objective=flat, n_steps=5, dim=3)
    assert [note for note in notes if note.endswith("run")] == ["large run"] * 5


def test_cma_es_stops_doubling() -> None:
    def edit(state: dict[str, Any]) -> None:
        state["doublings"] = 8

    options = {"deterministic": True, "popsize": 2, "restarts": "ipop"}
    assert run(CMAES, cma_es, options, objective=flat, n_steps=3, dim=1, edit=edit).count("large run") == 3


def test_cma_es_on_a_plateau_that_ends() -> None:
    notes = run(CMAES, cma_es, {"tolfun": 0.0}, objective=flat, n_steps=12)
    assert "tolfun" not in notes
    assert notes.count("tolfunhist") == 3  # from the tenth step on


@SETTINGS
@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("update", ["adam", "clipup", "sgd"])
def test_openai_es(update: str, mirrored: bool, setting: dict[str, Any]) -> None:
    setting = {"start": 0.05, **setting}  # where mirrored points have other losses
    options = {"popsize": 6, "update": update, "mirrored": mirrored}
    notes = run(OpenAIES, openai_es, options, units=[0.5, 0.1, 2.0], n_steps=10, **setting)
    assert ("wall" in notes) == ("box" in setting)


@pytest.mark.parametrize("update", ["adam", "clipup", "sgd"])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("popsize", [2, 3, 20])
def test_openai_es_options(popsize: int, momentum: float, update: str) -> None:
    run(OpenAIES, openai_es, {"popsize": popsize, "momentum": momentum, "update": update}, changing=True, n_steps=10)


@SETTINGS
@pytest.mark.parametrize("mirrored", [True, False])
def test_openai_es_radius(mirrored: bool, setting: dict[str, Any]) -> None:
    setting = {"start": 0.3, **setting}
    options = {"popsize": 6, "update": "sgd", "mirrored": mirrored, "sigma_lr": 0.8}
    notes = run(OpenAIES, openai_es, options, n_steps=30, **setting)
    assert "nearer" in notes
    assert "farther" in notes or "box" in setting


@SETTINGS
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("options", [{"mirrored": True}, {"update": "sgd"}, {"update": "clipup"}], ids=str)
def test_eggroll(options: dict[str, Any], rank: int, setting: dict[str, Any]) -> None:
    setting = {"start": 0.05, **setting, "dim": 45}
    shapes: list[tuple[int, ...]] = [(4, 5), (), (2, 2, 5), (4,)]  # perturbed by products, 1 number, products, 4
    notes = run(EGGROLL, eggroll, {"popsize": 6, "rank": rank, **options}, shapes=shapes, units=[0.5, 0.1], **setting)
    assert ("walls" in notes) == ("box" in setting)
    assert ("low rank" in notes) == ("box" not in setting)


def test_eggroll_of_a_vector() -> None:
    assert "low rank" not in run(EGGROLL, eggroll, {"popsize": 6}, changing=True)


@SETTINGS
@pytest.mark.parametrize("shaping", ["centered_rank", "z_score"])
@pytest.mark.parametrize("update", ["adam", "clipup", "sgd"])
def test_pgpe(update: str, shaping: str, setting: dict[str, Any]) -> None:
    options, setting = {"popsize": 6, "update": update, "shaping": shaping}, {"start": 0.05, **setting}
    notes = run(PGPE, pgpe, options, units=[0.5, 0.1, 2.0], n_steps=10, **setting)
    assert ("wall" in notes) == ("box" in setting)


@pytest.mark.parametrize("options", [{"popsize": 2}, {"momentum": 0.0}, {"sigma_lr": 0.0}, {"sigma_lr": 2.0}], ids=str)
def test_pgpe_options(options: dict[str, Any]) -> None:
    notes = run(PGPE, pgpe, {"popsize": 8, **options}, changing=True, n_steps=10)
    assert ("limit" in notes) == (options.get("sigma_lr") == 2.0)


@SETTINGS
@pytest.mark.parametrize(("cls", "reference"), [(PGPE, pgpe), (SPSA, spsa)], ids=["PGPE", "SPSA"])
def test_low_rank(cls: type[GradientFreeOptimizer], reference: Any, setting: dict[str, Any]) -> None:
    setting = {"start": 0.05, **setting, "dim": 45}
    shapes: list[tuple[int, ...]] = [(4, 5), (), (2, 2, 5), (4,)]  # perturbed by products, 1 number, products, 4
    options = {"perturbation": "low_rank", **({"popsize": 6} if cls is PGPE else {"n_probes": 3})}
    notes = run(cls, reference, options, shapes=shapes, n_steps=10, **setting)
    assert ("low rank" in notes) == ("box" not in setting)


@SETTINGS
@pytest.mark.parametrize(
    ("cls", "reference", "options"),
    [
        (OpenAIES, openai_es, {"popsize": 5}),
        (OpenAIES, openai_es, {"popsize": 6, "mirrored": True}),
        (PGPE, pgpe, {"popsize": 6}),
        (ARS, ars, {"n_directions": 5, "n_top": 2}),
        (SPSA, spsa, {"n_probes": 3, "blocking": 0.5}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).rpartition(".")[2],
)
def test_seeded(
    cls: type[GradientFreeOptimizer], reference: Any, options: dict[str, Any], setting: dict[str, Any]
) -> None:
    """The same mathematics, on what the seeds give."""
    setting = {"start": 0.05, **setting}
    run(cls, reference, {"perturbation": "seeded", **options}, n_steps=10, **setting)


@SETTINGS
@pytest.mark.parametrize("n_top", [None, 2])
def test_ars(n_top: int | None, setting: dict[str, Any]) -> None:
    options, setting = {"n_directions": 5, "n_top": n_top}, {"start": 0.05, **setting}
    notes = run(ARS, ars, options, units=[0.5, 0.1, 2.0], n_steps=10, **setting)
    assert ("wall" in notes) == ("box" in setting)


@pytest.mark.parametrize("options", [{"n_directions": 1}, {"n_directions": 4, "n_top": 1}, {"n_top": 16}], ids=str)
def test_ars_options(options: dict[str, Any]) -> None:
    run(ARS, ars, options, changing=True)
    assert "equal losses" in run(ARS, ars, options, objective=flat)


DISTRIBUTIONS = pytest.mark.parametrize(
    ("cls", "reference"),
    [(SepCMAES, sep_cma_es), (LMMAES, lm_ma_es), (SNES, snes), (XNES, xnes)],
    ids=lambda value: value.__name__.rpartition(".")[2],
)


@SETTINGS
@DISTRIBUTIONS
@pytest.mark.parametrize("options", [{}, {"deterministic": True}, {"popsize": 2}, {"popsize": 5}], ids=str)
def test_distributions(
    cls: type[GradientFreeOptimizer], reference: Any, options: dict[str, Any], setting: dict[str, Any]
) -> None:
    notes = run(cls, reference, options, n_steps=15, **setting)
    assert ("narrow box" in notes) == (math.isfinite(setting.get("box", (-math.inf, 0))[0]))


@DISTRIBUTIONS
@pytest.mark.parametrize("dim", [1, 2, 13])
def test_distributions_in_other_dimensions(cls: type[GradientFreeOptimizer], reference: Any, dim: int) -> None:
    for popsize in (None, 2, 40):
        run(cls, reference, {"popsize": popsize}, dim=dim, n_steps=8, changing=True)


def test_sep_cma_es_on_a_slope() -> None:
    """The path of C waits while the step size grows."""
    notes = run(SepCMAES, sep_cma_es, {"popsize": 5}, objective=lambda z: z.sum(-1), dim=2, n_steps=12)
    assert {"h = 0", "h = 1"} <= set(notes)


@pytest.mark.parametrize("memory", [1, 3, 20])
def test_lm_ma_es_options(memory: int) -> None:
    run(LMMAES, lm_ma_es, {"memory": memory}, dim=9, n_steps=12)
    notes = run(LMMAES, lm_ma_es, {"memory": memory, "popsize": 60}, objective=lambda z: z.sum(-1), dim=2, n_steps=5)
    assert "growth is limited" in notes


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("options", [{}, {"mean_rate": 2.5}, {"sigma_rate": 0.3}, {"sigma_rate": 0.0}], ids=str)
def test_natural_evolution_strategies_options(options: dict[str, Any], antithetic: bool) -> None:
    for popsize, decay in ((4, 0.0), (5, 0.5)):
        own = {"antithetic": antithetic, "popsize": popsize, "mean_decay": decay}
        run(SNES, snes, {**options, **own}, n_steps=12, changing=True)
    run(XNES, xnes, {**options, "shape_rate": options.get("sigma_rate", 0.1)}, n_steps=12)
