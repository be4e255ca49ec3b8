"""Gradient-free optimizers for PyTorch, interchangeable with those of ``torch.optim``."""

from torch_gfo import callbacks
from torch_gfo.algorithms.ars import ARS
from torch_gfo.algorithms.cma_es import CMAES
from torch_gfo.algorithms.deep_ga import DeepGA
from torch_gfo.algorithms.differential_evolution import DE
from torch_gfo.algorithms.eggroll import EGGROLL
from torch_gfo.algorithms.genetic import GA
from torch_gfo.algorithms.lm_ma_es import LMMAES
from torch_gfo.algorithms.mezo import MeZO
from torch_gfo.algorithms.nelder_mead import NelderMead
from torch_gfo.algorithms.openai_es import OpenAIES
from torch_gfo.algorithms.particle_swarm import PSO
from torch_gfo.algorithms.pgpe import PGPE
from torch_gfo.algorithms.random_search import RandomSearch
from torch_gfo.algorithms.sep_cma_es import SepCMAES
from torch_gfo.algorithms.simulated_annealing import SimulatedAnnealing
from torch_gfo.algorithms.snes import SNES
from torch_gfo.algorithms.spsa import SPSA
from torch_gfo.algorithms.xnes import XNES
from torch_gfo.bridges.nevergrad import Nevergrad
from torch_gfo.bridges.pycma import PyCMA
from torch_gfo.gradient import GradientEstimator, estimate_gradient
from torch_gfo.suggestion import suggest

__version__ = "0.1.0"

__all__ = [
    "ARS",
    "CMAES",
    "DE",
    "EGGROLL",
    "GA",
    "LMMAES",
    "PGPE",
    "PSO",
    "SNES",
    "SPSA",
    "XNES",
    "DeepGA",
    "GradientEstimator",
    "MeZO",
    "NelderMead",
    "Nevergrad",
    "OpenAIES",
    "PyCMA",
    "RandomSearch",
    "SepCMAES",
    "SimulatedAnnealing",
    "callbacks",
    "estimate_gradient",
    "suggest",
]
