"""Train a network of spiking neurons: a neuron fires or does not, and no gradient passes through that.

python examples/spiking.py
"""

import time

import torch
from mnist_data import Minibatches, load_sample
from mnist_run import error_rate
from torch import nn
from torch.nn.functional import cross_entropy

import torch_gfo


def fire(currents):
    """Turns the currents into neurons at each time, (time, batch, neurons), into spikes, 0 or 1.

    A neuron's potential leaks and adds up its current; when it has reached 1, the neuron fires and starts from 0 again.
    """
    potential, spikes = torch.zeros_like(currents[0]), []
    for current in currents:
        potential = 0.9 * potential + current
        spike = (potential >= 1).to(current.dtype)  # the hard threshold
        potential = potential * (1 - spike)
        spikes.append(spike)
    return torch.stack(spikes)


class SpikingClassifier(nn.Module):
    """Two layers that see an image for some time; the logits are how often each of the ten outputs has fired."""

    def __init__(self, hidden: int = 64, n_times: int = 10) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(784, hidden), nn.Linear(hidden, 10)
        self.n_times = n_times

    def forward(self, images):
        """Counts the spikes."""
        currents = self.hidden(images.flatten(1))
        spikes = fire(currents.expand(self.n_times, -1, -1))
        return fire(self.output(spikes)).sum(0)


def main(evaluations: int = 10_000) -> float:
    """Trains the network and returns its accuracy on the test images."""
    start = time.perf_counter()
    data = load_sample(torch.device("cpu"))
    batches = Minibatches(data.train, batch_size=256, seed=0)
    torch.manual_seed(0)
    model = SpikingClassifier()
    optimizer = torch_gfo.EGGROLL(model.parameters(), seed=0)
    while optimizer.evaluations < evaluations:
        images, digits = next(batches)
        loss = optimizer.step(lambda: cross_entropy(model(images), digits))
    with torch.no_grad():
        accuracy = 1 - error_rate(model(data.test.images), data.test.digits).item()
    print(f"loss {loss:.3f}, test accuracy {accuracy:.1%} after {optimizer.evaluations:,} evaluations", end="")
    print(f" in {time.perf_counter() - start:.1f} s")
    return accuracy


if __name__ == "__main__":
    print("Expected, in half a minute: 76%. Where you can make up a gradient for what has none (a surrogate,")
    print("straight-through), Adam trains better with it, in fewer evaluations; without, the model stays as it is.\n")
    main()
