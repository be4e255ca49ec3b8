"""Train a Transformers model with the Hugging Face ``Trainer`` and without gradients, on accuracy itself.

    python examples/with_trainer.py                       # 20 seconds
    python examples/with_trainer.py --optimizer GA        # any class of torch_gfo
    python examples/with_trainer.py --steps 30            # the small mode

``Trainer`` calls ``loss.backward()`` and then ``optimizer.step()`` without a closure. ``GradientFreeTrainer`` skips the
first and hands a closure to the second; logging, evaluation, schedules, checkpoints and callbacks stay those of
``Trainer``. Copy the class, and pass the optimizer as ``optimizer_cls_and_kwargs=(torch_gfo.EGGROLL, {"seed": 0})``.

The model is a small BERT with random weights, so nothing is downloaded. It learns to sort sentences by their first
word. The loss is the share of wrong answers, plus a little cross-entropy that tells equal ones apart. Expect more than
95 % right answers to the test sentences after 3,300 evaluations. Where cross-entropy alone is what you want, and
backpropagation fits into memory, take ``Trainer`` as it is: AdamW needs 50 steps for this.

Needs ``pip install transformers accelerate``.
"""

import argparse
import contextlib
import tempfile
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

with contextlib.suppress(ModuleNotFoundError):
    import torchvision_cpu  # noqa: F401 - transformers imports torchvision where it is installed
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import torch_gfo

N_WORDS = 12
LENGTH = 8


class GradientFreeTrainer(Trainer):
    """A ``Trainer`` for optimizers whose step takes a closure.

    The closure is the mean loss of the minibatches of a step, so gradient accumulation means what it does with
    gradients. ``Trainer`` logs the loss before the step, which takes one evaluation a step beside the optimizer's.
    """

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Has every step of the optimizer take the closure, and computes no gradient."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        self._batches: list[tuple[Any, ...]] = []
        self.accelerator.backward = lambda loss, **options: None
        if not isinstance(optimizer, AcceleratedOptimizer):  # as an earlier training has left it
            optimizer.register_step_pre_hook(lambda optimizer, args, options: ((optimizer, self._closure), {}))
            optimizer.register_step_post_hook(lambda optimizer, args, options: self._batches.clear())
        return optimizer

    @torch.no_grad()
    def training_step(self, *batch: Any) -> Tensor:
        """Keeps the model and the minibatch for the step, and evaluates the loss for the log."""
        self._batches.append(batch)
        loss: Tensor = super().training_step(*batch)
        return loss

    def _closure(self) -> Tensor:
        shares = [super(GradientFreeTrainer, self).training_step(*batch) for batch in self._batches]
        return torch.stack(shares).sum()


def sentences(n: int, seed: int) -> list[dict[str, Tensor]]:
    """Random sentences; the label says whether the first word is of the first half of the vocabulary."""
    words = torch.randint(N_WORDS, (n, LENGTH), generator=torch.Generator().manual_seed(seed))
    labels = (words[:, 0] < N_WORDS // 2).long()
    return [{"input_ids": row, "labels": label} for row, label in zip(words, labels, strict=True)]


def error_rate(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """The share of wrong answers, which has no gradient, and a little cross-entropy."""
    logits = outputs["logits"].float()
    wrong = (logits.argmax(-1) != labels).float() + 0.1 * nn.functional.cross_entropy(logits, labels, reduction="none")
    loss: Tensor = wrong.sum() / (labels.numel() if num_items_in_batch is None else num_items_in_batch)
    return loss


def accuracy(prediction: Any) -> dict[str, float]:
    """What ``Trainer.evaluate`` reports."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(arguments: list[str] | None = None) -> float:
    """Trains, and returns the accuracy on test sentences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", default="EGGROLL", help="a class of torch_gfo (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="steps of the optimizer (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=16, help="size of the hidden states (default: %(default)s)")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=N_WORDS,
        hidden_size=options.hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * options.hidden,
        max_position_embeddings=LENGTH,
        initializer_range=0.1,  # 0.02 is for large models
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = GradientFreeTrainer(
            model=BertForSequenceClassification(config),
            args=TrainingArguments(
                folder,
                max_steps=options.steps,
                per_device_train_batch_size=128,
                logging_steps=max(1, options.steps // 10),
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=sentences(4096, seed=0),
            eval_dataset=sentences(1024, seed=1),
            compute_loss_func=error_rate,
            compute_metrics=accuracy,
            optimizer_cls_and_kwargs=(getattr(torch_gfo, options.optimizer), {"seed": 0}),
        )
        trainer.train()
        right: float = trainer.evaluate()["eval_accuracy"]
    wrapped: Any = trainer.optimizer
    n_evaluations = wrapped.optimizer.evaluations
    print(f"{options.optimizer}: {right:.1%} of the test sentences after {n_evaluations:,} evaluations")
    return right


if __name__ == "__main__":
    main()
