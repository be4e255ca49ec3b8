"""Every optimizer of torch_gfo and torch.optim by its class name, with options given as text."""

import ast
import difflib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import torch_gfo

__all__ = ["OPTIMIZERS", "OptimizerChoice", "UserError", "as_call", "parse_option"]

# Arguments without which an optimizer is not at its place in this example; --option overrides them.
DEFAULTS: dict[str, dict[str, Any]] = {
    "NelderMead": {"subspace": 10, "subspace_refresh": 1},
    "SGD": {"lr": 0.1},
}


class UserError(Exception):
    """What the user asked for cannot be done; the message is one line that says why."""


def _optimizers_of(module: Any, names: Iterable[str]) -> dict[str, type[torch.optim.Optimizer]]:
    values = {name: getattr(module, name) for name in names}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
        and not inspect.isabstract(value)
    }


OPTIMIZERS = _optimizers_of(torch.optim, vars(torch.optim)) | _optimizers_of(torch_gfo, torch_gfo.__all__)


def parse_option(text: str) -> tuple[str, Any]:
    """Reads ``key=value``: Python's numbers, strings, tuples, True, False and None, any other value as a string.

    >>> parse_option("lr=0.5"), parse_option("topology=ring"), parse_option("bounds=(-1, 1)")
    (('lr', 0.5), ('topology', 'ring'), ('bounds', (-1, 1)))
    """
    key, equals, value = text.partition("=")
    if not (equals and key.isidentifier()):
        raise UserError(f"--option {text}: expected KEY=VALUE")
    value = {"true": "True", "false": "False", "none": "None"}.get(value, value)
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


def as_call(name: str, arguments: dict[str, Any]) -> str:
    """Writes a name and its arguments as a call; the name alone where there are none.

    >>> as_call("PSO", {"topology": "ring"}), as_call("GA", {})
    ('PSO(topology=ring)', 'GA')
    """
    text = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return f"{name}({text})" if text else name


@dataclass
class OptimizerChoice:
    """An optimizer's name and the arguments that the user gave."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the name.

        Raises:
            UserError: There is no optimizer of that name.
        """
        if self.name in OPTIMIZERS:
            return
        lower = {name.lower(): name for name in OPTIMIZERS}
        near = difflib.get_close_matches(self.name.lower(), lower, n=1)
        hint = f"did you mean {lower[near[0]]}?" if near else f"choose from {', '.join(sorted(OPTIMIZERS))}"
        raise UserError(f"unknown optimizer {self.name!r}: {hint}")

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that the user gave, and this example's own."""
        return {**DEFAULTS.get(self.name, {}), **self.options}

    @property
    def label(self) -> str:
        """The name with the arguments, as in ``PSO(topology=ring)``."""
        return as_call(self.name, self.arguments)

    @property
    def is_gradient_free(self) -> bool:
        """Whether the optimizer is one of torch_gfo's."""
        return self.name in torch_gfo.__all__

    def build(self, model: nn.Module, seed: int) -> torch.optim.Optimizer:
        """Returns the optimizer of the model's parameters.

        Raises:
            UserError: The optimizer does not take one of the arguments, or not with that value.
        """
        cls = OPTIMIZERS[self.name]
        options = self.arguments
        if self.is_gradient_free:
            distributed = "candidates" if torch.distributed.is_initialized() else None
            options = {"seed": seed, "distributed": distributed, **options}
        else:
            known = list(inspect.signature(cls).parameters)[1:]
            for key in options:
                if key not in known:
                    raise UserError(f"{self.name} has no option {key!r}; it has {', '.join(known)}")
        try:
            return cls(model.parameters(), **options)
        except (TypeError, ValueError, RuntimeError, MemoryError) as error:
            raise UserError(f"{self.label}: {' '.join(str(error).split())}") from error
