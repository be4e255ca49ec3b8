"""The figures of the README and of the algorithms' pages.

``python examples/figures.py`` draws all of them again, ``--only cma_es`` some; they are seeded, and only the seconds of
a training differ from run to run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import pyplot
from torch import Tensor, nn

import torch_gfo
from torch_gfo.callbacks import Callbacks, EarlyStopping, History
from torch_gfo.plotting import animate, next_candidates, plot_history, plot_population

matplotlib.use("Agg")

DOCS = Path(__file__).parents[1] / "docs"
VIEW = (-2.2, 2.2, -1.4, 3.0)
START = (-1.3, 2.4)


@dataclass(frozen=True)
class Shown:
    """How an optimizer is shown: its arguments, and the steps before which it is drawn.

    Attributes:
        at: The steps.
        trail: Of how many steps the candidates are drawn together, for an optimizer that evaluates few in each.
        options: Beside ``seed`` and ``sigma``.
    """

    at: tuple[int, int, int, int] = (0, 5, 15, 40)
    trail: int = 1
    options: dict[str, Any] = field(default_factory=dict)


SHOWN = {
    "ARS": Shown(options={"n_directions": 8}),
    "CMAES": Shown((0, 8, 20, 40), options={"popsize": 12}),
    "DE": Shown((0, 10, 30, 60)),
    "DeepGA": Shown(options={"popsize": 32}),
    "EGGROLL": Shown(options={"popsize": 16, "input_span": None}),
    "GA": Shown(),
    "LMMAES": Shown((0, 8, 20, 40), options={"popsize": 12, "memory": 1}),
    "MeZO": Shown((0, 20, 60, 150), 10),
    "NelderMead": Shown((0, 10, 20, 40), 10),
    "Nevergrad": Shown((0, 8, 20, 40), options={"optimizer": "CMA", "num_workers": 12}),
    "OpenAIES": Shown(options={"popsize": 16}),
    "PGPE": Shown(options={"popsize": 16}),
    "PSO": Shown(),
    "PyCMA": Shown((0, 8, 20, 40), options={"options": {"popsize": 12}}),
    "RandomSearch": Shown(),
    "SNES": Shown((0, 8, 20, 40), options={"popsize": 12}),
    "SPSA": Shown((0, 20, 60, 150), 10),
    "SepCMAES": Shown((0, 8, 20, 40), options={"popsize": 12}),
    "SimulatedAnnealing": Shown((0, 10, 40, 120), 4),
    "XNES": Shown((0, 8, 20, 40), options={"popsize": 12}),
}


def valley(x: Tensor) -> Tensor:
    """A valley that bends, with the minimum at (1, 1)."""
    a, b = x.flatten()
    loss: Tensor = 5 * (b - a**2) ** 2 + (1 - a) ** 2
    return loss


def draw_steps(name: str, shown: Shown) -> Any:
    """Draws an optimizer in the valley, at four moments: a star at the model, circles at the candidates."""
    x = nn.Parameter(torch.tensor([START]))  # a matrix, for perturbations of low rank
    optimizer = getattr(torch_gfo, name)([x], sigma=0.4, seed=0, **shown.options)

    def closure() -> Tensor:
        return valley(x)

    figure, panels = pyplot.subplots(1, 4, figsize=(10, 2.8), sharey=True, layout="constrained")
    candidates: list[Tensor] = []
    for step in range(shown.at[-1] + 1):
        candidates = [*candidates[1 - shown.trail :], next_candidates(optimizer, closure)][-shown.trail :]
        if step in shown.at:
            axes = panels[shown.at.index(step)]
            plot_population(optimizer, closure, candidates=torch.cat(candidates), view=VIEW, resolution=60, axes=axes)
            axes.set_title(f"step {step}, {optimizer.evaluations:,} evaluations", fontsize=9)
        optimizer.step(closure)
    return figure


def film_steps(path: Path) -> None:
    """Films a swarm in the valley, and saves the film under a name without its ending."""
    x = nn.Parameter(torch.tensor(START))
    optimizer = torch_gfo.PSO([x], sigma=0.4, seed=0)
    with matplotlib.rc_context({"figure.figsize": (4, 3.6)}):
        film = animate(optimizer, lambda: valley(x), n_steps=40, view=VIEW, resolution=60)
    film.save(path.with_suffix(".gif"), writer="pillow", dpi=70)
    pyplot.close()  # the film's figure, which is the last one


def train(name: str, evaluations: int) -> History:
    """Trains a small network, to a loss of 0.01 at most, to tell whether two of eight numbers have the same sign."""
    torch.manual_seed(0)
    inputs = torch.randn(512, 8)
    targets = (inputs[:, 0] * inputs[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    make = partial(torch.optim.Adam, lr=0.02) if name == "Adam" else partial(getattr(torch_gfo, name), seed=0)
    optimizer: Any = make(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    history, ends = History(), False
    callbacks = Callbacks(history, EarlyStopping(target=0.01))
    while not ends:
        loss = optimizer.step(closure).detach()
        accuracy = (model(inputs).argmax(1) == targets).float().mean()
        ends = callbacks(optimizer, loss, accuracy=accuracy) or history.records[-1]["evaluations"] >= evaluations
    return history


def draw_trainings(evaluations: int) -> Any:
    """Draws the loss and the accuracy of the network, trained by several optimizers."""
    return plot_history({name: train(name, evaluations) for name in ("EGGROLL", "OpenAIES", "GA", "PSO", "Adam")})


def save(draw: Callable[[], Any], path: Path) -> None:
    """Draws a figure, and saves it under a name without its ending."""
    figure = draw()
    figure.savefig(path.with_suffix(".png"), dpi=90, metadata={"Software": None})
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=DOCS / "figures", help="where to; default: docs/figures")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="of files, without their endings; default: all")
    parser.add_argument("--evaluations", type=int, default=5000, help="of the trainings; default: 5000")
    options = parser.parse_args(arguments)
    figures: dict[str, Callable[[Path], None]] = {
        "film": film_steps,
        "history": partial(save, partial(draw_trainings, options.evaluations)),
    }
    for name, shown in SHOWN.items():
        page = getattr(torch_gfo, name).__module__.rpartition(".")[2]
        figures[page] = partial(save, partial(draw_steps, name, shown))
    unknown = sorted({*(options.only or ())} - figures.keys())
    if unknown:
        parser.error(f"no figure is called {', '.join(unknown)}; choose from {', '.join(figures)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only or figures:
        figures[name](options.folder / name)


if __name__ == "__main__":
    main()
