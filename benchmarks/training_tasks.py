"""What ``training.py`` trains: networks and their data, most with a forward pass that has no useful gradient.

Every hard operation goes through ``straight_through``. In evaluation mode, which is the models' own, it is the hard
operation alone. After ``model.train()`` the values are the same to the last bit, and the gradient is that of a smooth
operation: Adam gets it, no other optimizer needs it. No model branches on its data, so that ``torch.vmap`` evaluates a
population of each.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from mnist_data import Data, Split, hold_out, load_full, load_sample, one_against_others
from mnist_run import Settings, build_model, error_rate, f1, one_minus_f1
from optimizer_table import UserError
from training_text import NEEDS, Sentiment, head, hidden_states, pooled_states

__all__ = ["TASKS", "Folders", "Task", "accuracy", "f1", "load_mnist", "one_minus_f1", "straight_through"]

_RARE = 8  # the digit that task f1 tells from the others


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Returns the values of ``hard`` with the gradient of ``soft``."""
    return hard + (soft - soft.detach())  # the difference is exactly 0


def one_of(scores: Tensor, surrogate: bool) -> Tensor:
    """Returns 1 at the largest of each row's scores and 0 elsewhere; softmax is the surrogate."""
    places = torch.arange(scores.shape[-1], device=scores.device)
    chosen = (places == scores.argmax(-1, keepdim=True)).to(scores.dtype)
    return straight_through(chosen, scores.softmax(-1)) if surrogate else chosen


class Rounded(nn.Linear):
    """A linear layer whose weights are rounded to 8 bits, with one scale for the matrix."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies by the rounded weights."""
        scale = self.weight.detach().abs().amax().clamp_min(1e-12) / 127
        weight = (self.weight / scale).round() * scale
        if self.training:
            weight = straight_through(weight, self.weight)
        return functional.linear(x, weight, self.bias)


class Binary(nn.Linear):
    """A linear layer whose weights count only by their signs; they are divided by the root of the fan-in."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies by the signs."""
        size = self.in_features**-0.5
        weight = torch.where(self.weight >= 0, size, -size)
        if self.training:
            weight = straight_through(weight, self.weight)
        return functional.linear(x, weight, self.bias)


class Staircase(nn.Module):
    """A sigmoid of which five levels are left."""

    def forward(self, x: Tensor) -> Tensor:
        """Rounds the sigmoid down to 0, 1/5, ..., 4/5."""
        smooth = x.sigmoid()
        steps = (5 * smooth).floor().clamp_max(4) / 5
        return straight_through(steps, smooth) if self.training else steps


class Spiking(nn.Module):
    """Two layers of leaky integrate-and-fire neurons 784-128-10; the logits are how often each output has fired.

    A neuron fires when its potential reaches 1, and starts from 0 again. The surrogate of a spike is the fast sigmoid.
    """

    def __init__(self, steps: int = 15, decay: float = 0.95) -> None:
        super().__init__()
        self.hidden = nn.Linear(784, 128)
        self.output = nn.Linear(128, 10)
        self.steps = steps
        self.decay = decay

    def forward(self, x: Tensor) -> Tensor:
        """Shows the image at every step, and counts the spikes."""
        current = self.hidden(x.flatten(1))  # the same at every step
        spikes = self._fire([current] * self.steps)
        return torch.stack(self._fire([self.output(spike) for spike in spikes])).sum(0)

    def _fire(self, currents: Sequence[Tensor]) -> list[Tensor]:
        potential = torch.zeros_like(currents[0])
        spikes = []
        for current in currents:
            potential = self.decay * potential + current
            above = potential - 1
            hard = (above >= 0).to(above.dtype)
            spikes.append(straight_through(hard, above / (1 + above.abs())) if self.training else hard)
            potential = potential * (1 - hard)
        return spikes


class ArgmaxAttention(nn.Module):
    """A hidden layer whose units are gated by the one of 8 slots whose key answers it best."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(784, 128)
        self.keys = nn.Linear(128, 8, bias=False)
        self.values = nn.Linear(8, 128, bias=False)
        self.output = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Attends to one slot."""
        hidden = self.hidden(x.flatten(1)).relu()
        gates = self.values(one_of(self.keys(hidden), self.training)).sigmoid()
        result: Tensor = self.output(hidden * gates)
        return result


class Experts(nn.Module):
    """Four networks 784-32-10, of which a gate takes one for each image; they share the last layer's bias."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(784, 4)
        self.hidden = nn.Linear(784, 128)  # the experts' hidden units side by side
        self.output = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Silences the hidden units of the experts that are not chosen."""
        x = x.flatten(1)
        chosen = one_of(self.gate(x), self.training)
        hidden = self.hidden(x).relu().unflatten(-1, (4, 32)) * chosen.unsqueeze(-1)
        result: Tensor = self.output(hidden.flatten(-2))
        return result


class Recurrent(nn.Module):
    """An LSTM of 32 units that reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, 32, batch_first=True)
        self.output = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies by the last output."""
        result: Tensor = self.output(self.lstm(x.squeeze(1))[0][:, -1])
        return result


def layers(sizes: Sequence[int], linear: type[nn.Linear] = nn.Linear, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Returns a network of linear layers of these sizes, with activations between them."""
    modules: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        modules += [linear(fan_in, fan_out), act()]
    return nn.Sequential(*modules[:-1])


def example(seed: int, model: str) -> nn.Module:
    """Returns one of the networks of ``examples/mnist.py``."""
    return build_model(Settings(model=model, hidden=128, seed=seed))


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the share of rows whose largest output is at the target."""
    return 1 - error_rate(outputs, targets)


@cache
def load_mnist(root: Path | None) -> Data:
    """Returns MNIST from ``root``, or the embedded sample; once in a process.

    Raises:
        UserError: It is not there.
    """
    device = torch.device("cpu")
    try:
        return load_full(root, download=False, device=device) if root else load_sample(device)
    except (OSError, RuntimeError) as error:
        raise UserError(f"no MNIST in {root}: expected {root}/MNIST/raw") from error


@dataclass(frozen=True)
class Folders:
    """Where the data are that no package installs.

    Attributes:
        mnist: The folder of ``MNIST/raw``; None for the embedded sample.
        text: The folder of vaderSentiment's source distribution.
    """

    mnist: Path | None = None
    text: Path | None = None


def all_digits(folders: Folders) -> Data:
    """Returns MNIST."""
    return load_mnist(folders.mnist)


def rare_digit(folders: Folders) -> Data:
    """Makes one digit of MNIST class 1, and the nine others class 0."""
    return one_against_others(all_digits(folders), _RARE)


def small_digits(_: Folders) -> Data:
    """Returns scikit-learn's 1,797 digits of 8 x 8 pixels, the last fifth of them in random order to test."""
    from sklearn.datasets import load_digits

    images, digits = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    both = Split((images[order] / 8 - 1).float(), digits[order].long())
    n_test = len(both) // 5
    return hold_out(both[:-n_test], both[-n_test:])


@dataclass(frozen=True)
class Task:
    """A network and what it is to learn.

    Attributes:
        name: By which the command line knows it.
        title: What it is, in a line.
        make: Returns the model with initial weights that the seed decides.
        data: Returns the data.
        objective: Of outputs and targets: what is trained, and what tells on the validation data which model to keep.
        metric: Of outputs and targets: what is reported of the test data.
        batch_size: Rows of one evaluation.
        needs: Modules beside torch, and what is written after ``pip install`` to have them.
        reads_text: Whether the data are in the folder of texts.
    """

    name: str
    title: str
    make: Callable[[int], nn.Module]
    data: Callable[[Folders], Data] = all_digits
    objective: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    metric: Callable[[Tensor, Tensor], Tensor] = accuracy
    batch_size: int = 256
    needs: dict[str, str] = field(default_factory=dict)
    reads_text: bool = False

    def model(self, seed: int) -> nn.Module:
        """Returns the model in evaluation mode, in which nothing is differentiable that is not so by itself."""
        return self.make(seed).eval()

    def missing(self) -> str:
        """Returns what is to be installed, or an empty string."""
        return next((package for module, package in self.needs.items() if not find_spec(module)), "")


def seeded(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """Makes the initial weights of what ``make`` returns a function of a seed."""

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return make()

    return build


_MLP, _CNN = partial(example, model="mlp"), partial(example, model="cnn")
_WIDE = (784, 128, 10)
_DEEP = (784, 128, 128, 10)
_ALL = [
    Task("mlp", "MLP 784-128-10, cross-entropy", _MLP),
    Task("mlp_accuracy", "the same, trained on the error rate", _MLP, objective=error_rate),
    Task("cnn", "two convolutions, 11,274 parameters", _CNN),
    Task("spiking", "784-128-10 leaky integrate-and-fire neurons, 15 steps", seeded(Spiking)),
    Task("int8", "MLP 784-128-128-10, weights rounded to 8 bits", seeded(lambda: layers(_DEEP, Rounded))),
    Task("staircase", "MLP 784-128-128-10, activations of 5 levels", seeded(lambda: layers(_DEEP, act=Staircase))),
    Task("argmax_attention", "784-128-10 gated by one of 8 slots", seeded(ArgmaxAttention)),
    Task("experts", "one of four networks 784-32-10 for each image", seeded(Experts)),
    Task("binary", "MLP 784-128-10, signs for weights", seeded(lambda: layers(_WIDE, Binary))),
    Task(
        "f1",
        f"MLP 784-32-2, {_RARE} or not, trained on F1",
        seeded(lambda: layers((784, 32, 2))),
        rare_digit,
        one_minus_f1,
        f1,
    ),
    Task(
        "digits",
        "scikit-learn's digits, MLP 64-16-10",
        seeded(lambda: layers((64, 16, 10))),
        small_digits,
        needs={"sklearn": "scikit-learn"},
    ),
    Task("lstm", "LSTM of 32 units over the rows", seeded(Recurrent)),
    Task(
        "minilm",
        "MiniLM's last block and a head, sentences",
        seeded(Sentiment),
        lambda folders: hidden_states(folders.text),
        batch_size=32,
        needs=NEEDS,
        reads_text=True,
    ),
    Task(
        "minilm_head",
        "the head alone",
        seeded(head),
        lambda folders: pooled_states(folders.text),
        batch_size=32,
        needs=NEEDS,
        reads_text=True,
    ),
]
TASKS = {task.name: task for task in _ALL}
