"""Separable natural evolution strategy (SNES).

* T. Schaul, T. Glasmachers, J. Schmidhuber, "High dimensions and heavy tails for natural evolution strategies", 2011,
  https://doi.org/10.1145/2001576.2001692.
* D. Wierstra, T. Schaul, T. Glasmachers, Y. Sun, J. Peters, J. Schmidhuber, "Natural evolution strategies", 2014,
  https://jmlr.org/papers/v15/wierstra14a.html: the rates.

Differences from the papers:

* With ``antithetic=True``, candidates come in pairs m + s z, m - s z: the noise of the worse half, whose utilities are
  equal, then cancels, but n candidates tell of half as many directions.
* Bounds are mirrors: the search has none, and the loss is extended beyond the walls by its mirror image. No standard
  deviation exceeds a third of the box.
* Candidates of equal loss share their utilities, one of infinite loss attracts nothing.
* Noise asks for ever shorter steps of the mean: unless ``deterministic=True``, they begin twice as long and shorten
  with the root of their number (5). The deviations are left to (4), since candidates far apart tell more where losses
  are noisy or rugged.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.options import CommonOptions, check_flag, check_integer, check_number
from torch_gfo.recombination import by_rank, default_popsize, utilities
from torch_gfo.search import Search

__all__ = ["SNES"]


class SNES(GradientFreeOptimizer):
    """SNES: follows the natural gradient of the expected utility in a mean and in a deviation for each coordinate.

    Use it on networks and other losses of many parameters, with minibatches or noise: it has next to nothing to tune,
    and remembers two vectors. Do not use it in narrow valleys that are not along the axes: in few dimensions, take
    ``CMAES``.

    In every step, with z_i standard normal; products of vectors are by coordinate::

        x_i = m + s z_i,  i = 1, ..., popsize                                                                     (1)
        u_i = max(0, log(popsize / 2 + 1) - log(rank of x_i)), divided by their sum, less 1 / popsize             (2)
        m = m + c_t s sum_i u_i z_i                                                                               (3)
        s = s exp(sigma_rate / 2 sum_i u_i (z_i^2 - 1))                                                           (4)
        c_t = mean_rate / sqrt(1 + mean_decay t) in step t = 0, 1, ...                                            (5)

    The model is at the mean m, with ``deterministic=True`` at the best point known.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Multiplies every displacement. Default: 1.
        sigma: First standard deviation in parameter units. Default: None, 0.6 standard deviations of each tensor's
            initial values. It adapts itself, slowly in many dimensions.
        popsize: Number of candidates, at least 2; one more if it is odd and they come in pairs. Default: None,
            4 + 3 ln(dim) rounded down.
        mean_rate: First rate of the mean, above 0. Default: None, 2, with ``deterministic=True`` 1.
        mean_decay: How fast that rate falls, at least 0; 0 keeps it, as ``deterministic=True`` does. Default: 0.05.
        sigma_rate: Rate of the deviations; 0 keeps them. Default: None, (3 + ln(dim)) / (5 sqrt(dim)).
        antithetic: Whether candidates come in pairs that lie opposite each other. On losses that are smooth within the
            deviations, as those of networks, independent ones train better. Default: False.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.ones(10, dtype=torch.float64))
        >>> scales = 10 ** torch.linspace(0, 6, 10)
        >>> optimizer = torch_gfo.SNES([x], seed=0)
        >>> for _ in range(300):
        ...     loss = optimizer.step(lambda: (scales * x**2).sum())
        >>> bool(loss < 1e-6)
        True
    """

    _auto_sigma: ClassVar[float] = 0.6

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        popsize: int | None = None,
        mean_rate: float | None = None,
        mean_decay: float = 0.05,
        sigma_rate: float | None = None,
        antithetic: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "popsize": popsize, "mean_rate": mean_rate}
        own |= {"mean_decay": mean_decay, "sigma_rate": sigma_rate, "antithetic": antithetic}
        check_integer("popsize", popsize, 2, optional=True)
        check_number("mean_rate", mean_rate, "(0, inf)", optional=True)
        check_number("mean_decay", mean_decay, "[0, inf)")
        check_number("sigma_rate", sigma_rate, "[0, inf)", optional=True)
        check_flag("antithetic", antithetic)
        super().__init__(params, own, common)

    def _n_stored(self, dim: int) -> int:
        return 4 * (self.param_groups[0]["popsize"] or default_popsize(max(1, dim))) * dim

    def _init_state(self, search: Search) -> dict[str, Any]:
        return {"mean": search.point.clone(), "scales": torch.ones_like(search.point), "n_updates": 0}

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        group, n = self.param_groups[0], search.dim
        popsize, rate = group["popsize"] or default_popsize(n), group["sigma_rate"]
        if rate is None:
            rate = (3 + math.log(n)) / (5 * math.sqrt(n))
        m, s = state["mean"], state["scales"]
        if search.lower is not None and search.upper is not None:
            s = torch.minimum(s, (search.upper - search.lower) / 3)
        if group["antithetic"]:
            z = search.normal((popsize + 1) // 2, n)
            z = torch.cat([z, -z])
        else:
            z = search.normal(popsize, n)
        x = search.reflect(torch.addcmul(m, s, z))  # (1)

        losses = yield x

        u = by_rank((utilities(len(z)),), losses)[0].to(z.dtype) - 1 / len(z)  # (2)
        t, c = state["n_updates"], group["mean_rate"] or (1.0 if search.deterministic else 2.0)
        if not search.deterministic:
            c /= math.sqrt(1 + group["mean_decay"] * t)  # (5)
        state["mean"] = m = torch.addcmul(m, s, u @ z, value=c)  # (3)
        state["scales"] = s * (u @ z.square()).mul_(rate / 2).exp_()  # (4); the u_i have sum 0
        state["n_updates"] = t + 1
        return search.recommend(search.reflect(m), x, losses)
