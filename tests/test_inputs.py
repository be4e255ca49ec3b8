"""Perturbations in the directions of the layers' inputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mnist_data import load_sample
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers import seeded
from torch_gfo import EGGROLL
from torch_gfo.closure import Intercept
from torch_gfo.inputs import Inputs, whitened
from torch_gfo.layout import Layout


def inputs(n_rows: int, *variations: float) -> Tensor:
    """Rows whose principal directions, of some variations, are not along the axes."""
    with seeded():
        basis = torch.linalg.qr(torch.randn(len(variations), len(variations), dtype=torch.float64))[0]
        return torch.randn(n_rows, len(variations), dtype=torch.float64) * torch.tensor(variations) @ basis.T


def test_directions_are_the_principal_ones_with_equal_effects() -> None:
    x = inputs(20, 5.0, 2.0, 1.0, 0.5, 0.1)
    d = whitened(x, 3)
    assert d is not None
    assert d.shape == (3, 5)
    moments, v = torch.linalg.eigh(x.T @ x)
    moments, v = moments[-3:], v[:, -3:]
    slow = v / (moments + 1e-3 * moments[-1]).sqrt()
    slow = slow * (x.square().sum() / (x @ slow).square().sum()).sqrt()
    torch.testing.assert_close(d.T @ d, slow @ slow.T)  # up to their signs
    effects = (x @ d.T).square().sum(0)
    assert effects.sum() == pytest.approx(float(x.square().sum()))
    assert effects.max() / effects.min() < 1.1  # the damping makes the difference


def test_a_combination_of_directions_changes_outputs_as_much_as_a_normal_vector() -> None:
    x = inputs(30, 5.0, 2.0, 1.0, 0.5, 0.1)
    d = whitened(x, 2)
    assert d is not None
    with seeded():
        combined = (x @ (torch.randn(20_000, 2, dtype=torch.float64) @ d).T).square().mean()
        normal = (x @ torch.randn(5, 20_000, dtype=torch.float64)).square().mean()
    assert combined == pytest.approx(float(normal), rel=0.05)  # of 20,000 draws: 2 per cent


def test_inputs_that_span_less_or_nothing() -> None:
    x = inputs(4, 3.0, 2.0, 1.0)[:, :1] @ torch.ones(1, 6, dtype=torch.float64)
    d = whitened(x, 3)
    assert d is not None
    torch.testing.assert_close(d.abs(), d.abs().mean().expand(1, 6))
    assert whitened(torch.zeros(4, 3), 2) is None
    assert whitened(torch.tensor([[1.0, float("nan")]]), 2) is None
    assert whitened(torch.tensor([[1.0, float("inf")]]), 2) is None


@pytest.mark.parametrize(
    ("convolve", "shape", "kernel", "options"),
    [
        ("conv1d", (3, 4, 9), (2,), {}),
        ("conv2d", (3, 4, 6, 7), (2, 3), {"dilation": 2}),
        ("conv2d", (3, 4, 6, 7), (2, 2), {"dilation": (1, 3)}),
        ("conv2d", (4, 6, 7), (3, 2), {"groups": 2}),
        ("conv3d", (2, 4, 4, 3, 5), (1, 2, 3), {"groups": 4}),
    ],
    ids=str,
)
def test_the_rows_of_a_convolution_are_its_patches(
    convolve: str, shape: tuple[int, ...], kernel: tuple[int, ...], options: dict[str, Any]
) -> None:
    """Their products with the filters are all outputs, where all groups have the same filters."""
    n_groups = options.get("groups", 1)
    with seeded():
        x = torch.randn(shape, dtype=torch.float64)
        filters = torch.randn(5, 4 // n_groups, *kernel, dtype=torch.float64)
    weight = filters.repeat(n_groups, *[1] * (filters.ndim - 1))
    seen = Inputs([weight], 10**6)
    call = getattr(functional, convolve)
    seen.see(call, (x, weight), options)
    ((rows,),) = seen._rows
    outputs = call(x, weight, **options)
    torch.testing.assert_close((rows @ filters.flatten(1).T).flatten().sort()[0], outputs.flatten().sort()[0])


def test_a_kernel_larger_than_its_images_tells_nothing() -> None:
    weight = torch.ones(2, 1, 3, 3)
    seen = Inputs([weight], 4)
    seen.see(functional.conv2d, (torch.ones(5, 1, 2, 2), weight, None, 1, 1), {})
    assert seen.directions(weight) == [None]


def test_rows_come_from_all_over_and_from_all_calls() -> None:
    weight = torch.ones(2, 3)
    seen = Inputs([weight], 2)
    for value in (1.0, 2.0):
        seen.see(functional.linear, (value + torch.arange(30.0).view(2, 5, 3), weight), {})
    kept = seen._some(torch.cat(seen._rows[0]))
    assert kept[:, 0].tolist() == [1.0, 19.0, 2.0, 20.0]  # rows 0 and 6 of 0, 3, 6 and 9; of either call


class Perturbed:
    """A model whose first weights are looked at in every evaluation."""

    def __init__(self, **options: Any) -> None:
        with seeded():
            self.model = nn.Sequential(nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 3)).double()
            self.x, self.y = inputs(40, *torch.logspace(1, -1, 12).tolist()), torch.randint(3, (40,))
        self.optimizer = EGGROLL(self.model.parameters(), seed=0, evaluation="sequential", popsize=6, **options)
        self.seen: list[Tensor] = []

    def closure(self) -> Tensor:
        self.seen.append(self.model[0].weight.detach().clone())
        return functional.cross_entropy(self.model(self.x), self.y)

    def perturbations(self) -> Tensor:
        """``(6, 7, 12)``, those of the first weight in one step."""
        self.optimizer.step(self.closure)
        model, *candidates = self.seen
        return torch.stack(candidates) - model


def test_weights_that_are_computed_from_parameters() -> None:
    """Rounded, by their signs, masked, normalised."""
    with seeded():
        weights = [torch.randn(3, 5, requires_grad=True) for _ in range(4)]
        x = torch.randn(20, 5)
    a, b, c, d = weights

    def closure() -> Tensor:
        functional.linear(x, (a * 127).round() / 127)
        functional.linear(x, torch.where(b >= 0, 1.0, -1.0))
        functional.linear(x, torch.ones(3, 5).mul(c))
        return functional.linear(x, torch._weight_norm(d, torch.ones(3, 1), 0)).sum()

    seen = Inputs(weights, 2)
    with Intercept({}, {Tensor}, None, {}, inputs=seen):
        closure()
    expected = whitened(x[::5], 2)
    assert expected is not None
    for found in seen.directions(a):
        assert found is not None
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [{"input_span": 3}, {"input_span": 3, "rank": 2, "mirrored": True}], ids=str)
def test_a_step_perturbs_weights_in_the_directions_of_their_inputs(options: dict[str, Any]) -> None:
    run = Perturbed(**options)
    d = whitened(run.x[:: -(-40 // 6)], 3)
    assert d is not None
    e = run.perturbations()
    outside = e - e @ torch.linalg.pinv(d) @ d
    assert outside.abs().max() < 1e-12 < e.abs().max()
    assert torch.linalg.matrix_rank(e, atol=1e-9).tolist() == [options.get("rank", 1)] * 6


def test_all_directions_where_the_inputs_are_not_known() -> None:
    """With ``input_span=None``, and with ``ask()``."""
    e = Perturbed(input_span=None).perturbations()
    assert torch.linalg.matrix_rank(e.flatten(0, 1)) == 6  # of six candidates of rank one
    asked = Perturbed(input_span=2).optimizer
    asked.tell([1.0] * len(asked.ask()))
    rows = asked.ask()
    w = rows[:, :84].view(6, 7, 12) - rows.mean(0)[:84].view(7, 12)
    assert torch.linalg.matrix_rank(w.flatten(0, 1)) == 6


def test_layout_combines_directions() -> None:
    layout = Layout([(4, 5), (3,), (6, 2, 2)], rank=2)
    with seeded():
        d = torch.randn(3, 5)
        drawn = torch.randn(7, 2 * 4 + 2 * 3 + 3 + 2 * 6 + 2 * 4)
    numbers = layout.draw(lambda n, k: drawn.clone(), 7, [d, torch.ones(1, 3), None])
    a, b, rest = drawn.split([8, 6, 23], 1)
    dense = layout.dense(numbers)
    slow = torch.stack([a[i].view(2, 4).T @ b[i].view(2, 3) @ d / 2**0.5 for i in range(7)])
    torch.testing.assert_close(dense[:, :20], slow.flatten(1))
    plain = layout.draw(lambda n, k: torch.cat([torch.zeros(7, k - 23), rest], 1), 7)
    torch.testing.assert_close(dense[:, 20:], layout.dense(plain)[:, 20:])


def test_a_resumed_run_goes_on_bit_for_bit() -> None:
    run = Perturbed()
    for _ in range(3):
        run.optimizer.step(run.closure)
    other = Perturbed()
    other.model.load_state_dict(run.model.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    for _ in range(3):
        assert float(run.optimizer.step(run.closure)) == float(other.optimizer.step(other.closure))


def test_it_trains_in_fewer_evaluations() -> None:
    """On images, of whose pixels a few combinations vary most; 2,000 evaluations."""
    images = load_sample(torch.device("cpu")).train[:256]
    with seeded():
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    losses = []
    for span in (24, None):
        own = copy.deepcopy(model)
        optimizer = EGGROLL(own.parameters(), lr=2.0, input_span=span, seed=0)
        while optimizer.evaluations < 2000:
            loss = optimizer.step(lambda own=own: functional.cross_entropy(own(images.images), images.digits))
        losses.append(float(loss))
    assert losses[0] < 0.8 * losses[1]  # either at its best learning rate
