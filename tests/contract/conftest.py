"""Gives a contract test its ``case`` (an optimizer and one of its inputs) or its ``entry`` (an optimizer).

``batching`` is the entry of an optimizer that can evaluate all candidates at once.
"""

import pytest

from tests.registry import CASES, ENTRIES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    batching = [entry for entry in ENTRIES if entry.batches]
    for name, values in (("case", CASES), ("entry", ENTRIES), ("batching", batching)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=str)
