"""What a training loop calls once a step: progress, a record, early stopping, checkpoints, TensorBoard.

A callback is called after a step with the optimizer, the loss that the step returned and any metrics; it returns
whether the training should end::

    with Callbacks(Progress(), EarlyStopping(target=0.1), Checkpoint("run.pt", model=model)) as callbacks:
        for inputs, targets in loader:
            loss = optimizer.step(lambda: loss_fn(model(inputs), targets))
            if callbacks(optimizer, loss):
                break

They take every optimizer of ``torch.optim``. A function with these arguments is a callback, too.
"""

from torch_gfo.callbacks.base import Callback, Callbacks, count_evaluations
from torch_gfo.callbacks.checkpoint import Checkpoint
from torch_gfo.callbacks.early_stopping import EarlyStopping
from torch_gfo.callbacks.history import History
from torch_gfo.callbacks.progress import Progress
from torch_gfo.callbacks.tensorboard import TensorBoard

__all__ = [
    "Callback",
    "Callbacks",
    "Checkpoint",
    "EarlyStopping",
    "History",
    "Progress",
    "TensorBoard",
    "count_evaluations",
]
