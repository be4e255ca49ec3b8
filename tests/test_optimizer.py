"""The base class, driven by an algorithm that does as little as possible."""

from __future__ import annotations

import copy
import tracemalloc
import warnings
from collections.abc import Generator, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_gfo
from tests.helpers import assert_identical, distance, identical, snapshot, vector
from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.search import Search


class Probe(GradientFreeOptimizer):
    """Takes the best of a few random points and notes what it was told; remembers tensors of all dtypes."""

    def __init__(self, params: Iterable[Any], lr: float = 1.0, sigma: float | None = 0.1, **common: Any) -> None:
        super().__init__(params, {"lr": lr, "sigma": sigma}, {"seed": 0, "evaluation": "sequential", **common})

    def _init_state(self, search: Search) -> dict[str, Any]:
        return {
            "double": torch.full((3,), torch.pi, dtype=torch.float64),
            "count": torch.zeros((), dtype=torch.int64),
            "bytes": torch.arange(4, dtype=torch.uint8),
            "flags": torch.tensor([True, False]),
            "half": torch.ones(2, dtype=torch.bfloat16),
            "n": 2**40,
            "f": 0.1,
            "changed": 0,
        }

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        state["changed"] += int(search.changed)
        state["count"] = state["count"] + 2**40
        state["double"] = state["double"] / 3
        z = search.reflect(search.point + search.normal(4, search.dim))
        losses = yield z
        best = int(losses.argmin())
        return (z[best], losses[best]) if losses[best] < search.loss else (search.point, search.loss)

    def _n_stored(self, dim: int) -> int:
        return 10 * dim


class Walker(Probe):
    """Steps by one unit in every coordinate, whatever the losses; notes what one unit is."""

    _lr_is_step = True

    def _init_state(self, search: Search) -> dict[str, Any]:
        return {"unit": torch.as_tensor(search.unit).expand(search.dim).clone()}

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        yield search.point + torch.ones(2, search.dim, dtype=search.dtype)
        return search.point + 1.0, torch.full_like(search.loss, torch.nan)


class Hungry(Probe):
    """An algorithm that needs the square of the dimension."""

    def _n_stored(self, dim: int) -> int:
        return dim**2


def changes(optimizer: GradientFreeOptimizer) -> int:
    """How many steps the algorithm was told that the objective had changed."""
    first = optimizer.param_groups[0]["params"][0]
    return int(optimizer.state[first]["changed"])


def test_dtypes_of_the_state() -> None:
    """float64, int64, uint8, bool and bfloat16 come back from a checkpoint bit for bit beside bfloat16 parameters."""
    x = vector(4, dtype=torch.bfloat16)
    optimizer = Probe([x])
    for _ in range(3):
        optimizer.step(lambda: distance([x]))
    checkpoint = copy.deepcopy(optimizer.state_dict())
    successor = Probe([nn.Parameter(x.detach().clone())])
    successor.load_state_dict(checkpoint)
    assert_identical(successor.state_dict(), checkpoint)
    assert_identical(checkpoint["state"][0]["double"], torch.full((3,), torch.pi, dtype=torch.float64) / 3 / 3 / 3)


def test_loading_does_not_share_with_later_steps() -> None:
    """Steps after loading leave the dictionary alone that was loaded."""
    x = vector(4)
    optimizer = Probe([x])
    checkpoint = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(checkpoint)
    optimizer.load_state_dict(checkpoint)
    for _ in range(3):
        optimizer.step(lambda: distance([x]))
    assert_identical(checkpoint, before)


@pytest.mark.parametrize("same", [True, False], ids=["same_objective", "minibatches"])
@pytest.mark.parametrize("deterministic", [True, False], ids=["deterministic", "default"])
def test_changed_objective(same: bool, deterministic: bool) -> None:
    """An algorithm is told that the objective has changed exactly when it has."""
    if deterministic and not same:
        pytest.skip("contradicts the promise")
    x = vector(4)
    optimizer = Probe([x], deterministic=deterministic)
    for step in range(5):
        optimizer.step(lambda: distance([x]) + (0.0 if same else 0.1 * step))
    assert changes(optimizer) == (0 if same else 4)


def test_changed_by_the_schedule_or_the_user() -> None:
    """Another lr, other parameters or a frozen one change the objective in search coordinates."""
    x, y = vector(4), vector(2)
    optimizer = Probe([x, y], deterministic=True)

    def step() -> int:
        before = changes(optimizer)
        optimizer.step(lambda: distance([x, y]))
        return changes(optimizer) - before

    assert [step(), step()] == [0, 0]
    optimizer.param_groups[0]["lr"] = 0.5
    assert [step(), step()] == [1, 0]
    with torch.no_grad():
        x[0] = 3.0
    assert [step(), step()] == [1, 0]
    y.requires_grad_(False)
    assert [step(), step()] == [1, 0]


def test_changed_by_weight_decay() -> None:
    """Another weight decay is another objective; what is known of the model's point is not its loss any more."""
    x = vector(4)
    optimizer = Probe([x], deterministic=True)
    optimizer.step(lambda: distance([x]))
    optimizer.param_groups[0]["weight_decay"] = 2.0
    expected = distance([x.detach()])
    torch.testing.assert_close(optimizer.step(lambda: distance([x])), expected)


def test_dimension_that_does_not_fit() -> None:
    """A search that cannot fit is refused with the figure and the ways out, before anything is allocated."""
    x = nn.Parameter(torch.zeros(1_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(
            RuntimeError, match=r"Hungry would hold 3,725\.3 GiB for 1,000,000 parameters.*subspace=100"
        ):
            Hungry([x])
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    Hungry([x], subspace=3)


def test_simplex_that_does_not_fit() -> None:
    """Nelder-Mead's simplex for a large network is refused; in a subspace it fits."""
    x = nn.Parameter(torch.ones(1_000_000))
    with pytest.raises(RuntimeError, match=r"NelderMead would hold [\d,.]+ GiB for 1,000,000 parameters"):
        torch_gfo.NelderMead([x], subspace=None)
    assert torch_gfo.NelderMead([x], subspace=3).ask().shape == (1, 1_000_000)


@pytest.mark.parametrize(
    ("dim", "given", "expected"),
    [
        (100, {}, (None, None)),
        (101, {}, (10, 1)),
        (101, {"subspace": None}, (None, None)),
        (101, {"subspace": 7}, (7, None)),
    ],
)
def test_options_suit_the_dimension(dim: int, given: dict[str, Any], expected: tuple[Any, Any]) -> None:
    """A simplex of very many directions is only built on demand; every group knows."""
    optimizer = torch_gfo.NelderMead([{"params": [vector(dim - 1)]}, {"params": [vector(1)]}], seed=0, **given)
    for group in (*optimizer.param_groups, optimizer.defaults):
        assert (group["subspace"], group["subspace_refresh"]) == expected
    optimizer.add_param_group({"params": [vector(2)]})
    assert copy.deepcopy(optimizer).param_groups[2]["subspace"] == expected[0]


def test_growing_too_large_later() -> None:
    """add_param_group applies the same guard, and leaves the search as it was."""
    x = vector(4)
    optimizer = Hungry([x])
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="1,000,004 parameters"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1_000_000))]})
    assert_identical(snapshot(optimizer), before)
    optimizer.step(lambda: distance([x]))


def test_subspace() -> None:
    """In a subspace the model moves along its few directions, and along others once they are renewed."""
    for refresh, rank in ((None, 2), (5, 4)):
        x = vector(30, dtype=torch.float64)
        optimizer = Probe([x], subspace=2, subspace_refresh=refresh)
        start, moves = x.detach().clone(), []
        for _ in range(10):
            optimizer.step(lambda: distance([x]))
            moves.append(x.detach() - start)
        singular = torch.linalg.svdvals(torch.stack(moves))
        assert int((singular > 1e-9 * singular[0]).sum()) == rank


def test_steps_of_length_lr() -> None:
    """Where lr is the length of the model's step, candidates are sigma away from it, and lr=0 keeps both still."""
    x, y, z = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    groups = [{"params": [x], "lr": 0.5, "sigma": 0.1}, {"params": [y], "sigma": 3.0}, {"params": [z], "lr": 0.0}]
    optimizer = Walker(groups, lr=0.25)
    for step in range(1, 4):
        model = optimizer.ask()
        optimizer.tell([0.0])
        torch.testing.assert_close(
            optimizer.ask() - model, torch.tensor([[0.1, 0.1, 3.0, 3.0, 0.0, 0.0]]).expand(2, -1)
        )
        optimizer.tell([0.0, 0.0])
        assert [p[0].item() for p in (x, y, z)] == [step * 0.5, step * 0.25, 0.0]
        optimizer.param_groups[0]["lr"] = 0.5  # as a scheduler writes it
    unit = optimizer.state[x]["unit"]
    torch.testing.assert_close(unit, torch.tensor([0.1, 0.1, 3.0, 3.0, 0.0, 0.0]))


def test_recommendation() -> None:
    """Of a sampling algorithm the mean, or on an objective that never changes the best point known."""
    point, mean = torch.zeros(2), torch.ones(2)
    z, losses = torch.tensor([[2.0, 2.0], [3.0, 3.0]]), torch.tensor([5.0, 4.0])
    for deterministic, loss, expected in ((False, 4.5, mean), (True, 4.5, z[1]), (True, 3.5, point)):
        rng, zero = torch.Generator(), torch.zeros(())
        search = Search(point, torch.tensor(loss), False, zero, rng, deterministic=deterministic)
        recommended, its_loss = search.recommend(mean, z, losses)
        assert torch.equal(recommended, expected)
        assert float(its_loss) == pytest.approx(min(loss, 4.0) if deterministic else torch.nan, nan_ok=True)


def test_sigma_follows_the_initial_values() -> None:
    """Without sigma each tensor is explored in proportion to its own scale; with it, in parameter units."""
    small, large = nn.Parameter(0.01 * torch.randn(300)), nn.Parameter(100 * torch.randn(300))
    for sigma, expected in ((None, (0.01, 100.0)), (2.0, (2.0, 2.0))):
        optimizer = Probe([small, large], sigma=sigma)
        model = optimizer.ask()
        optimizer.tell([0.0])
        spread = (optimizer.ask() - model).reshape(4, 2, 300).square().mean((0, 2)).sqrt()
        assert spread.tolist() == pytest.approx(expected, rel=0.2)


def test_warnings_name_the_line_of_the_user() -> None:
    """A warning of a step tells where step() was called, not where in the library."""
    x, y = vector(3), nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = Probe([x, y])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step(lambda: float("nan"))
        x.requires_grad_(False)
        y.requires_grad_(True)
        optimizer.step(lambda: distance([x, y]))
        Probe([nn.Parameter(torch.ones(2), requires_grad=False)]).step(lambda: 1.0)
    assert [warning.filename for warning in caught] == 3 * [__file__]


def test_weight_decay_is_a_penalty() -> None:
    """Weight decay adds half the squared norm to candidates' losses, not to what step returns or best_loss holds."""
    x = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Probe([x], weight_decay=0.2)
    assert optimizer.step(lambda: torch.tensor(7.0)) == 7.0
    assert optimizer.best_loss == 7.0
    assert x.norm() < 5
    for _ in range(100):
        optimizer.step(lambda: torch.tensor(7.0))
    assert x.norm() < 0.5


def test_nothing_is_known_of_a_penalised_point() -> None:
    """With a promise of determinism the remembered value is the closure's, without the penalty."""
    x = vector(4)
    optimizer = Probe([x], weight_decay=0.3, deterministic=True, maximize=True)
    for _ in range(5):
        expected = -distance([x.detach()])
        torch.testing.assert_close(optimizer.step(lambda: -distance([x])), expected)


def test_evaluations_go_on_after_a_new_beginning() -> None:
    """Counters and the step number survive a group that is added."""
    x, y = vector(3), vector(2)
    optimizer = Probe([x])
    for _ in range(3):
        optimizer.step(lambda: distance([x, y]))
    best = optimizer.best_loss
    assert optimizer.evaluations == 15
    optimizer.add_param_group({"params": [y]})
    assert optimizer.evaluations == 15
    assert optimizer.best_loss == best
    assert [optimizer.state[p]["step"] for p in (x, y)] == [3, 3]
    optimizer.step(lambda: distance([x, y]))
    assert optimizer.evaluations == 20


def test_named_groups() -> None:
    """Named parameters keep their names."""
    model = nn.Linear(3, 2)
    optimizer = Probe(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_compiled_callers() -> None:
    """Dynamo does not trace a step."""
    x = vector(3)
    optimizer = Probe([x])
    before = distance([x]).item()

    @torch.compile(backend="eager")
    def train() -> None:
        for _ in range(5):
            optimizer.step(lambda: distance([x]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dynamo's own
        train()
    assert optimizer.evaluations == 25
    assert distance([x]) < before


def test_asking_is_repeatable() -> None:
    """Rows are copies: writing into them changes nothing."""
    optimizer = Probe([vector(3)])
    rows = optimizer.ask()
    kept = rows.clone()
    rows.zero_()
    assert_identical(optimizer.ask(), kept)


def test_asking_for_nothing() -> None:
    """Without trainable parameters there is nothing to ask for."""
    optimizer = Probe([nn.Parameter(torch.ones(2), requires_grad=False)])
    with pytest.raises(RuntimeError, match="no parameter requires grad"):
        optimizer.ask()


def test_stop_iteration_in_a_closure() -> None:
    """A closure whose data run out fails as it would elsewhere, and nothing has moved."""
    x, batches = vector(3), iter([1.0, 2.0])
    optimizer = Probe([x])
    before = snapshot(optimizer)
    with pytest.raises((StopIteration, RuntimeError)):
        optimizer.step(lambda: distance([x]) * next(batches))
    assert_identical(snapshot(optimizer), before)


def test_moved_to_another_precision() -> None:
    """A model that is cast after construction is searched on from where it is."""
    model = nn.Linear(3, 2)
    optimizer = Probe(model.parameters())
    optimizer.step(lambda: distance(list(model.parameters())))
    model.bfloat16()
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(30):
        optimizer.step(lambda: distance([p.float() for p in model.parameters()]))
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert not identical([p.detach() for p in model.parameters()], before)
