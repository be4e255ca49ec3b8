"""A genetic algorithm for networks, whose genomes are chains of seeds.

F. P. Such, V. Madhavan, E. Conti, J. Lehman, K. O. Stanley, J. Clune, "Deep neuroevolution: genetic algorithms are a
competitive alternative for training deep neural networks for reinforcement learning", 2017,
https://arxiv.org/abs/1712.06567.

Differences from the paper: the first population are mutants of the model, not networks of other initial weights; the
elite is evaluated once in every step, as all others, where the paper evaluates the best ten thirty times to find it;
noise comes from generators, not from a table.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from torch_gfo.optimizer import GradientFreeOptimizer
from torch_gfo.options import CommonOptions, check_integer, invalid
from torch_gfo.search import Search, generator

__all__ = ["DeepGA"]

_AT_A_TIME = 2**23  # numbers of the population, at most
_BLOCK = 1000  # generations that a genome has room for at first, and grows by


class DeepGA(GradientFreeOptimizer):
    """Deep GA: mutants of the best few of a population of any size, each of them known by its seeds alone.

    Use it for populations that do not fit into memory, and where a network has to be kept or sent as a short list of
    numbers. In few dimensions, and to go on after the first rough search, take ``GA``, whose radius adapts.

    In every step, x_1, ..., x_T are the parents, and x_1 is the model. For each child i = 1, ..., popsize::

        child_i = x_k + N(s_i),  k a random parent, s_i a random seed                                           (1)
        genome of child_i = genome of x_k, s_i                                                                  (2)
        parents = the best T of the model and the children                                                      (3)

    where N(s) are the standard normal numbers of a generator with seed s. Children are made from their seeds, a few of
    them at a time, and made again if they become parents: memory is that of the parents, whatever ``popsize``.

    The model is the paper's elite: it moves to the best child if that beats it on the same minibatch. Nothing is
    remembered that another minibatch could make stale.

    The mutation radius is ``sigma`` for good, so the search comes to a halt about that far from a minimum. A schedule
    that lowers ``lr`` takes it on.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Multiplies every displacement. Default: 1.
        sigma: Standard deviation of a mutation in parameter units, the paper's mutation power. Default: None, 0.1
            standard deviations of each tensor's initial values.
        popsize: Number of children (evaluations) in a step, at least 2. Default: 24.
        n_parents: The paper's T, from 1 to popsize; so many vectors are kept. Default: 3.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.

    Example:
        >>> import torch, torch_gfo
        >>> x, y = (torch.nn.Parameter(torch.tensor([-1.0, 2.0])) for _ in range(2))
        >>> optimizer = torch_gfo.DeepGA([x], seed=0, sigma=0.1)
        >>> for _ in range(50):
        ...     loss = optimizer.step(lambda: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)
        >>> torch_gfo.DeepGA([y], sigma=0.1).rebuild(optimizer.genome())
        >>> torch.allclose(x, y)
        True
    """

    _auto_sigma: ClassVar[float] = 0.1

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        popsize: int = 24,
        n_parents: int = 3,
        **common: Unpack[CommonOptions],
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "sigma": sigma, "popsize": popsize, "n_parents": n_parents}
        check_integer("popsize", popsize, 2)
        if not isinstance(own["n_parents"], int) or not 1 <= n_parents <= popsize:
            raise invalid("n_parents", n_parents, f"an integer from 1 to popsize={popsize}")
        super().__init__(params, own, common)

    def genome(self) -> list[int]:
        """The seeds of the mutations that lead from where the search began to the model."""
        genomes = self._shared.get("genomes")  # None where no parameter requires grad
        return [] if genomes is None else [seed for seed in genomes[0].tolist() if seed]

    @torch.no_grad()
    def rebuild(self, genome: Sequence[int]) -> None:
        """Moves a model with its initial parameters to where a genome leads: the network that the genome is of.

        It takes a new optimizer with the arguments of the one that has found the genome. Search coordinates are the
        same, bit for bit; parameters up to rounding, since a search adds its moves to them one after the other. It is
        another network if ``lr``, ``sigma`` or the directions of a subspace have changed during the search.

        Raises:
            RuntimeError: If the search of this optimizer has begun.
        """
        if self.evaluations:
            raise RuntimeError(
                f"A genome leads on from initial parameters, but this search has made {self.evaluations:,} evaluations "
                "and may have left them. Give a model with its initial parameters to a new optimizer."
            )
        start, z = self._start(), self._shared["point"]
        frame = start.frame(z, self._directions.basis(start.x, 0))
        search = frame.search(
            torch.Generator(z.device), z.new_tensor(math.nan), None, self._evaluator.pages, deterministic=False
        )
        for seed in genome:
            z = _mutants(z[None], torch.tensor([seed]), search)[0]
        start.vector.write(frame.moved(z))

    def _n_stored(self, dim: int) -> int:
        n, n_parents = int(self.param_groups[0]["popsize"]), int(self.param_groups[0]["n_parents"])
        return (5 * min(_rows(dim), n) + 4 * n_parents) * dim + 4 * n_parents * _BLOCK

    def _init_state(self, search: Search) -> dict[str, Any]:
        n_parents = self.param_groups[0]["n_parents"]
        genomes = torch.zeros(n_parents, _BLOCK, dtype=torch.long, device=search.device)  # 0: no mutation
        return {"parents": search.point.repeat(n_parents, 1), "genomes": genomes, "generation": 0}

    def _iterate(self, state: dict[str, Any], search: Search) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        n, n_parents = self.param_groups[0]["popsize"], self.param_groups[0]["n_parents"]
        x, rows = state["parents"], _rows(search.dim)
        sources, seeds = search.integers(n_parents, n), search.integers(2**62, n) + 1
        losses = [search.loss[None]]
        for parents, their_seeds in zip(torch.split(sources, rows), torch.split(seeds, rows), strict=True):
            losses.append((yield _mutants(x[parents], their_seeds, search)))  # (1)

        none = torch.zeros_like(seeds[:1])
        sources, seeds = torch.cat([none, sources]), torch.cat([none, seeds])  # the model is x_1 without a mutation
        f, rank = torch.cat(losses).sort(stable=True)
        best = rank[:n_parents]
        state["parents"] = _mutants(x[sources[best]], seeds[best], search)  # (3)
        state["genomes"] = _extended(state["genomes"][sources[best]], seeds[best], state["generation"])  # (2)
        state["generation"] += 1
        return state["parents"][0].clone(), f[0]


def _rows(dim: int) -> int:
    """How many of the children are made at a time."""
    return max(1, _AT_A_TIME // max(1, dim))


def _mutants(x: Tensor, seeds: Tensor, search: Search) -> Tensor:
    """The points ``(n, dim)``, each mutated by its seed, if it has one."""
    z = x.clone()
    for row, seed in zip(z, seeds.tolist(), strict=True):
        if seed:
            rng = generator(seed, "mutation", 0, x.device)
            row += torch.randn(row.shape, generator=rng, dtype=row.dtype, device=row.device)
    return search.reflect(z)


def _extended(genomes: Tensor, seeds: Tensor, generation: int) -> Tensor:
    """The genomes ``(n, room)``, each with its seed of this generation."""
    if generation == genomes.shape[1]:
        genomes = torch.cat([genomes, torch.zeros_like(genomes[:, :_BLOCK])], 1)
    return genomes.index_copy(1, torch.tensor([generation], device=genomes.device), seeds[:, None])
