"""The optimizers that ``training.py`` compares: this library's, other packages', and Adam.

Each is known by a word: ``OpenAIES``, ``PSO(topology=ring)``, ``evotorch:PGPE(popsize=400)``, ``nevergrad:NGOpt``.
Without options it has one configuration for all tasks.
"""

import ast
import re
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from training_peers import PEERS
from training_steps import Closures, Gradients, Trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import optimizer_table
from optimizer_table import OptimizerChoice, UserError, as_call, parse_option

__all__ = ["DEFAULT_WORDS", "Entry"]

_OURS = [
    *("OpenAIES", "PGPE", "SNES", "EGGROLL", "ARS", "SPSA", "MeZO", "GA", "DeepGA", "DE", "PSO", "RandomSearch"),
    *("SimulatedAnnealing", "NelderMead", "SepCMAES", "LMMAES", "CMAES", "XNES"),
]
_PEERS = [
    *("polystep", "evotorch:PGPE", "evotorch:SNES", "evotorch:GA", "swarmtorch:PSO", "torch_pso", "nevergrad:NGOpt"),
    "nevergrad:DiagonalCMA",
]
DEFAULT_WORDS = [*_OURS, *_PEERS, "Adam"]

# A matrix of all parameters of a network does not fit into memory; the others keep their defaults. nevergrad's
# DiagonalCMA fails on a network of 101,770 parameters where it is asked for fewer than its generation of 38.
_DEFAULTS = optimizer_table.DEFAULTS | {
    "CMAES": {"subspace": 50},
    "XNES": {"subspace": 50},
    "nevergrad:DiagonalCMA": {"num_workers": 40},
}


@dataclass(frozen=True)
class Entry:
    """An optimizer as the command line names it.

    Attributes:
        name: The word without its options.
        options: The options.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, word: str) -> "Entry":
        """Reads ``NAME`` or ``NAME(key=value, ...)``.

        >>> Entry.parse("PSO(topology=ring, bounds=(-1, 1))")
        Entry(name='PSO', options={'topology': 'ring', 'bounds': (-1, 1)})
        """
        match = re.fullmatch(r"([\w:]+)(\(.*\))?", word)
        try:
            call = ast.parse(f"f{match[2]}" if match and match[2] else "f()", mode="eval").body
        except SyntaxError:
            match = None
        if match is None or not isinstance(call, ast.Call) or call.args:
            raise UserError(f"--optimizer {word}: expected NAME or NAME(KEY=VALUE, ...)")
        options = [parse_option(f"{keyword.arg}={ast.unparse(keyword.value)}") for keyword in call.keywords]
        entry = cls(match[1], dict(options))
        if entry.package not in PEERS:
            OptimizerChoice(entry.name)  # which knows what there is
        return entry

    @property
    def package(self) -> str:
        """The package whose it is, or its own name."""
        return self.name.partition(":")[0]

    @property
    def kind(self) -> int:
        """0 for this library's, 1 for other packages', 2 for those that need a gradient."""
        return 1 if self.package in PEERS else 0 if OptimizerChoice(self.name).is_gradient_free else 2

    @property
    def arguments(self) -> dict[str, Any]:
        """The options, and those that the benchmark adds."""
        return {**_DEFAULTS.get(self.name, {}), **self.options}

    @property
    def label(self) -> str:
        """The name with its arguments, as in ``PSO(topology=ring)``."""
        return as_call(self.name, self.arguments)

    def made_with(self) -> dict[str, str]:
        """Returns the version of the package, if it is another's."""
        return {self.package: version(self.package)} if self.package in PEERS else {}

    def missing(self) -> str:
        """Returns the package that is not installed and should be, or an empty string."""
        try:
            self.made_with()
        except PackageNotFoundError:
            return self.package
        return ""

    def build(self, model: nn.Module, seed: int, budget: int) -> Trainer:
        """Returns the optimizer of the model.

        Args:
            model: The model at its initial weights.
            seed: Of the optimizer.
            budget: The evaluations that it will have, of which the schedules of some depend.

        Raises:
            UserError: There is no such optimizer, or it does not take one of the options.
        """
        torch.manual_seed(seed)  # for those that have no generator of their own
        if self.package in PEERS:
            try:
                return PEERS[self.package](self.name.partition(":")[2], model, seed, budget, **self.arguments)
            except (TypeError, AttributeError, ValueError) as error:
                raise UserError(f"{self.label}: {' '.join(str(error).split())}") from error
        choice = OptimizerChoice(self.name, self.arguments)
        optimizer = choice.build(model, seed)
        return Closures(optimizer) if choice.is_gradient_free else Gradients(optimizer)
