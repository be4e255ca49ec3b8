"""The Trainer of Hugging Face, and its models: built from configurations, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import with_trainer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
)
from with_trainer import GradientFreeTrainer

import torch_gfo
from tests.helpers import assert_identical, seeded


def bert() -> PreTrainedModel:
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    with seeded():
        return BertForSequenceClassification(
            BertConfig(vocab_size=12, max_position_embeddings=8, initializer_range=0.1, **config)
        )


def gpt2(dropout: float = 0.1) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=8,
        n_embd=8,
        n_layer=1,
        n_head=2,
        n_positions=8,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.2,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout),
    )
    with seeded():
        return GPT2LMHeadModel(config)


def trainer(folder: Path, name: str = "EGGROLL", model: PreTrainedModel | None = None, **settings: Any) -> Any:
    options = {"max_steps": 8, "per_device_train_batch_size": 16, "save_strategy": "no", **settings}
    arguments = TrainingArguments(
        str(folder), report_to="none", disable_tqdm=True, use_cpu=True, logging_steps=1, weight_decay=0.01, **options
    )
    return GradientFreeTrainer(
        model=model or bert(),
        args=arguments,
        compute_loss_func=with_trainer.error_rate,
        train_dataset=with_trainer.sentences(96, seed=0),
        optimizer_cls_and_kwargs=(getattr(torch_gfo, name), {"seed": 0, "evaluation": "sequential"}),
    )


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", ["EGGROLL", "GA", "MeZO"])
def test_a_resumed_training_equals_an_undisturbed_one(name: str, tmp_path: Path) -> None:
    """Bit for bit, with dropout, two parameter groups and a schedule, in the middle of an epoch."""
    whole = trainer(tmp_path / "whole", name)
    whole.train()
    first = trainer(tmp_path / "halves", name, save_strategy="steps", save_steps=4)
    first.add_callback(StopAt(4))
    first.train()
    second = trainer(tmp_path / "halves", name, save_strategy="steps", save_steps=4)
    second.train(resume_from_checkpoint=str(tmp_path / "halves" / "checkpoint-4"))
    assert_identical(parameters(second.model), parameters(whole.model))
    inner, other = (t.optimizer.optimizer for t in (second, whole))
    assert inner.evaluations == other.evaluations
    assert_identical(inner.state_dict(), other.state_dict())
    logged = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (second, whole)]
    assert logged[0] == logged[1]
    assert len(logged[0]) == 8


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def test_no_gradient_is_computed_and_schedules_act(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    assert all(parameter.grad is None for parameter in run.model.parameters())
    rates = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([rates[0] * (8 - step) / 8 for step in range(8)])
    assert rates[0] == run.optimizer.defaults["lr"]
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.01, 0.0]


def test_a_second_training_goes_on(tmp_path: Path) -> None:
    run = trainer(tmp_path, "GA", max_steps=2)
    run.train()
    first = run.optimizer.optimizer.evaluations
    run.train()
    assert run.optimizer.optimizer.evaluations == 2 * first


def test_accumulated_minibatches_are_one_large_one(tmp_path: Path) -> None:
    """Steps on 2 x 8 sentences equal steps on the same 16, up to rounding."""
    runs = []
    for size, n_accumulated in ((16, 1), (8, 2)):
        model = bert().eval()
        model.train = lambda mode=True: model  # no dropout, whose masks depend on the size of minibatches
        run = trainer(
            tmp_path,
            "SPSA",
            model,
            max_steps=4,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=n_accumulated,
        )
        run.train()
        runs.append(run)
    one, other = runs
    assert one.optimizer.optimizer.evaluations == other.optimizer.optimizer.evaluations
    torch.testing.assert_close(parameters(other.model), parameters(one.model), rtol=1e-3, atol=1e-4)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_bfloat16_autocast(tmp_path: Path) -> None:
    run = trainer(tmp_path, bf16=True)
    run.train()
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    with torch.no_grad():
        assert all(bool(p.isfinite().all()) for p in run.model.parameters())


def test_a_language_model_with_tied_weights(tmp_path: Path) -> None:
    """GPT-2 learns a sentence; its output layer is its embedding, and stays it, also in a file."""
    model = gpt2(dropout=0.0)
    words = torch.arange(8).repeat(4, 1)
    optimizer = torch_gfo.EGGROLL(model.parameters(), seed=0, evaluation="vectorized")
    losses = [float(optimizer.step(lambda: model(input_ids=words, labels=words).loss)) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    assert model.lm_head.weight is model.transformer.wte.weight
    model.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert_identical(parameters(again), parameters(model))


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_all_candidates_at_once(model: str) -> None:
    """The models run in a batch, dropout included, and give the losses of plain calls."""
    losses = []
    for evaluation in ("sequential", "vectorized"):
        torch.manual_seed(0)
        network = bert() if model == "bert" else gpt2()
        words, labels = torch.arange(32).remainder(8).view(4, 8), torch.tensor([0, 1, 0, 1])
        target = labels if model == "bert" else words
        optimizer = torch_gfo.GA(network.parameters(), seed=0, popsize=8, evaluation=evaluation)
        network.train()
        losses.append([float(optimizer.step(lambda: network(input_ids=words, labels=target).loss)) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] != losses[0][-1]


def test_the_example() -> None:
    """In its small mode: 50 % is a guess."""
    assert with_trainer.main(["--steps", "30"]) > 0.8
