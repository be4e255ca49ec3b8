"""Loading a checkpoint exactly, through the hooks that ``torch.optim.Optimizer`` offers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from torch_gfo.space import ParameterVector

__all__ = ["loading_exactly"]


@contextmanager
def loading_exactly(optimizer: torch.optim.Optimizer, remembered: Iterable[str]) -> Iterator[None]:
    """Within it, ``Optimizer.load_state_dict`` keeps the dtypes of the checkpoint, and the optimizer ``distributed``.

    The base class casts every floating-point tensor of the state to its parameter's dtype. Here the first hook after it
    puts the checkpoint's own values in place, on the parameters' device.

    Args:
        optimizer: What the checkpoint is loaded into.
        remembered: The entries that its algorithm needs.

    Raises:
        ValueError: If the checkpoint is of another algorithm or another model; nothing is changed then.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    loaded: dict[str, Any] = {}
    distributed = optimizer.param_groups[0]["distributed"]  # this job's own, on as many ranks as it has

    def check(_: torch.optim.Optimizer, checkpoint: dict[str, Any]) -> None:
        if len(_names(checkpoint)) == len(parameters):  # otherwise the base class says so
            _check(type(optimizer).__name__, remembered, parameters, checkpoint)
        loaded.update(checkpoint)

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


def _check(owner: str, remembered: Iterable[str], parameters: list[Tensor], checkpoint: dict[str, Any]) -> None:
    names, states = _names(checkpoint), checkpoint["state"]
    missing = sorted(set(remembered) - set(states.get(names[0], {})))
    if missing:
        raise ValueError(
            f"The checkpoint lacks {', '.join(missing)}, which {owner} remembers: another optimizer has saved it. "
            "Load it into an optimizer of that class."
        )
    searched = [p for name, p in zip(names, parameters, strict=True) if states[name]["searched"]]
    shared, expected = states[names[0]], ParameterVector(searched).dim
    found = shared["dim"] if "dim" in remembered else shared["x"].numel()
    if found != expected:
        raise ValueError(
            f"The checkpoint is of a search over {found:,} numbers; these parameters hold {expected:,}. Build the "
            "model as it was when the checkpoint was saved."
        )
