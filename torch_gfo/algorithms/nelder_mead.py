"""The simplex method of Nelder and Mead.

* J. A. Nelder, R. Mead, "A simplex method for function minimization", 1965, https://doi.org/10.1093/comjnl/7.4.308.
* F. Gao, L. Han, "Implementing the Nelder-Mead simplex algorithm with adaptive parameters", 2012,
  https://doi.org/10.1007/s10589-010-9329-3: the numbered steps, and the coefficients that depend on the dimension.
* W. Spendley, G. R. Hext, F. R. Himsworth, "Sequential application of simplex designs in optimisation and evolutionary
  operation", 1962, https://doi.org/10.1080/00401706.1962.10490033: the regular simplex to start from.

Differences from the papers:

* The first simplex is regular, not along the axes, and mirrored at random.
* One rule accepts both contractions: the point must be better than the worst vertex and than the reflected point.
* A simplex that has collapsed is replaced by a fresh one: around the best point if it has improved that, as long as
  this helps, because it may have lost directions; else at a random point, because the best one may be a local minimum.
* On minibatches: see ``NelderMead``.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Generator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.options import CommonOptions, check_flag, invalid
from torch_gfo.search import Search

__all__ = ["NelderMead"]

_MANY = 10  # from so many dimensions on, coefficients that depend on the dimension need fewer evaluations
_TOO_MANY = 100  # parameters, of which a simplex of all directions learns too little in too many evaluations


class NelderMead(GradientFreeOptimizer):
    """Nelder-Mead: a simplex of ``dim + 1`` points that reflects, stretches and contracts its worst vertex.

    Use it on smooth losses of up to about 20 parameters, where each evaluation counts: hardly any method without
    gradients needs fewer. Do not use it on rugged losses. Of more than 100 parameters it searches ten random directions
    around the model, others in each step (``subspace=10, subspace_refresh=1``), unless ``subspace`` is given.

    With the vertices sorted, x_1 the best and x_n+1 the worst of them, c the mean of all but the worst::

        x_r = c + alpha (c - x_n+1)                reflection
        x_e = c + beta (x_r - c)                   expansion, if f_r < f_1; the better of both replaces x_n+1
        x_c = c + gamma (x_r - c)                  outside contraction, if f_n <= f_r < f_n+1
        x_c = c - gamma (x_r - c)                  inside contraction, if f_n+1 <= f_r
        x_i = x_1 + delta (x_i - x_1)              shrinkage, if x_c is no better than x_r and x_n+1

    A step on an objective that has not changed makes one such move. When the minibatch changes, all vertices are
    evaluated again, and the step goes on moving on this minibatch until that has cost as much. The model is at the best
    point.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Multiplies every displacement. Default: 1.
        sigma: Edge of the first simplex in parameter units. Default: None, 0.2 standard deviations of each tensor's
            initial values.
        adaptive: Whether the coefficients depend on the dimension n, (1, 1 + 2/n, 0.75 - 1/(2n), 1 - 1/n), which keeps
            a simplex of many dimensions from collapsing, or are (1, 2, 0.5, 0.5), which is faster in few. Default:
            None, from 10 dimensions on.
        restarts: Whether a collapsed simplex is replaced by a fresh one, around the best point while that goes on to
            find better ones, else at a random point of ``bounds``; the model stays at the best point. Default: True.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``; ``subspace=None`` searches
            all directions, also those of more than 100 parameters.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.
        RuntimeError: If the simplex, ``dim * (dim + 1)`` numbers, would not fit into memory.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
        >>> optimizer = torch_gfo.NelderMead([x], seed=0, deterministic=True)
        >>> for _ in range(150):
        ...     loss = optimizer.step(lambda: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)
        >>> bool(loss < 1e-6)
        True
    """

    _auto_sigma: ClassVar[float] = 0.2

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        adaptive: bool | None = None,
        restarts: bool = True,
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "adaptive": adaptive, "restarts": restarts}
        if adaptive is not None and not isinstance(adaptive, bool):
            raise invalid("adaptive", adaptive, "True, False, or None for True from 10 dimensions on")
        check_flag("restarts", restarts)
        super().__init__(params, own, common)

    def _suited_to(self, dim: int) -> CommonOptions:
        return {"subspace": 10, "subspace_refresh": 1} if dim > _TOO_MANY else {}

    def _n_stored(self, dim: int) -> int:
        return 4 * dim * (dim + 1)

    def _init_state(self, search: Search) -> dict[str, Any]:
        return {
            "simplex": search.point.expand(search.dim + 1, -1).clone(),  # sorted, the best vertex first
            "losses": search.point.new_full((search.dim + 1,), math.inf),  # all infinite: a new simplex is to be built
            "start": search.point.clone(),  # the first vertex of that one
            "best_at_start": math.inf,  # the model's loss when the simplex was built
        }

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        n = search.dim
        alpha, beta, gamma, delta = _coefficients(n, self.param_groups[0]["adaptive"])
        x, f = state["simplex"], state["losses"].tolist()
        budget = 1
        fresh = math.isinf(f[0])  # the lowest
        if fresh:
            x = search.reflect(state["start"] + _regular_simplex(search))
        if fresh or search.changed:
            at_model = torch.equal(x[0], search.point)
            x, f = _sorted(x, torch.cat([search.loss[None], (yield x[1:])]) if at_model else (yield x))  # 1. sort
            budget = n

        spent = 0
        while spent < budget:
            c = x[:-1].mean(0)
            x_r = search.reflect(c + alpha * (c - x[-1]))  # 2. reflection
            f_r = float((yield x_r[None])[0])
            spent += 1
            x_new, f_new = x_r, f_r
            if f_r < f[0]:
                x_e = search.reflect(c + beta * (x_r - c))  # 3. expansion
                f_e = float((yield x_e[None])[0])
                spent += 1
                if f_e < f_r:
                    x_new, f_new = x_e, f_e
            elif f_r >= f[-2]:
                inside = f_r >= f[-1]
                x_c = search.reflect(c + (-gamma if inside else gamma) * (x_r - c))  # 4., 5. contraction
                f_c = float((yield x_c[None])[0])
                spent += 1
                if f_c >= min(f_r, f[-1]):
                    x = search.reflect(x[0] + delta * (x - x[0]))  # 6. shrinkage
                    x, f = _sorted(x, torch.cat([x.new_tensor(f[:1]), (yield x[1:])]))
                    spent += n
                    continue
                x_new, f_new = x_c, f_c
            k = bisect_right(f, f_new, hi=n)  # 1. sort: the new vertex goes to its place
            x, f = torch.cat([x[:k], x_new[None], x[k:-1]]), [*f[:k], f_new, *f[k:-1]]

        state["simplex"], state["losses"] = x, x.new_tensor(f)
        point, loss = (x[0].clone(), state["losses"][0]) if f[0] < search.loss else (search.point, search.loss)
        if self.param_groups[0]["restarts"] and _collapsed(x, f):
            helped = search.changed or float(loss) < state["best_at_start"]
            state["start"] = point if helped else search.anywhere(1)[0]
            state["losses"] = torch.full_like(state["losses"], math.inf)
            state["best_at_start"] = float(loss)
        return point, loss


def _sorted(x: Tensor, losses: Tensor) -> tuple[Tensor, list[float]]:
    """The vertices and their losses, the best first."""
    f, order = losses.sort(stable=True)
    return x[order], f.tolist()


def _coefficients(n: int, adaptive: bool | None) -> tuple[float, float, float, float]:
    """Returns alpha, beta, gamma and delta for ``n`` dimensions."""
    if adaptive is False or (adaptive is None and n < _MANY):
        return 1.0, 2.0, 0.5, 0.5
    n = max(n, 2)  # in one dimension, delta would be 0
    return 1.0, 1 + 2 / n, 0.75 - 1 / (2 * n), 1 - 1 / n


def _regular_simplex(search: Search) -> Tensor:
    """Vertices ``(n + 1, n)`` at distance 1 from each other, the first at the origin, mirrored at random."""
    n = search.dim
    q = (math.sqrt(n + 1) - 1) / (n * math.sqrt(2))
    vertices = torch.full((n, n), q, dtype=search.dtype, device=search.device).fill_diagonal_(q + math.sqrt(0.5))
    signs = 2 * search.integers(2, n) - 1
    return torch.cat([torch.zeros_like(vertices[:1]), vertices * signs])


def _collapsed(x: Tensor, f: list[float]) -> bool:
    """Whether the vertices of a sorted simplex, or their losses, can hardly be told apart."""
    eps = torch.finfo(x.dtype).eps
    flat = f[-1] - f[0] <= eps**0.85 * abs(f[0])
    return flat or bool((x - x[0]).abs().max() <= eps**0.75)
