"""Lightning's Trainer: automatic and manual optimization, what is logged, schedulers, resuming."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import with_lightning
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

import torch_gfo
from tests.helpers import assert_identical, mlp

pytestmark = [
    # Lightning calls what torch has since renamed, and suggests worker processes on machines that have many.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]

Make = Callable[..., Optimizer]
MODULES = [with_lightning.Classifier, with_lightning.ManualClassifier]
OPTIMIZERS = [torch_gfo.PSO, torch_gfo.CMAES, torch_gfo.EGGROLL]


def small(base: type[LightningModule], make: Make, *, schedule: bool = False) -> LightningModule:
    """A module of the example with a small model and another optimizer."""

    class Small(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.model = mlp().model

        def configure_optimizers(self) -> Any:
            optimizer = make(self.parameters())
            return {
                "optimizer": optimizer,
                **({"lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)} if schedule else {}),
            }

    return Small()


def loader() -> DataLoader[tuple[Tensor, ...]]:
    task = mlp()
    return DataLoader(TensorDataset(task.inputs.flatten(0, 1), task.targets.flatten()), batch_size=16)


def trainer(max_epochs: int, *callbacks: Callback, **options: Any) -> Trainer:
    quiet = {**options, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(
        max_epochs=max_epochs, accelerator="cpu", enable_model_summary=False, callbacks=[*callbacks], **quiet
    )


class Watch(Callback):
    """Compares what is logged with the loss of the model before the step."""

    def __init__(self) -> None:
        self.expected: list[Tensor] = []
        self.logged: list[Tensor] = []
        self.outputs: list[Tensor | None] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            self.expected.append(nn.functional.cross_entropy(module.model(batch[0]), batch[1]))

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.logged.append(trainer.callback_metrics["train_loss"])
        self.outputs.append(outputs["loss"] if outputs else None)


@pytest.mark.parametrize("module", MODULES)
def test_the_example_learns(module: type[LightningModule]) -> None:
    """60 steps of EGGROLL; a tenth would be right by chance."""
    assert with_lightning.train(module(), steps=60) > 0.45


@pytest.mark.parametrize("base", MODULES)
@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_the_loss_logged_is_the_models(base: type[LightningModule], cls: Make) -> None:
    watch = Watch()
    module = small(base, partial(cls, seed=0, evaluation="sequential"))
    fit = trainer(3, watch)
    fit.fit(module, loader())
    assert fit.global_step == 12
    assert_identical(watch.logged, watch.expected)
    assert watch.logged[-1] < 0.95 * watch.logged[0]


def test_lightnings_own_output_is_a_candidates() -> None:
    """Why the example logs in ``optimizer_step``: Lightning keeps what the last call of the closure gave."""
    watch = Watch()
    trainer(1, watch).fit(small(MODULES[0], partial(torch_gfo.PSO, seed=0)), loader())
    assert all(output is not None for output in watch.outputs)
    assert watch.outputs != watch.expected


@pytest.mark.parametrize("base", MODULES)
@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_a_resumed_run_equals_an_undisturbed_one(base: type[LightningModule], cls: Make, tmp_path: Path) -> None:
    file = tmp_path / "run.ckpt"
    build = partial(small, base, partial(cls, seed=0, evaluation="sequential"), schedule=base is MODULES[0])
    whole, half, resumed = build(), build(), build()
    undisturbed, interrupted, again = trainer(4), trainer(2), trainer(4)
    undisturbed.fit(whole, loader())
    interrupted.fit(half, loader())
    interrupted.save_checkpoint(file)
    again.fit(resumed, loader(), ckpt_path=file)
    assert again.global_step == 16
    assert_identical(dict(resumed.state_dict()), dict(whole.state_dict()))
    assert_identical(again.optimizers[0].state_dict(), undisturbed.optimizers[0].state_dict())


def test_gradient_clipping_has_nothing_to_clip() -> None:
    build = partial(small, MODULES[0], partial(torch_gfo.PSO, seed=0, evaluation="sequential"))
    plain, clipped = build(), build()
    trainer(2).fit(plain, loader())
    trainer(2, gradient_clip_val=1e-6).fit(clipped, loader())
    assert_identical(dict(clipped.state_dict()), dict(plain.state_dict()))


def test_accumulating_gradients_leaves_the_last_minibatch_alone() -> None:
    module = small(MODULES[0], partial(torch_gfo.PSO, seed=0, evaluation="sequential"))
    fit = trainer(1, accumulate_grad_batches=2)
    task, losses = mlp(), []
    module.optimizer_step = lambda epoch, index, optimizer, closure=None: losses.append(optimizer.step(closure))
    fit.fit(module, loader())
    assert fit.global_step == 2
    assert torch.equal(losses[0], task.loss(1) / 2)


def test_schedulers_act() -> None:
    fit = trainer(3)
    fit.fit(small(MODULES[0], partial(torch_gfo.PSO, seed=0), schedule=True), loader())
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)


def test_candidates_are_evaluated_in_a_batch_by_manual_optimization_alone(caplog: pytest.LogCaptureFixture) -> None:
    vectorized = partial(torch_gfo.PSO, seed=0, evaluation="vectorized")
    trainer(1).fit(small(MODULES[1], vectorized), loader())
    with pytest.raises(RuntimeError, match="keeps tensors beyond its end"):
        trainer(1).fit(small(MODULES[0], vectorized), loader())
    with caplog.at_level(logging.INFO, "torch_gfo"):
        trainer(1).fit(small(MODULES[0], partial(torch_gfo.PSO, seed=0)), loader())
    assert "one after the other" in caplog.text
