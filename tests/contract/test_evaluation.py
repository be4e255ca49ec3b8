"""All candidates at once, or one after the other: the same search; and the right choice between the two."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers import Task, assert_identical, distance, identical, mlp, parameters_of, seeded, vector
from tests.registry import Entry
from torch_gfo.evaluation import Evaluator, Plan
from torch_gfo.space import ParameterVector


class Sum(nn.Module):
    """Averages over the words of a sentence."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Recurrent(nn.Module):
    """Classifies a sequence by a recurrent layer's last output."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = kind(2, 2, batch_first=True)
        self.last = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.recurrent(x)[0][:, -1])


def mistakes(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) != targets).float().mean()


def _task(*layers: nn.Module, inputs: Tensor, criterion: Any = functional.cross_entropy) -> Task:
    targets = (inputs.double().reshape(*inputs.shape[:2], -1).mean(-1) > inputs.double().mean()).long()
    return Task(nn.Sequential(*layers), inputs, targets, criterion)


def _cnn() -> Task:
    layers = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 2)
    return _task(*layers, inputs=torch.randn(2, 8, 1, 8, 8))


def _transformer() -> Task:
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
    return _task(nn.Embedding(11, 8), layer, Sum(), nn.Linear(8, 2), inputs=torch.randint(0, 11, (2, 6, 5)))


def _norm_eval() -> Task:
    task = mlp(normalize=True)
    task.loss()  # moves the running statistics away from their initial values
    task.model.eval()
    return task


def _accuracy() -> Task:
    task = mlp()
    task.criterion = mistakes
    return task


def _recurrent(kind: type[nn.RNNBase]) -> Task:
    return _task(Recurrent(kind), inputs=torch.randn(2, 8, 4, 2))


class Packed(Recurrent):
    """Reads sequences of two lengths."""

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([4] * 4 + [2] * 4)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.last(self.recurrent(packed)[1][0][-1])


# A loss of two logits depends on their difference alone, so that two vertices of a regular simplex can have the same
# loss but for rounding, which then decides between them. A penalty tells them apart.
NO_TIES = 0.1

TASKS: dict[str, Callable[[], Task]] = {
    "mlp": mlp,
    "cnn": _cnn,
    "batchnorm_train": lambda: mlp(normalize=True),
    "batchnorm_eval": _norm_eval,
    "dropout": lambda: mlp(dropout=0.5),
    "transformer": _transformer,
    "accuracy": _accuracy,
    "lstm": lambda: _recurrent(nn.LSTM),
    "gru": lambda: _recurrent(nn.GRU),
}


def _double(task: Task) -> Task:
    task.model.double()
    task.inputs = task.inputs.double() if task.inputs.is_floating_point() else task.inputs
    return task


@pytest.mark.parametrize("name", TASKS)
def test_vectorized_losses_are_sequential_losses(name: str) -> None:
    """C33: both evaluations give every candidate the same loss, within floating-point tolerance, and leave no trace."""
    with seeded():
        task = _double(TASKS[name]())
    space = ParameterVector(list(task.model.parameters()))
    rows = space.read() + 0.3 * torch.randn(20, space.dim, dtype=torch.float64)
    results, before = [], copy.deepcopy((dict(task.model.state_dict()), torch.get_rng_state()))
    for evaluation in ("sequential", "vectorized"):
        with Evaluator(evaluation, None).session(lambda: task.loss(), space, Plan()) as session:
            results.append(session.losses(rows))
        assert_identical((dict(task.model.state_dict()), torch.get_rng_state()), before)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    assert len(set(results[0].tolist())) > 3


@pytest.mark.parametrize("name", ["mlp", "batchnorm_train", "batchnorm_eval"])  # smooth: rounding stays small
def test_vectorized_search_is_sequential_search(batching: Entry, name: str) -> None:
    """C33: both evaluations return the same losses and leave the same model, within floating-point tolerance."""
    results = []
    for evaluation in ("sequential", "vectorized"):
        with seeded():
            task = _double(TASKS[name]())
        optimizer = batching.make(task.model.parameters(), evaluation=evaluation, weight_decay=NO_TIES)
        losses = task.train(optimizer, 3)
        results.append((losses, optimizer.best_loss, dict(task.model.state_dict())))
        assert optimizer.best_loss < losses[0]
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("evaluation", ["sequential", "vectorized", "auto"])
def test_running_statistics_move_once(entry: Entry, evaluation: str) -> None:
    """C33, D7: BatchNorm's running statistics move once a step, as in one plain call at the first point evaluated."""
    if evaluation in entry.refused:
        pytest.skip(entry.refused[evaluation])
    task = mlp(normalize=True)
    parameters = list(task.model.parameters())
    optimizer = entry.make(parameters, evaluation=evaluation)
    for step in range(3):
        plain, seen = copy.deepcopy(task), list[Tensor]()

        def closure() -> Tensor:
            if not seen:
                seen.extend(p.detach().clone() for p in parameters)
            return task.loss(step)

        before = [p.detach().clone() for p in parameters]
        optimizer.step(closure)
        assert identical(seen, before) is entry.looks_first
        with torch.no_grad():
            for parameter, value in zip(plain.model.parameters(), seen, strict=True):
                parameter.copy_(value)
        plain.loss(step)
        assert_identical(dict(task.model.named_buffers()), dict(plain.model.named_buffers()))


def test_chunks(batching: Entry) -> None:
    """C33: the size of a chunk changes nothing but rounding."""
    models = []
    for chunk_size in (1, 3, None):
        task = _double(mlp())
        task.train(batching.make(task.model.parameters(), evaluation="vectorized", chunk_size=chunk_size), 4)
        models.append(dict(task.model.state_dict()))
    for model in models[1:]:
        torch.testing.assert_close(model, models[0], rtol=1e-9, atol=1e-9)


class Closures:
    """Closures that cannot run for all candidates at once, by name; each returns its loss of a small network."""

    def __init__(self) -> None:
        self.task = mlp()
        self.packed = _task(Packed(nn.LSTM), inputs=torch.randn(2, 8, 4, 2))
        self.kept: list[Tensor] = []

    def item(self) -> Tensor:
        loss = self.task.loss()
        return loss if loss.item() > 0 else loss * 2

    def numpy(self) -> Tensor:
        outputs = self.task.model(self.task.inputs[0]).detach().numpy()
        return torch.tensor(((outputs[:, 1] - self.task.targets[0].numpy()) ** 2).mean())

    def python_float(self) -> float:
        return float(self.task.loss())

    def kept_loss(self) -> Tensor:
        loss = self.task.loss()
        self.kept.append(loss)
        return loss

    def packed_lstm(self) -> Tensor:
        return self.packed.loss()

    def model_of(self, name: str) -> nn.Module:
        return (self.packed if name == "packed_lstm" else self.task).model


UNBATCHED = ["item", "numpy", "python_float", "kept_loss", "packed_lstm"]


@pytest.mark.parametrize("name", UNBATCHED)
def test_falling_back(batching: Entry, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """C33: what cannot run in a batch is evaluated one by one, with one message, and exactly as if asked for so."""
    results = []
    for evaluation in ("auto", "sequential"):
        with seeded():
            closures = Closures()
        model, closure = closures.model_of(name), getattr(closures, name)
        optimizer = batching.make(model.parameters(), evaluation=evaluation)
        with caplog.at_level(logging.INFO, logger="torch_gfo"):
            losses = [float(optimizer.step(closure)) for _ in range(4)]
        results.append((losses, dict(model.state_dict()), optimizer.evaluations))
        assert optimizer.best_loss < losses[0]
    assert_identical(*results)
    assert len(caplog.records) == 1
    assert "one after the other, because" in caplog.text


def test_kept_tensors_are_usable(entry: Entry) -> None:
    """C33: whatever a closure keeps, under any evaluation that accepts it, is an ordinary tensor afterwards."""
    for evaluation in ("auto", "sequential"):
        closures = Closures()
        optimizer = entry.make(closures.task.model.parameters(), evaluation=evaluation)
        for _ in range(3):
            optimizer.step(closures.kept_loss)
        assert len(closures.kept) >= optimizer.evaluations
        values = [float(loss) for loss in closures.kept]
        assert all(0 < value < 10 for value in values)
        assert torch.stack(closures.kept).shape == (len(values),)
        assert optimizer.best_loss == min(values)


@pytest.mark.parametrize("name", UNBATCHED)
def test_vectorized_explains(batching: Entry, name: str) -> None:
    """C33: evaluation="vectorized" raises, says why, names the ways out, and nothing has changed."""
    closures = Closures()
    model = closures.model_of(name)
    optimizer = batching.make(model.parameters(), evaluation="vectorized")
    before = copy.deepcopy((dict(model.state_dict()), optimizer.state_dict()))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r'does not run for all candidates at once: .*evaluation="sequential"'):
            optimizer.step(getattr(closures, name))
    assert_identical((dict(model.state_dict()), optimizer.state_dict()), before)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_networks_train(entry: Entry, kind: type[nn.RNNBase]) -> None:
    """C33: LSTM and GRU closures train under the default evaluation."""
    with seeded():
        task = _recurrent(kind)
    optimizer = entry.make(task.model.parameters(), evaluation="auto")
    before = task.total()
    task.train(optimizer, 12)
    assert task.total() < before


def test_silent_difference_is_found(batching: Entry, caplog: pytest.LogCaptureFixture) -> None:
    """C33: a closure that gives other losses in a batch than in plain calls is evaluated one by one."""
    x = vector(6)
    view = x.detach()  # shares the storage, which a batch does not write to

    def closure() -> Tensor:
        return distance([view])

    optimizer = batching.make([x], evaluation="auto")
    with caplog.at_level(logging.INFO, logger="torch_gfo"):
        for _ in range(5):
            optimizer.step(closure)
    assert len(caplog.records) == 1
    assert "in a batch the losses are" in caplog.text
    assert distance([x]) < distance([vector(6)])


def test_auto_keeps_its_choice(entry: Entry) -> None:
    """C33: with "auto" a closure that runs in a batch gives the search of one of the two, within rounding."""
    models = []
    for evaluation in ("auto", "sequential"):
        task = _double(mlp())
        optimizer = entry.make(task.model.parameters(), evaluation=evaluation, weight_decay=NO_TIES)
        task.train(optimizer, 5)
        models.append(dict(task.model.state_dict()))
        assert optimizer.evaluations > 5
    torch.testing.assert_close(*models, rtol=1e-7, atol=1e-7)
    assert not identical(parameters_of(optimizer), list(mlp().model.double().parameters()))
