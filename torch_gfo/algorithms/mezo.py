"""MeZO: zeroth-order training at the memory of inference.

* S. Malladi, T. Gao, E. Nichani, A. Damian, J. D. Lee, D. Chen, S. Arora, "Fine-tuning language models with just
  forward passes", 2023, https://arxiv.org/abs/2305.17333.

Differences from the paper: the perturbed model is handed to the closure instead of being written into the parameters
and taken out again, which rounding does not undo; random signs instead of normal numbers, which are cheaper; noise
comes from a seed for each tensor; the length of steps, (3) and (4), does not depend on the scale of the loss, and no
step is longer than the first; moves of parameters in half precision are rounded at random.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.options import CommonOptions, check_choice, check_integer
from torch_gfo.probing import DISTRIBUTIONS, Probing, look_without_copy
from torch_gfo.search import Search
from torch_gfo.space import ParameterVector

__all__ = ["MeZO"]

_log = logging.getLogger("torch_gfo")

_ALL_EQUAL = (
    "The first perturbed models have one and the same loss. It may be flat there: then a larger sigma helps. Or the "
    "closure reads the parameters in a way that MeZO does not see, as a scripted model does: SPSA can train it."
)
_N_MEASURED = 10  # steps whose estimates decide about the length of all
_SMALL = 300  # parameters; steps of larger models are shorter


class MeZO(GradientFreeOptimizer):
    """MeZO: steps along random directions, with neither a gradient nor a copy of the parameters in memory.

    Use it to fine-tune networks for which backpropagation does not fit into memory: a step needs that of inference and
    the largest tensor, and twice its time. Do not use it on small models, where more evaluations a step, or an
    algorithm that remembers points, need far fewer evaluations in all: ``SPSA``, ``OpenAIES``.

    In every step, for i = 1, ..., n = n_probes, p the parameters, d their number, z_i random signs or normal numbers
    that are drawn again whenever they are needed, from a seed::

        L+_i = L(p + sigma z_i),  L-_i = L(p - sigma z_i)                                                         (1)
        g_i = (L+_i - L-_i) / 2                                                                                   (2)
        p = p - lr sigma r / max(m, |G|) G,  G = (g_1 z_1 + ... + g_n z_n) / n + sigma weight_decay p             (3)
        m = mean |G| of the first ten steps,  r = min(1, (300 / d)^(1/4))                                         (4)

    where ``|G|`` is the root mean square of the entries; what the noise contributes to it follows from the g_i. So the
    first steps move each parameter by ``lr * sigma * r``, whatever the scale of the loss, and later ones no farther;
    r makes one ``lr`` serve small models and large ones. A pair of which one loss is not finite counts as a typical
    step away from it; one of two such losses is left out.

    A step evaluates (1) and nothing else. It returns the mean of these values, the loss at the parameters but for
    curvature, and buffers move as in the first of the evaluations. Every use of a parameter by a torch function sees
    the perturbed values; what reads the memory of parameters otherwise (a view made outside the closure, a scripted
    model) does not, and must not be used with this class.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Length of the model's steps, in units of ``sigma``, see (3). Default: 1.
        sigma: Size of the perturbations in parameter units, the paper's epsilon. Default: None, 0.15 standard
            deviations of each tensor's initial values.
        n_probes: Number of pairs in a step, at least 1. Default: 1.
        distribution: Of the noise, ``"rademacher"`` (signs) or ``"normal"``, which takes longer to draw. Default:
            ``"rademacher"``.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``, but for ``subspace``,
            ``chunk_size`` and ``distributed``; ``evaluation`` may be ``"auto"`` or ``"sequential"``, which are the
            same. ``weight_decay`` acts by its exact gradient, (3); ``deterministic`` changes nothing.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range, or an option that it does not take.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
        >>> optimizer = torch_gfo.MeZO([x], seed=0)
        >>> for _ in range(100):
        ...     loss = optimizer.step(lambda: ((x - 3) ** 2).sum())
        >>> bool((x - 3).square().sum() < 1e-3)
        True
    """

    _look = staticmethod(look_without_copy)
    _auto_sigma: ClassVar[float] = 0.15
    _lr_is_step: ClassVar[bool] = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        n_probes: int = 1,
        distribution: str = "rademacher",
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "n_probes": n_probes, "distribution": distribution}
        check_integer("n_probes", n_probes, 1)
        check_choice("distribution", distribution, DISTRIBUTIONS)
        super().__init__(params, own, common)
        _refuse(self.defaults)

    def _n_stored(self, dim: int) -> int:
        return 0

    def _init_state(self, search: Search) -> dict[str, Any]:
        return {"k": 0, "magnitude": 0.0}  # of the first estimates' entries

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        n = int(self.param_groups[0]["n_probes"])
        probes = torch.eye(n, n + 1, dtype=search.dtype, device=search.device)
        losses = yield torch.stack([probes, -probes], 1).flatten(0, 1)  # (1)
        pairs = losses.view(n, 2).tolist()
        mean = losses[losses.isfinite()].mean()
        whole = [plus / 2 - minus / 2 for plus, minus in pairs if math.isfinite(plus) and math.isfinite(minus)]
        typical = _rms(whole) or state["magnitude"] or 1.0
        slopes = [_slope(plus, minus, typical) for plus, minus in pairs]
        n_used = max(1, sum(math.isfinite(min(pair)) for pair in pairs))
        size = math.hypot(math.hypot(*slopes) / n_used, cast(Probing, search).pull)
        if size == 0:
            if state["k"] == 0 and not self._warned:
                _log.warning(_ALL_EQUAL)
                self._warned = True
            return search.point, mean  # flat
        if whole:
            state["k"] = k = state["k"] + 1
            if k <= _N_MEASURED:
                state["magnitude"] += (size - state["magnitude"]) / k  # (4)
        gain = min(1.0, (_SMALL / state["dim"]) ** 0.25) / max(size, state["magnitude"])
        return search.point.new_tensor([*(-gain * slope / n_used for slope in slopes), gain]), mean  # (3)

    def _begin(self, vector: ParameterVector) -> None:
        point = torch.zeros(self.param_groups[0]["n_probes"] + 1, dtype=vector.dtype, device=vector.device)
        self._shared.update({"dim": vector.dim, "loss": math.nan, "point": point, "k": 0, "magnitude": 0.0})
        if vector.parameters:
            self._start().remember(self.state)


def _rms(values: list[float]) -> float:
    return math.hypot(*values) / math.sqrt(max(1, len(values)))


def _slope(plus: float, minus: float, typical: float) -> float:
    """Half the difference of a pair; where only one of its losses is finite, a typical one, away from the other."""
    if math.isfinite(plus) and math.isfinite(minus):
        return plus / 2 - minus / 2
    return typical * (math.isfinite(minus) - math.isfinite(plus))


def _refuse(options: dict[str, Any]) -> None:
    """Refuses common options that make no sense here.

    Raises:
        ValueError: With the reason.
    """
    reasons = {
        "subspace": "its directions would be stored; MeZO stores none",
        "chunk_size": "MeZO evaluates one perturbed model at a time",
    }
    for name, reason in reasons.items():
        if options[name] is not None:
            raise ValueError(f"{name} must be None for MeZO, got {options[name]!r}: {reason}. SPSA takes it.")
    if options["evaluation"] not in ("auto", "sequential"):
        raise ValueError(
            f"evaluation must be 'auto' or 'sequential' for MeZO, got {options['evaluation']!r}: a batch would hold "
            "all perturbed models at a time. SPSA takes it."
        )
