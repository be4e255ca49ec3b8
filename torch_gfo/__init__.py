"""Gradient-free optimizers for PyTorch, interchangeable with those of ``torch.optim``."""

from torch_gfo.algorithms.genetic import GA
from torch_gfo.algorithms.nelder_mead import NelderMead
from torch_gfo.algorithms.particle_swarm import PSO
from torch_gfo.algorithms.random_search import RandomSearch
from torch_gfo.bridges.nevergrad import Nevergrad
from torch_gfo.bridges.pycma import PyCMA

__version__ = "0.1.0"

__all__ = ["GA", "PSO", "NelderMead", "Nevergrad", "PyCMA", "RandomSearch"]
