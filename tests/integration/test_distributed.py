"""Searches whose evaluations several ranks share."""

from __future__ import annotations

import copy
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mnist
import pytest
import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

import torch_gfo
from tests.helpers import Task, assert_identical, distance, mlp, seeded, snapshot, vector
from tests.integration.ranks import run
from tests.test_examples import SMALL, saved
from torch_gfo.evaluation import BACKENDS
from torch_gfo.optimizer import GradientFreeOptimizer

# Numbers of candidates that two ranks cannot share evenly, but for pairs.
SEARCHES: dict[str, dict[str, Any]] = {
    "PSO": {"popsize": 7},
    "CMAES": {"popsize": 9},
    "OpenAIES": {"popsize": 5},
    "EGGROLL": {"popsize": 5},
    "ARS": {"n_directions": 3, "perturbation": "seeded"},
    "MeZO": {"n_probes": 3},
}
N_STEPS = 50


def make(name: str, parameters: Any, **options: Any) -> GradientFreeOptimizer:
    optimizer: GradientFreeOptimizer = getattr(torch_gfo, name)(
        parameters, **{"seed": 3, "evaluation": "sequential", **SEARCHES.get(name, {}), **options}
    )
    return optimizer


def state_of(optimizer: GradientFreeOptimizer, task: Task) -> dict[str, Any]:
    """What training changes, without the options."""
    state = snapshot(optimizer, task.model)
    return {**state, "optimizer": state["optimizer"]["state"]}


def trained(name: str, n_steps: int = N_STEPS, **options: Any) -> dict[str, Any]:
    """Trains a network with BatchNorm and dropout, from the same random state whoever does it.

    That of MeZO has no BatchNorm: its running statistics move as in the first of a rank's own evaluations.
    """
    with seeded():
        task = mlp(normalize=name != "MeZO", dropout=0.2)
        optimizer = make(name, task.model.parameters(), **options)
        losses = task.train(optimizer, n_steps)
        return {"losses": losses, **state_of(optimizer, task)}


def train_all(rank: int) -> dict[str, Any]:
    return {name: trained(name, distributed="candidates") for name in SEARCHES}


def test_candidates_give_the_run_of_one_process_bit_for_bit(tmp_path: Path) -> None:
    for results in run(train_all, 2, tmp_path):
        for name, result in results.items():
            assert_identical(result, trained(name), name)


def probe(rank: int) -> dict[str, Any]:
    return trained("MeZO", n_probes=1, distributed="candidates")


def test_a_rank_without_a_perturbed_model_has_the_same_random_state(tmp_path: Path) -> None:
    for result in run(probe, 3, tmp_path):
        assert_identical(result, trained("MeZO", n_probes=1))


def measure(rank: int) -> tuple[int, dict[str, Any]]:
    """Batched evaluation is slow on rank 1, plain evaluation on rank 0."""
    task = mlp()
    optimizer = make("PSO", task.model.parameters(), evaluation="auto", distributed="candidates")

    def closure() -> Tensor:
        loss = task.loss()
        if is_batchedtensor(loss) == (rank == 1):
            time.sleep(0.05)
        return loss

    for _ in range(3):
        optimizer.step(closure)
    return optimizer.state[next(task.model.parameters())]["backend"], state_of(optimizer, task)


def test_all_ranks_take_what_auto_chooses_on_rank_0(tmp_path: Path) -> None:
    one, other = run(measure, 2, tmp_path)
    assert one[0] == BACKENDS.index("vectorized")
    assert_identical(one, other)


def train_on_shards(rank: int | None) -> dict[str, Any]:
    """On half of each batch, or on all of it."""
    results = {}
    for name in SEARCHES:
        task = mlp()
        task.model.double()
        task.inputs = task.inputs.double()
        if rank is not None:
            task.inputs, task.targets = (data.tensor_split(2, dim=1)[rank] for data in (task.inputs, task.targets))
        # A rank that sees a part of the data takes no directions from it.
        options = {"input_span": None} if name == "EGGROLL" and rank is None else {}
        optimizer = make(name, task.model.parameters(), distributed=None if rank is None else "data", **options)
        results[name] = {"losses": task.train(optimizer, 20), **state_of(optimizer, task)}
    return results


def test_data_give_the_run_of_one_process_on_all_of_them(tmp_path: Path) -> None:
    one, other = run(train_on_shards, 2, tmp_path)
    assert_identical(one, other)
    for name, result in train_on_shards(None).items():
        torch.testing.assert_close(one[name]["losses"], result["losses"], rtol=1e-9, atol=0)
        torch.testing.assert_close(one[name]["parameters"], result["parameters"], rtol=1e-7, atol=1e-9)


def minimise(rank: int, **options: Any) -> tuple[list[Any], Tensor]:
    """A closure that returns Python numbers and is not evaluated twice."""
    x = vector(3)
    optimizer = make("NelderMead", [x], deterministic=True, **options)
    return [optimizer.step(lambda: float(distance([x]))) for _ in range(30)], x.detach()


def minimise_together(rank: int) -> tuple[list[Any], Tensor]:
    return minimise(rank, distributed="candidates")


def test_ranks_without_a_candidate(tmp_path: Path) -> None:
    """A simplex moves by one or two evaluations: one of three ranks, at least, has none."""
    for result in run(minimise_together, 3, tmp_path):
        assert_identical(result, minimise(0))


def estimate(rank: int | None, mode: str | None) -> list[Tensor]:
    task = mlp(n_batches=2)
    if rank is not None and mode == "data":
        task.inputs, task.targets = (data.tensor_split(2, dim=1)[rank] for data in (task.inputs, task.targets))
    parameters = list(task.model.parameters())
    gradient = torch_gfo.GradientEstimator(
        parameters, n_samples=5, seed=1, evaluation="sequential", distributed=mode if rank is not None else None
    )
    for batch in range(2):
        gradient(lambda: task.loss(batch))
    return [p.grad for p in parameters if p.grad is not None]


def estimate_all(rank: int) -> dict[str, list[Tensor]]:
    return {mode: estimate(rank, mode) for mode in ("candidates", "data")}


def test_gradients(tmp_path: Path) -> None:
    alone = estimate(None, None)
    one, other = run(estimate_all, 2, tmp_path)
    assert_identical(one, other)
    assert_identical(one["candidates"], alone)
    torch.testing.assert_close(one["data"], alone, rtol=1e-3, atol=1e-4)  # differences of float32 losses


def fail(rank: int, error: type[BaseException], mode: str) -> list[tuple[str, str]]:
    """On rank 1 the evaluation of the model fails, then that of a candidate; rank 0 must hear of it, and go on."""
    task = mlp(normalize=True, dropout=0.2)
    optimizer = make("PSO", task.model.parameters(), distributed=mode)
    heard = []
    for bad in (0, 2):
        task.train(optimizer, 2)
        before = state_of(optimizer, task)
        calls = iter(range(100))

        def closure() -> Tensor:
            if next(calls) == bad and rank == 1:
                raise error("the sensor is broken")
            return task.loss()

        with pytest.raises(error if rank == 1 else RuntimeError) as caught:
            optimizer.step(closure)
        heard.append((type(caught.value).__name__, str(caught.value)))
        assert_identical(state_of(optimizer, task), before)
    task.train(optimizer, 2)
    return heard


@pytest.mark.parametrize(("error", "mode"), [(ValueError, "candidates"), (KeyboardInterrupt, "data")])
def test_a_closure_that_fails_on_one_rank(error: type[BaseException], mode: str, tmp_path: Path) -> None:
    told, own = run(fail, 2, tmp_path, error, mode)
    assert own == 2 * [(error.__name__, "the sensor is broken")]
    for kind, message in told:
        assert kind == "RuntimeError"
        assert f"failed on rank 1 with '{error.__name__}: the sensor is broken'" in message


def message_of(step: Callable[[], object]) -> str:
    with pytest.raises(RuntimeError) as caught:
        step()
    return str(caught.value)


def disagree(rank: int) -> dict[str, str]:
    """What the ranks are told that are not alike."""
    messages = {}
    with seeded(rank):
        x, y = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.randn(3, 2))
    optimizer = make("PSO", [x, y], distributed="candidates")
    messages["parameters"] = message_of(lambda: optimizer.step(lambda: distance([x, y])))

    halves = [torch.nn.Parameter(p.detach().mT.bfloat16()) for p in (x[None], y)]
    mezo = make("MeZO", halves, distributed="data")
    messages["halves"] = message_of(lambda: mezo.step(lambda: distance(halves)))

    options: dict[str, list[dict[str, Any]]] = {
        "seed": [{"seed": None}, {"seed": 7}],
        "popsize": [{"popsize": 4}, {"popsize": 5}],
        "lr": [{"lr": torch.tensor(0.5)}, {"lr": torch.tensor(0.50001)}],
        "mode": [{"distributed": "data"}, {}],
    }
    for name, choices in options.items():
        x = vector(3)
        optimizer = make("PSO", [x], **{"distributed": "candidates", **choices[rank]})
        messages[name] = message_of(lambda: optimizer.step(lambda: distance([x])))

    x = vector(3)
    earlier, optimizer = (make("PSO", [x], deterministic=True, distributed="candidates") for _ in range(2))
    earlier.step(lambda: distance([x]))
    if rank == 0:  # and so knows the loss of its point, which the other does not
        optimizer.load_state_dict(earlier.state_dict())
    messages["checkpoint"] = message_of(lambda: optimizer.step(lambda: distance([x])))
    return messages


def test_ranks_that_are_not_alike_are_told_in_what(tmp_path: Path) -> None:
    one, other = run(disagree, 2, tmp_path)
    assert one == other  # all of them are told the same
    expected = {
        "parameters": r"differ in the values of parameter 1 of shape \(3, 2\)\..*torch.manual_seed",
        "halves": r"differ in the values of parameter 1 of shape \(2, 3\)\.",
        "seed": r"differ in seed, 7 and \d+\.",
        "popsize": r"differ in popsize, 5 and 4\.",
        "lr": r"differ in lr, 0\.5000\d+ and 0\.5\.",
        "mode": r"differ in distributed, 'candidates' and 'data'\.",
        "checkpoint": r"differ in step, 0 and 1\..*load the same checkpoint",
    }
    for name, pattern in expected.items():
        assert re.search(pattern, one[name], flags=re.DOTALL), one[name]


def small_matters(rank: int) -> int:
    x = vector(3)
    optimizer = make("PSO", [x], seed=None, distributed="candidates")
    optimizer.step(lambda: distance([x]))
    assert "step() makes" in message_of(optimizer.ask)
    with pytest.warns(UserWarning, match="on different minibatches") as caught:
        optimizer.step(lambda: distance([x]) + rank)
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match="returned None"):  # on all ranks
        optimizer.step(lambda: None)
    frozen = make("PSO", [x.detach()], distributed="data")
    with pytest.warns(UserWarning, match="nothing to optimize"):
        assert frozen.step(lambda: rank) == 0.5
    assert float(frozen.step(lambda: torch.tensor(rank))) == 0.5  # an integer tensor
    seed: int = optimizer.param_groups[0]["seed"]
    return seed


def test_a_seed_that_is_not_given_is_drawn_on_rank_0(tmp_path: Path) -> None:
    first, second = run(small_matters, 2, tmp_path), run(small_matters, 2, tmp_path)
    assert first[0] == first[1] != second[0] == second[1]


def train_with_checkpoint(rank: int, file: Path, last: int, dies_in: int | None) -> Any:
    """Goes on from the checkpoint, if there is one, saves one at step 5, and is killed on rank 1 in a step."""
    task = mlp(normalize=True, dropout=0.2)
    optimizer = make("CMAES", task.model.parameters(), popsize=7, distributed="candidates" if rank >= 0 else None)
    if file.exists():
        checkpoint = torch.load(file, weights_only=True)
        task.model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
    for step in range(optimizer.state[next(task.model.parameters())]["step"], last):
        if step == 5 and rank == 0 and not file.exists():
            torch.save({"model": task.model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        calls = iter(range(100))

        def closure() -> Tensor:
            if step == dies_in and rank == 1 and next(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            torch.manual_seed(step)
            return task.loss(step)

        if step == dies_in:
            return message_of(lambda: optimizer.step(closure))
        optimizer.step(closure)
    return state_of(optimizer, task)


def test_a_killed_rank_ends_the_job_and_any_number_of_ranks_takes_it_up(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    told, killed = run(train_with_checkpoint, 2, tmp_path, file, 15, 8)
    assert killed is None
    assert "Rank 0 has lost another rank in step 8" in told
    uninterrupted = train_with_checkpoint(-1, tmp_path / "none", 15, None)
    for n_ranks in (1, 2, 3):
        for result in run(train_with_checkpoint, n_ranks, tmp_path, file, 15, None):
            assert_identical(result, uninterrupted)
    assert_identical(train_with_checkpoint(-1, file, 15, None), uninterrupted)  # without torch.distributed


def pickled(rank: int) -> bytes:
    return pickle.dumps(copy.deepcopy(make("PSO", [vector(3)], distributed="data")))


def test_without_a_process_group_the_error_says_how_to_start(tmp_path: Path) -> None:
    for mode in ("candidates", "data"):
        for construct in (
            lambda: make("PSO", [vector(3)], distributed=mode),
            lambda: torch_gfo.GradientEstimator([vector(3)], distributed=mode),
        ):
            with pytest.raises(RuntimeError, match=r"not initialised.*torchrun.*init_process_group"):
                construct()
    (dumped,) = run(pickled, 1, tmp_path)
    optimizer = pickle.loads(dumped)
    with pytest.raises(RuntimeError, match="torchrun"):
        optimizer.step(lambda: 0.0)


def test_a_mode_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"distributed must be one of None, 'candidates', 'data', got 'model'"):
        make("PSO", [vector(3)], distributed="model")
    with pytest.raises(ValueError, match=r"distributed must be one of"):
        torch_gfo.GradientEstimator([vector(3)], distributed="model")


def trained_by(file: Path) -> list[Any]:
    """The models of a checkpoint of the example, and what their optimizers remember."""
    return [(run["model"], run["optimizer"]["state"], run["curve"]) for run in saved(file)]


def test_mnist_example_under_torchrun(tmp_path: Path) -> None:
    optimizers = ["--option", "evaluation=sequential", "--optimizer", "PSO", "--optimizer", "GA"]
    arguments = [*SMALL, *optimizers, "--checkpoint"]
    together, alone = tmp_path / "together.pt", tmp_path / "alone.pt"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", mnist.__file__]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, *arguments, str(together)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1  # one rank prints
    assert mnist.main([*arguments, str(alone)]) == 0
    assert_identical(trained_by(together), trained_by(alone))

    for file in (together, alone):  # one process takes up what two have begun
        assert mnist.main(["--resume", str(file), "--evaluations", "500"]) == 0
    assert_identical(trained_by(together), trained_by(alone))
