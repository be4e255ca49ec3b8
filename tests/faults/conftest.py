"""Gives the tests ``case``, ``entry`` and ``batching``, as those of the contract."""

from tests.contract.conftest import pytest_generate_tests as pytest_generate_tests
