"""Where a step begins: the parameters and the schedule as they stand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from torch_gfo.inputs import Inputs
from torch_gfo.perturbation import Candidates, is_low_rank
from torch_gfo.space import Frame, ParameterVector, automatic_scales, searchable

__all__ = ["Start", "agree", "initial_states", "look", "reaches"]


Value = TypeVar("Value", Tensor, float)


@dataclass(frozen=True)
class Start:
    """Where a step begins.

    Attributes:
        vector: The parameters that the search moves.
        groups: The parameter group of each of them.
        x: ``(dim,)``, their values.
        scales: Of the displacements of candidates, for each of them: ``lr * sigma``, or ``sigma`` where ``lr`` is the
            length of the model's step; 0 while it is frozen or its ``lr`` is 0.
        rates: Of the displacements of the model: the scales, or ``lr``.
        stale: Whether values, scales or weight decay are not those that the last step left.
        known: Whether the loss at ``x`` is remembered and need not be evaluated.
        inputs: What takes note of the layers' inputs while the model is evaluated; None where nobody wants to know.
    """

    vector: ParameterVector
    groups: list[dict[str, Any]]
    x: Tensor
    scales: list[float]
    rates: list[float]
    stale: bool
    known: bool
    inputs: Inputs | None

    def values(self) -> Sequence[Tensor]:
        """The real values of each parameter, as exactly as the search knows them."""
        return self.x.split_with_sizes(self.vector.sizes)

    def losses(self, values: Tensor, x: Candidates, state: dict[str, Any]) -> Tensor:
        """Turns the closure's values ``(P,)`` at ``x`` into losses to minimise, and counts them in ``state``."""
        losses = self.counted(values, state)
        return losses + self._penalty(x) if self._decays else losses

    def counted(self, values: Tensor, state: dict[str, Any]) -> Tensor:
        """The same without the penalty of ``weight_decay``."""
        losses = self.signed(values).nan_to_num(math.inf, math.inf, math.inf)
        state["evaluations"] += len(losses)
        state["best_loss"] = min(state["best_loss"], float(losses.min()))
        return losses

    def write(self, update: dict[str, Any]) -> None:
        """Moves the model to where a step leads."""
        self.vector.write(update["x"])

    def remember(self, states: Mapping[Tensor, dict[str, Any]]) -> None:
        """Keeps the scales and weight decays in the parameters' states, where the next step compares them."""
        for parameter, group, scale in zip(self.vector.parameters, self.groups, self.scales, strict=True):
            states[parameter].update(scale=scale, weight_decay=float(group["weight_decay"]))

    def value(self, state: Mapping[str, Any], update: Mapping[str, Any]) -> float:
        """What a step returns that has not evaluated the model: the closure's value, from the loss remembered.

        Args:
            state: Of the search, before the step.
            update: Of the search, after it.
        """
        loss = float(state["loss"])
        return self.signed(loss - float(self._penalty(self.x)) if self._decays else loss)

    def signed(self, value: Value) -> Value:
        """The closure's value -> a loss to minimise, and back."""
        return -value if self.groups[0]["maximize"] else value

    @property
    def _decays(self) -> bool:
        return any(group["weight_decay"] for group in self.groups)

    def _penalty(self, x: Candidates) -> Tensor:
        if not isinstance(x, Tensor):
            return torch.stack([self._penalty(row) for row in x])  # never all rows at once
        decays = [float(group["weight_decay"]) for group in self.groups]
        return 0.5 * (x.square() * self.vector.expand(decays)).sum(-1)

    def frame(self, point: Tensor, basis: Tensor | None) -> Frame:
        """Search coordinates around ``x``."""
        lower = upper = None
        if any(group["bounds"] is not None for group in self.groups):
            bounds = [group["bounds"] or (-math.inf, math.inf) for group in self.groups]
            lower = self.vector.expand([low for low, _ in bounds])
            upper = self.vector.expand([high for _, high in bounds])
        scale = self.vector.expand(self.scales)
        rate = scale if self.rates is self.scales else self.vector.expand(self.rates)
        directions = self.inputs.directions(self.x) if self.inputs else None
        return Frame(self.x, point, scale, rate, lower, upper, basis, self.vector.shapes, directions)


def look(
    searched: list[tuple[Tensor, dict[str, Any]]],
    states: Mapping[Tensor, dict[str, Any]],
    shared: dict[str, Any],
    *,
    lr_is_step: bool,
) -> Start:
    """Looks at the parameters and the schedule.

    Args:
        searched: The parameters that the search moves, with their groups.
        states: The state of each of them.
        shared: The state of the search.
        lr_is_step: Whether ``lr`` is the length of the model's step, instead of a factor of every displacement.
    """
    vector, groups = ParameterVector([p for p, _ in searched]), [group for _, group in searched]
    scales, rates = reaches(searched, states, lr_is_step=lr_is_step)
    x, moved = vector.merge(shared["x"])
    moved = moved or any(states[p]["weight_decay"] != g["weight_decay"] for p, g in searched)  # so has the loss
    stale = moved or any(states[p]["scale"] != scale for (p, _), scale in zip(searched, scales, strict=True))
    known = bool(groups) and groups[0]["deterministic"] and not moved and math.isfinite(shared["loss"])
    return Start(vector, groups, x, scales, rates, stale, known, _inputs(vector, groups))


def _inputs(vector: ParameterVector, groups: list[dict[str, Any]]) -> Inputs | None:
    """For factors that are drawn in their directions; of ranks that share the data, each sees others."""
    span = groups[0].get("input_span") if groups else None
    if span is None or groups[0]["distributed"] == "data" or not is_low_rank(groups):
        return None
    return Inputs(vector.parameters, span)


def reaches(
    searched: list[tuple[Tensor, dict[str, Any]]], states: Mapping[Tensor, dict[str, Any]], *, lr_is_step: bool
) -> tuple[list[float], list[float]]:
    """The ``scales`` and ``rates`` of a ``Start``, from the schedule as it stands."""
    rates = [float(group["lr"]) * p.requires_grad for p, group in searched]
    sigmas = [float(group["sigma"] or states[p]["sigma"]) for p, group in searched]
    factors = [float(rate > 0) for rate in rates] if lr_is_step else rates
    scales = [factor * sigma for factor, sigma in zip(factors, sigmas, strict=True)]
    return scales, rates if lr_is_step else scales


def initial_states(parameters: Iterable[Tensor], step: int, fraction: float) -> dict[Tensor, dict[str, Any]]:
    """What is remembered of each parameter when a search begins.

    Args:
        parameters: All of the optimizer's; the search moves those that are searchable now.
        step: The number of steps made before.
        fraction: Of each tensor's scale, for its radius where no ``sigma`` is given.
    """
    states = {
        parameter: {
            "step": step,
            "numel": parameter.numel(),
            "searched": 0,
            "sigma": 0.0,
            "scale": 0.0,
            "weight_decay": 0.0,
        }
        for parameter in parameters
    }
    searched = [parameter for parameter in states if searchable(parameter)]
    for parameter, radius in zip(searched, automatic_scales(searched, fraction), strict=True):
        states[parameter].update(searched=1, sigma=radius)
    return states


def agree(remembered: float, loss: float, dtype: torch.dtype) -> bool:
    """Whether two losses of one point agree up to rounding, or nothing is remembered."""
    if math.isnan(remembered) or remembered == loss:
        return True
    rounding: float = torch.finfo(dtype).eps ** (2 / 3)
    return abs(remembered - loss) <= rounding * max(abs(remembered), abs(loss))
