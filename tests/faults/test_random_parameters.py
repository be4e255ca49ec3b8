"""Any parameters, any groups, any loss."""

from __future__ import annotations

import io
import warnings
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.faults.trees import GROUPS, LOSSES, Counted, Leaf, make_groups
from tests.helpers import assert_identical, parameters_of, twin
from tests.registry import Entry

Groups = list[tuple[list[Leaf], dict[str, Any]]]


@hypothesis.settings(max_examples=15)
@hypothesis.given(groups=GROUPS, kind=st.sampled_from(sorted(LOSSES)))
def test_any_parameters(entry: Entry, groups: Groups, kind: str) -> None:
    """C32: whatever the parameters and the loss, a search keeps what it promises."""
    made = make_groups(groups)
    parameters = [p for group in made for p in group["params"]]
    rates = [group.get("lr", 1.0) for group in made for _ in group["params"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of losses that are never finite, or nothing that can move
        optimizer = entry.make(made, **entry.small)
        before = [(p.detach().clone(), p.dtype, p.shape, p.stride(), p.data_ptr()) for p in parameters]
        closure = Counted(parameters, kind, [])
        for step in range(1, 4):
            calls = len(closure.values)
            result = optimizer.step(closure)
            can_move = any(p.requires_grad and p.numel() for p in parameters)
            _assert_kept(optimizer, step if can_move else 0)
            if can_move:
                assert optimizer.evaluations == len(closure.values)
                assert optimizer.best_loss == closure.best or any("weight_decay" in options for _, options in groups)
            assert len(closure.values) > calls
            assert isinstance(result, Tensor)
        for parameter, rate, (value, *layout) in zip(parameters, rates, before, strict=True):
            assert [parameter.dtype, parameter.shape, parameter.stride(), parameter.data_ptr()] == layout
            assert torch.isfinite(parameter).all()
            if rate == 0 or not parameter.requires_grad or kind == "always_nan":
                assert_identical(parameter.detach(), value)
        _assert_resumes(entry, parameters, optimizer, groups, kind)


def _assert_kept(optimizer: Any, step: int) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            assert {type(value) for value in state.values()} <= {int, float, Tensor}
            assert state["step"] == step
            if parameter.numel() and group["bounds"] and not parameter.is_complex():
                assert (parameter <= 20).all()


def _assert_resumes(entry: Entry, parameters: list[nn.Parameter], optimizer: Any, groups: Groups, kind: str) -> None:
    """A copy and a saved checkpoint go on as the original does."""
    copied, copy = twin(parameters, optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded = make_groups(groups)
    loaded_parameters = [p for group in loaded for p in group["params"]]
    for own, parameter in zip(loaded_parameters, parameters, strict=True):
        own.data.copy_(parameter.data)
    other = entry.make(loaded, **entry.small, **({"seed": 99}))
    other.load_state_dict(torch.load(file, weights_only=True))
    for search, moved in ((optimizer, parameters), (copy, copied), (other, loaded_parameters)):
        search.step(Counted(moved, kind, []))
    for search in (copy, other):
        assert_identical(search.state_dict(), optimizer.state_dict())
        assert_identical([p.detach() for p in parameters_of(search)], [p.detach() for p in parameters])
