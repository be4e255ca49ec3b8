"""EGGROLL: an evolution strategy whose perturbations of matrices have low rank.

* B. Sarkar et al., "Evolution strategies at the hyperscale", 2025, https://arxiv.org/abs/2511.16652.

Differences from the paper: everything but the perturbations is as for ``OpenAIES``: ranks of the losses instead of
their z-scores, updates with momentum, and a step in units of ``sigma``. Vectors, and matrices so small that factors
save nothing, are perturbed densely; convolutions' weights as matrices of outputs times all else. The inputs' side of a
perturbation is drawn in the directions of the layer's inputs, see ``torch_gfo.inputs``.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from torch_gfo.algorithms.openai_es import OpenAIES
from torch_gfo.options import CommonOptions

__all__ = ["EGGROLL"]


class EGGROLL(OpenAIES):
    """EGGROLL: ``OpenAIES`` with perturbations of low rank, for large networks and large populations.

    Use it wherever you would use ``OpenAIES`` and evaluating many candidates takes the time: batched evaluation of
    linear layers, embeddings and convolutions shares the products with the weights, and a candidate is a few
    numbers for each row and column. Do not use it on parameters without matrices, where it is ``OpenAIES``.

    In every step, for the candidates i = 1, ..., n = popsize, and each weight W seen as a matrix; A_i and B_i have
    ``rank`` = r columns of standard normal numbers, and rank_i goes from -1/2 for the lowest loss to 1/2 for the
    highest, equal losses sharing the mean::

        E_i = A_i B_i^T / sqrt(r)                           mirrored: half of the E_i, the others their opposites (1)
        B_i = D^T Z_i                                       Z_i of standard normal numbers, D the layer's directions
        W_i = W + s sigma E_i                                                                                     (2)
        g = (rank_1 E_1 + ... + rank_n E_n) / n                                                                   (3)
        W = W + lr_t sigma u                                u the update's step against g                         (4)
        lr_t = lr / sqrt(1 + lr_decay t)                    in step t = 0, 1, ...                                 (5)
        s = min(1, s exp(sigma_lr (p - 0.15)))              at first 1; p of the candidates are better than W     (6)

    The rows of D are the ``input_span`` principal directions of some inputs of the linear layer or convolution, as the
    evaluation of the model at the beginning of the step shows them: each with such a length that all change the outputs
    alike, and together as much as B_i of normal numbers would. Such B_i are drawn for other weights, with
    ``input_span=None``, with ``distributed="data"`` and with ``ask()``. Entries of E then have mean zero and variance
    one and are uncorrelated, as those of a normal matrix, but not normal: for r = 1 they are products of two normal
    numbers, with longer tails. Vectors are perturbed by normal ones. Within ``bounds``, and with ``subspace``, all is:
    this is ``OpenAIES`` then.

    Args:
        params: Parameters, parameter groups or named parameters.
        lr: Length of the model's first steps, in units of ``sigma``, see ``OpenAIES``. Good values grow in proportion
            to ``popsize``; ``"adam"`` needs half as much, ``"clipup"`` a twentieth. Default: 1.
        sigma: Greatest radius of the candidates about the model, in parameter units. Default: None, 0.5 standard
            deviations of each tensor's initial values.
        popsize: Number of candidates, at least 2; even where they are mirrored. Default: 32.
        rank: r, at least 1. More costs more, and its steps are better, the less so the larger it is. Default: 1.
        input_span: Number of rows of D, at least 1; None for perturbations in all directions. Few directions are
            learned sooner, what many tell can be learned better. Default: 24.
        update: ``"adam"``, ``"clipup"`` or ``"sgd"``, see ``torch_gfo.updates``. Default: ``"sgd"``.
        momentum: Share of its velocity that the model keeps from step to step, in [0, 1). Default: 0.9.
        lr_decay: Rate of the decay (5), at least 0; with 0, steps keep their length. Default: 0.02.
        mirrored: Whether candidates come in pairs on opposite sides of the model. Default: False.
        sigma_lr: Rate at which candidates draw nearer to the model while fewer than 0.15 of them are better than it,
            and go back, at least 0 (6); 0 keeps them at ``sigma``. Default: 0.3.
        **common: The options of every optimizer, see ``torch_gfo.options.CommonOptions``.

    Raises:
        TypeError: For an argument that does not exist.
        ValueError: For a value outside its range.

    Example:
        >>> import torch, torch_gfo
        >>> weight = torch.nn.Parameter(torch.zeros(4, 8))
        >>> target = torch.linspace(-1, 1, 32).view(4, 8)
        >>> optimizer = torch_gfo.EGGROLL([weight], sigma=0.1, seed=0)
        >>> schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
        >>> for _ in range(200):
        ...     loss = optimizer.step(lambda: (weight - target).square().mean())
        ...     schedule.step()
        >>> bool(loss < 1e-2)
        True
    """

    _auto_sigma: ClassVar[float] = 0.5

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        sigma: float | None = None,
        popsize: int = 32,
        rank: int = 1,
        input_span: int | None = 24,
        update: str = "sgd",
        momentum: float = 0.9,
        lr_decay: float = 0.02,
        mirrored: bool = False,
        sigma_lr: float = 0.3,
        **common: Unpack[CommonOptions],
    ) -> None:
        low_rank: Any = {"perturbation": "low_rank", "rank": rank, "input_span": input_span, "sigma_lr": sigma_lr}
        super().__init__(params, lr, sigma, popsize, update, momentum, lr_decay, mirrored, **low_rank, **common)
