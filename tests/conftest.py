"""Settings of the whole suite."""

from collections.abc import Iterator

import hypothesis
import pytest
import torch

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other
hypothesis.settings.register_profile("reproducible", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def _fixed_global_seed() -> Iterator[None]:
    """Makes tests independent of their order."""
    torch.manual_seed(0)
    yield
    torch.set_grad_enabled(True)
