"""Gradient-free optimizers for PyTorch, interchangeable with those of ``torch.optim``."""

__version__ = "0.1.0"
