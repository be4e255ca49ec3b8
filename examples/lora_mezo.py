"""Fine-tune a small transformer with LoRA adapters and MeZO: no gradient, at the memory of inference.

    python examples/lora_mezo.py                # 10 seconds
    python examples/lora_mezo.py --steps 100    # the small mode, half of that

In the place of a download, a BERT with random weights first learns, with AdamW, which of 12 words a sentence begins
with. Then it gets a new head and LoRA adapters in its attention (``peft``) and learns another thing of that word,
whether its number is even, with MeZO, which moves the adapters and the head alone. Expect the share of right answers to
rise from about 58 % to more than 99 %.

``torch_gfo.MeZO`` is given the parameters that require grad; this is all there is to it. AdamW on the same parameters
needs 20 steps: take it wherever its gradients, activations and moments fit into memory. What MeZO saves on
models that are large, benchmarks/memory.py measures.

Needs ``pip install transformers peft``.
"""

import argparse
import contextlib
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

with contextlib.suppress(ModuleNotFoundError):
    import torchvision_cpu  # noqa: F401 - transformers imports torchvision where it is installed
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

import torch_gfo

N_WORDS = 12
LENGTH = 8
BATCH = 64

Labels = Callable[[Tensor], Tensor]


def first_word(words: Tensor) -> Tensor:
    """The labels of the first training."""
    return words[:, 0]


def is_even(words: Tensor) -> Tensor:
    """The labels of the second."""
    return 1 - words[:, 0] % 2


def train(model: nn.Module, optimizer: torch.optim.Optimizer, labels: Labels, steps: int) -> None:
    """The same loop for every optimizer."""
    generator = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(steps):
        words = torch.randint(N_WORDS, (BATCH, LENGTH), generator=generator)

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(input_ids=words).logits, labels(words))
            loss.backward()  # MeZO skips it
            return loss

        optimizer.step(closure)


@torch.no_grad()
def accuracy(model: nn.Module, labels: Labels) -> float:
    """The share of right answers on new sentences."""
    words = torch.randint(N_WORDS, (2048, LENGTH), generator=torch.Generator().manual_seed(2))
    model.eval()
    return float((model(input_ids=words).logits.argmax(-1) == labels(words)).float().mean())


def pretrained() -> BertForSequenceClassification:
    """A model that knows the first word."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=N_WORDS,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        initializer_range=0.1,  # 0.02 is for large models
    )
    config.num_labels = N_WORDS
    model = BertForSequenceClassification(config)
    train(model, torch.optim.AdamW(model.parameters(), lr=3e-3), first_word, 300)
    return model


def adapted(model: BertForSequenceClassification) -> PeftModel:
    """The model with adapters and a new head, which alone require grad."""
    model.classifier = nn.Linear(model.config.hidden_size, 2)
    model.config.num_labels = model.num_labels = 2
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"], task_type="SEQ_CLS")
    return get_peft_model(model, config)


def main(arguments: list[str] | None = None) -> tuple[float, PeftModel]:
    """Returns the accuracy after fine-tuning, and the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of MeZO, 2 evaluations each (default: %(default)s)")
    steps = parser.parse_args(arguments).steps

    model = pretrained()
    print(f"pretrained: right on {accuracy(model, first_word):.1%} of the first words")
    tuned = adapted(model)
    trainable = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    n_trainable, n_all = (sum(p.numel() for p in parameters) for parameters in (trainable, tuned.parameters()))
    print(f"LoRA: {n_trainable:,} of {n_all:,} parameters are trained; right on {accuracy(tuned, is_even):.1%}")
    started = time.perf_counter()
    optimizer = torch_gfo.MeZO(trainable, seed=0)
    train(tuned, optimizer, is_even, steps)
    right, seconds = accuracy(tuned, is_even), time.perf_counter() - started
    print(f"MeZO: right on {right:.1%} after {optimizer.evaluations:,} evaluations, {seconds:.0f} s")
    return right, tuned


if __name__ == "__main__":
    main()
