"""The models, the objectives, and everything about one training that changes."""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import torch
from mnist_data import Data, Minibatches, Split
from mnist_report import Point, Result
from optimizer_table import OptimizerChoice, UserError
from torch import Tensor, nn

from torch_gfo.callbacks import count_evaluations

__all__ = ["OBJECTIVES", "Run", "Settings"]


@dataclass(frozen=True)
class Settings:
    """What a training depends on besides its optimizer and its data.

    Attributes:
        model: ``"mlp"`` (784-hidden-10) or ``"cnn"`` (two convolutions, 11,274 parameters).
        hidden: Hidden units of the MLP.
        objective: A key of ``OBJECTIVES``.
        evaluations: Closure evaluations at most.
        batch_size: Images of one evaluation.
        seed: Of the initial weights, the minibatches and the optimizer.
        check_every: Evaluations between two measurements.
        patience: Measurements without a better validation loss after which training stops; 0 for never.
    """

    model: str = "mlp"
    hidden: int = 32
    objective: str = "cross-entropy"
    evaluations: int = 20_000
    batch_size: int = 256
    seed: int = 0
    check_every: int = 500
    patience: int = 10


def build_model(settings: Settings) -> nn.Module:
    """Returns the model with initial weights that the seed decides."""
    torch.manual_seed(settings.seed)
    if settings.model == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, settings.hidden), nn.ReLU(), nn.Linear(settings.hidden, 10))
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(784, 10),
    )


def error_rate(logits: Tensor, digits: Tensor) -> Tensor:
    """Returns 1 - accuracy, which is piecewise constant: it has no gradient to follow."""
    return (logits.argmax(1) != digits).float().mean()


def f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns F1 of class 1, predicted by the larger of two outputs; 0 where it neither occurs nor is predicted."""
    predicted = (outputs.argmax(-1) == 1).to(outputs.dtype)
    actual = targets.to(outputs.dtype)
    return 2 * (predicted * actual).sum() / (predicted.sum() + actual.sum()).clamp_min(1)


def one_minus_f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns what is trained where F1 is to be high."""
    return 1 - f1(outputs, targets)


OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": nn.functional.cross_entropy,
    "accuracy": error_rate,
}


class Run:
    """One model in training by one optimizer; can be saved after any step, and resumed exactly."""

    def __init__(self, choice: OptimizerChoice, settings: Settings, data: Data) -> None:
        """Builds the model and the optimizer.

        Raises:
            UserError: The optimizer cannot be built with these options, or cannot train this objective.
        """
        if settings.objective == "accuracy" and not choice.is_gradient_free:
            raise UserError(f"{choice.name} needs a gradient and accuracy has none: choose an optimizer of torch_gfo")
        self.label = choice.label
        self.settings = settings
        self.data = data
        self.objective = OBJECTIVES[settings.objective]
        self.model = build_model(settings).to(data.train.images.device)
        self.optimizer = choice.build(self.model, settings.seed)
        self.batches = Minibatches(data.train, settings.batch_size, settings.seed)
        self.steps = 0
        self.seconds = 0.0
        self.costliest_step = 1  # in evaluations
        self.curve: list[Point] = []

    @property
    def evaluations(self) -> int:
        """Closure evaluations so far."""
        return count_evaluations(self.optimizer, self.steps)

    @property
    def is_stalled(self) -> bool:
        """Whether the last measurements, as many as the patience, brought no better validation loss."""
        if self.settings.patience == 0 or not self.curve:
            return False
        losses = [point.validation_loss for point in self.curve]
        return len(losses) - 1 - losses.index(min(losses)) >= self.settings.patience

    @property
    def is_finished(self) -> bool:
        """Whether another step could exceed the allowed evaluations, or is not worth them."""
        return self.evaluations + self.costliest_step > self.settings.evaluations or self.is_stalled

    @property
    def is_due(self) -> bool:
        """Whether it is time to measure."""
        every = self.settings.check_every
        return not self.curve or self.evaluations // every > self.curve[-1].evaluations // every

    def count_step(self, evaluations: int, seconds: float) -> None:
        """Counts a step that took so many evaluations and seconds."""
        self.steps += 1
        self.seconds += seconds
        self.costliest_step = max(self.costliest_step, evaluations)

    def measure(self) -> Point:
        """Measures the model as it stands."""
        validation_loss, _ = self.score(self.data.validation)
        _, test_accuracy = self.score(self.data.test)
        return Point(self.evaluations, self.seconds, validation_loss, test_accuracy)

    @torch.no_grad()
    def score(self, split: Split) -> tuple[float, float]:
        """Returns the objective and the accuracy on all images of a split."""
        logits = torch.cat([self.model(images) for images in split.images.split(1000)])
        return self.objective(logits, split.digits).item(), 1 - error_rate(logits, split.digits).item()

    def result(self) -> Result:
        """Returns what the training has come to."""
        train_loss, _ = self.score(self.data.train)
        return Result(self.label, [*self.curve, self.measure()], train_loss)

    def state_dict(self) -> dict[str, Any]:
        """Returns what ``load_state_dict`` needs to continue from here."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "counters": (self.steps, self.seconds, self.costliest_step),
            "curve": [astuple(point) for point in self.curve],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from where ``state`` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])
        self.steps, self.seconds, self.costliest_step = state["counters"]
        self.curve = [Point(*point) for point in state["curve"]]
