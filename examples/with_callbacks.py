"""Train without gradients in a plain loop, with progress, early stopping, checkpoints and TensorBoard.

python examples/with_callbacks.py FOLDER     # started again after an interruption, it goes on
tensorboard --logdir FOLDER
"""

import sys
from pathlib import Path

import torch
from mnist_data import Minibatches, load_sample
from mnist_run import Settings, build_model, error_rate
from torch.nn.functional import cross_entropy

import torch_gfo
from torch_gfo.callbacks import Callbacks, Checkpoint, EarlyStopping, History, Progress, TensorBoard


def train(folder: Path, evaluations: int = 10_000, target: float = 0.9) -> History:
    """Trains until the validation accuracy reaches the target or the evaluations are spent."""
    data = load_sample(torch.device("cpu"))
    batches = Minibatches(data.train, batch_size=256, seed=0)
    model = build_model(Settings())
    optimizer = torch_gfo.EGGROLL(model.parameters(), seed=0)

    history, stop = History(), EarlyStopping(target=target, monitor="accuracy", maximize=True)
    checkpoint = Checkpoint(folder / "run.pt", model=model, batches=batches, history=history, stop=stop)
    if checkpoint.restore(optimizer):
        print(f"Going on after {optimizer.evaluations} evaluations")
    with Callbacks(Progress(total=evaluations), history, TensorBoard(folder), stop, checkpoint) as callbacks:
        while optimizer.evaluations < evaluations:
            images, digits = next(batches)
            loss = optimizer.step(lambda: cross_entropy(model(images), digits))
            with torch.no_grad():
                accuracy = 1 - error_rate(model(data.validation.images), data.validation.digits)
            if callbacks(optimizer, loss, accuracy=accuracy):
                break
    checkpoint.save(optimizer)
    return history


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/callbacks")
    folder.mkdir(parents=True, exist_ok=True)
    last = train(folder).records[-1]
    print(f"validation accuracy {last['accuracy']:.1%} after {last['evaluations']:,} evaluations")
