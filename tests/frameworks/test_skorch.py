"""skorch, and scikit-learn around it: cross-validation, grid search, copies, the losses in the history."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import with_skorch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, Checkpoint, LoadInitState
from torch import nn

import torch_gfo
from tests.helpers import assert_identical, mlp


def build_model() -> nn.Module:
    return mlp().model


def net(epochs: int = 4, **options: Any) -> NeuralNetClassifier:
    """A small network in batches of 16."""
    return NeuralNetClassifier(
        build_model,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch_gfo.PSO,
        lr=1.0,
        optimizer__seed=0,
        optimizer__evaluation="sequential",
        max_epochs=epochs,
        batch_size=16,
        train_split=None,
        verbose=0,
        **options,
    )


def data() -> tuple[Any, Any]:
    task = mlp()
    return task.inputs.flatten(0, 1).numpy(), task.targets.flatten().numpy()


class ModelLosses(Callback):  # type: ignore[misc]
    """The loss of the model before each step."""

    def on_train_begin(self, net: NeuralNetClassifier, **_: Any) -> None:
        self.losses: list[float] = []

    def on_batch_begin(self, net: NeuralNetClassifier, batch: Any, training: bool, **_: Any) -> None:
        self.losses.append(float(net.validation_step(batch)["loss"]))


def test_grid_search_finds_an_accurate_network() -> None:
    """Breast cancer, 569 cases; always to say benign would be right in 63 of 100."""
    found = with_skorch.search(epochs=20)
    assert found.best_score_ > 0.94
    assert found.best_params_["neuralnetclassifier__optimizer__popsize"] in (8, 32)
    assert found.best_estimator_["neuralnetclassifier"].optimizer_.param_groups[0]["popsize"] in (8, 32)


def test_cross_validation_is_accurate_and_repeatable() -> None:
    scores = [cross_val_score(with_skorch.classifier(epochs=20), *with_skorch.data(), cv=3) for _ in range(2)]
    assert scores[0].min() > 0.92
    assert scores[0].tolist() == scores[1].tolist()


def test_the_train_loss_is_the_models() -> None:
    model = net(callbacks=[("watch", ModelLosses())])
    model.fit(*data())
    recorded = [batch["train_loss"] for epoch in model.history for batch in epoch["batches"]]
    assert recorded == dict(model.callbacks_)["watch"].losses
    assert recorded[-1] < 0.8 * recorded[0]


def test_clones_and_pickles_train_alike() -> None:
    original = net()
    copy, restored = clone(original).fit(*data()), pickle.loads(pickle.dumps(original.fit(*data())))
    for other in (copy, restored):
        assert_identical(dict(other.module_.state_dict()), dict(original.module_.state_dict()))
    for model in (original, restored):
        model.partial_fit(*data())
    assert_identical(dict(restored.module_.state_dict()), dict(original.module_.state_dict()))
    assert_identical(restored.optimizer_.state_dict(), original.optimizer_.state_dict())


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path: Any) -> None:
    def saving() -> Checkpoint:
        return Checkpoint(monitor=None, dirname=str(tmp_path))

    whole = net(epochs=4).fit(*data())
    net(epochs=2, callbacks=[saving()]).fit(*data())
    resumed = net(epochs=2, callbacks=[LoadInitState(saving())]).fit(*data())
    assert len(resumed.history) == 4
    assert_identical(dict(resumed.module_.state_dict()), dict(whole.module_.state_dict()))
    assert_identical(resumed.optimizer_.state_dict(), whole.optimizer_.state_dict())


@pytest.mark.parametrize("lr", [1.0, 0.01])
def test_skorchs_default_lr_is_too_small(lr: float) -> None:
    """Why every example gives lr=1.0."""
    model = net().set_params(lr=lr).fit(*data())
    gain = 1 - model.history[-1, "train_loss"] / model.history[0, "train_loss"]
    assert (gain > 0.2) == (lr == 1.0)
