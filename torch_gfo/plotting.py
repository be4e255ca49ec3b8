"""Figures: a training's course, and a population in the landscape of its loss.

Needs matplotlib: ``pip install matplotlib``. The figures are matplotlib's own, to be changed and saved as such.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from torch_gfo.evaluation import Evaluator, Plan
from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.options import check_integer
from torch_gfo.search import generator
from torch_gfo.space import ParameterVector, searchable, with_groups

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plane", "Recorded", "animate", "next_candidates", "plot_history", "plot_population"]

View = tuple[float, float, float, float]

_COUNTS = ("step", "evaluations", "seconds")
_N_LEVELS = 16


class Recorded(Protocol):
    """What has records of a training, as ``torch_gfo.callbacks.History`` has."""

    @property
    def records(self) -> Sequence[Mapping[str, float]]:
        """One mapping a step, with ``"evaluations"``, ``"seconds"``, ``"loss"`` and any metrics."""


def plot_history(histories: Mapping[str, Recorded], values: Sequence[str] | None = None) -> Figure:
    """Draws the loss and the metrics of one or more runs against evaluations and against time.

    Compare optimizers by the evaluations: the seconds are those of one machine, and hold what else the loop does.

    Args:
        histories: The runs by their labels. A value that a run records at some steps alone is drawn at these.
        values: What to draw, a row each. Default: None, the loss and every metric.

    Returns:
        The figure, with the evaluations in the left column and the seconds in the right one.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no run, or no run has recorded one of the values.

    Example:
        >>> from torch_gfo.plotting import plot_history
        >>> class History:
        ...     records = [{"step": 1, "evaluations": 9, "seconds": 0.1, "loss": 3.0}]
        >>> figure = plot_history({"GA": History()})
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['evaluations', 'seconds']
    """
    recorded = {name for history in histories.values() for record in history.records for name in record}
    rows = ["loss", *sorted(recorded - {*_COUNTS, "loss"})] if values is None else list(values)
    for name in rows:
        if name not in recorded:
            names = ", ".join(sorted(recorded)) or "none"
            raise ValueError(f"No run has recorded {name!r}, so it cannot be drawn. Recorded are: {names}.")
    figure: Figure
    figure, axes = _matplotlib("pyplot").subplots(
        len(rows), 2, squeeze=False, sharex="col", sharey="row", layout="constrained", figsize=(9, 3 * len(rows))
    )
    for name, pair in zip(rows, axes, strict=True):
        for count, panel in zip(("evaluations", "seconds"), pair, strict=True):
            for label, history in histories.items():
                records = [record for record in history.records if name in record]
                panel.plot([r[count] for r in records], [r[name] for r in records], label=label, linewidth=1.2)
            panel.grid(alpha=0.3)
        pair[0].set_ylabel(name)
    for count, panel in zip(("evaluations", "seconds"), axes[-1], strict=True):
        panel.set_xlabel(count)
    axes[0, 0].legend()
    return figure


def next_candidates(optimizer: GradientFreeOptimizer, closure: Callable[[], Any]) -> Tensor:
    """Returns the points ``(P, dim)`` at which the optimizer's next step evaluates the closure, beside the model's own.

    A copy of the optimizer makes the step, by ``ask()`` and ``tell()``; optimizer and model stay as they are. Of a
    closure that gives one model other losses each time it shows a step, not the step. Layers' inputs are not seen by
    ``ask()``: for what ``EGGROLL`` evaluates, give it ``input_span=None``.

    Args:
        optimizer: The optimizer, without ``distributed``.
        closure: Evaluates the model and returns the loss, as for ``step``.

    Raises:
        RuntimeError: If the optimizer shares its evaluations among ranks, or no parameter requires grad.

    Example:
        >>> import torch, torch_gfo
        >>> from torch_gfo.plotting import next_candidates
        >>> x = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch_gfo.GA([x], popsize=8, seed=0)
        >>> tuple(next_candidates(optimizer, lambda: x.square().sum()).shape), optimizer.evaluations
        ((8, 2), 0)
    """
    return _next_candidates(optimizer, _Losses(optimizer, closure))


def _next_candidates(optimizer: GradientFreeOptimizer, losses: _Losses) -> Tensor:
    twin, rounds = copy.deepcopy(optimizer), []

    def n_steps() -> int:
        return int(next(iter(twin.state.values()))["step"])  # states are replaced where a search begins anew

    before = n_steps()
    while n_steps() == before:
        rounds.append(twin.ask())
        twin.tell(losses(rounds[-1]))
    rows = torch.cat(rounds)
    return rows[(rows != losses.vector.read()).any(1)]


@dataclass(frozen=True)
class Plane:
    """A plane through the space of the parameters.

    Attributes:
        origin: ``(dim,)``, a point of it.
        directions: ``(2, dim)``, orthonormal; coordinates are distances along them.
    """

    origin: Tensor
    directions: Tensor

    @classmethod
    def through(cls, origin: Tensor, directions: Tensor) -> Plane:
        """The plane through a point along two directions, which are made orthonormal.

        Raises:
            ValueError: If they are not two of the right length, or parallel.
        """
        shape = (2, origin.numel())
        if tuple(directions.shape) != shape:
            raise ValueError(f"directions must be two vectors, of shape {shape}, got {tuple(directions.shape)}.")
        first, second = directions.to(origin)
        u = first / first.norm()
        rest = second - (second @ u) * u
        if not rest.norm() > torch.finfo(origin.dtype).eps ** 0.5 * second.norm():  # NaN, too
            raise ValueError("directions must span a plane, but one of them is zero, or they are parallel.")
        return cls(origin, torch.stack([u, rest / rest.norm()]))

    def project(self, points: Tensor) -> Tensor:
        """The coordinates ``(P, 2)`` of the points ``(P, dim)``, projected onto the plane at right angles."""
        return (points - self.origin) @ self.directions.T

    def points(self, coordinates: Tensor) -> Tensor:
        """The points ``(P, dim)`` at coordinates ``(P, 2)``."""
        return self.origin + coordinates @ self.directions


def plot_population(
    optimizer: GradientFreeOptimizer,
    closure: Callable[[], Any],
    *,
    candidates: Tensor | None = None,
    directions: Tensor | None = None,
    view: View | None = None,
    resolution: int = 40,
    axes: Axes | None = None,
) -> Axes:
    """Draws the model and the next candidates in a plane of the loss's landscape.

    Of two parameters the plane is theirs. Of more, it goes through the model, and the candidates are projected onto it:
    the landscape is that of the plane, and a candidate off the plane has another loss than the colour beneath it.

    Args:
        optimizer: The optimizer, which is left as it is.
        closure: Evaluates the model and returns the loss, as for ``step``. It is called ``resolution**2`` times for the
            landscape, in a batch where that works.
        candidates: ``(P, dim)``, the points to draw. Default: None, those of ``next_candidates``.
        directions: ``(2, dim)``, of the plane, for more than two parameters. Default: None, those in which the
            candidates lie farthest from the model.
        view: ``(left, right, bottom, top)`` of the plane. Default: None, where the candidates are.
        resolution: Points of the landscape in each direction, at least 2. Default: 40.
        axes: Where to draw. Default: None, in a new figure.

    Returns:
        The axes. The colours change at quantiles of the losses: each covers the same area.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: For fewer than two parameters, or arguments of the wrong shape.

    Example:
        >>> import torch, torch_gfo
        >>> from torch_gfo.plotting import plot_population
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
        >>> optimizer = torch_gfo.CMAES([x], popsize=12, seed=0)
        >>> axes = plot_population(optimizer, lambda: (x**2).sum())
        >>> len(axes.collections[-2].get_offsets())
        12
    """
    losses = _Losses(optimizer, closure)
    model = losses.vector.read()
    rows = _next_candidates(optimizer, losses) if candidates is None else candidates.to(model)
    plane = _plane(model, rows, directions)
    if axes is None:
        axes = _matplotlib("pyplot").subplots(layout="constrained")[1]
    _draw_landscape(axes, losses, plane, view or _around(plane.project(torch.cat([model[None], rows]))), resolution)
    _draw_points(axes, plane, model, rows)
    return axes


def animate(
    optimizer: GradientFreeOptimizer,
    closure: Callable[[], Any],
    n_steps: int,
    *,
    directions: Tensor | None = None,
    view: View | None = None,
    resolution: int = 40,
    interval: int = 200,
) -> FuncAnimation:
    """Makes steps of the optimizer, and shows them as a film.

    The steps are made at once, before the film is shown: the model is trained, and playing it again changes nothing.

    Args:
        optimizer: The optimizer. It makes ``n_steps`` steps.
        closure: Evaluates the model and returns the loss.
        n_steps: How many pictures to make, each with the model and the candidates of the step that follows.
        directions: Of the plane, see ``plot_population``; by default, of all candidates, around the first model.
        view: Of the plane. Default: None, where all candidates are.
        resolution: Points of the landscape in each direction. Default: 40.
        interval: Milliseconds from one picture to the next. Default: 200.

    Returns:
        The animation, to be kept in a variable as long as it is shown, or saved by its ``save`` or ``to_jshtml``.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: For fewer than two parameters, or an argument outside its range.

    Example:
        >>> import torch, torch_gfo
        >>> from torch_gfo.plotting import animate
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
        >>> film = animate(torch_gfo.PSO([x], seed=0), lambda: (x**2).sum(), n_steps=3, resolution=10)
        >>> page = film.to_jshtml()
    """
    check_integer("n_steps", n_steps, 1)
    figure, axes = _matplotlib("pyplot").subplots(layout="constrained")
    losses, scenes = _Losses(optimizer, closure), []
    for _ in range(n_steps):
        scenes.append((losses.vector.read(), _next_candidates(optimizer, losses), optimizer.evaluations))
        optimizer.step(closure)
    models, populations, evaluations = zip(*scenes, strict=True)
    seen = torch.cat([torch.stack(models), *populations])
    plane = _plane(models[0], seen, directions)
    _draw_landscape(axes, losses, plane, view or _around(plane.project(seen)), resolution)
    points, model = _draw_points(axes, plane, models[0], populations[0])

    def show(i: int) -> list[Any]:
        points.set_offsets(plane.project(populations[i]).tolist())
        model.set_offsets(plane.project(models[i][None]).tolist())
        axes.set_title(f"{i} steps, {evaluations[i]:,} evaluations")
        return [points, model]

    animation: FuncAnimation = _matplotlib("animation").FuncAnimation(figure, show, frames=n_steps, interval=interval)
    return animation


class _Losses:
    """What the closure returns at points ``(P, dim)``; leaves no trace."""

    def __init__(self, optimizer: GradientFreeOptimizer, closure: Callable[[], Any]) -> None:
        group = optimizer.param_groups[0]
        self.vector = ParameterVector([p for p, _ in with_groups(optimizer.param_groups) if searchable(p)])
        self._closure, self._plan = closure, Plan()
        self._evaluator = Evaluator(group["evaluation"], group["chunk_size"])

    @torch.no_grad()
    def __call__(self, points: Tensor) -> Tensor:
        with self._evaluator.session(self._closure, self.vector, self._plan) as session:
            losses = session.losses(points)
        self._plan = session.plan
        return losses


def _plane(model: Tensor, rows: Tensor, directions: Tensor | None) -> Plane:
    """That of two parameters; or through the model, by default along the principal directions of the rows."""
    if model.numel() < 2:
        raise ValueError(f"A plane needs two parameters that require grad, and there is {model.numel()}.")
    if directions is not None:
        return Plane.through(model, directions)
    if model.numel() == 2:
        return Plane(torch.zeros_like(model), torch.eye(2).to(model))
    principal = torch.linalg.svd(rows - model, full_matrices=False).Vh
    others = torch.empty(2, model.numel()).normal_(generator=generator(0, "plane", 0, torch.device("cpu")))
    return Plane.through(model, torch.cat([principal, others.to(model)])[:2])  # a single row has one direction


def _around(coordinates: Tensor) -> View:
    """A square around points ``(P, 2)`` of a plane, with a margin."""
    low, high = coordinates.amin(0), coordinates.amax(0)
    half = 0.65 * (float((high - low).max()) or 1.0)
    x, y = ((low + high) / 2).tolist()
    return x - half, x + half, y - half, y + half


def _draw_landscape(axes: Axes, losses: _Losses, plane: Plane, view: View, resolution: int) -> None:
    """Contours, a row of the grid at a time: all points of a large model would not fit into memory."""
    check_integer("resolution", resolution, 2)
    left, right, bottom, top = view
    x, y = torch.linspace(left, right, resolution), torch.linspace(bottom, top, resolution)
    grid = torch.cartesian_prod(y, x).flip(1).to(plane.origin)
    values = torch.stack([losses(plane.points(line)) for line in torch.split(grid, resolution)]).double()
    values = torch.where(values.isfinite(), values, torch.nan)  # is left white
    quantiles = values.nanquantile(torch.linspace(0, 1, _N_LEVELS, dtype=values.dtype, device=values.device))
    levels = sorted(set(quantiles[quantiles.isfinite()].tolist()))
    if len(levels) > 1:  # else it is flat, or nowhere finite
        norm = _matplotlib("colors").BoundaryNorm(levels, 256)
        axes.contourf(x.tolist(), y.tolist(), values.tolist(), levels=levels, cmap="viridis_r", norm=norm)
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")


def _draw_points(axes: Axes, plane: Plane, model: Tensor, rows: Tensor) -> tuple[Any, Any]:
    (x, y), (model_x, model_y) = plane.project(rows).T.tolist(), plane.project(model[None]).T.tolist()
    points = axes.scatter(x, y, s=14, color="white", edgecolors="black", linewidths=0.6)
    return points, axes.scatter(model_x, model_y, s=70, color="red", marker="*", zorder=3)


def _matplotlib(module: str) -> Any:
    """Imports a module of matplotlib when it is needed, or says how to install it."""
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise ImportError(
            f"Figures need the package matplotlib, which cannot be imported ({error}). "
            "Install it with: pip install matplotlib"
        ) from error
