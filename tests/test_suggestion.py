"""``suggest`` answers by the table of the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch_gfo
from torch_gfo.suggestion import RULES

PAGE = Path(__file__).parents[1] / "docs" / "how_to_choose.md"

NETWORK = nn.Sequential(nn.Linear(20, 30), nn.LayerNorm(30), nn.Linear(30, 2))


def variables(n: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(n))]


@pytest.mark.parametrize(
    ("params", "situation", "name"),
    [
        (NETWORK.parameters, {"evaluations": 10**5, "differentiable": True}, "Adam"),
        (NETWORK.parameters, {"evaluations": 10**5, "differentiable": True, "low_memory": True}, "MeZO"),
        (NETWORK.parameters, {"evaluations": 10**5, "low_memory": True}, "MeZO"),
        (NETWORK.parameters, {"evaluations": 10**5}, "EGGROLL"),
        (NETWORK.parameters, {"evaluations": 10**5, "noisy": False}, "EGGROLL"),
        (lambda: variables(5), {"evaluations": 999, "noisy": False}, "NelderMead"),
        (lambda: variables(5), {"evaluations": 1000, "noisy": False}, "CMAES"),
        (lambda: variables(11), {"evaluations": 999, "noisy": False}, "CMAES"),
        (lambda: variables(200), {"evaluations": 999, "noisy": False}, "CMAES"),
        (lambda: variables(201), {"evaluations": 999, "noisy": False}, "OpenAIES"),
        (lambda: variables(5), {"evaluations": 999}, "OpenAIES"),
    ],
)
def test_what_is_suggested(params: Any, situation: dict[str, Any], name: str) -> None:
    suggestion = torch_gfo.suggest(params(), **situation)
    assert suggestion.name == name
    optimizer = suggestion(params())
    assert type(optimizer).__name__ == name
    assert suggestion.options.items() <= optimizer.param_groups[0].items()
    assert str(suggestion).startswith(f"{name}(params")


def test_options_of_the_user_come_first() -> None:
    suggestion = torch_gfo.suggest(variables(5), evaluations=100, noisy=False)
    assert suggestion(variables(5), seed=3, deterministic=False).param_groups[0]["deterministic"] is False


def test_every_form_of_parameters() -> None:
    frozen = nn.Linear(200, 200).requires_grad_(False)
    for params in (
        NETWORK.parameters(),
        NETWORK.named_parameters(),
        [{"params": NETWORK[0].parameters()}, {"params": NETWORK[1].weight, "lr": 0.1}],
        [*variables(100), *frozen.parameters(), *NETWORK.parameters()],
    ):
        assert torch_gfo.suggest(params, evaluations=10).name == "EGGROLL"
    assert torch_gfo.suggest([*variables(9), *frozen.parameters()], evaluations=10).name == "OpenAIES"


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match=r"nothing to choose an optimizer for\. Unfreeze some.*model\.parameters\(\)"):
        torch_gfo.suggest([], evaluations=10)
    with pytest.raises(ValueError, match="evaluations must be an integer of at least 1, got 0"):
        torch_gfo.suggest(variables(3), evaluations=0)


def test_the_page_has_the_same_table() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## What it rests on")[0]
    rows = re.findall(r"^\| (.+?) \| \[?`(?:torch\.optim\.)?(\w+)`.*? \| (.+) \|$", table, re.MULTILINE)
    assert rows == [(rule.when, rule.name, rule.reason) for rule in RULES]
