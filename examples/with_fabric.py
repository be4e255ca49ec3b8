"""Train without gradients in a loop that Fabric sets up.

python examples/with_fabric.py
"""

import torch
import torchvision_cpu  # noqa: F401  Lightning imports torchvision, if there is one
from lightning import Fabric
from mnist_data import Minibatches, load_sample
from mnist_run import Settings, build_model, error_rate
from torch.nn.functional import cross_entropy

import torch_gfo


def train(steps: int = 300) -> float:
    """Trains for so many steps and returns the accuracy on the test images."""
    fabric = Fabric(accelerator="cpu", devices=1)
    model = build_model(Settings())
    model, optimizer = fabric.setup(model, torch_gfo.EGGROLL(model.parameters(), seed=0))
    data = load_sample(fabric.device)
    batches = Minibatches(data.train, batch_size=256, seed=0)
    for step in range(steps):
        images, digits = next(batches)

        def closure():
            loss = cross_entropy(model(images), digits)
            fabric.backward(loss)  # harmless: skipped
            return loss

        loss = optimizer.step(closure)
        if step % 100 == 0:
            fabric.print(f"step {step}: loss {loss:.4f}")
    with torch.no_grad():
        return 1 - error_rate(model(data.test.images), data.test.digits).item()


if __name__ == "__main__":
    print(f"test accuracy {train():.1%}")
