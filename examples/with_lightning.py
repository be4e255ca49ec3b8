"""Train a LightningModule without gradients, with automatic and with manual optimization.

    python examples/with_lightning.py

A closure is called for the model and for every candidate, and with it ``training_step``. What ``training_step`` logs is
therefore a mixture of candidates. The loss of the model is what ``optimizer.step`` returns: log that, in
``optimizer_step``.
"""

from typing import Any

import torch
import torchvision_cpu  # noqa: F401  Lightning imports torchvision, if there is one
from lightning import LightningModule, Trainer
from mnist_data import Split, load_sample
from mnist_run import Settings, build_model, error_rate
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import torch_gfo


class Classifier(LightningModule):
    """A network for MNIST; an optimizer of torch.optim could take the place of EGGROLL."""

    def __init__(self):
        """Builds the model."""
        super().__init__()
        self.model = build_model(Settings())

    def configure_optimizers(self):
        """Returns the optimizer."""
        return torch_gfo.EGGROLL(self.parameters(), seed=0)

    def training_step(self, batch, batch_idx):
        """Returns the loss of a batch, of the model or of a candidate: nothing is logged here."""
        images, digits = batch
        return cross_entropy(self.model(images), digits)

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        """Makes a step, and logs the loss of the model from before it."""
        loss = optimizer.step(closure=optimizer_closure)
        self.log("train_loss", loss, prog_bar=True)

    def test_step(self, batch, batch_idx):
        """Logs the accuracy."""
        images, digits = batch
        self.log("accuracy", 1 - error_rate(self.model(images), digits))


class ManualClassifier(Classifier):
    """The same with manual optimization, where candidates can be evaluated in a batch."""

    def __init__(self):
        """Builds the model."""
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        """Makes a step."""
        images, digits = batch
        optimizer: Any = self.optimizers()
        loss = optimizer.step(lambda: cross_entropy(self.model(images), digits))
        self.log("train_loss", loss, prog_bar=True)


def batches(split: Split, batch_size: int = 256, shuffle: bool = False) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Returns minibatches of images and digits."""
    return DataLoader(TensorDataset(split.images, split.digits), batch_size, shuffle)


def train(module: LightningModule, steps: int = 300) -> float:
    """Trains for so many steps and returns the accuracy on the test images."""
    data = load_sample(torch.device("cpu"))
    trainer = Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, batches(data.train, shuffle=True))
    (result,) = trainer.test(module, batches(data.test, batch_size=len(data.test)), verbose=False)
    return result["accuracy"]


if __name__ == "__main__":
    for module in (Classifier(), ManualClassifier()):
        print(f"{type(module).__name__}: test accuracy {train(module):.1%}")
