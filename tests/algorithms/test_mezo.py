"""MeZO: equal to its slow reference, exact, and no larger than inference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers import assert_identical, identical, parameters_of, seeded, vector
from tests.references import mezo
from torch_gfo import MeZO
from torch_gfo.closure import Memory
from torch_gfo.probing import Noise

DOUBLE = CRISP = torch.float64  # a loss in bfloat16 would be the same at both points of a pair


def noise_of(optimizer: MeZO, step: int, n_probes: int, distribution: str) -> list[list[list[float]]]:
    """The noise of a step, of each probe and each parameter."""
    noise = Noise(optimizer.param_groups[0]["seed"], step, distribution)
    weights = torch.eye(n_probes).tolist()
    parameters = parameters_of(optimizer)
    return [
        [torch.cat([z for _, z in noise.blocks(w, t, p.detach().flatten())]).tolist() for t, p in enumerate(parameters)]
        for w in weights
    ]


def bowl(x: Tensor) -> Tensor:
    return ((x - 1) ** 2 * torch.arange(1, x.shape[-1] + 1)).sum(-1)


def forbidden(x: Tensor) -> Tensor:
    return torch.where(x[:, 0] > 0.35, math.inf, bowl(x))


def narrow(x: Tensor) -> Tensor:
    return torch.where(x[:, 0].abs() > 0.2, math.nan, bowl(x))


def flat(x: Tensor) -> Tensor:
    return torch.ones(len(x), dtype=x.dtype)


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("n_probes", [1, 3])
@pytest.mark.parametrize(
    ("objective", "branches"),
    [(bowl, {"shortened"}), (forbidden, {"away"}), (narrow, {"left out"}), (flat, {"flat"})],
    ids=["bowl", "forbidden", "narrow", "flat"],
)
def test_reference(
    objective: Callable[[Tensor], Tensor], branches: set[str], n_probes: int, decay: float, distribution: str
) -> None:
    """Candidates, next point and state are those of (1) to (4), number by number."""
    x, y = vector(3, dtype=DOUBLE), vector(2, 2, seed=1, dtype=DOUBLE)
    with torch.no_grad():
        x[0] = 0.1
    groups = [{"params": [x], "sigma": 0.3, "weight_decay": decay}, {"params": [y], "sigma": 0.5, "lr": 0.02}]
    optimizer = MeZO(groups, lr=0.05, n_probes=n_probes, distribution=distribution, seed=3)
    taken: set[str] = set()
    for step in range(25):
        z = noise_of(optimizer, step, n_probes, distribution)
        state = {name: optimizer.state[x][name] for name in ("k", "magnitude")}
        p = [t.detach().flatten().tolist() for t in (x, y)]
        slow = mezo.iterate(state, p, z, [0.3, 0.5], [0.05, 0.02], [decay, 0.0])
        points = next(slow)
        rows = optimizer.ask()
        expected = torch.tensor([[v for values in point for v in values] for point in points], dtype=DOUBLE)
        torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)
        losses = objective(rows)
        finite = bool(losses.isfinite().any())
        if finite:
            optimizer.tell(losses)
        else:
            taken.add("left out")
            with pytest.warns(UserWarning, match="All candidates"):
                optimizer.tell(losses)
        try:
            slow.send(losses.nan_to_num(math.inf, math.inf, math.inf).tolist())
            pytest.fail("the reference asks for more")
        except StopIteration as stop:
            p, notes = (p, []) if not finite else stop.value
        taken |= set(notes)
        if finite:
            assert optimizer.state[x]["k"] == state["k"]
            assert optimizer.state[x]["magnitude"] == pytest.approx(state["magnitude"], rel=1e-12)
        for actual, values in zip((x, y), p, strict=True):
            torch.testing.assert_close(
                actual.detach().flatten(), torch.tensor(values, dtype=DOUBLE), rtol=1e-12, atol=1e-12
            )
    assert branches <= taken or (objective is flat and decay)


class Language(nn.Module):
    """Uses parameters in all ways: embedding tied to the last layer, attention, normalisation, dropout, a view."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(23, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=dropout, batch_first=True)
        self.recurrent = nn.LSTM(16, 16, batch_first=True)
        self.filter = nn.Conv1d(16, 16, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, words: Tensor) -> Tensor:
        x = self.layer(self.words(words))
        x = self.filter(self.recurrent(x)[0].mT).mT * self.scale
        return functional.linear(x, self.words.weight)


def language(dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> tuple[Language, Callable[[], Tensor]]:
    with seeded():
        model = Language(dropout).to(dtype)
        words = torch.randint(23, (4, 7))
    return model, lambda: functional.cross_entropy(model(words[:, :-1]).flatten(0, 1).to(CRISP), words[:, 1:].flatten())


def test_stand_ins_are_the_candidates() -> None:
    """A closure sees, at every use of every parameter, what ask() gives: as if it had been written into the model."""
    model, loss = language(dtype=DOUBLE)
    optimizer = MeZO(model.parameters(), n_probes=2, seed=0)
    expected = []
    for row in optimizer.ask():
        written, loss_of_written = language(dtype=DOUBLE)
        nn.utils.vector_to_parameters(row, written.parameters())
        expected.append(loss_of_written().detach())
    seen: list[Tensor] = []
    optimizer.step(lambda: seen.append(loss()) or seen[-1])
    torch.testing.assert_close(seen, expected, rtol=1e-10, atol=1e-10)
    assert len({float(value) for value in seen}) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_are_never_touched(dtype: torch.dtype) -> None:
    """During evaluations, and after a step with lr=0, the memory of every parameter holds the same bits."""
    model, loss = language(dtype=dtype)
    optimizer = MeZO(model.parameters(), seed=0)
    memory = [p.detach() for p in model.parameters()]  # other tensors, which no stand-in takes the place of
    before = [p.clone() for p in memory]
    values = []

    def closure() -> Tensor:
        assert_identical(memory, before)
        values.append(float(loss()))
        return loss()

    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step(closure)
    assert_identical(memory, before)
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    optimizer.step(closure)
    assert len(set(values)) > 1
    n_moved = sum(not identical(p, q) for p, q in zip(memory, before, strict=True))
    assert n_moved > 0.9 * len(memory)  # a move of a single bfloat16 number may be rounded away


def test_masks_are_those_of_the_other_half() -> None:
    """Both evaluations of a pair, and all pairs, draw the same dropout masks, and the next step others."""
    model, loss = language(dropout=0.5)
    optimizer = MeZO(model.parameters(), sigma=1e-7, n_probes=2, seed=0)
    seen: list[float] = []
    for _ in range(2):
        optimizer.step(lambda: seen.append(float(loss())) or loss())
    assert max(seen[:4]) - min(seen[:4]) < 1e-4
    assert abs(seen[4] - seen[0]) > 1e-2


def test_a_closure_that_modifies_parameters() -> None:
    """What a closure writes into a parameter holds until its end, and leaves no trace."""
    x = vector(4)
    optimizer = MeZO([x], seed=0)
    before = x.detach().clone()

    def closure() -> Tensor:
        with torch.no_grad():
            x.clamp_(min=100.0)
        assert (x == 100).all()
        return x.sum()

    assert optimizer.step(closure) == 400
    assert_identical(x.detach(), before)


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_noise(distribution: str) -> None:
    """Entries have mean zero and variance one; tensors, probes and steps are independent; blocks are all different."""
    n = 100_000  # more than a block
    values = torch.zeros(n)

    def draw(step: int, probe: int, index: int) -> Tensor:
        weights = [float(i == probe) for i in range(2)]
        return torch.cat([z for _, z in Noise(0, step, distribution).blocks(weights, index, values)])

    draws = torch.stack([draw(*where) for where in itertools.product((0, 1), (0, 1), (0, 1))])
    assert_identical(draws[3], draw(0, 1, 1))
    correlations = draws @ draws.T / n
    torch.testing.assert_close(correlations, torch.eye(8), rtol=0, atol=5 * math.sqrt(2 / n))
    assert draws.mean(1).abs().max() < 5 / math.sqrt(n)
    for lag in (1, 32, 1024, 2**15):  # words, blocks
        shifted = (draws[:, lag:] * draws[:, :-lag]).mean(1)
        assert shifted.abs().max() < 6 / math.sqrt(n - 2**15)
    fourth = (draws**4).mean()
    assert float(fourth) == pytest.approx(1.0 if distribution == "rademacher" else 3.0, rel=0.02)


def test_memory() -> None:
    """A step holds at most an inference, the largest tensor and 5 % of all parameters at a time."""
    with seeded():
        model = nn.Sequential(*(nn.Linear(400, 400) for _ in range(12)))
        inputs = torch.randn(3, 400)
    sizes = [4 * p.numel() for p in model.parameters()]
    optimizer = MeZO(model.parameters(), seed=0)

    def loss() -> Tensor:
        return model(inputs).square().mean()

    with torch.no_grad(), Memory() as inference:
        loss()
    with Memory() as step:
        optimizer.step(loss)
    assert max(sizes) < step.peak - inference.peak <= max(sizes) + 0.05 * sum(sizes)
    n_held = sum(
        value.numel() for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    )
    assert n_held < 10


def test_small_moves_of_low_precision_add_up() -> None:
    """Moves far below the distance of two bfloat16 numbers are right in the mean, without a copy of more digits."""
    x = nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
    optimizer = MeZO([x], sigma=0.1, lr=1e-3, seed=0)
    noise = torch.cat([z for _, z in Noise(0, 0, "rademacher").blocks([1.0], 0, x.detach())])
    optimizer.ask()
    optimizer.tell([2.0, 1.0])
    moved = float(((x.detach().float() - 1) * noise).mean())
    length = 1e-3 * 0.1 * (300 / 20_000) ** 0.25  # a hundredth of the distance above 1
    assert moved == pytest.approx(-length, rel=0.2)  # 120 of 20,000 numbers move: a relative deviation of 0.06


def test_step_returns_the_mean() -> None:
    """What step returns is the mean of the finite values, in the closure's type."""
    x = vector(3)
    optimizer: Any = MeZO([x], n_probes=3, seed=0)
    values = iter([1.0, 3.0, math.nan, 5.0, 7.0, 4.0] * 2)
    assert optimizer.step(lambda: next(values)) == 4.0
    result = optimizer.step(lambda: torch.tensor(next(values)))
    assert isinstance(result, Tensor)
    assert result == 4.0


def test_models_that_do_not_see_perturbations(caplog: pytest.LogCaptureFixture) -> None:
    """A view made outside the closure shows nothing but the model itself: a message says so once, nothing moves."""
    x = vector(4)
    view = x.detach()
    optimizer = MeZO([x], seed=0)
    before = x.detach().clone()
    for _ in range(3):
        optimizer.step(lambda: view.square().sum())
    assert_identical(x.detach(), before)
    assert len(caplog.records) == 1
    assert "one and the same loss" in caplog.text
