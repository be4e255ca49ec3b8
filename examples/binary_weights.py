"""Train a network whose weights count by their signs alone, so that a weight takes one bit.

python examples/binary_weights.py
"""

import time

import torch
from mnist_data import Minibatches, load_sample
from mnist_run import error_rate
from torch import nn
from torch.nn.functional import cross_entropy, linear

import torch_gfo


class BinaryLinear(nn.Linear):
    """A linear layer with weights -1 and 1, over the root of their number; a sign's gradient is 0 everywhere."""

    def forward(self, inputs):
        """Multiplies by the signs."""
        signs = torch.where(self.weight >= 0, 1.0, -1.0)
        return linear(inputs, signs * self.in_features**-0.5, self.bias)


def main(evaluations: int = 10_000) -> float:
    """Trains the network and returns its accuracy on the test images."""
    start = time.perf_counter()
    data = load_sample(torch.device("cpu"))
    batches = Minibatches(data.train, batch_size=256, seed=0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), BinaryLinear(784, 64), nn.ReLU(), BinaryLinear(64, 10))
    optimizer = torch_gfo.EGGROLL(model.parameters(), seed=0)
    while optimizer.evaluations < evaluations:
        images, digits = next(batches)
        optimizer.step(lambda: cross_entropy(model(images), digits))
    with torch.no_grad():
        accuracy = 1 - error_rate(model(data.test.images), data.test.digits).item()
    print(f"test accuracy {accuracy:.1%} after {optimizer.evaluations:,} evaluations", end="")
    print(f" in {time.perf_counter() - start:.1f} s")
    return accuracy


if __name__ == "__main__":
    print("Expected, in twenty seconds: 73%. Where you can make up a gradient for what has none (a surrogate,")
    print("straight-through), Adam trains better with it, in fewer evaluations; without, the model stays as it is.\n")
    main()
