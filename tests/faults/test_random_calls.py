"""Any calls, in any order: a state machine of what users and frameworks do with an optimizer."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor, nn

from tests.faults.trees import LEAVES, LOSSES, OPTIONS, Counted, Leaf, make_groups
from tests.helpers import assert_identical, parameters_of, snapshot, twin
from tests.registry import Entry
from torch_gfo.optimizer import GradientFreeOptimizer

KINDS = st.sampled_from(sorted(LOSSES))
SETTINGS = hypothesis.settings(
    max_examples=12, stateful_step_count=14, deadline=None, phases=[hypothesis.Phase.generate]
)
MOST_PARAMETERS = 6


class Calls(RuleBasedStateMachine):
    """An optimizer of a few parameters, and what is known of it.

    Attributes:
        entry: The optimizer.
        model: The values that the parameters must have.
        n_steps: The number of steps made.
        n_evaluations: The number of evaluations made.
        saved: A checkpoint and the values that belong to it.
    """

    entry: Entry

    def __init__(self) -> None:
        super().__init__()
        self.optimizer: GradientFreeOptimizer
        self.parameters: list[nn.Parameter] = []
        self.model: list[Tensor] = []
        self.n_steps = self.n_evaluations = 0
        self.saved: tuple[dict[str, Any], list[Tensor], int, int] | None = None
        warnings.simplefilter("ignore")  # of losses that are not finite, or what begins anew; pytest puts filters back

    @initialize(leaves=st.lists(LEAVES, min_size=1, max_size=3), options=OPTIONS)
    def begin(self, leaves: list[Leaf], options: dict[str, Any]) -> None:
        groups = make_groups([(leaves, options)])
        self.parameters = groups[0]["params"]
        self.optimizer = self.entry.make(groups, **self.entry.small)
        self._accept()

    @rule(kind=KINDS)
    def step(self, kind: str) -> None:
        closure = Counted(self.parameters, kind, [])
        before = copy.deepcopy(self.model)
        self.optimizer.step(closure)
        if self._can_move():
            self.n_steps += 1
            self.n_evaluations += len(closure.values)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if group["lr"] == 0 or not parameter.requires_grad or kind == "always_nan":
                    i = next(i for i, own in enumerate(self.parameters) if own is parameter)
                    assert_identical(parameter.detach(), before[i])
        self._accept()

    @rule(kind=KINDS, at=st.integers(1, 4), error=st.sampled_from((ValueError, KeyboardInterrupt)))
    def fail(self, kind: str, at: int, error: type[BaseException]) -> None:
        counted = Counted(self.parameters, kind, [])

        def closure() -> Tensor:
            if len(counted.values) == at - 1:
                raise error
            return counted()

        if any(p.requires_grad and p.numel() and not self.optimizer.state[p]["searched"] for p in self.parameters):
            return  # the search begins anew, whether or not the step succeeds
        raised = False
        while not raised:  # each step calls it at least once
            before = snapshot(self.optimizer)
            try:
                self.optimizer.step(closure)
            except error:
                raised = True
            else:
                self.n_steps += self._can_move()
                self.n_evaluations = self.optimizer.evaluations
                self._accept()
        assert_identical(snapshot(self.optimizer), before)

    @rule(kind=KINDS)
    def ask_and_tell(self, kind: str) -> None:
        if not self._can_move() or any(p.is_complex() for p in self.parameters):
            return
        step = self.optimizer.state[self.parameters[0]]["step"]
        while self.optimizer.state[self.parameters[0]]["step"] == step:
            rows = self.optimizer.ask()
            assert_identical([p.detach() for p in self.parameters], self.model)
            self.n_evaluations += len(rows)
            self.optimizer.tell([float(LOSSES[kind](row)) for row in rows])
        self.n_steps += 1
        self._accept()

    @precondition(lambda self: len(self.parameters) < MOST_PARAMETERS)
    @rule(leaf=LEAVES, options=OPTIONS, seed=st.integers(100, 999))
    def add_group(self, leaf: Leaf, options: dict[str, Any], seed: int) -> None:
        (group,) = make_groups([([leaf], options)], seed)
        self.parameters = [*self.parameters, *group["params"]]
        self.optimizer.add_param_group(group)
        self._accept()

    @precondition(lambda self: len(self.parameters) < MOST_PARAMETERS)
    @rule(leaf=LEAVES)
    def add_bad_group(self, leaf: Leaf) -> None:
        before = snapshot(self.optimizer)
        with pytest.raises(ValueError, match="lr must be"):
            self.optimizer.add_param_group({"params": [leaf.make(0)], "lr": -1.0})
        assert_identical(snapshot(self.optimizer), before)

    @rule()
    def save(self) -> None:
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        checkpoint = torch.load(file, weights_only=True)
        assert_identical(checkpoint, self.optimizer.state_dict())
        self.saved = checkpoint, copy.deepcopy(self.model), self.n_steps, self.n_evaluations

    @precondition(lambda self: self.saved is not None)
    @rule()
    def load(self) -> None:
        assert self.saved is not None
        checkpoint, values, n_steps, n_evaluations = self.saved
        if len(values) != len(self.parameters):  # groups have come since
            before = snapshot(self.optimizer)
            with pytest.raises(ValueError, match="different number of parameter groups"):
                self.optimizer.load_state_dict(checkpoint)
            assert_identical(snapshot(self.optimizer), before)
            return
        given = copy.deepcopy(checkpoint)
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.data.copy_(value)
        self.optimizer.load_state_dict(checkpoint)
        assert_identical(self.optimizer.state_dict(), given)
        assert_identical(checkpoint, given)
        self.n_steps, self.n_evaluations = n_steps, n_evaluations
        self._accept()

    @rule(kind=KINDS, pickled=st.booleans())
    def copy_and_step(self, kind: str, pickled: bool) -> None:
        """A copy steps as the original does, and neither moves the other."""
        pair = self.parameters, self.optimizer
        before = snapshot(self.optimizer)
        parameters, optimizer = pickle.loads(pickle.dumps(pair)) if pickled else twin(*pair)
        optimizer.step(Counted(parameters, kind, []))
        assert_identical(snapshot(self.optimizer), before)
        after = snapshot(optimizer)
        self.step(kind)
        assert_identical(snapshot(optimizer), after)
        assert_identical(snapshot(self.optimizer), after)

    @rule(to_none=st.booleans())
    def zero_grad(self, to_none: bool) -> None:
        self.optimizer.zero_grad(set_to_none=to_none)

    @rule(which=st.integers(0, MOST_PARAMETERS), trainable=st.booleans())
    def freeze(self, which: int, trainable: bool) -> None:
        self.parameters[which % len(self.parameters)].requires_grad_(trainable)

    @rule(which=st.integers(0, MOST_PARAMETERS))
    def move_from_outside(self, which: int) -> None:
        with torch.no_grad():
            self.parameters[which % len(self.parameters)].add_(0.5)
        self._accept()

    @rule(lr=st.sampled_from((0.0, 0.1, 0.5)), which=st.integers(0, 3))
    def schedule(self, lr: float, which: int) -> None:
        groups = self.optimizer.param_groups
        groups[which % len(groups)]["lr"] = lr

    @invariant()
    def model_is_what_was_accepted(self) -> None:
        assert_identical([p.detach() for p in self.parameters], self.model)
        assert all(torch.isfinite(value).all() for value in self.model)

    @invariant()
    def groups_hold_the_parameters_themselves(self) -> None:
        if self.parameters:
            held = parameters_of(self.optimizer)
            assert [id(p) for p in held] == [id(p) for p in self.parameters]
            assert list(map(id, self.optimizer.state)) == [id(p) for p in self.parameters]

    @invariant()
    def state_is_plain_and_counts_agree(self) -> None:
        for parameter in self.parameters:
            state = self.optimizer.state[parameter]
            assert {type(value) for value in state.values()} <= {Tensor, int, float}
            assert state["step"] == self.n_steps
        if self.parameters:
            assert self.optimizer.evaluations == self.n_evaluations

    def _can_move(self) -> bool:
        return any(self.optimizer.state[p]["searched"] for p in self.parameters)

    def _accept(self) -> None:
        self.model = [p.detach().clone() for p in self.parameters]


def test_any_calls(entry: Entry) -> None:
    """C6, C15, C19, C20, C25, C28, C30, C31: whatever is called in whatever order, all invariants hold."""
    machine = type(f"CallsOf{entry}", (Calls,), {"entry": entry})
    with warnings.catch_warnings():
        run_state_machine_as_test(machine, settings=SETTINGS)  # type: ignore[no-untyped-call]
