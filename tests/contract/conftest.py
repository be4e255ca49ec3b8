"""Gives a contract test its ``case`` (an optimizer and one of its inputs) or its ``entry`` (an optimizer)."""

import pytest

from tests.registry import CASES, ENTRIES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, values in (("case", CASES), ("entry", ENTRIES)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=str)
