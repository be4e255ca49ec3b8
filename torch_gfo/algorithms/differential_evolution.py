"""Differential evolution.

* R. Storn, K. Price, "Differential evolution - a simple and efficient heuristic for global optimization over continuous
  spaces", 1997, https://doi.org/10.1023/A:1008202821328, (2) and (3).
* J. Zhang, A. C. Sanderson, "JADE: adaptive differential evolution with optional external archive", 2009,
  https://doi.org/10.1109/TEVC.2009.2014613, (1) with the archive.
* R. Tanabe, A. S. Fukunaga, "Improving the search performance of SHADE using linear population size reduction", 2014,
  https://doi.org/10.1109/CEC.2014.6900380, L-SHADE: (4) to (7).

Differences from the papers: (1'), where the mean averages out the noise that each member carries in a network's space;
the archive is as large as the population (2.6 times as large), which needs fewer evaluations; walls mirror a trial.
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
from torch_gfo.options import CommonOptions, check_choice, check_integer
from torch_gfo.search import Search

__all__ = ["DE"]

_STRATEGIES = ("lshade", "rand1bin", "best1bin")
_LEAST, _MOST = 4, 50  # members
_MEMORY = 6


class DE(GradientFreeOptimizer):
    """Differential evolution: trials made of differences of members, each against its parent (L-SHADE by default).

    Use it on rugged, multimodal or badly scaled losses of 2 to about 50 parameters. It trains networks, but ``GA`` does
    with fewer evaluations, as does ``NelderMead`` where a loss of few parameters is smooth.

    In every step, for each member x_i of n, N standard normal, C standard Cauchy, U uniform in [0, 1), x_r1 another
    member, x_r2 yet another or one of the archive, k a random entry of the memories::

        v_i = x_i + F_i (x_pbest - x_i + x_r1 - x_r2),  pbest one of the best 11 %                              (1)
        v_i = mean of the best quarter + F_i (x_r1 - x_r2),  if n <= dim                                        (1')
        v_i = x_r0 + 0.5 (x_r1 - x_r2)  with "rand1bin", x_best instead of x_r0 with "best1bin"                 (2)
        u_ij = v_ij if U_ij <= CR_i or U_ij is the least of U_i, else x_ij                                      (3)
        F_i = M_F,k + 0.1 C, drawn again while <= 0, clipped to [0.001, 1]                                      (4)
        CR_i = M_CR,k + 0.1 N, clipped to [0, 1]; 0.9 in (2)                                                    (5)
        M_F, M_CR = sum w_i S_i^2 / sum w_i S_i  of F, CR of trials better than their parents, w_i by how much  (6)
        n = 4 + (popsize - 4) (1 - evaluations / max_evaluations)                                               (7)

    A trial that is no worse replaces its parent, and the archive takes the parents of better ones. (6) replaces the
    oldest of six entries, 0.5 at first; M_CR is 0 for good once all CR_i that succeeded are 0. The model moves to a
    trial that beats it on the same minibatch. When that changes, the losses of members are shifted by the change of the
    model's own. A collapsed population is replaced by one about a random point, or about the model on minibatches.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Multiplies every displacement. Default: 1.
        sigma: Standard deviation of the first population in parameter units; a quarter of a box's width is good.
            Default: None, 0.4 standard deviations of each tensor's initial values.
        popsize: Members, and trials in a step, at least 4. More find the best minimum more often, and each of them
            later. Default: None, dim + 25, at most 50.
        strategy: ``"lshade"``, ``"rand1bin"`` or ``"best1bin"``.
        max_evaluations: When the population has shrunk to 4 members, (7). Default: None, it keeps its size.
        restarts: Whether a collapsed population is replaced. Default: True.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
        >>> optimizer = torch_gfo.DE([x], seed=0, sigma=1.0)
        >>> for _ in range(100):
        ...     loss = optimizer.step(lambda: (x**2 - 10 * torch.cos(2 * torch.pi * x) + 10).sum())  # many minima
        >>> bool(loss < 1e-4)
        True
    """

    _auto_sigma: ClassVar[float] = 0.4

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        popsize: int | None = None,
        strategy: str = "lshade",
        max_evaluations: int | None = None,
        restarts: bool = True,
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "popsize": popsize, "strategy": strategy}
        own |= {"max_evaluations": max_evaluations, "restarts": restarts}
        for name, least in (("popsize", _LEAST), ("max_evaluations", 1)):
            check_integer(name, own[name], least, optional=True)
        for name, choices in (("strategy", _STRATEGIES), ("restarts", (True, False))):
            check_choice(name, own[name], choices)
        super().__init__(params, own, common)

    def _n_stored(self, dim: int) -> int:
        return 10 * int(self.param_groups[0]["popsize"] or min(dim + 25, _MOST)) * dim

    def _init_state(self, search: Search) -> dict[str, Any]:
        n = int(self.param_groups[0]["popsize"] or min(search.dim + 25, _MOST))
        return {
            "members": search.point.repeat(n, 1),  # sorted; the first ``size`` rows count
            "losses": search.point.new_full((n,), math.inf),  # all infinite: to be drawn about the first member
            "size": n,
            "archive": search.point.repeat(n, 1),
            "n_archived": 0,
            "memory": search.point.new_full((2, _MEMORY), 0.5),  # of F and CR, the oldest first; -1: CR is 0 for good
        }

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        group, n = self.param_groups[0], state["size"]
        x, f = state["members"][:n], state["losses"][:n] + search.drift
        fresh = bool(torch.isinf(f).all())
        if fresh:
            f = search.renewed(f) if torch.equal(x[0], search.point) else f
            u = search.reflect(x[0] + search.normal(n, search.dim))
        else:
            u, f_cr = self._trials(x, state, search)

        losses = yield u

        success, taken = losses < f, losses <= f
        if not fresh and bool(success.any()) and group["strategy"] == "lshade":
            state["memory"] = _learned(state["memory"], torch.where(success, f - losses, 0), f_cr)
            archive = torch.cat([state["archive"][: state["n_archived"]], x[success]])
            archive = archive[search.permutation(len(archive))[:n]]
            state.update(archive=torch.cat([archive, state["archive"][len(archive) :]]), n_archived=len(archive))
        f, order = torch.where(taken, losses, f).sort(stable=True)
        x = torch.where(taken[:, None], u, x)[order]
        state.update(members=torch.cat([x, state["members"][n:]]), losses=torch.cat([f, state["losses"][n:]]))
        if group["max_evaluations"] is not None:
            left = max(0.0, 1 - state["evaluations"] / group["max_evaluations"])
            n = min(n, _LEAST + round(left * (len(state["members"]) - _LEAST)))  # (7)
            state.update(size=n, n_archived=min(state["n_archived"], n))
        best = losses.argmin()
        point, loss = (u[best].clone(), losses[best]) if losses[best] < search.loss else (search.point, search.loss)
        if group["restarts"] and _collapsed(x, f):
            center = point if search.changed else search.reflect(search.normal(search.dim))
            state.update(self._init_state(search), size=n, members=center.repeat(len(state["members"]), 1))
        return point, loss

    def _trials(self, x: Tensor, state: dict[str, Any], search: Search) -> tuple[Tensor, Tensor]:
        """Trials ``(n, dim)``, and the F and CR ``(2, n)`` that made them."""
        (n, dim), strategy = x.shape, self.param_groups[0]["strategy"]
        if strategy == "lshade":
            m_f, m_cr = state["memory"][:, search.integers(_MEMORY, n)]
            negative = 0.5 - (m_f / 0.1).atan() / math.pi  # the chance of F <= 0, which drawing again leaves out
            f = m_f + 0.1 * (math.pi * (negative + (1 - negative) * search.uniform(n) - 0.5)).tan()
            f, cr = f.clamp(1e-3, 1), (m_cr + 0.1 * search.normal(n)).clamp(0, 1)  # (4), (5)
            r_1, r_2 = _others(search, n, n, n + state["n_archived"])
            difference = x[r_1] - torch.cat([x, state["archive"][: state["n_archived"]]])[r_2]
            if n > dim:
                difference += x[search.integers(max(2, round(0.11 * n)), n)] - x  # (1)
            base = x if n > dim else x[: max(2, n // 4)].mean(0)  # (1')
        else:
            f, cr = x.new_full((n,), 0.5), x.new_full((n,), 0.9)
            r_0, r_1, r_2 = _others(search, n, n, n, n)
            difference, base = x[r_1] - x[r_2], x[r_0] if strategy == "rand1bin" else x[0]  # (2)
        chance = search.uniform(n, dim)
        crossed = chance <= torch.maximum(cr, chance.amin(1))[:, None]
        u = torch.where(crossed, torch.addcmul(base, f[:, None], difference), x)  # (3)
        return search.reflect(u), torch.stack([f, cr])


def _others(search: Search, n: int, *sizes: int) -> list[Tensor]:
    """For each of ``n`` rows i, one of the first ``size`` rows, for each size: all different, and different from i."""
    rows = torch.arange(n, device=search.device)[None]
    for size in sizes:
        r = search.integers(size - len(rows), n)
        for before in rows.sort(0).values:
            r = r + (r >= before)  # skips it
        rows = torch.cat([rows, r[None]])
    return list(rows[1:])


def _learned(memory: Tensor, gains: Tensor, s: Tensor) -> Tensor:
    """The memory after trials with F and CR ``s``, ``(2, n)``, of which some gained something, (6)."""
    most = torch.where(torch.isfinite(gains), gains, 0).max()
    w = (gains / most).clamp(max=1) if most > 0 else gains.sign()
    mean = ((w * s**2).sum(1) / (w * s).sum(1)).nan_to_num(-1)
    mean[1] = torch.where(memory[1, 0] < 0, -1, mean[1])
    return torch.cat([memory[:, 1:], mean[:, None]], 1)


def _collapsed(x: Tensor, f: Tensor) -> bool:
    """Whether sorted members can no longer be told apart; or nearly so, and their losses (far apart: a plateau)."""
    eps, width = torch.finfo(x.dtype).eps, (x - x[0]).abs().max()
    return bool((width <= eps**0.75) | ((width <= eps**0.25) & (f[-1] - f[0] <= eps**0.75 * f[0].abs())))
