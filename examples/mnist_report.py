"""What a training leaves: a table and a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Point", "Result", "draw", "table"]


@dataclass(frozen=True)
class Point:
    """A measurement of the model in the course of its training; measuring is not part of ``seconds``."""

    evaluations: int
    seconds: float
    validation_loss: float
    test_accuracy: float


@dataclass(frozen=True)
class Result:
    """The course of one training, its last point included, and the trained model's loss on the training images."""

    label: str
    curve: list[Point]
    train_loss: float


def table(results: Sequence[Result]) -> str:
    """Returns one line for each optimizer."""
    rows = [("optimizer", "evaluations", "seconds", "train loss", "test accuracy")]
    for result in results:
        last = result.curve[-1]
        rows.append(
            (
                result.label,
                f"{last.evaluations:,}",
                f"{last.seconds:.1f}",
                f"{result.train_loss:.4f}",
                f"{last.test_accuracy:.2%}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def draw(results: Sequence[Result], title: str, path: Path) -> None:
    """Draws test accuracy against evaluations and against seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
    for result in results:
        accuracy = [100 * point.test_accuracy for point in result.curve]
        left.plot([point.evaluations for point in result.curve], accuracy, label=result.label)
        right.plot([point.seconds for point in result.curve], accuracy, label=result.label)
    left.set(xlabel="closure evaluations", ylabel="test accuracy (%)", ylim=(0, 100))
    right.set(xlabel="seconds of training")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize="medium", wrap=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
