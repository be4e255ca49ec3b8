"""A training script before and after: the loop stays as it is, the line that makes the optimizer changes.

python examples/swap.py
"""

import time
from functools import partial

import torch
from mnist_data import load_sample
from mnist_run import Settings, build_model, error_rate
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import torch_gfo
from torch_gfo.callbacks import count_evaluations

OPTIMIZERS = {
    "before: Adam": partial(torch.optim.Adam, lr=1e-3),
    "after: EGGROLL": partial(torch_gfo.EGGROLL, seed=0),
    "after: PSO": partial(torch_gfo.PSO, seed=0),
}


def train(make_optimizer, epochs):
    """The script: nothing in it knows which optimizer it has."""
    data, model = load_sample(torch.device("cpu")), build_model(Settings(seed=0))
    loader = DataLoader(TensorDataset(data.train.images, data.train.digits), batch_size=256, shuffle=True)
    optimizer = make_optimizer(model.parameters())
    for _ in range(epochs):
        for images, digits in loader:

            def closure():
                optimizer.zero_grad()
                loss = cross_entropy(model(images), digits)
                loss.backward()  # what Adam needs; the others skip it
                return loss

            optimizer.step(closure)
    with torch.no_grad():
        accuracy = 1 - error_rate(model(data.test.images), data.test.digits).item()
    return accuracy, count_evaluations(optimizer, epochs * len(loader))


def main(epochs: int = 8) -> dict[str, float]:
    """Trains with each optimizer and returns the accuracy on the test images."""
    print(f"{'optimizer':16}{'test accuracy':>14}{'evaluations':>13}{'seconds':>9}")
    accuracies = {}
    for name, make_optimizer in OPTIMIZERS.items():
        start = time.perf_counter()
        accuracies[name], evaluations = train(make_optimizer, epochs)
        print(f"{name:16}{accuracies[name]:14.1%}{evaluations:13,}{time.perf_counter() - start:9.1f}")
    return accuracies


if __name__ == "__main__":
    print("Expected, in half a minute: 89%, 85% and 67%. The loss has a gradient here, and one gradient says more than")
    print("dozens of evaluations: stay with Adam. The swap is for losses without one.\n")
    main()
