"""Which optimizer to begin with: the table of ``docs/how_to_choose.md`` as a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

import torch_gfo
from torch_gfo.guards import check_params
from torch_gfo.options import check_integer
from torch_gfo.space import searchable, with_groups

__all__ = ["RULES", "Rule", "Situation", "Suggestion", "suggest"]


@dataclass(frozen=True)
class Situation:
    """What the choice depends on.

    Attributes:
        dim: The number of parameters that require grad.
        share: Of them, those in tensors of two dimensions and more.
        evaluations: Of the closure, that may be spent.
        differentiable: Whether backpropagation gives a useful gradient.
        noisy: Whether the closure gives one model other losses in other steps: minibatches, rollouts.
        low_memory: Whether there is no memory for a few copies of the parameters.
    """

    dim: int
    share: float
    evaluations: int
    differentiable: bool
    noisy: bool
    low_memory: bool


@dataclass(frozen=True)
class Rule:
    """A row of the table.

    Attributes:
        when: The condition, in words.
        applies: The condition.
        name: The optimizer's class.
        reason: What speaks for it.
        options: Its arguments, where they are not the defaults.
    """

    when: str
    applies: Callable[[Situation], bool]
    name: str
    reason: str
    options: Mapping[str, Any] = field(default_factory=dict)


RULES = (  # the first that applies
    Rule(
        "a gradient, and the memory for it",
        lambda s: s.differentiable and not s.low_memory,
        "Adam",
        "a gradient tells as much as many evaluations for each parameter",
    ),
    Rule(
        "no memory for copies of the parameters",
        lambda s: s.low_memory,
        "MeZO",
        "it holds neither copies nor noise",
    ),
    Rule(
        "the same loss at every step, up to 10 parameters, fewer than 200 evaluations for each",
        lambda s: not s.noisy and s.dim <= 10 and s.evaluations < 200 * s.dim,
        "NelderMead",
        "on smooth losses of few parameters it needs the fewest evaluations",
        {"deterministic": True},
    ),
    Rule(
        "the same loss at every step, up to 200 parameters",
        lambda s: not s.noisy and s.dim <= 200,
        "CMAES",
        "it learns the scales of the loss, and begins again where it is stuck",
        {"deterministic": True},
    ),
    Rule(
        "at least half of the parameters in matrices",
        lambda s: s.share >= 0.5,
        "EGGROLL",
        "it explores the directions in which the layers' inputs vary",
    ),
    Rule(
        "anything else",
        lambda s: True,
        "OpenAIES",
        "it remembers no losses, so minibatches do it no harm, and takes one evaluation for each candidate",
    ),
)


@dataclass(frozen=True)
class Suggestion:
    """An optimizer to begin with.

    Attributes:
        name: Its class in ``torch_gfo``, or in ``torch.optim``.
        options: Its arguments.
        reason: What speaks for it.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.ones(3))
        >>> suggestion = torch_gfo.suggest([x], evaluations=2_000, noisy=False)
        >>> optimizer = suggestion([x], seed=0)
        >>> type(optimizer).__name__
        'CMAES'
    """

    name: str
    options: Mapping[str, Any]
    reason: str

    def __call__(self, params: Any, **options: Any) -> torch.optim.Optimizer:
        """Makes the optimizer.

        Args:
            params: As for every optimizer; an iterator that ``suggest`` has used up is to be made anew.
            **options: Arguments besides, or instead of, those suggested.
        """
        module = torch_gfo if self.name in torch_gfo.__all__ else torch.optim
        optimizer: torch.optim.Optimizer = getattr(module, self.name)(params, **{**self.options, **options})
        return optimizer

    def __str__(self) -> str:
        arguments = ", ".join(["params", *(f"{name}={value!r}" for name, value in self.options.items())])
        return f"{self.name}({arguments}): {self.reason}."


def suggest(
    params: Iterable[Any],
    *,
    evaluations: int,
    differentiable: bool = False,
    noisy: bool = True,
    low_memory: bool = False,
) -> Suggestion:
    """Suggests an optimizer to begin with, by the table of ``docs/how_to_choose.md``.

    Args:
        params: Parameters, parameter groups or named parameters, as for the optimizer.
        evaluations: How many of the closure may be spent.
        differentiable: Whether backpropagation through the closure gives a useful gradient. Default: False.
        noisy: Whether the closure gives one model other losses in other steps, as minibatches do. Default: True.
        low_memory: Whether there is no memory for a few copies of the parameters. Default: False.

    Raises:
        TypeError: If there is a module in place of its parameters, or a number.
        ValueError: If nothing can be trained, or ``evaluations`` is not a positive integer.

    Example:
        >>> import torch, torch_gfo
        >>> model = torch.nn.Linear(784, 10)
        >>> print(torch_gfo.suggest(model.parameters(), evaluations=50_000))
        EGGROLL(params): it explores the directions in which the layers' inputs vary.
    """
    check_integer("evaluations", evaluations, 1)
    parameters = [p for p, _ in with_groups(check_params(params)) if searchable(p)]
    dim = sum(p.numel() for p in parameters)
    if dim == 0:
        raise ValueError(
            "params hold no parameter that requires grad, so there is nothing to choose an optimizer for. Unfreeze "
            "some; an iterator that was used before is empty: call model.parameters() again."
        )
    share = sum(p.numel() for p in parameters if p.ndim >= 2) / dim
    situation = Situation(dim, share, evaluations, differentiable, noisy, low_memory)
    rule = next(rule for rule in RULES if rule.applies(situation))
    return Suggestion(rule.name, rule.options, rule.reason)
