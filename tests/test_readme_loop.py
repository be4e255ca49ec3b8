"""The loop of the README, unchanged, with optimizers of torch and with ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from tests.registry import ENTRIES

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")

Make = Callable[[Iterable[nn.Parameter]], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "LBFGS": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=3),
    **{str(entry): partial(entry.cls, seed=0) for entry in ENTRIES},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_readme_loop(name: str) -> None:
    """Changing the optimizer's name is enough: the loss goes down, with default arguments and fresh minibatches."""
    match = re.search(r"```python\n(.*?)^optimizer = [^\n]*\n(.*?)^accuracy = ", README, re.DOTALL | re.MULTILINE)
    assert match is not None
    preparation, loop = match.groups()
    assert "loss = optimizer.step(closure)" in loop
    scope: dict[str, Any] = {}
    exec(preparation, scope)
    scope["optimizer"] = OPTIMIZERS[name](scope["model"].parameters())

    @torch.no_grad()
    def loss_on_all_data() -> float:
        return float(scope["loss_fn"](scope["model"](scope["inputs"]), scope["targets"]))

    before = loss_on_all_data()
    exec(loop, scope)
    assert loss_on_all_data() < 0.9 * before
    assert isinstance(scope["loss"], torch.Tensor)
