"""Train without gradients in a loop for accelerate.

python examples/with_accelerate.py
"""

import torch
from accelerate import Accelerator
from mnist_data import load_sample
from mnist_run import Settings, build_model, error_rate
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import torch_gfo


def train(epochs: int = 8) -> float:
    """Trains for so many epochs of 36 steps and returns the accuracy on the test images."""
    accelerator = Accelerator(cpu=True)
    model, data = build_model(Settings()), load_sample(accelerator.device)
    optimizer = torch_gfo.EGGROLL(model.parameters(), seed=0)
    loader = DataLoader(TensorDataset(data.train.images, data.train.digits), batch_size=256, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for epoch in range(epochs):
        for images, digits in loader:

            def closure():
                loss = cross_entropy(model(images), digits)
                accelerator.backward(loss)  # harmless: skipped
                return loss

            loss = optimizer.optimizer.step(closure)  # optimizer.step(closure) does the same, but returns None
        accelerator.print(f"epoch {epoch}: loss {loss:.4f}")
    with torch.no_grad():
        return 1 - error_rate(model(data.test.images), data.test.digits).item()


if __name__ == "__main__":
    print(f"test accuracy {train():.1%}")
