from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.references import gradient_steps
from torch_gfo.ranking import centred_ranks, z_scores

LOSSES = st.lists(st.floats(allow_nan=False, width=32) | st.sampled_from([0.0, 1.0, math.inf]), min_size=2, max_size=9)


@pytest.mark.parametrize("shaping", [centred_ranks, z_scores])
@given(losses=LOSSES)
def test_weights(shaping: object, losses: list[float]) -> None:
    """They sum to zero, keep the order, and give equal losses equal weights, whatever the losses."""
    assert callable(shaping)
    values = torch.tensor(losses)
    weights = shaping(values)
    assert weights.dtype == values.dtype
    assert torch.isfinite(weights).all()
    assert abs(float(weights.sum())) < 1e-4
    values = torch.where(torch.isfinite(values), values, math.inf)
    in_order = weights[values.argsort(stable=True)]
    assert (in_order.diff() >= 0).all()
    for value in values.unique():
        assert len(weights[values == value].unique()) == 1


@given(losses=LOSSES)
def test_centred_ranks(losses: list[float]) -> None:
    expected = gradient_steps.centred_ranks([loss if math.isfinite(loss) else math.inf for loss in losses])
    torch.testing.assert_close(centred_ranks(torch.tensor(losses)), torch.tensor(expected))


@given(losses=st.lists(st.integers(-1000, 1000).map(float) | st.just(math.inf), min_size=2, max_size=9))
def test_z_scores(losses: list[float]) -> None:
    expected = gradient_steps.z_scores(losses)
    torch.testing.assert_close(z_scores(torch.tensor(losses)), torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shaping", [centred_ranks, z_scores])
@pytest.mark.parametrize(
    "losses", [[0.1] * 31, [1e30] * 5, [math.inf, math.nan, -math.inf], [2.0], [-3e38, -3e38]], ids=str
)
def test_nothing_to_tell_apart(shaping: object, losses: list[float]) -> None:
    """Exactly zero, also where a mean would be rounded: a step on rounding errors would go anywhere."""
    assert callable(shaping)
    assert torch.equal(shaping(torch.tensor(losses)), torch.zeros(len(losses)))


def test_z_scores_of_huge_losses() -> None:
    expected = torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(z_scores(torch.tensor([-3e38, 3e38])), expected)
    torch.testing.assert_close(z_scores(torch.tensor([1e-38, 3e-38])), expected)


def test_losses_that_are_not_finite_are_the_worst() -> None:
    expected = torch.tensor([0.0, 1.0, 3.0, 6.0, 6.0])
    expected = (expected - expected.mean()) / expected.std(correction=0)
    torch.testing.assert_close(z_scores(torch.tensor([5.0, 6.0, 8.0, math.inf, math.nan])), expected)
    torch.testing.assert_close(z_scores(torch.tensor([-5e30, math.inf])), torch.tensor([-1.0, 1.0]))


def _ranks_by_sorting(losses: Tensor) -> Tensor:
    return losses.argsort().argsort() / (len(losses) - 1) - 0.5


def test_ranks_without_ties_are_those_of_the_paper() -> None:
    losses = torch.randn(101, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(centred_ranks(losses), _ranks_by_sorting(losses))
