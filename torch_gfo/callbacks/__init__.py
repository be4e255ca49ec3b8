"""What a training loop calls once a step: progress, a record, early stopping, checkpoints, TensorBoard.

A callback is called after a step with the optimizer, the loss that the step returned and any metrics; it returns
whether the training should end::

    loss = optimizer.step(closure)
    if any([callback(optimizer, loss, accuracy=accuracy) for callback in callbacks]):  # a list: all of them are called
        break

They take every optimizer of ``torch.optim``. A function with these arguments is a callback, too.
"""

from torch_gfo.callbacks.base import Callback, count_evaluations
from torch_gfo.callbacks.checkpoint import Checkpoint
from torch_gfo.callbacks.early_stopping import EarlyStopping
from torch_gfo.callbacks.history import History
from torch_gfo.callbacks.progress import Progress
from torch_gfo.callbacks.tensorboard import TensorBoard

__all__ = ["Callback", "Checkpoint", "EarlyStopping", "History", "Progress", "TensorBoard", "count_evaluations"]
