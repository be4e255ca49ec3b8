"""Random parameters, in random groups, and random losses of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers import join, seeded

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64)
SHAPES = ((), (0,), (1,), (3,), (2, 3), (0, 2), (2, 1, 2))
LAYOUTS = ("contiguous", "transposed", "every_second")


@dataclass(frozen=True)
class Leaf:
    """A parameter to be made."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    layout: str
    frozen: bool
    zero: bool

    def make(self, seed: int) -> nn.Parameter:
        stretched = {"contiguous": self.shape, "transposed": self.shape[::-1], "every_second": (*self.shape, 2)}
        with seeded(seed):
            values = torch.randn(stretched[self.layout], dtype=self.dtype) * (not self.zero)
        if self.layout == "transposed":
            values = values.permute(tuple(reversed(range(values.dim()))))
        elif self.layout == "every_second":
            values = values[..., 0]
        return nn.Parameter(values, requires_grad=not self.frozen)


LEAVES = st.builds(
    Leaf,
    st.sampled_from(DTYPES),
    st.sampled_from(SHAPES),
    st.sampled_from(LAYOUTS),
    st.sampled_from((False, False, False, True)),
    st.sampled_from((False, False, True)),
)
OPTIONS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.sampled_from((0.0, 0.1, 1.0)),
        "sigma": st.sampled_from((None, 0.3)),
        "weight_decay": st.sampled_from((0.0, 0.1)),
        "bounds": st.sampled_from((None, (-20.0, 20.0), (-math.inf, 20.0))),
    },
)
GROUPS = st.lists(st.tuples(st.lists(LEAVES, min_size=1, max_size=3), OPTIONS), min_size=1, max_size=3)


def make_groups(groups: list[tuple[list[Leaf], dict[str, Any]]], first_seed: int = 0) -> list[dict[str, Any]]:
    """Parameter groups of new parameters."""
    return [
        {"params": [leaf.make(first_seed + 10 * i + j) for j, leaf in enumerate(leaves)], **options}
        for i, (leaves, options) in enumerate(groups)
    ]


def _bowl(x: Tensor) -> Tensor:
    return (x - 1).square().sum()


def _undefined_beyond(x: Tensor, bad: float) -> Tensor:
    return torch.where(x.sum() > 3, x.new_tensor(bad), _bowl(x))


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "bowl": _bowl,
    "ties": lambda x: _bowl(x).mul(0.2).round(),
    "count": lambda x: (x < 0.5).sum(),
    "flat": lambda x: 0 * _bowl(x),
    "large": lambda x: 1e30 * _bowl(x),
    "nan": lambda x: _undefined_beyond(x, math.nan),
    "inf": lambda x: _undefined_beyond(x, math.inf),
    "minus_inf": lambda x: _undefined_beyond(x, -math.inf),
    "always_nan": lambda x: math.nan * _bowl(x),
    "used_twice": lambda x: _bowl(x) + torch.cat([x, x]).square().sum(),
}


@dataclass
class Counted:
    """A closure over parameters that knows what it has returned."""

    parameters: list[nn.Parameter]
    kind: str
    values: list[float]

    def __call__(self) -> Tensor:
        loss = LOSSES[self.kind](join(self.parameters)).detach()
        self.values.append(float(loss))
        return loss

    @property
    def best(self) -> float:
        return min((value for value in self.values if math.isfinite(value)), default=math.inf)
