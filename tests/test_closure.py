"""Running a closure with stand-ins for its parameters."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers import assert_identical, seeded, vector
from torch_gfo.batching import STATELESS
from torch_gfo.closure import Footprints, Intercept, Memory, Observer, loss_of


def intercepted(
    closure: Callable[[], Any],
    stand_ins: dict[nn.Parameter, Tensor],
    footprints: Footprints | None = None,
    rewrites: Any = STATELESS,
    observer: Observer | None = None,
) -> Any:
    by_id = {id(parameter): tensor for parameter, tensor in stand_ins.items()}
    with Intercept(by_id, {nn.Parameter}, footprints or Footprints(), rewrites, observer):
        return closure()


def test_stand_ins_take_the_place_of_parameters() -> None:
    """Functions, methods, operators, containers and keywords see the stand-in; the parameter is left alone."""
    x, value = vector(3), torch.tensor([1.0, 2.0, 3.0])
    closures: list[Callable[[], Tensor]] = [
        lambda: x.sum(),
        lambda: torch.sum(x),
        lambda: (x * 1).sum(),
        lambda: (1 * x).sum(),
        lambda: torch.cat([x, x]).sum() / 2,
        lambda: torch.einsum("i->", x),
        lambda: torch.sum(input=x),
        lambda: x[0] + x[1:].sum(),
        lambda: x.data.sum(),
        lambda: x.detach().sum(),
        lambda: functional.linear(torch.ones(1, 3), weight=x[None]).reshape(()),
    ]
    for closure in closures:
        assert_identical(intercepted(closure, {x: value}), torch.tensor(6.0))
    assert_identical(x, vector(3))


def test_modules_see_stand_ins() -> None:
    """A module computes with stand-ins what it computes with those values in its parameters."""
    with seeded():
        model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.GELU(), nn.Linear(3, 1))
        inputs = torch.randn(5, 4)
    values = {p: torch.randn_like(p) for p in model.parameters()}
    result = intercepted(lambda: model(inputs), values)
    for parameter, value in values.items():
        parameter.detach().copy_(value)
    assert_identical(result, model(inputs).detach())


def test_other_parameters_are_not_replaced() -> None:
    """A parameter without a stand-in is itself."""
    x, y = vector(3), vector(3, seed=1)
    result = intercepted(lambda: (x - y).sum(), {x: torch.zeros(3)})
    assert_identical(result.detach(), -y.detach().sum())


def test_backward_does_nothing() -> None:
    """backward() inside an evaluation computes nothing and fails for nothing."""
    x = vector(3)

    def closure() -> Tensor:
        loss = x.square().sum()
        loss.backward()
        return loss

    assert_identical(intercepted(closure, {x: torch.ones(3)}), torch.tensor(3.0))
    assert x.grad is None
    closure()
    assert x.grad is not None


def test_gradients_with_respect_to_inputs() -> None:
    """Grad mode is the closure's own: losses made of derivatives by inputs work."""
    x = vector(3)

    def closure() -> Tensor:
        t = torch.linspace(0, 1, 4, requires_grad=True)
        curve = x[0] + x[1] * t + x[2] * t**2
        (slope,) = torch.autograd.grad(curve.sum(), t)
        return slope.square().sum().detach()

    assert_identical(intercepted(closure, {x: torch.tensor([5.0, 1.0, 0.0])}), torch.tensor(4.0))


MODIFICATIONS: dict[str, Callable[[Tensor], Any]] = {
    "method": lambda t: t.add_(1),
    "operator": lambda t: t.__iadd__(1),
    "index": lambda t: t.__setitem__(0, 7.0),
    "copy": lambda t: t.copy_(torch.ones(3)),
    "out": lambda t: torch.add(torch.ones(3), 1, out=t),
    "function": lambda t: functional.relu_(t),
    "init": lambda t: nn.init.zeros_(t),
    "through_a_view": lambda t: t[1:].mul_(3),
}


@pytest.mark.parametrize("name", MODIFICATIONS)
def test_modified_buffers_are_restored(name: str) -> None:
    """Whatever a closure has written into a tensor that outlives it can be undone."""
    buffer = torch.tensor([-1.0, 2.0, 3.0])
    footprints = Footprints()
    intercepted(lambda: MODIFICATIONS[name](buffer), {}, footprints)
    assert not torch.equal(buffer, torch.tensor([-1.0, 2.0, 3.0]))
    footprints.erase()
    assert_identical(buffer, torch.tensor([-1.0, 2.0, 3.0]))


def test_footprints_of_temporaries_die_with_them() -> None:
    """Tensors that only lived in the closure are forgotten."""
    footprints = Footprints()
    temporary = torch.zeros(3)
    footprints.record(temporary)
    del temporary
    gc.collect()
    footprints.erase()


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.BatchNorm1d(4),
        lambda: nn.BatchNorm1d(4, momentum=None),
        lambda: nn.BatchNorm1d(4, affine=False),
        lambda: nn.BatchNorm1d(4, track_running_stats=False),
        lambda: nn.InstanceNorm1d(4, track_running_stats=True),
        lambda: nn.InstanceNorm1d(4),
    ],
    ids=["batch", "cumulative", "bare", "untracked", "instance_tracked", "instance"],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_normalization(layer: Callable[[], nn.Module], training: bool) -> None:
    """An evaluation gives the plain output; running statistics move only where asked, and can be put back."""
    norm, plain = layer().train(training), layer().train(training)
    with seeded():
        inputs = torch.randn(8, 4, 5)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    expected = plain(inputs).detach()
    footprints = Footprints()
    result = intercepted(lambda: norm(inputs), {}, footprints)
    torch.testing.assert_close(result.detach(), expected)
    footprints.erase()
    assert_identical(dict(norm.named_buffers()), before)
    result = intercepted(lambda: norm(inputs), {}, footprints, {})
    torch.testing.assert_close(result.detach(), expected)
    assert_identical(dict(norm.named_buffers()), dict(plain.named_buffers()))
    footprints.erase()
    assert_identical(dict(norm.named_buffers()), before)


def test_functional_normalization() -> None:
    """The same for positional arguments of the function itself."""
    with seeded():
        inputs = torch.randn(8, 4)
    mean, var, weight, bias = torch.zeros(4), torch.ones(4), torch.full((4,), 2.0), torch.ones(4)
    arguments = (inputs, mean, var, weight, bias, True, 0.3, 1e-3)
    result = intercepted(lambda: functional.batch_norm(*arguments), {})
    assert_identical(mean, torch.zeros(4))
    torch.testing.assert_close(result, functional.batch_norm(*arguments))
    assert not torch.equal(mean, torch.zeros(4))


def test_memory() -> None:
    """The peak is what is held at a time: neither views, nor what was there, nor what has been released."""
    x = torch.zeros(1000)
    with Memory() as memory:
        y = x[10:].view(-1) + 1  # 3,960 bytes
        for _ in range(5):
            y = y * 2  # the earlier one is released
        y.add_(1)
    assert memory.peak == 2 * 3960
    assert 8 <= memory.n_operations <= 12  # views are some
    layer = nn.LSTM(2, 8)
    with Memory() as memory:
        layer(torch.zeros(50, 4, 2))
    assert memory.peak > 50 * 4 * 8 * 4  # also what functions allocate inside


def test_observer_frees_what_outlives_a_vmap() -> None:
    """A tensor that a closure keeps beyond its vmap is found, and made an ordinary one."""
    kept: list[Tensor] = []
    x = vector(3)
    observer = Observer()

    def one(row: Tensor) -> Tensor:
        def closure() -> Tensor:
            kept.append(x * 2)
            return x.sum()

        return intercepted(closure, {x: row}, observer=observer)

    torch.vmap(one)(torch.arange(6.0).reshape(2, 3))
    assert observer.release() == 1
    assert_identical(kept, [torch.tensor([0.0, 2.0, 4.0])])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2, 2.0),
        (2.5, 2.5),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.array(3), 3.0),
        (torch.tensor(1.5), torch.tensor(1.5)),
        (torch.tensor([[7]]), torch.tensor(7)),
    ],
    ids=["int", "float", "bool", "numpy", "array", "tensor", "integer_tensor"],
)
def test_losses(value: object, expected: float | Tensor) -> None:
    """One number in any form is a loss."""
    assert_identical(loss_of(value), expected)


@pytest.mark.parametrize("value", [None, "1", b"1", [], {}, torch.ones(2), torch.tensor(1j), np.ones(2), 1j, object()])
def test_no_losses(value: object) -> None:
    """Anything else is refused."""
    with pytest.raises(TypeError, match="an optimizer minimises one real number"):
        loss_of(value)


def test_loss_has_no_graph() -> None:
    """A loss that requires grad is taken without its graph."""
    loss = loss_of(vector(3).sum())
    assert isinstance(loss, Tensor)
    assert not loss.requires_grad
