"""Gradients from evaluations: what they estimate, what they leave alone, and that optimizers of torch train on them."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers import assert_identical, distance, identical, mlp, seeded, vector
from torch_gfo import GradientEstimator, estimate_gradient
from torch_gfo import gradient as module
from torch_gfo.evaluation import BACKENDS

RANDOM = ("antithetic", "spsa", "forward")
ALL = (*RANDOM, "coordinate")
DOUBLE = torch.float64

MATRIX = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, -1.0], [0.0, -1.0, 1.0]], dtype=DOUBLE)


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * x @ MATRIX @ x + x.sum()


def samples(estimator: str, n: int, **options: Any) -> Tensor:
    """Estimates ``(n, 3)`` of the gradient of the quadratic at one point, in n calls."""
    x = vector(3, dtype=DOUBLE)
    estimate = GradientEstimator([x], estimator, seed=0, evaluation="sequential", **options)
    grads = []
    for _ in range(n):
        x.grad = None
        estimate(lambda: quadratic(x))
        assert x.grad is not None
        grads.append(x.grad)
    return torch.stack(grads)


def exact() -> Tensor:
    x = vector(3, dtype=DOUBLE)
    quadratic(x).backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("estimator", RANDOM)
def test_unbiased_on_a_quadratic(estimator: str) -> None:
    """The mean of many is the gradient, within four standard errors, at a sigma that is not small."""
    grads = samples(estimator, 2000, n_samples=1, sigma=0.3)
    error = (grads.mean(0) - exact()).abs() / (grads.std(0) / math.sqrt(len(grads)))
    assert error.max() < 4


@pytest.mark.parametrize("estimator", RANDOM)
def test_variance_falls_with_the_samples(estimator: str) -> None:
    """As 1 / n: 16 samples have a sixteenth of the variance of one, within the error of 400 calls each."""
    one, sixteen = (samples(estimator, 400, n_samples=n, sigma=0.3).var(0).sum() for n in (1, 16))
    assert 11 < one / sixteen < 23


def test_spsa_perturbs_by_signs_and_the_others_by_normal_numbers() -> None:
    for estimator, is_sign in (("spsa", True), ("antithetic", False), ("forward", False)):
        x = nn.Parameter(torch.zeros(2000))
        seen: list[Tensor] = []

        def closure() -> Tensor:
            seen.append(x.detach().clone())
            return x.sum()

        GradientEstimator([x], estimator, sigma=0.5, n_samples=2, seed=0, evaluation="sequential")(closure)
        assert len(seen) == 1 + (2 if estimator == "forward" else 4)
        distances = torch.stack(seen[1:]).abs() / 0.5
        assert bool((distances == 1).all()) is is_sign
        assert (distances.square().mean(1) - 1).abs().max() < 0.15  # four standard errors of 2000 squared normals
        if estimator != "forward":
            assert_identical(seen[1], -seen[3])


@pytest.mark.parametrize("sigma", [None, 1e-4])
def test_coordinate_is_autograd(sigma: float | None) -> None:
    """On a network with a smooth loss in float64: to the error of central differences."""
    task = mlp()
    task.model.double()
    task.inputs = task.inputs.double()
    estimate_gradient(task.loss, task.model.parameters(), "coordinate", sigma=sigma)
    grads = [p.grad for p in task.model.parameters()]
    task.model.zero_grad()
    task.loss().backward()
    torch.testing.assert_close(grads, [p.grad for p in task.model.parameters()], rtol=1e-6, atol=1e-7)


def test_error_of_coordinate_is_of_second_order() -> None:
    """A tenth of sigma, a hundredth of the error."""
    x = nn.Parameter(torch.tensor([0.7], dtype=DOUBLE))
    errors = []
    for sigma in (1e-1, 1e-2):
        x.grad = None
        estimate_gradient(lambda: x.exp().sum(), [x], "coordinate", sigma=sigma)
        errors.append(float(x.grad - x.detach().exp()))
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_vectorized_is_sequential(estimator: str, chunk_size: int | None) -> None:
    grads = []
    for evaluation in ("sequential", "vectorized", "auto"):
        task = mlp(normalize=True)
        estimate = GradientEstimator(
            task.model.parameters(), estimator, seed=3, evaluation=evaluation, chunk_size=chunk_size, sigma=0.05
        )
        for _ in range(2):
            estimate(task.loss)
        grads.append([p.grad for p in task.model.parameters()])
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0], rtol=1e-4, atol=1e-4)


def test_blocks_are_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Perturbations that do not fit into memory at a time are evaluated block by block."""
    for estimator in ALL:
        monkeypatch.setattr(module, "_BLOCK", 7)
        x = vector(3, dtype=DOUBLE)
        n = 3 if estimator == "coordinate" else 500
        for evaluation in ("sequential", "auto"):
            x.grad = None
            GradientEstimator([x], estimator, n_samples=n, seed=0, evaluation=evaluation)(lambda: quadratic(x))
            assert functional.cosine_similarity(x.grad, exact(), dim=0) > 0.98


def test_gradients_accumulate() -> None:
    """Two calls add up, on top of what backward() has left; the same tensor keeps the sum."""
    x, once = vector(4), vector(4)
    distance([x]).backward()
    before = x.grad
    assert before is not None
    expected = before.clone()
    for step in range(2):
        once.grad = None
        estimate_gradient(lambda: distance([once]), [once], seed=1, step=step)
        expected += once.grad
        estimate_gradient(lambda: distance([x]), [x], seed=1, step=step)
    assert x.grad is before
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("evaluation", ["sequential", "vectorized"])
def test_zero_grad_and_backward_in_the_closure_do_nothing(evaluation: str, set_to_none: bool) -> None:
    """A closure as LBFGS takes it may be given; gradients are cleared outside."""
    x, plain = vector(4), vector(4)
    optimizer = torch.optim.SGD([x], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=set_to_none)
        loss = distance([x])
        loss.backward()
        return loss

    for step in range(3):
        estimate_gradient(closure, [x], seed=0, step=step, evaluation=evaluation)
        estimate_gradient(lambda: distance([plain]), [plain], seed=0, step=step, evaluation=evaluation)
    assert_identical(x.grad, plain.grad)


@pytest.mark.parametrize("evaluation", ["auto", "sequential", "vectorized"])
def test_no_trace(evaluation: str) -> None:
    """Parameters, buffers and random state are as after one plain call, and the loss is that call's."""
    ours, theirs = mlp(normalize=True, dropout=0.25), mlp(normalize=True, dropout=0.25)
    versions = [p.data_ptr() for p in ours.model.parameters()]
    with seeded(5):
        loss = estimate_gradient(ours.loss, ours.model.parameters(), evaluation=evaluation)
        random = torch.get_rng_state()
    with seeded(5):
        expected = theirs.loss().detach()
        assert_identical(torch.get_rng_state(), random)
    assert_identical(loss, expected)
    assert_identical(dict(ours.model.state_dict()), dict(theirs.model.state_dict()))
    assert versions == [p.data_ptr() for p in ours.model.parameters()]
    assert all(p.requires_grad and p.grad is not None for p in ours.model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_an_error_changes_nothing(error: type[BaseException], set_to_none: bool) -> None:
    """In any call of the closure: also the gradients and the counter are as before, and trying again is exact."""
    task = mlp(normalize=True, dropout=0.25)
    parameters = list(task.model.parameters())
    estimate = GradientEstimator(parameters, n_samples=2, seed=0, evaluation="sequential")
    estimate(task.loss)
    calls, at = 0, 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        task.model.zero_grad(set_to_none=set_to_none)
        loss = task.loss()
        if calls == at:
            raise error("in the middle")
        return loss

    def everything() -> Any:
        grads = [p.grad for p in parameters]
        return copy.deepcopy([task.model.state_dict(), grads, torch.get_rng_state(), estimate.state_dict()])

    before = everything()
    for at in range(1, 6):
        calls = 0
        with pytest.raises(error):
            estimate(closure)
        assert calls == at
        assert_identical(everything(), before)
    calls, at = 0, -1
    estimate(closure)
    assert calls == 5
    assert not identical(everything(), before)


def test_seed_and_step_decide() -> None:
    def grad(**options: Any) -> Tensor:
        x = vector(5)
        estimate_gradient(lambda: distance([x]), [x], evaluation="sequential", **options)
        assert x.grad is not None
        return x.grad

    assert_identical(grad(seed=1, step=3), grad(seed=1, step=3))
    different = [grad(seed=1, step=3), grad(seed=1, step=4), grad(seed=2, step=3), grad(), grad()]
    assert len({tuple(g.tolist()) for g in different}) == 5
    for options in ({"seed": 1}, {"step": 1}):
        with pytest.raises(ValueError, match="the two belong together"):
            grad(**options)


def test_global_generator_does_not_matter() -> None:
    grads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        x = vector(5)
        estimate_gradient(lambda: distance([x]), [x], seed=0, step=0)
        grads.append(x.grad)
    assert_identical(*grads)


def test_resuming_is_exact() -> None:
    """The class counts its calls; a state_dict of it and of the optimizer goes on bit for bit."""

    def make(model: nn.Module, seed: int) -> tuple[torch.optim.Optimizer, GradientEstimator]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return optimizer, GradientEstimator(optimizer.param_groups, seed=seed)

    def train(optimizer: torch.optim.Optimizer, estimate: GradientEstimator, loss: Callable[[], Tensor]) -> None:
        for _ in range(4):
            optimizer.zero_grad()
            estimate(loss)
            optimizer.step()

    task, other = mlp(), mlp()
    optimizer, estimate = make(task.model, 0)
    train(optimizer, estimate, task.loss)
    other.model.load_state_dict(task.model.state_dict())
    successor, continued = make(other.model, 9)
    successor.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    continued.load_state_dict(copy.deepcopy(estimate.state_dict()))
    train(optimizer, estimate, task.loss)
    train(successor, continued, other.loss)
    assert_identical(dict(other.model.state_dict()), dict(task.model.state_dict()))
    assert estimate.step == 8


@pytest.mark.parametrize("choice", ["sequential", "vectorized"])
def test_choice_of_auto_is_kept(choice: str) -> None:
    """What "auto" has found out by the clock is part of the state: another run evaluates in the same way."""
    x = vector(4)
    estimate = GradientEstimator([x], n_samples=50, seed=0)
    estimate(lambda: distance([x]))
    backend, *measured = estimate.state_dict()["plan"]
    assert BACKENDS[backend] in ("sequential", "vectorized")
    continued = GradientEstimator([x], n_samples=50)
    continued.load_state_dict({**estimate.state_dict(), "plan": [BACKENDS.index(choice), *measured]})
    calls = []
    for _ in range(2):  # in the first, it is examined whether it runs in a batch at all
        calls.clear()
        continued(lambda: calls.append(1) or distance([x]))
    assert len(calls) == (101 if choice == "sequential" else 2)
    assert continued.state_dict()["plan"][0] == BACKENDS.index(choice)


def test_function_and_class_agree() -> None:
    x, y = vector(4), vector(4)
    estimate = GradientEstimator([y], "spsa", seed=5, evaluation="sequential")
    for step in range(3):
        estimate_gradient(lambda: distance([x]), [x], "spsa", seed=5, step=step, evaluation="sequential")
        estimate(lambda: distance([y]))
    assert_identical(x.grad, y.grad)


@pytest.mark.parametrize("evaluation", ["sequential", "vectorized"])
@pytest.mark.parametrize("estimator", ALL)
def test_tensors_of_all_kinds(estimator: str, evaluation: str) -> None:
    """Each gradient has its parameter's dtype and shape and points downhill; what does not take part has none."""
    z = vector(2, 3, dtype=torch.complex64)
    half, strided = vector(3, seed=1, dtype=torch.bfloat16), nn.Parameter(vector(2, 4, seed=2).detach()[:, ::2])
    double, scalar = vector(3, seed=3, dtype=DOUBLE), nn.Parameter(torch.tensor(0.5))
    empty, frozen = nn.Parameter(torch.empty(0, 3)), nn.Parameter(torch.ones(2), requires_grad=False)
    zoo = [z, half, strided, double, scalar, empty, frozen]
    estimate_gradient(
        lambda: distance([p for p in zoo if p.numel()]),
        zoo,
        estimator,
        n_samples=4000,
        evaluation=evaluation,
        sigma=0.1,
    )
    grads = [p.grad for p in zoo]
    assert grads[-2:] == [None, None]
    for p in zoo:
        p.grad = None
    distance([p for p in zoo if p.numel()]).backward()
    for p, grad in zip(zoo[:-2], grads, strict=False):
        assert grad is not None
        assert (grad.dtype, grad.shape) == (p.dtype, p.shape)
        ours, exact = (torch.view_as_real(g) if g.is_complex() else g for g in (grad, p.grad))
        assert functional.cosine_similarity(ours.double().flatten(), exact.double().flatten(), dim=0) > 0.9


def test_complex_gradients_are_those_of_autograd() -> None:
    z = vector(3, dtype=torch.complex128)
    estimate_gradient(lambda: (z * z).real.sum() + z.abs().sum(), [z], "coordinate")
    grad, z.grad = z.grad, None
    ((z * z).real.sum() + z.abs().sum()).backward()
    torch.testing.assert_close(grad, z.grad, rtol=1e-8, atol=1e-8)


def test_tied_and_repeated_parameters() -> None:
    """A tensor that is used twice, or given twice, is one set of coordinates."""
    x = vector(3, dtype=DOUBLE)
    estimate_gradient(lambda: (x * x).sum(), [x, x, *[p for _, p in [("x", x)]]], "coordinate")
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_kinds_of_params() -> None:
    """Tensors, named tensors, and param_groups: a group's own sigma acts, and a group that is added takes part."""
    x, y = nn.Parameter(torch.zeros(400)), nn.Parameter(torch.zeros(400))
    optimizer = torch.optim.SGD([{"params": [x], "sigma": 0.01}], lr=1.0)
    estimate = GradientEstimator(optimizer.param_groups, sigma=1.0, n_samples=1, evaluation="sequential")
    seen: list[list[float]] = []

    def closure() -> Tensor:
        seen.append([float(p.detach().square().mean().sqrt()) for p in (x, y)])
        return (x.sum() + y.sum()) * 1.0

    estimate(closure)
    assert y.grad is None
    optimizer.add_param_group({"params": [y]})
    seen.clear()
    estimate(closure)
    assert seen[1] == [pytest.approx(0.01, rel=0.15), pytest.approx(1.0, rel=0.15)]
    model = nn.Linear(2, 1)
    estimate_gradient(lambda: model(torch.ones(2)).sum(), model.named_parameters(), "coordinate")
    torch.testing.assert_close(model.weight.grad, torch.ones(1, 2), rtol=1e-3, atol=1e-3)


def test_automatic_sigma() -> None:
    """One number for all tensors, 0.05 of the geometric mean of their scales; a bias of zeros hardly counts."""
    large, small, bias = 10 * torch.randn(500), 0.1 * torch.randn(500), torch.zeros(2)
    parameters = [nn.Parameter(value) for value in (large, small, bias)]
    seen: list[list[Tensor]] = []

    def closure() -> Tensor:
        seen.append([p.detach().clone() for p in parameters])
        return sum((p.sum() for p in parameters), torch.zeros(()))

    estimate_gradient(closure, parameters, "spsa", n_samples=1, evaluation="sequential")
    sizes = [float((p - q).abs().max()) for p, q in zip(seen[1], seen[0], strict=True)]
    assert sizes == pytest.approx([0.05, 0.05, 0.05], rel=0.05)


BAD = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("estimator", ["antithetic", "forward"])
def test_some_losses_are_not_finite(estimator: str, bad: float) -> None:
    """They contribute nothing, and the others keep their weight."""
    x = vector(3, dtype=DOUBLE)
    edge = x.detach()[0] + 0.3

    def closure() -> Tensor:
        loss = x.sum()
        return torch.where(x[0] > edge, loss.new_tensor(bad), loss)

    estimate_gradient(closure, [x], estimator, n_samples=3000, sigma=0.3, seed=0, step=0)
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    torch.testing.assert_close(x.grad[1:], torch.ones(2, dtype=DOUBLE), rtol=0, atol=0.15)  # 3 standard errors


def test_coordinates_without_a_finite_loss_are_zero() -> None:
    x = nn.Parameter(torch.tensor([1.0, 2.0], dtype=DOUBLE))
    estimate_gradient(lambda: torch.where(x[0] > 1, math.nan, (x * x).sum()), [x], "coordinate")
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 4.0], dtype=DOUBLE))


@pytest.mark.parametrize("estimator", ALL)
def test_no_loss_is_finite(estimator: str) -> None:
    x = vector(3)
    with pytest.warns(UserWarning, match="All losses around the parameters are NaN or infinite"):
        loss = estimate_gradient(lambda: x.sum() * math.nan, [x], estimator)
    assert math.isnan(loss)
    assert_identical(x.grad, torch.zeros(3))


def test_huge_losses() -> None:
    for estimator in ALL:
        x = vector(3)
        estimate_gradient(lambda: distance([x]) * 1e34, [x], estimator, sigma=0.1)
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"estimator": "backprop"}, "estimator must be one of 'antithetic', 'spsa', 'forward', 'coordinate'"),
        ({"sigma": 0.0}, "sigma must be"),
        ({"sigma": math.nan}, "sigma must be"),
        ({"n_samples": 0}, "n_samples must be an integer of at least 1"),
        ({"n_samples": 2.0}, "n_samples must be an integer of at least 1"),
        ({"chunk_size": 0}, "chunk_size must be an integer of at least 1"),
        ({"evaluation": "fast"}, "evaluation must be one of"),
        ({"seed": 0.5, "step": 0}, "seed must be None or an integer"),
    ],
    ids=str,
)
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    x = vector(3)
    with pytest.raises(ValueError, match=match):
        estimate_gradient(lambda: distance([x]), [x], **options)
    assert x.grad is None


def test_bad_parameters_and_losses() -> None:
    x = vector(3)
    with pytest.raises(TypeError, match="Put it in a list"):
        estimate_gradient(lambda: distance([x]), x)
    with pytest.raises(ValueError, match="sigma must be"):
        estimate_gradient(lambda: distance([x]), [{"params": [x], "sigma": -1.0}])
    with pytest.raises(TypeError, match="an optimizer minimises one real number"):
        estimate_gradient(lambda: x * 2, [x])
    with pytest.raises(RuntimeError, match="no parameter requires grad"):
        estimate_gradient(lambda: distance([x]), [x.detach()])
    assert x.grad is None


def points() -> Tensor:
    with seeded():
        return torch.randn(256, 2)


def errors(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(1) != targets).float().mean()


def steps_of(estimate: GradientEstimator, optimizer: torch.optim.Optimizer, n: int) -> Iterator[None]:
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n)
    for _ in range(n):
        optimizer.zero_grad()
        yield
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        schedule.step()


def train_by_adamw(loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor, **options: Any) -> float:
    """Trains a network, with clipping and a schedule, and returns its share of errors."""
    inputs = points()
    with seeded():
        model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    estimate = GradientEstimator(optimizer.param_groups, seed=0, **options)
    for _ in steps_of(estimate, optimizer, 400):
        estimate(lambda: loss(model(inputs), targets))
    return float(errors(model(inputs), targets))


@pytest.mark.parametrize("estimator", ALL)
def test_adamw_trains_a_classifier(estimator: str) -> None:
    """Two classes that no straight line separates."""
    assert train_by_adamw(functional.cross_entropy, (points().prod(1) > 0).long(), estimator=estimator) < 0.04


def test_adamw_trains_on_the_share_of_errors() -> None:
    """Which has no gradient; a larger sigma sees over its steps."""
    assert train_by_adamw(errors, (points().sum(1) > 0.5).long(), sigma=0.3) < 0.03


def test_as_the_closure_of_an_optimizer() -> None:
    """``optimizer.step`` of LBFGS takes a closure that fills the gradients: this is one."""
    x = vector(4, dtype=DOUBLE)
    optimizer = torch.optim.LBFGS([x], lr=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = estimate_gradient(lambda: distance([x]), [x], "coordinate")
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert distance([x]) < 1e-8


def test_example_in_the_documentation() -> None:
    text = (Path(__file__).parents[1] / "docs" / "gradient.md").read_text(encoding="utf-8")
    for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        scope: dict[str, Any] = {}
        exec(example, scope)
        assert scope["accuracy"] > 0.9
