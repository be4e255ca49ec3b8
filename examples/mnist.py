"""Train MNIST with gradient-free optimizers and with PyTorch's own, in one ordinary training loop.

    python examples/mnist.py                                    # four optimizers without gradients, and Adam
    python examples/mnist.py --optimizer GA --model cnn --data DIR --evaluations 50000
    python examples/mnist.py --optimizer PSO --option topology=ring --optimizer PSO --option topology=random
    python examples/mnist.py --objective accuracy               # which has no gradient
    torchrun --nproc-per-node 2 examples/mnist.py               # two processes share the candidates

The loop is in ``train``. What it counts are closure evaluations, for they are what a search without gradients spends:
one for each candidate of a step.
"""

import argparse
import importlib.util
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from mnist_data import Data, load_full, load_sample
from mnist_report import draw, table
from mnist_run import OBJECTIVES, Run, Settings
from optimizer_table import OPTIMIZERS, OptimizerChoice, UserError, parse_option
from tqdm import tqdm

DEFAULT_OPTIMIZERS = ("PSO", "GA", "NelderMead", "RandomSearch", "Adam")


def train(
    run: Run,
    interrupted: Callable[[], bool] = lambda: False,
    measured: Callable[[], None] = lambda: None,
) -> None:
    """Trains until the evaluations are spent, the validation loss stalls or ``interrupted()``.

    Args:
        run: The model, the optimizer and the data.
        interrupted: Asked before every step.
        measured: Called after every measurement.
    """
    model, optimizer, objective = run.model, run.optimizer, run.objective
    with progress_bar(run) as bar:
        while True:
            if run.is_due:
                run.curve.append(run.measure())
                measured()
            if run.is_finished or interrupted():
                break
            before, started = run.evaluations, time.perf_counter()

            images, digits = next(run.batches)

            def closure():
                optimizer.zero_grad()
                loss = objective(model(images), digits)
                loss.backward()
                return loss

            loss = optimizer.step(closure)

            run.count_step(run.evaluations - before, time.perf_counter() - started)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update(run.evaluations - before)


def progress_bar(run: Run) -> "tqdm[NoReturn]":
    """Returns a bar that counts evaluations; rarely drawn where it goes to a file."""
    return tqdm(
        desc=run.label,
        total=run.settings.evaluations,
        initial=run.evaluations,
        unit=" evaluations",
        mininterval=0.2 if sys.stderr.isatty() else 5,
        dynamic_ncols=True,
        disable=rank() > 0,
    )


@contextmanager
def torchrun(device: str) -> Iterator[None]:
    """Joins the processes that torchrun has started, if it has; the first of them prints and writes."""
    if not dist.is_torchelastic_launched():
        yield
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        with redirect_stdout(None) if rank() > 0 else nullcontext():
            yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Returns the number of this process among those of torchrun; 0 without it."""
    return dist.get_rank() if dist.is_initialized() else 0


class Interrupt:
    """While it is open, Ctrl-C ends the training after the current step; a second Ctrl-C, the program at once.

    Processes of torchrun would end after different steps: there, the first one ends the program.
    """

    def __enter__(self) -> "Interrupt":
        """Takes over Ctrl-C."""
        self.requested = False
        self._before = signal.getsignal(signal.SIGINT)
        if not dist.is_initialized():
            signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *error: object) -> None:
        """Gives Ctrl-C back."""
        signal.signal(signal.SIGINT, self._before)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._before)

    def __call__(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self.requested


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and exits with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def build_parser() -> Parser:
    """Returns the parser of the command line; what it is not given of ``Settings`` stays unset."""
    parser = Parser(
        prog="mnist.py",
        description="Train MNIST with gradient-free optimizers and with PyTorch's own, in one ordinary training loop.",
        epilog=f"Optimizers: {', '.join(sorted(OPTIMIZERS))}.",
    )
    default = Settings()
    common: dict[str, Any] = {"default": argparse.SUPPRESS}

    add = parser.add_argument_group("optimizers").add_argument
    names = ", ".join(DEFAULT_OPTIMIZERS)
    add("--optimizer", dest="words", action="append", metavar="NAME", help=f"repeatable (default: {names})")
    help_text = "argument of the optimizer named before it, or of all if it comes first; repeatable"
    add("--option", dest="words", action="append", type=parse_option, metavar="KEY=VALUE", help=help_text)

    add = parser.add_argument_group("training").add_argument
    add("--model", choices=("mlp", "cnn"), help=f"(default: {default.model})", **common)
    add("--hidden", type=positive, help=f"hidden units of the mlp (default: {default.hidden})", **common)
    add("--objective", choices=[*OBJECTIVES], help=f"what to train (default: {default.objective})", **common)
    add("--evaluations", type=positive, help=f"closure evaluations (default: {default.evaluations})", **common)
    add("--batch-size", type=positive, help=f"images of one evaluation (default: {default.batch_size})", **common)
    add("--seed", type=int, help=f"of weights, minibatches and optimizer (default: {default.seed})", **common)
    add("--check-every", type=positive, help="evaluations from one measurement to the next (default: 1/40)", **common)
    help_text = "measurements without a better validation loss before stopping early, 0 for never"
    add("--patience", type=int, help=f"{help_text} (default: {default.patience})", **common)
    add("--device", default="cpu", help="(default: cpu)")
    add("--threads", type=positive, default=1, help="of the processor; more pay for large models on idle cores")

    add = parser.add_argument_group("files").add_argument
    add("--data", type=Path, metavar="DIR", help="where MNIST/raw is (default: the embedded sample)")
    add("--download", action="store_true", help="download MNIST into DIR, or into data")
    add("--checkpoint", type=Path, metavar="FILE", help="save the training here at every measurement and at the end")
    add("--resume", type=Path, metavar="FILE", help="continue the training saved here, with its settings")
    add("--plot", type=Path, metavar="FILE", help="draw test accuracy against evaluations and against seconds")
    return parser


def positive(text: str) -> int:
    """Reads an integer greater than 0."""
    if int(text) <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not greater than 0")
    return int(text)


def choose(words: Iterable[Any], objective: str) -> list[OptimizerChoice]:
    """Reads optimizers' names and ``(key, value)`` options in the order in which they were given."""
    common: dict[str, Any] = {}
    choices: list[OptimizerChoice] = []
    for word in words:
        if isinstance(word, str):
            choices.append(OptimizerChoice(word, dict(common)))
        else:
            options = choices[-1].options if choices else common
            options.update([word])
    if not choices:
        choices = [OptimizerChoice(name, dict(common)) for name in DEFAULT_OPTIMIZERS]
        choices = [choice for choice in choices if choice.is_gradient_free or objective != "accuracy"]
    return choices


def load_data(args: argparse.Namespace) -> Data:
    """Returns the data set that the command line asks for, the sample if there is none, and says which."""
    try:
        device = torch.empty(0, device=args.device).device
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"--device {args.device}: {one_line(error)}") from error
    if args.download and dist.is_initialized():
        raise UserError("--download: not under torchrun, where all processes would; run it once without")
    if args.data or args.download:
        root = args.data or Path("data")
        try:
            return load_full(root, args.download, device)
        except ImportError as error:
            raise UserError(f"the full data set needs torchvision: {one_line(error)}") from error
        except (OSError, RuntimeError) as error:
            if not args.download:
                raise UserError(f"no MNIST in {root}: expected {root / 'MNIST' / 'raw'}; --download gets it") from error
            print(f"MNIST could not be downloaded into {root}: {one_line(error)}")
    print("Using the embedded sample of MNIST; for the full data set, give --data DIR or --download.")
    return load_sample(device)


def one_line(error: Exception) -> str:
    """Returns an error's message without its line breaks."""
    return " ".join(str(error).split())


def check_files(args: argparse.Namespace) -> None:
    """Finds out before the training what could not be written after it."""
    for path in (args.checkpoint, args.plot):
        if path and not path.absolute().parent.is_dir():
            raise UserError(f"{path}: there is no directory {path.parent}")
    if args.plot and args.plot.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--plot {args.plot}: the name must end in .png, .pdf or .svg")
    if args.plot and not importlib.util.find_spec("matplotlib"):
        raise UserError("--plot needs matplotlib: pip install matplotlib")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what ``save_checkpoint`` has written."""
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if saved.keys() == {"settings", "words", "images", "runs"}:
            return saved
    except OSError as error:
        raise UserError(f"--resume {path}: {error.strerror}") from error
    except (EOFError, RuntimeError, AttributeError, pickle.UnpicklingError):
        pass
    raise UserError(f"--resume {path}: not a checkpoint of this program")


def save_checkpoint(path: Path, settings: Settings, words: Sequence[Any], runs: Sequence[Run]) -> None:
    """Writes a checkpoint; an earlier one is replaced when the new one is complete."""
    part = path.with_name(path.name + ".part")
    images = len(runs[0].data.train)
    states = [run.state_dict() for run in runs]
    torch.save({"settings": asdict(settings), "words": words, "images": images, "runs": states}, part)
    os.replace(part, path)


def choose_settings(args: argparse.Namespace, saved: dict[str, Any] | None) -> Settings:
    """Returns the settings of the command line, or those of the checkpoint with a few that may be changed."""
    given = {field.name: getattr(args, field.name) for field in fields(Settings) if hasattr(args, field.name)}
    if saved is None:
        evaluations = given.get("evaluations", Settings.evaluations)
        return Settings(**{"check_every": max(1, evaluations // 40), **given})
    for name, value in given.items():
        if name not in ("evaluations", "patience") and value != saved["settings"][name]:
            raise UserError(f"--{name.replace('_', '-')} {value}: the resumed training has {saved['settings'][name]}")
    if args.words:
        raise UserError("--optimizer and --option: a resumed training keeps those it has")
    return replace(Settings(**saved["settings"]), **given)


def run_command(args: argparse.Namespace) -> int:
    """Trains what the command line asks for; returns the exit status."""
    check_files(args)
    torch.set_num_threads(args.threads)
    saved = load_checkpoint(args.resume) if args.resume else None
    settings = choose_settings(args, saved)
    words = saved["words"] if saved else args.words or []
    choices = choose(words, settings.objective)
    data = load_data(args)
    runs = [Run(choice, settings, data) for choice in choices]
    if saved:
        if saved["images"] != len(data.train):
            raise UserError(
                f"--resume: trained on {saved['images']:,} images, not {len(data.train):,}: give its --data"
            )
        for run, state in zip(runs, saved["runs"], strict=True):
            run.load_state_dict(state)

    file = args.checkpoint or args.resume
    save = partial(save_checkpoint, file, settings, words, runs) if file and rank() == 0 else lambda: None
    title = describe(settings, runs[0])
    print(title)
    with Interrupt() as interrupted:
        for run in runs:
            if not interrupted():
                train(run, interrupted, save)
        save()

    results = [run.result() for run in runs if run.steps]
    print(table(results))
    for run in runs:
        if run.is_stalled:
            print(f"{run.label} stopped early: no better validation loss in {settings.patience} measurements.")
    if args.plot and rank() == 0:
        draw(results, title, args.plot)
        print(f"Figure: {args.plot}")
    if interrupted():
        print(f"Interrupted; continue with --resume {file}" if file else "Interrupted.")
    return 130 if interrupted() else 0


def describe(settings: Settings, run: Run) -> str:
    """Returns a line about what is trained on what."""
    model = f"MLP 784-{settings.hidden}-10" if settings.model == "mlp" else "CNN"
    size = sum(parameter.numel() for parameter in run.model.parameters())
    return (
        f"MNIST, {len(run.data.train):,} training and {len(run.data.test):,} test images; "
        f"{model}, {size:,} parameters; "
        f"{settings.objective}, batches of {settings.batch_size}, {settings.evaluations:,} evaluations"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; a mistake in it is one line and exit status 2."""
    parser = build_parser()
    try:
        args = parser.parse_args(argv)
        with torchrun(args.device):
            return run_command(args)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
