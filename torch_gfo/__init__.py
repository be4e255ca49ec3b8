"""Gradient-free optimizers for PyTorch, interchangeable with those of ``torch.optim``."""

from torch_gfo.algorithms.ars import ARS
from torch_gfo.algorithms.genetic import GA
from torch_gfo.algorithms.nelder_mead import NelderMead
from torch_gfo.algorithms.openai_es import OpenAIES
from torch_gfo.algorithms.particle_swarm import PSO
from torch_gfo.algorithms.pgpe import PGPE
from torch_gfo.algorithms.random_search import RandomSearch

__version__ = "0.1.0"

__all__ = ["ARS", "GA", "PGPE", "PSO", "NelderMead", "OpenAIES", "RandomSearch"]
