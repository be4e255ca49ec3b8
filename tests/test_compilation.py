"""Compiled evaluation: how often it compiles, what it computes, and where it gives up."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torch_gfo
from tests.helpers import assert_identical, distance, seeded, vector
from torch_gfo import evaluation as module
from torch_gfo import passes
from torch_gfo.compilation import Compiled
from torch_gfo.evaluation import BACKENDS, Evaluator, Plan
from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.space import ParameterVector


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Compiles with a backend that generates no code; a list with an entry for every compilation."""
    sizes: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(passes, "Compiled", partial(Compiled, backend))
    return sizes


def network(*between: nn.Module) -> nn.Sequential:
    with seeded():
        return nn.Sequential(nn.Linear(2, 3), *between, nn.Tanh(), nn.Linear(3, 2))


def train(optimizer: GradientFreeOptimizer, model: nn.Module, sizes: list[int], first: int = 0) -> list[float]:
    """Trains as the README does, with a new closure for every batch."""
    losses = []
    for i, size in enumerate(sizes, first):
        with seeded(i):
            inputs = torch.randn(size, 2)
        targets = (inputs.sum(1) > 0).long()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        losses.append(float(optimizer.step(closure)))
    return losses


@pytest.mark.parametrize("name", ["PSO", "OpenAIES", "EGGROLL"])
@pytest.mark.parametrize("layers", [[], ["norm"], ["norm", "dropout"]], ids=["plain", "norm", "dropout"])
def test_a_new_closure_for_every_batch(name: str, layers: list[str], compilations: list[int]) -> None:
    """New closures compile nothing; a new batch shape compiles once more, and the next ones not any more."""
    results = []
    for evaluation in ("compiled", "vectorized"):
        between = {"norm": nn.BatchNorm1d(3), "dropout": nn.Dropout(0.3)}
        model = network(*(between[layer] for layer in layers))
        optimizer = getattr(torch_gfo, name)(model.parameters(), seed=0, popsize=20, evaluation=evaluation)
        torch.manual_seed(0)
        counts = []
        losses = []
        for i, size in enumerate([16, 16, 16, 9, 16, 9, 7, 12]):
            losses += train(optimizer, model, [size], first=i)
            counts.append(len(compilations))
        results.append((losses, dict(model.state_dict()), torch.get_rng_state()))
        if evaluation == "compiled":
            assert counts[:6] == [1, 1, 1, 2, 2, 2]
        assert counts[-1] == len(compilations) <= 4
    torch.testing.assert_close(results[0][:2], results[1][:2], rtol=1e-4, atol=1e-5)
    assert_identical(results[0][2], results[1][2])


def test_populations_of_other_sizes(compilations: list[int]) -> None:
    """Every compiled call has the same number of candidates, whatever the population's."""
    x = vector(5)
    evaluator, plan = Evaluator("compiled", None), Plan()
    for n in (12, 12, 11, 7, 25, 3, 1, 30):
        rows = torch.randn(n, 5)
        with evaluator.session(lambda: distance([x]), ParameterVector([x]), plan) as session:
            losses = session.losses(rows)
        torch.testing.assert_close(losses, (rows - 1).square().sum(1))
        plan = session.plan
        assert plan == Plan(BACKENDS.index("compiled"), 12, 0)
    assert len(compilations) == 1


def test_many_optimizers(compilations: list[int]) -> None:
    """Each compiles for itself: torch's limit of versions of one function is not met."""
    for i in range(12):
        x = vector(5, seed=i)
        with Evaluator("compiled", None).session(lambda: distance([x]), ParameterVector([x]), Plan()) as session:
            session.losses(torch.randn(6, 5))
        assert len(compilations) == i + 1


def test_buffers(compilations: list[int]) -> None:
    """What a closure modifies moves once, in the plain call."""
    x, calls = vector(4), torch.zeros(())

    def closure() -> Tensor:
        calls.add_(1)
        return distance([x]) * calls

    space, rows = ParameterVector([x]), torch.randn(6, 4)
    with Evaluator("compiled", None).session(closure, space, Plan()) as session:
        session.model()
        losses = session.losses(rows)
    assert_identical(calls, torch.ones(()))
    assert len(compilations) == 1
    torch.testing.assert_close(losses, 2 * (rows - 1).square().sum(1))


def _item(x: Tensor) -> Tensor:
    loss = distance([x])
    return loss if loss.item() > 0 else -loss


def _foreign(x: Tensor) -> Tensor:
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1).zero_grad()
    return distance([x])


@pytest.mark.parametrize(
    ("function", "message"), [(_item, "one after the other, because"), (_foreign, "without compiling, because")]
)
def test_falling_back(
    function: Callable[[Tensor], Tensor], message: str, compilations: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """What does not compile is evaluated in a batch, or in plain calls, with one message."""
    x = vector(4)
    evaluator, rows = Evaluator("compiled", None), torch.randn(6, 4)
    with caplog.at_level(logging.INFO, logger="torch_gfo"):
        for _ in range(3):
            with evaluator.session(lambda: function(x), ParameterVector([x]), Plan()) as session:
                losses = session.losses(rows)
            torch.testing.assert_close(losses, (rows - 1).square().sum(1))
    assert len(caplog.records) == 1
    assert message in caplog.text


def test_other_losses_are_found(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where compiled code computes something else, it is not used."""
    monkeypatch.setattr(passes, "Compiled", lambda: lambda closure, numbers, *_: numbers.sum(1))
    x, rows = vector(4), torch.randn(6, 4)
    evaluator = Evaluator("compiled", None)
    with evaluator.session(lambda: distance([x]), ParameterVector([x]), Plan()) as session:
        losses = session.losses(rows)
    torch.testing.assert_close(losses, (rows - 1).square().sum(1))
    assert "compiled the losses are" in caplog.text


@pytest.mark.parametrize("pays", [float("inf"), 0.0])
def test_auto_compiles_in_a_long_run(pays: float, compilations: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a number of evaluations that is known from the first step, "auto" compiles once and keeps the faster."""
    monkeypatch.setattr(module, "_PAYS", pays)
    monkeypatch.setattr(module, "_SECONDS_TO_COMPILE", (0.0, 0.0))
    monkeypatch.setattr(module, "_PATIENCE", 1)
    model = network()
    optimizer = torch_gfo.PSO(model.parameters(), seed=0, popsize=20)
    state = optimizer.state[next(model.parameters())]
    train(optimizer, model, [16])
    assert state["patience"] == 0  # nothing to pay
    state["patience"] = 50
    chosen = state["backend"]
    counts = []
    for i in range(5):
        train(optimizer, model, [16], first=i)
        counts.append((state["patience"], len(compilations)))
    assert [patience for patience, _ in counts] == sorted((patience for patience, _ in counts), reverse=True)
    assert [n for _, n in counts] == [int(patience == 0) for patience, _ in counts]
    assert counts[0] == (30, 0)
    assert counts[-1] == (0, 1)
    assert state["backend"] == (3 if pays else chosen)


def test_resuming(compilations: list[int]) -> None:
    """A run that is resumed goes on with the backend that was chosen, bit for bit."""
    models = [network(nn.BatchNorm1d(3)) for _ in range(2)]
    one, other = (torch_gfo.PSO(m.parameters(), seed=0, evaluation="auto") for m in models)
    one.state[next(models[0].parameters())]["backend"] = 3
    one.state[next(models[0].parameters())]["chunk_size"] = 32
    train(one, models[0], [16] * 3)
    models[1].load_state_dict(models[0].state_dict())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert_identical(*(train(o, m, [16] * 3, first=3) for o, m in zip((one, other), models, strict=True)))
    assert_identical(*(dict(m.state_dict()) for m in models))
    assert len(compilations) == 2


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(x.transpose(0, 1))[0][-1]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "recurrent": Last,
    "transformer": lambda: nn.Sequential(
        nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True), nn.Flatten(), nn.Linear(20, 3)
    ),
    "convolution": lambda: nn.Sequential(
        nn.Conv1d(5, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(8, 3)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_generated_code(name: str) -> None:
    """Code that torch generates computes the losses of plain calls, with the same dropout masks."""
    with seeded():
        model = MODELS[name]()
        inputs, targets = torch.randn(6, 5, 4), torch.randint(3, (6,))
    space = ParameterVector(list(model.parameters()))
    rows = space.read() + 0.3 * torch.randn(8, space.dim)
    results = []
    evaluators = [Evaluator(evaluation, None) for evaluation in ("compiled", "sequential")]
    for evaluator in evaluators:
        with evaluator.session(lambda: functional.cross_entropy(model(inputs), targets), space, Plan()) as session:
            results.append(session.losses(rows))
    assert evaluators[0].compiled_codes
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
