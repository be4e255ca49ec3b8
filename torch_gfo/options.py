"""The options that every optimizer takes, and checks of arguments.

Every message states the fact, the value, the reason and the way out.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any, TypedDict

from torch import Tensor

from torch_gfo.distributed import MODES, common_seed
from torch_gfo.evaluation import BACKENDS

__all__ = [
    "CommonOptions",
    "check_choice",
    "check_flag",
    "check_group",
    "check_integer",
    "check_number",
    "check_perturbation",
    "complete",
    "invalid",
]


class CommonOptions(TypedDict, total=False):
    """The keyword arguments that every optimizer takes.

    Attributes:
        bounds: ``(low, high)`` of every parameter value, in parameter units; either may be infinite. In a subspace
            they are kept by clamping. Default: None.
        weight_decay: Adds ``weight_decay / 2 * |parameters|^2`` to the loss of each candidate. Default: 0.
        maximize: Whether to maximise what the closure returns. Default: False.
        deterministic: Promises that the closure is a pure function of the parameters (no minibatches, no dropout).
            Nothing is then evaluated twice. Default: False.
        seed: Of the private random numbers; None draws one from the operating system. Default: None.
        subspace: Searches so many random directions around the model instead of all parameters. Default: None.
        subspace_refresh: Draws new directions, and starts the search anew from the model, every so many steps.
            Default: None (never).
        evaluation: ``"sequential"``, one candidate after the other; ``"vectorized"``, all in one batched call of the
            closure; ``"compiled"``, that call compiled by ``torch.compile``; or ``"auto"``, the faster of those that
            work. Default: ``"auto"``.
        chunk_size: Most candidates in one batched call. Default: None (bounded by memory, see ``docs/evaluation.md``).
        distributed: How the ranks of ``torch.distributed`` share the evaluations: ``"candidates"``, each evaluates some
            of the candidates; ``"data"``, each evaluates all of them on its own part of the data. Default: None, not.
    """

    bounds: tuple[float, float] | None
    weight_decay: float
    maximize: bool
    deterministic: bool
    seed: int | None
    subspace: int | None
    subspace_refresh: int | None
    evaluation: str
    chunk_size: int | None
    distributed: str | None


_DEFAULTS: CommonOptions = {
    "bounds": None,
    "weight_decay": 0.0,
    "maximize": False,
    "deterministic": False,
    "seed": None,
    "subspace": None,
    "subspace_refresh": None,
    "evaluation": "auto",
    "chunk_size": None,
    "distributed": None,
}

PERTURBATIONS = ("dense", "low_rank", "seeded")

_PER_GROUP = frozenset({"lr", "sigma", "bounds", "weight_decay"})


def complete(owner: str, own: dict[str, Any], common: CommonOptions) -> dict[str, Any]:
    """Joins an algorithm's own hyper-parameters with the common options and their defaults.

    Raises:
        TypeError: For an option that does not exist.
        ValueError: For a value outside its range.
    """
    for name in common:
        if name not in _DEFAULTS:
            known = sorted([*own, *_DEFAULTS])
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise TypeError(
                f"{owner}() got an unexpected keyword argument {name!r}. {hint}It takes {', '.join(known)}."
            )
    options = {**own, **_DEFAULTS, **common}
    check_flag("maximize", options["maximize"])
    check_flag("deterministic", options["deterministic"])
    check_choice("evaluation", options["evaluation"], BACKENDS)
    for name in ("subspace", "subspace_refresh", "chunk_size"):
        check_integer(name, options[name], 1, optional=True)
    if options["subspace_refresh"] is not None and options["subspace"] is None:
        raise ValueError(
            f"subspace_refresh={options['subspace_refresh']} renews the directions of a subspace, but subspace is "
            "None. Give subspace=k as well, the number of directions."
        )
    check_choice("distributed", options["distributed"], MODES)
    if options["seed"] is not None and not isinstance(options["seed"], int):
        raise invalid("seed", options["seed"], "None or an integer")
    check_group({}, options)
    options["seed"] = common_seed(options["seed"], options["distributed"])
    return options


def check_group(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Checks the options of one parameter group.

    Raises:
        ValueError: If a value is outside its range, or differs from the constructor's where it must not.
    """
    for name, value in group.items():
        if name in defaults and name not in _PER_GROUP and value != defaults[name]:
            raise ValueError(
                f"{name}={value!r} in a parameter group: {name} holds for the whole search, here {defaults[name]!r}. "
                f"Give it to the constructor; a group takes {', '.join(sorted(_PER_GROUP))}."
            )
    options = {**defaults, **group}
    lr, sigma, bounds, weight_decay = (options[name] for name in ("lr", "sigma", "bounds", "weight_decay"))
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"Tensor lr must be 1-element, got shape {tuple(lr.shape)}.")
    check_number("lr", lr, "[0, inf)", " (it multiplies every displacement; 0 freezes a group)")
    check_number("sigma", sigma, "(0, inf)", " for a radius from the scale of the initial values", optional=True)
    if bounds is not None and not _is_interval(bounds):
        raise invalid("bounds", bounds, "None or a pair (low, high) with low < high")
    check_number("weight_decay", weight_decay, "[0, inf)")


def check_perturbation(perturbation: str, rank: object = 1) -> None:
    """Checks options that several algorithms have.

    Raises:
        ValueError: If one is outside its range.
    """
    check_choice("perturbation", perturbation, PERTURBATIONS)
    check_integer("rank", rank, 1)


def check_integer(name: str, value: object, least: int, *, optional: bool = False) -> None:
    """Checks an argument that counts something.

    Raises:
        ValueError: If it is not an integer of at least ``least``, nor None where that is possible.
    """
    if not (optional and value is None) and (not isinstance(value, int) or value < least):
        raise invalid(name, value, f"{'None or ' * optional}an integer of at least {least}")


def check_number(name: str, value: Any, interval: str, note: str = "", *, optional: bool = False) -> None:
    """Checks an argument that measures something.

    Args:
        name: The argument's.
        value: What was given.
        interval: Where it may lie, as in ``"[0, inf)"``, a bracket for an end that belongs to it.
        note: What else to say of it.
        optional: Whether it may be None.

    Raises:
        ValueError: If it is not a number there, nor None where that is possible.
    """
    low, high = interval[1:-1].split(", ")
    least, most = interval[0] == "[", interval[-1] == "]"
    number = _as_float(value)
    above = number > float(low) or (least and number == float(low))
    below = number < float(high) or (most and number == float(high))
    if not (optional and value is None) and not (above and below):
        kind = "a finite number" if (high, most) == ("inf", False) else "a number"
        upper = "" if high == "inf" else f" and {'<=' if most else '<'} {high}"
        expected = f"{kind} {'>=' if least else '>'} {low}{upper}{', or None' * optional}{note}"
        raise invalid(name, value, expected)


def _as_float(value: Any) -> float:
    """A number, or NaN for what is none: a word, a list, a tensor of several."""
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def _is_interval(bounds: Any) -> bool:
    try:
        low, high = bounds
    except (TypeError, ValueError):
        return False
    return _as_float(low) < _as_float(high)


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Checks an argument that names one of several things.

    Raises:
        ValueError: If it names none of them.
    """
    if value not in list(choices):  # a value that has no hash is none of a dictionary's keys
        raise invalid(name, value, f"one of {', '.join(map(repr, choices))}")


def check_flag(name: str, value: object) -> None:
    """Checks an argument that is a choice between two.

    Raises:
        ValueError: If it is neither True nor False.
    """
    if not isinstance(value, bool):
        raise invalid(name, value, "True or False")


def invalid(name: str, value: object, expected: str) -> ValueError:
    """An error about one argument, for example ``invalid("popsize", 1, "an integer of at least 2")``."""
    return ValueError(f"{name} must be {expected}, got {value!r}.")
