"""The examples: their loops, their command lines, and their checkpoints."""

import doctest
import gzip
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import figures
import mnist
import mnist_data
import optimizer_table
import pytest
import rl_ars
import torch

from tests.registry import ENTRIES

SMALL = ["--hidden", "8", "--batch-size", "32", "--evaluations", "300", "--check-every", "100"]
OURS = ["PSO", "GA", "NelderMead", "RandomSearch", "OpenAIES", "PGPE", "ARS"]


def saved(path: Path) -> list[dict[str, Any]]:
    """The runs of a checkpoint, without the seconds that they took."""
    runs: list[dict[str, Any]] = torch.load(path, weights_only=True)["runs"]
    for run in runs:
        steps, _, costliest = run["counters"]
        run["counters"] = steps, costliest
        run["curve"] = [(evaluations, *scores) for evaluations, _, *scores in run["curve"]]
    return runs


def assert_same(a: Any, b: Any) -> None:
    """Equal bit for bit, tensors and NaN included."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        assert_same([*a.values()], [*b.values()])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b or (a != a and b != b)


def test_default_run_prints_the_table_and_draws_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "figure.png"
    assert mnist.main([*SMALL, "--plot", str(plot)]) == 0
    output = capsys.readouterr().out
    assert "embedded sample" in output
    header, _, *rows = output[output.index("optimizer  ") :].splitlines()[:7]
    assert header.split() == ["optimizer", "evaluations", "seconds", "train", "loss", "test", "accuracy"]
    assert [re.match(r"\w+", row).group() for row in rows] == list(mnist.DEFAULT_OPTIMIZERS)  # type: ignore[union-attr]
    for row in rows:
        assert re.search(r" +(\d+) +\d+\.\d +\d\.\d{4} +\d+\.\d\d%$", row)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", OURS)
def test_never_spends_more_evaluations_than_allowed(name: str, tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    mnist.main([*SMALL, "--optimizer", name, "--checkpoint", str(file)])
    (run,) = torch.load(file, weights_only=True)["runs"]
    (evaluations,) = (state["evaluations"] for state in run["optimizer"]["state"].values() if "evaluations" in state)
    assert 200 <= evaluations <= 300


def test_accuracy_is_an_objective_without_gradient(capsys: pytest.CaptureFixture[str]) -> None:
    assert mnist.main([*SMALL, "--objective", "accuracy", "--optimizer", "RandomSearch"]) == 0
    assert "accuracy, batches of 32" in capsys.readouterr().out


def test_cnn_has_the_parameters_it_should_have(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "cnn", "--optimizer", "SGD", "--evaluations", "2", "--batch-size", "8"]
    assert mnist.main(arguments) == 0
    assert "CNN, 11,274 parameters" in capsys.readouterr().out


def test_early_stopping(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--optimizer", "SGD", "--option", "lr=0", "--evaluations", "100", "--patience", "3"]
    assert mnist.main([*arguments, "--batch-size", "8", "--check-every", "5"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"SGD\(lr=0\) +15 ", output)
    assert "SGD(lr=0) stopped early" in output


def test_every_class_is_in_the_table() -> None:
    assert {*OURS, "SGD", "Adam", "LBFGS"} <= optimizer_table.OPTIMIZERS.keys()
    assert "Optimizer" not in optimizer_table.OPTIMIZERS
    assert doctest.testmod(optimizer_table).failed == 0


def test_options_belong_to_the_optimizer_before_them_or_to_all() -> None:
    words = [("lr", 0.5), "SGD", ("momentum", 0.9), "SGD", ("lr", 0.1)]
    first, second = mnist.choose(words, "cross-entropy")
    assert first.options == {"lr": 0.5, "momentum": 0.9}
    assert second.options == {"lr": 0.1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "RandomSerch"], "did you mean RandomSearch?"),
        (["--optimizer", "zzz"], "choose from"),
        (["--optimizer", "Adam", "--option", "popsize=3"], "Adam has no option 'popsize'"),
        (["--optimizer", "PSO", "--option", "particels=3"], "particels"),
        (["--optimizer", "PSO", "--option", "sigma=-1"], "sigma"),
        (["--optimizer", "SGD", "--option", "lr"], "KEY=VALUE"),
        (["--optimizer", "SGD", "--objective", "accuracy"], "accuracy has none"),
        (["--data", "nowhere"], "no MNIST in nowhere"),
        (["--device", "abacus"], "--device abacus"),
        (["--evaluations", "0"], "--evaluations"),
        (["--no-such-option"], "--no-such-option"),
        (["--resume", "nothing.pt"], "nothing.pt"),
        (["--resume", __file__], "not a checkpoint"),
        (["--plot", "nowhere/figure.png"], "no directory nowhere"),
        (["--plot", "figure.txt"], ".png"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        mnist.main(arguments)
    assert error.value.code == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1


def test_runs_are_deterministic(tmp_path: Path) -> None:
    files = tmp_path / "a.pt", tmp_path / "b.pt"
    for file in files:
        mnist.main([*SMALL, "--option", "evaluation=vectorized", *names(OURS), "--checkpoint", str(file)])
    assert_same(*map(saved, files))


@pytest.mark.parametrize("evaluation", ["sequential", "vectorized"])
def test_a_resumed_run_equals_an_uninterrupted_one(evaluation: str, tmp_path: Path) -> None:
    common = ["--option", f"evaluation={evaluation}", *names(OURS)]
    whole, halves = tmp_path / "whole.pt", tmp_path / "halves.pt"
    mnist.main([*SMALL, *common, "--checkpoint", str(whole)])
    mnist.main([*SMALL, *common, "--checkpoint", str(halves), "--evaluations", "170"])
    mnist.main(["--resume", str(halves), "--evaluations", "300"])
    assert_same(saved(whole), saved(halves))


@pytest.mark.parametrize("name", ["Adam", "LBFGS"])
def test_resuming_holds_for_torch_optim_too(name: str, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole.pt", tmp_path / "halves.pt"
    mnist.main([*SMALL, "--optimizer", name, "--checkpoint", str(whole)])
    mnist.main([*SMALL, "--optimizer", name, "--checkpoint", str(halves), "--evaluations", "170"])
    mnist.main(["--resume", str(halves), "--evaluations", "300"])
    assert_same(saved(whole), saved(halves))


def test_ctrl_c_leaves_a_checkpoint_to_continue_from(tmp_path: Path) -> None:
    interrupted, whole = tmp_path / "interrupted.pt", tmp_path / "whole.pt"
    arguments = [*SMALL, "--optimizer", "GA", "--option", "evaluation=sequential", "--patience", "0"]
    command = [sys.executable, mnist.__file__, *arguments, "--evaluations", "1000000", "--checkpoint", str(interrupted)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while not interrupted.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "continue with --resume" in output

    (run,) = torch.load(interrupted, weights_only=True)["runs"]
    evaluations = str(run["optimizer"]["state"][0]["evaluations"] + 200)
    mnist.main(["--resume", str(interrupted), "--evaluations", evaluations])
    mnist.main([*arguments, "--evaluations", evaluations, "--checkpoint", str(whole)])
    assert_same(saved(interrupted), saved(whole))


def test_a_resumed_run_keeps_its_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.pt"
    mnist.main([*SMALL, "--optimizer", "SGD", "--checkpoint", str(file)])
    for change in (["--hidden", "9"], ["--optimizer", "Adam"]):
        with pytest.raises(SystemExit):
            mnist.main(["--resume", str(file), *change])
        assert change[0] in capsys.readouterr().err


def test_reads_the_layout_of_torchvision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in mnist_data.SAMPLE.glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    assert mnist.main([*SMALL, "--optimizer", "SGD", "--data", str(tmp_path)]) == 0
    assert "embedded" not in capsys.readouterr().out
    cpu = torch.device("cpu")
    full, sample = mnist_data.load_full(tmp_path, False, cpu), mnist_data.load_sample(cpu)
    assert torch.equal(full.train.images, sample.train.images)
    assert torch.equal(full.test.digits, sample.test.digits)


def test_without_a_network_the_sample_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(mnist, "load_full", fail)
    assert mnist.main([*SMALL, "--optimizer", "SGD", "--data", str(tmp_path), "--download"]) == 0
    output = capsys.readouterr().out
    assert "could not be downloaded" in output
    assert "no network" in output
    assert "embedded sample" in output


def test_the_sample_is_mnist() -> None:
    data = mnist_data.load_sample(torch.device("cpu"))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [9000, 1000, 2000]
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert abs(data.train.images.mean().item()) < 0.01
    assert abs(data.train.images.std().item() - 1) < 0.01
    assert data.train.digits[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]


def test_a_linear_policy_learns_to_balance_a_pole(tmp_path: Path) -> None:
    """ARS on CartPole-v1; 500 is the most there is, and a policy that knows nothing earns about 9."""
    plot = tmp_path / "curve.png"
    assert rl_ars.main(["--steps", "20000", "--plot", str(plot)]) > 400
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("options", [[], ["--env", "Pendulum-v1", "--n-directions", "1"]], ids=["discrete", "box"])
def test_a_resumed_policy_equals_an_uninterrupted_one(options: list[str], tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole.pt", tmp_path / "halves.pt"
    rl_ars.main([*options, "--steps", "4000", "--checkpoint", str(whole)])
    rl_ars.main([*options, "--steps", "2000", "--checkpoint", str(halves)])
    rl_ars.main(["--resume", str(halves), "--steps", "4000"])
    states = [torch.load(file, weights_only=True) for file in (whole, halves)]
    for state in states:
        assert 2000 < state["counters"][0] <= state["settings"].pop("steps") == 4000
    assert_same(*states)


def test_a_resumed_policy_keeps_its_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.pt"
    rl_ars.main(["--steps", "1000", "--checkpoint", str(file)])
    with pytest.raises(SystemExit):
        rl_ars.main(["--resume", str(file), "--sigma", "0.1"])
    assert "only --steps may change" in capsys.readouterr().err


def test_observations_are_normalised() -> None:
    observations = rl_ars.Observations(3)
    mean, std = observations.normalisation()
    assert (mean == 0).all()
    assert (std == 1).all()
    data = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data[:, 2] = 7.0  # says nothing
    for part in data.split([30, 50, 20]):
        observations.add(part.numpy())
    mean, std = map(torch.from_numpy, observations.normalisation())
    torch.testing.assert_close(mean, data.mean(0))
    torch.testing.assert_close(std[:2], data.std(0, correction=0)[:2])
    assert std[2] == float("inf")


def names(optimizers: list[str]) -> list[str]:
    return [word for name in optimizers for word in ("--optimizer", name)]


def test_figures_of_the_pages_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has a page, every optimizer's page has one, and those that are asked for are made."""
    assert figures.SHOWN.keys() == {entry.cls.__name__ for entry in ENTRIES}
    shown = ["nelder_mead", "film", "history"]
    figures.main(["--folder", str(tmp_path / "new"), "--only", *shown, "--evaluations", "100"])
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"nelder_mead.png", "film.gif", "history.png"}
    again = tmp_path / "again"
    figures.main(["--folder", str(again), "--only", "nelder_mead"])
    assert (again / "nelder_mead.png").read_bytes() == (tmp_path / "new" / "nelder_mead.png").read_bytes()
    with pytest.raises(SystemExit):
        figures.main(["--only", "adam"])
    assert "no figure is called adam; choose from film, history, ars" in capsys.readouterr().err
