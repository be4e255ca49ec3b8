"""Guard rails: what cannot work is refused before anything is allocated or moved; what may be a mistake is said."""

from __future__ import annotations

import math
import numbers
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from torch_gfo.options import invalid
from torch_gfo.space import ParameterVector, as_real

__all__ = [
    "check_closure",
    "check_params",
    "check_search",
    "warn_of_losses",
    "warn_of_newcomers",
    "warn_of_nothing",
]


def check_search(
    owner: str,
    searched: Sequence[tuple[Tensor, dict[str, Any]]],
    vector: ParameterVector,
    k: int | None,
    n_stored: Callable[[int], int],
) -> None:
    """Refuses a search that cannot begin.

    Args:
        owner: The name of the optimizer.
        searched: The parameters that it moves, with their groups.
        vector: The same parameters.
        k: The number of directions of a subspace, or None.
        n_stored: How many numbers the algorithm holds for so many coordinates.

    Raises:
        RuntimeError: If it does not fit into memory.
        ValueError: If the model lies outside its bounds, or the subspace has too many directions.
    """
    if k is not None and k > vector.dim > 0:
        raise invalid("subspace", k, f"at most the number of parameters, {vector.dim}")
    _check_memory(owner, n_stored(vector.dim) if k is None else n_stored(k) + k * vector.dim, vector)
    _check_bounds(searched)


def _check_memory(owner: str, n_stored: int, vector: ParameterVector) -> None:
    """Refuses a search that needs more than half of the machine's memory for ``n_stored`` numbers.

    Raises:
        RuntimeError: With the figure and the ways out.
    """
    needed = n_stored * torch.finfo(vector.dtype).bits / 8
    available = _memory(vector.device)
    if needed > 0.5 * available:
        raise RuntimeError(
            f"{owner} would hold {needed / 2**30:,.1f} GiB for {vector.dim:,} parameters; there are "
            f"{available / 2**30:,.1f} GiB on {vector.device}, of which half is left to the model. Search fewer "
            "directions with subspace=100, lower popsize where there is one, or take an optimizer that stores less, "
            "such as RandomSearch."
        )


def _memory(device: torch.device) -> float:
    """The bytes of memory of the machine or accelerator; infinite where they cannot be told."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # this system does not tell
        return math.inf


def _check_bounds(parameters: Iterable[tuple[Tensor, dict[str, Any]]]) -> None:
    """Refuses a model that starts outside the bounds of its groups.

    Raises:
        ValueError: With the number of values outside.
    """
    for parameter, group in parameters:
        if group["bounds"] is None:
            continue
        low, high = group["bounds"]
        values = as_real(parameter)
        outside = int(((values < low) | (values > high)).sum())
        if outside:
            raise ValueError(
                f"{outside} of {values.numel()} initial values of a parameter of shape {tuple(parameter.shape)} lie "
                f"outside bounds=({low}, {high}). The search starts from the model: clamp the parameter first, with "
                "torch.no_grad(): parameter.clamp_(low, high)."
            )


def warn_of_losses(step: int) -> None:
    """Says, at the line that called ``step()``, that no candidate has a finite loss."""
    warnings.warn(
        f"All candidates of step {step} have losses that are NaN or infinite: the parameters stay as they are. "
        "If this goes on, sigma or lr may be too large, or the model itself at such a point.",
        stacklevel=7,
    )


def check_params(params: ParamsT) -> ParamsT:
    """Refuses what is often given in place of parameters, and torch says little about.

    Raises:
        TypeError: If there is a module, or a number.
    """
    if isinstance(params, nn.Module):
        raise TypeError(f"params is the module {type(params).__name__}, expected its tensors. Give model.parameters().")
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        return params
    params = list(params)  # type: ignore[assignment]
    for given in params:
        if isinstance(given, numbers.Number):
            raise TypeError(
                f"params holds the number {given!r}, expected tensors, which are moved in their place. Let the closure "
                "compute with x = torch.nn.Parameter(torch.tensor([...])), and give [x]."
            )
    return params


def check_closure(owner: str, closure: Callable[[], Any] | None) -> Callable[[], Any]:
    """Refuses a step without a closure.

    Raises:
        RuntimeError: If there is none.
        TypeError: If it is something else.
    """
    if closure is None:
        raise RuntimeError(
            f"{owner}.step() needs a closure that evaluates the model and returns the loss, got None. A search without "
            "gradients evaluates the loss several times a step. Call optimizer.step(closure); where an enabled "
            "GradScaler cannot pass one, use autocast without a scaler."
        )
    if not callable(closure):
        raise TypeError(
            f"{owner}.step() needs a closure that evaluates the model and returns the loss, got "
            f"{closure!r}. Give it the function itself, optimizer.step(closure), not what it returns."
        )
    return closure


def warn_of_newcomers() -> None:
    """Says, at the line that called ``step()``, that the search begins anew because there is more to move."""
    warnings.warn(
        "A parameter requires grad that did not when the search began: the search starts anew from the model's point, "
        "with that parameter.",
        stacklevel=7,
    )


def warn_of_nothing() -> None:
    """Says, at the line that called ``step()``, that no parameter requires grad."""
    warnings.warn(
        "There is nothing to optimize: no parameter requires grad. step() evaluates the closure once and moves "
        "nothing; call requires_grad_() on what it should move.",
        stacklevel=6,
    )
