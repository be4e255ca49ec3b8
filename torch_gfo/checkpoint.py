"""Loading a checkpoint exactly, through the hooks that ``torch.optim.Optimizer`` offers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["loading_exactly"]

# May differ between a checkpoint and the optimizer that takes it up, also where they are no floats.
_FREE = frozenset(
    {"lr", "sigma", "bounds", "weight_decay", "seed", "deterministic", "evaluation", "chunk_size", "distributed"}
)


@contextmanager
def loading_exactly(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within it, ``Optimizer.load_state_dict`` keeps the dtypes of the checkpoint, and the optimizer ``distributed``.

    The base class casts every floating-point tensor of the state to its parameter's dtype. Here the first hook after it
    puts the checkpoint's own values in place, on the parameters' device.

    Args:
        optimizer: What the checkpoint is loaded into.

    Raises:
        ValueError: If the checkpoint is incomplete, of another algorithm, of one with other options, or of another
            model; nothing is changed then.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    loaded: dict[str, Any] = {}
    distributed = optimizer.param_groups[0]["distributed"]  # this job's own, on as many ranks as it has

    def check(_: torch.optim.Optimizer, checkpoint: dict[str, Any]) -> dict[str, Any]:
        _check_form(checkpoint)
        checkpoint = _gathered(checkpoint)
        if len(_names(checkpoint)) == len(parameters):  # otherwise the base class says so
            _check_state(optimizer, parameters, checkpoint)
            _check_options(optimizer, checkpoint)
        loaded.update(checkpoint)
        return checkpoint

    def restore(_: torch.optim.Optimizer) -> None:
        for name, parameter in zip(_names(loaded), parameters, strict=True):
            own = loaded["state"][name]
            tensors = {key: value.to(parameter.device) for key, value in own.items() if isinstance(value, Tensor)}
            optimizer.state[parameter] = {**own, **tensors, "step": int(own["step"])}
        for group in optimizer.param_groups:
            group["distributed"] = distributed

    handles = [
        optimizer.register_load_state_dict_pre_hook(check),  # last: sees what other hooks have made of the dict
        optimizer.register_load_state_dict_post_hook(restore, prepend=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _names(checkpoint: dict[str, Any]) -> list[Any]:
    return [name for group in checkpoint["param_groups"] for name in group["params"]]


def _check_form(checkpoint: dict[str, Any]) -> None:
    """Refuses what is no checkpoint of an optimizer."""
    missing = sorted({"state", "param_groups"} - set(checkpoint))
    if missing:
        raise ValueError(
            f"The checkpoint lacks {' and '.join(missing)}; it holds {', '.join(map(repr, checkpoint)) or 'nothing'}. "
            "Load what optimizer.state_dict() returned."
        )


def _gathered(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Puts what is remembered of a parameter under one name.

    ``torch.distributed.checkpoint`` makes text of the names: it restores tensors where they are, under the parameter's
    index, and adds the numbers under the index's text.
    """
    by_text = {str(name): name for name in _names(checkpoint)}
    states: dict[Any, dict[str, Any]] = {}
    for key, state in checkpoint["state"].items():
        name = by_text.get(str(key), key)
        states[name] = {**states.get(name, {}), **state}  # the texts come last
    return {**checkpoint, "state": states}


def _check_state(optimizer: torch.optim.Optimizer, parameters: list[Tensor], checkpoint: dict[str, Any]) -> None:
    """Refuses the state of another optimizer, or of other parameters."""
    owner, states = type(optimizer).__name__, [checkpoint["state"].get(name, {}) for name in _names(checkpoint)]
    for i, (parameter, state) in enumerate(zip(parameters, states, strict=True)):
        remembered = set(optimizer.state[parameter])
        missing = sorted(remembered - set(state))
        if missing:
            raise ValueError(
                f"The checkpoint lacks {', '.join(missing)} of parameter {i}, which {owner} remembers: another "
                "optimizer has saved it, or a part is lost. Load it into an optimizer of that class."
            )
        if state["numel"] != optimizer.state[parameter]["numel"]:
            raise ValueError(
                f"Parameter {i} of the checkpoint holds {state['numel']:,} numbers, here "
                f"{optimizer.state[parameter]['numel']:,}. Build the model as it was when the checkpoint was saved."
            )
        surplus = sorted(set(state) - remembered)
        if surplus and optimizer.state[parameter]["searched"]:
            raise ValueError(
                f"The checkpoint holds {', '.join(surplus)}, which {owner} does not remember: another optimizer has "
                "saved it. Load it into an optimizer of that class."
            )


def _check_options(optimizer: torch.optim.Optimizer, checkpoint: dict[str, Any]) -> None:
    """Refuses another search of the same class: what the state holds would not fit, or mean something else.

    Numbers that may change in mid-run are the checkpoint's, as for the optimizers of torch.
    """
    saved, own = checkpoint["param_groups"][0], optimizer.param_groups[0]
    differences = [
        f"{name}={saved[name]!r}, here {own[name]!r}"
        for name in optimizer.defaults
        if name in saved and name in own and name not in _FREE and _differ(saved[name], own[name])
    ]
    if differences:
        raise ValueError(
            f"The checkpoint was saved with {'; '.join(differences)}. Give {type(optimizer).__name__} the options that "
            "it had then, or begin a new search: parameters alone can be loaded into the model."
        )


def _differ(saved: object, own: object) -> bool:
    return saved != own and not isinstance(saved, float) and not isinstance(own, float)
