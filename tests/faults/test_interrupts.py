"""Ctrl-C anywhere in the library's own code leaves a step undone or done."""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import torch_gfo
from tests.helpers import assert_identical, distance, identical, snapshot, vector
from tests.registry import ENTRIES, Case, Entry
from torch_gfo.interrupts import undivided

PACKAGE = str(Path(torch_gfo.__file__).parent)
STRIDE = 5  # of the positions, each optimizer is interrupted in every fifth; most are the same for all

Position = tuple[str, str, int, str, str]


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts() -> Iterator[None]:
    """A shell lets what it starts in the background ignore Ctrl-C."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


class Interrupts:
    """Sends the process SIGINT at one position: where a function begins, or a builtin has returned.

    These are the places where Python looks for signals, but for the ends of loops.

    Attributes:
        seen: How often each position was passed.
        at: The position, and which of its passages; None for none.
        sent: Whether it was there.
    """

    def __init__(self, at: tuple[Position, int] | None = None) -> None:
        self.seen: Counter[Position] = Counter()
        self.at = at
        self.sent = False

    @contextmanager
    def active(self) -> Iterator[None]:
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        code = frame.f_code
        if event not in ("call", "c_return") or not (code.co_filename.startswith(PACKAGE) or _leaves_mode(code)):
            return
        if code.co_name in ("<lambda>", "<genexpr>"):  # may run in a destructor, where Python drops an interrupt
            return
        position = (code.co_filename, code.co_name, frame.f_lineno, event, getattr(value, "__name__", ""))
        self.seen[position] += 1
        if self.at == (position, self.seen[position]):
            self.sent = True
            signal.raise_signal(signal.SIGINT)


def _leaves_mode(code: CodeType) -> bool:
    """Whether this is where torch takes the library's function mode off its stack."""
    return code is TorchFunctionMode.__exit__.__code__


def _interrupt_everywhere(case: Case, evaluation: str, *, first: int, stride: int) -> int:
    task = case.mlp(normalize=True, dropout=0.25)
    optimizer = case.make(task.model.parameters(), evaluation=evaluation)
    task.train(optimizer, 2)
    before = snapshot(optimizer, task.model)
    with (interrupts := Interrupts()).active():
        expected = optimizer.step(lambda: task.loss())
    after = snapshot(optimizer, task.model)
    ends = Counter[str]()
    for position, n_times in sorted(interrupts.seen.items())[first::stride]:
        for which in sorted({1, n_times}):
            torch.set_rng_state(before["random"])
            optimizer.load_state_dict(before["optimizer"])
            task.model.load_state_dict(before["model"])
            interrupt = Interrupts((position, which))
            try:
                with interrupt.active():
                    optimizer.step(lambda: task.loss())
            except KeyboardInterrupt:
                assert interrupt.sent
            else:
                assert not interrupt.sent  # a bridge has rebuilt its search, and did not come there
                continue
            now = snapshot(optimizer, task.model)
            done = now["optimizer"]["state"][0]["step"] == after["optimizer"]["state"][0]["step"]
            assert_identical(now, after if done else before, f"{position}, time {which}")
            ends["done" if done else "undone"] += 1
            if not done:
                assert_identical(optimizer.step(lambda: task.loss()), expected)
                assert_identical(snapshot(optimizer, task.model), after)
            _forget_modes()
    assert ends["undone"] > 20
    return ends["done"]


def _forget_modes() -> None:
    """Takes off torch's stack the mode that an interrupt in torch's own code has left there, without effect."""
    while torch.overrides._get_current_function_mode_stack():
        torch.overrides._pop_mode()


def test_interrupt_anywhere(entry: Entry) -> None:
    """D7: after Ctrl-C at any place of the library's code, model and state are those from before the step, or after."""
    case = Case(entry, "small", entry.small)
    _interrupt_everywhere(case, "sequential", first=ENTRIES.index(entry) % STRIDE, stride=STRIDE)


@pytest.mark.parametrize("evaluation", ["sequential", "vectorized"])
def test_interrupt_everywhere(evaluation: str) -> None:
    """D7: the same for every place, of one optimizer; some lie behind the step, which then is whole."""
    case = Case(ENTRIES[0], "small", ENTRIES[0].small)
    assert _interrupt_everywhere(case, evaluation, first=0, stride=1) > 0


def test_undivided() -> None:
    """D7: Ctrl-C within a block that must not be divided comes at its end, once, and through the caller's handler."""
    seen = list[str]()
    before = signal.signal(signal.SIGINT, lambda *_: seen.append("handler"))
    try:
        with undivided():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            seen.append("end of the block")
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["end of the block", "handler"]
    with pytest.raises(KeyboardInterrupt), undivided():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_undivided_keeps_errors_and_ignored_signals() -> None:
    """D7: an error passes; where the program ignores Ctrl-C it stays ignored."""
    with pytest.raises(ZeroDivisionError), undivided():
        raise ZeroDivisionError
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with undivided():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_steps_in_another_thread(entry: Entry) -> None:
    """D7: a step works in a thread, where Python allows no handlers of signals."""
    points = []
    for in_thread in (True, False):
        x = vector(4)
        optimizer = entry.make([x])
        if in_thread:
            thread = threading.Thread(target=lambda: [optimizer.step(lambda: distance([x])) for _ in range(2)])
            thread.start()
            thread.join()
        else:
            for _ in range(2):
                optimizer.step(lambda: distance([x]))
        points.append(x.detach())
    assert_identical(*points)
    assert not identical(points[0], vector(4).detach())
