"""What the figures show: the records of a training, the landscape of a loss, the points of a population."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib import pyplot
from PIL import Image
from torch import Tensor, nn

import torch_gfo
from tests.helpers import assert_identical
from tests.registry import ENTRIES, Entry
from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.plotting import Plane, animate, next_candidates, plot_history, plot_population

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def _no_figure_stays_open() -> Iterator[None]:
    yield
    pyplot.close("all")


class Records:
    def __init__(self, *records: dict[str, float]) -> None:
        self.records = records


GA = Records(
    {"step": 1, "evaluations": 9, "seconds": 0.5, "loss": 3.0},
    {"step": 2, "evaluations": 18, "seconds": 1.5, "loss": 2.0, "accuracy": 0.7},
    {"step": 3, "evaluations": 27, "seconds": 2.0, "loss": 2.5, "accuracy": 0.6},
)
ADAM = Records(
    {"step": 1, "evaluations": 1, "seconds": 0.1, "loss": 2.8},
    {"step": 2, "evaluations": 2, "seconds": 0.2, "loss": 1.0},
)


def lines(axes: Any) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): [tuple(point) for point in line.get_xydata().tolist()] for line in axes.lines}


def test_lines_are_the_records() -> None:
    """One row a value, evaluations on the left, seconds on the right; a metric is drawn where it was recorded."""
    figure = plot_history({"GA": GA, "Adam": ADAM})
    loss, loss_in_time, accuracy, accuracy_in_time = figure.axes
    assert lines(loss) == {"GA": [(9, 3.0), (18, 2.0), (27, 2.5)], "Adam": [(1, 2.8), (2, 1.0)]}
    assert lines(loss_in_time) == {"GA": [(0.5, 3.0), (1.5, 2.0), (2.0, 2.5)], "Adam": [(0.1, 2.8), (0.2, 1.0)]}
    assert lines(accuracy) == {"GA": [(18, 0.7), (27, 0.6)], "Adam": []}
    assert lines(accuracy_in_time) == {"GA": [(1.5, 0.7), (2.0, 0.6)], "Adam": []}
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "", "accuracy", ""]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "evaluations", "seconds"]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["GA", "Adam"]


def test_values_are_chosen_and_must_exist() -> None:
    assert [axes.get_ylabel() for axes in plot_history({"GA": GA}, ["accuracy"]).axes] == ["accuracy", ""]
    with pytest.raises(ValueError, match=r"'f1'.*Recorded are: accuracy, evaluations, loss, seconds, step"):
        plot_history({"GA": GA}, ["f1"])
    with pytest.raises(ValueError, match="Recorded are: none"):
        plot_history({})


def valley(x: Tensor) -> Tensor:
    return 100 * (x[..., 1] - x[..., 0] ** 2) ** 2 + (1 - x[..., 0]) ** 2


def problem(**options: Any) -> tuple[nn.Parameter, GradientFreeOptimizer]:
    x = nn.Parameter(torch.tensor([-1.0, 1.5]))
    return x, torch_gfo.CMAES([x], sigma=0.4, popsize=10, seed=0, **options)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_candidates_are_those_that_the_step_evaluates(entry: Entry) -> None:
    """What is shown beforehand is, point by point, what the closure is given in the step; nothing is changed by it."""
    x = nn.Parameter(torch.tensor([[-1.0, 1.5], [0.5, 2.0]]))
    optimizer = entry.cls([x], seed=0, evaluation="sequential")
    given: list[Tensor] = []

    def closure() -> Tensor:
        given.append(x.detach().clone().flatten())
        return valley(x).sum()

    for _ in range(3):
        before, model = copy.deepcopy(optimizer.state_dict()), x.detach().clone()
        candidates = next_candidates(optimizer, closure)
        assert_identical(optimizer.state_dict(), before)
        assert_identical(x.detach(), model)
        given.clear()
        optimizer.step(closure)
        points = torch.stack(given)
        points = points[(points != model.flatten()).any(1)]
        assert len(points) > 0
        torch.testing.assert_close(candidates, points)


def test_candidates_of_a_search_that_begins_anew() -> None:
    """A layer that is unfrozen makes the next step the first one of another search, over more parameters."""
    x, y = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = torch_gfo.GA([x, y], popsize=8, seed=0)
    assert next_candidates(optimizer, lambda: x.square().sum() + y.sum()).shape == (8, 2)
    y.requires_grad_()
    with pytest.warns(UserWarning, match="starts anew"):
        assert next_candidates(optimizer, lambda: x.square().sum() + y.sum()).shape == (8, 5)


def test_points_and_colours_are_those_of_the_loss() -> None:
    """Of two parameters, the axes are theirs; each colour covers the same area."""
    x, optimizer = problem()
    expected = next_candidates(optimizer, lambda: valley(x))
    axes = plot_population(optimizer, lambda: valley(x), view=(-2, 2, -1, 3), resolution=20)
    landscape, points, model = axes.collections
    torch.testing.assert_close(torch.tensor(points.get_offsets().tolist()), expected)
    assert model.get_offsets().tolist() == [[-1.0, 1.5]]
    assert (*axes.get_xlim(), *axes.get_ylim()) == (-2, 2, -1, 3)
    grid = torch.cartesian_prod(torch.linspace(-2, 2, 20), torch.linspace(-1, 3, 20))
    quantiles = torch.quantile(valley(grid).double(), torch.linspace(0, 1, 16).double())
    torch.testing.assert_close(torch.tensor(landscape.levels.tolist()).double(), quantiles, rtol=1e-5, atol=0)
    path = landscape.get_paths()[0]  # of the lowest losses: the bottom of the valley
    assert path.contains_point((1.0, 1.0))
    assert not path.contains_point((1.0, -0.5))


def test_view_holds_all_that_is_drawn() -> None:
    x, optimizer = problem()
    axes = plot_population(optimizer, lambda: valley(x), resolution=5)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for points in axes.collections[1:]:
        assert all(left < u < right and bottom < v < top for u, v in points.get_offsets().tolist())


def network() -> tuple[nn.Module, Any]:
    model, inputs = nn.Linear(5, 1), torch.randn(20, 5)
    return model, lambda: (model(inputs) - inputs[:, :1]).square().mean()


def test_a_plane_through_a_model() -> None:
    """Along two given directions: candidates lie at their distances, and the landscape is the loss on the plane."""
    model, closure = network()
    optimizer = torch_gfo.GA(model.parameters(), popsize=8, seed=0)
    directions = torch.randn(2, 6)
    axes = plot_population(optimizer, closure, directions=directions, view=(-1, 1, -1, 1), resolution=2)
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    u = directions[0] / directions[0].norm()
    v = directions[1] - directions[1] @ u * u
    plane = torch.stack([u, v / v.norm()])
    landscape, points, at_model = axes.collections
    expected = (next_candidates(optimizer, closure) - start) @ plane.T
    torch.testing.assert_close(torch.tensor(points.get_offsets().tolist()), expected)
    assert at_model.get_offsets().tolist() == [[0.0, 0.0]]
    corners = []
    with torch.no_grad():
        for a, b in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
            nn.utils.vector_to_parameters(start + a * plane[0] + b * plane[1], model.parameters())
            corners.append(float(closure()))
    levels = landscape.levels.tolist()
    assert (levels[0], levels[-1]) == pytest.approx((min(corners), max(corners)))


def test_a_plane_of_its_own_choice_is_where_the_candidates_lie() -> None:
    """Candidates that lie in a plane are drawn without a loss of distance."""
    model, closure = network()
    optimizer = torch_gfo.GA(model.parameters(), seed=0)
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    candidates = start + torch.randn(9, 2) @ torch.randn(2, 6)
    axes = plot_population(optimizer, closure, candidates=candidates, resolution=3)
    drawn = torch.tensor(axes.collections[1].get_offsets().tolist())
    torch.testing.assert_close(torch.cdist(drawn, drawn), torch.cdist(candidates, candidates), atol=1e-4, rtol=1e-4)
    single = plot_population(optimizer, closure, candidates=candidates[:1], resolution=3).collections[1].get_offsets()
    assert math.hypot(*single[0]) == pytest.approx(float((candidates[0] - start).norm()))


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        (torch.ones(3), "two vectors"),
        (torch.ones(2, 3), "parallel"),
        (torch.zeros(2, 3), "zero"),
        (torch.tensor([[1.0, 0, 0], [math.nan, 0, 0]]), "span a plane"),
    ],
)
def test_a_plane_needs_two_directions(directions: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plane.through(torch.zeros(3), directions)


def test_a_plane_needs_two_parameters() -> None:
    x = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="there is 1"):
        plot_population(torch_gfo.GA([x], seed=0), lambda: x.square().sum())


def test_losses_that_are_not_finite_stay_white() -> None:
    """A loss that is flat or nowhere finite draws points alone; where it is finite in part, that part has colours."""
    x, optimizer = problem()
    for closure, n_drawn in (
        (lambda: x.sum() * 0, 2),
        (lambda: x[0].clamp(min=0).log() + x[1], 3),
    ):
        axes = plot_population(optimizer, closure, candidates=torch.ones(3, 2), view=(-1, 1, 0, 1), resolution=9)
        assert len(axes.collections) == n_drawn
    landscape = axes.collections[0]
    assert all(math.isfinite(level) for level in landscape.levels)
    assert not any(path.contains_point((-0.5, 0.5)) for path in landscape.get_paths())
    assert any(path.contains_point((0.5, 0.5)) for path in landscape.get_paths())


def test_a_film_shows_every_step(tmp_path: Path) -> None:
    """Its pictures are the models and candidates of a training without a film, which ends at the same model."""
    x, optimizer = problem()
    film = animate(optimizer, lambda: valley(x), 4, resolution=5)
    y, other = problem()
    figure, seen = film._fig, []
    for step in range(4):
        film._func(step)
        _, points, model = figure.axes[0].collections
        expected = next_candidates(other, lambda: valley(y))
        torch.testing.assert_close(torch.tensor(points.get_offsets().tolist()), expected)
        assert model.get_offsets().tolist() == [y.tolist()]
        assert figure.axes[0].get_title() == f"{step} steps, {other.evaluations} evaluations"
        other.step(lambda: valley(y))
        seen.append(expected)
    assert torch.equal(x, y)
    (left, right), (bottom, top) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    assert all(left < u < right and bottom < v < top for u, v in torch.cat(seen).tolist())
    film.save(tmp_path / "film.gif", writer="pillow")
    with Image.open(tmp_path / "film.gif") as pictures:
        assert pictures.n_frames == 4


def test_matplotlib_is_asked_for_where_it_is_needed() -> None:
    """Everything imports without it; a figure says how to install it."""
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import torch_gfo.plotting as plotting\n"
        "class Run: records = [{'evaluations': 1, 'seconds': 1.0, 'loss': 1.0}]\n"
        "plotting.plot_history({'run': Run()})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: Figures need the package matplotlib" in done.stderr
    assert "pip install matplotlib" in done.stderr
