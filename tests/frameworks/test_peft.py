"""LoRA adapters of peft: they move, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import lora_mezo
import pytest
import torch
from peft import PeftModel
from torch import Tensor

import torch_gfo
from tests.frameworks.test_transformers import bert
from tests.helpers import assert_identical, seeded

# peft asks every model for an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def adapted() -> PeftModel:
    with seeded():
        return lora_mezo.adapted(bert())


def closure(model: PeftModel) -> Tensor:
    words = torch.arange(64).view(8, 8).remainder(11)
    return torch.nn.functional.cross_entropy(model(input_ids=words).logits, lora_mezo.is_even(words))


@pytest.mark.parametrize("name", ["MeZO", "SPSA", "GA", "EGGROLL", "CMAES"])
def test_only_adapters_and_head_move(name: str) -> None:
    """Also where the optimizer is given all parameters."""
    model = adapted().eval()
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer = getattr(torch_gfo, name)(model.parameters(), seed=0)
    for _ in range(5):
        optimizer.step(lambda: closure(model))
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if "lora_" in key or "modules_to_save" in key}
    assert len(moved) == 6


def test_zero_matrices_are_searched_at_the_scale_of_others() -> None:
    """LoRA's B begins at zero, which has no scale of its own."""
    model = adapted()
    optimizer = torch_gfo.SPSA((p for p in model.parameters() if p.requires_grad), seed=0)
    radii = {key: optimizer.state[p]["sigma"] for key, p in model.named_parameters() if p.requires_grad}
    zero = [radius for key, radius in radii.items() if "lora_B" in key]
    others = [radius for key, radius in radii.items() if "lora_B" not in key]
    assert min(others) <= min(zero) <= max(zero) <= max(others)


def test_a_batch_of_adapters_gives_the_losses_of_plain_calls() -> None:
    losses = []
    for evaluation in ("sequential", "vectorized"):
        model = adapted().eval()
        optimizer = torch_gfo.EGGROLL(model.parameters(), seed=0, evaluation=evaluation)
        losses.append([float(optimizer.step(lambda: closure(model))) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


def test_a_resumed_tuning_equals_an_undisturbed_one(tmp_path: Path) -> None:
    """From the adapters' own file and the optimizer's state, bit for bit, with dropout."""
    model = adapted().train()
    optimizer = torch_gfo.MeZO(model.parameters(), seed=0)
    for _ in range(5):
        optimizer.step(lambda: closure(model))
    model.save_pretrained(tmp_path)
    torch.save((optimizer.state_dict(), torch.get_rng_state()), tmp_path / "optimizer.pt")
    losses = [float(optimizer.step(lambda: closure(model))) for _ in range(5)]

    base = adapted().unload()
    again = PeftModel.from_pretrained(base, tmp_path, is_trainable=True).train()
    successor = torch_gfo.MeZO(again.parameters(), seed=1)
    state, random_state = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    successor.load_state_dict(state)
    torch.set_rng_state(random_state)
    assert [float(successor.step(lambda: closure(again))) for _ in range(5)] == losses
    assert_identical(*({k: p.detach() for k, p in m.named_parameters()} for m in (again, model)))


def test_the_example_in_its_small_mode() -> None:
    """MeZO tunes adapters; merged into the model's weights, they give the same answers."""
    right, model = lora_mezo.main(["--steps", "100"])
    assert right > 0.9
    assert lora_mezo.accuracy(model.merge_and_unload(), lora_mezo.is_even) == pytest.approx(right, abs=2e-3)
