"""One batched evaluation of a closure, as it is or compiled.

``torch.compile`` traces the closure inside ``torch.vmap`` and the function mode of ``closure.py``. A loop that makes a
new closure for every batch does not compile anew: the same code with other tensors of the same shapes passes the
guards. A new shape compiles once more, for varying shapes, which then serves all others.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfo.batching import REWRITES
from torch_gfo.closure import Footprints, Intercept, Observer, loss_of
from torch_gfo.products import Factored

__all__ = ["Compiled", "evaluate_batch"]

Closure = Callable[[], Any]


def evaluate_batch(
    closure: Closure,
    numbers: Tensor,
    values: Callable[[Tensor], Mapping[int, Tensor | Factored]],
    kinds: set[type[Tensor]],
    footprints: Footprints | None = None,
    observer: Observer | None = None,
) -> Tensor:
    """Calls a closure once, for all candidates at once.

    Args:
        closure: Returns the loss.
        numbers: ``(P, ...)``, what stands for the candidates.
        values: Gives the stand-ins of the parameters from the numbers of one candidate.
        kinds: The types of the parameters.
        footprints: Where modified buffers are remembered, if at all.
        observer: Sees every tensor that is computed, if given.

    Returns:
        ``(P,)``, the losses.
    """

    def one(own: Tensor) -> Tensor:
        intercept = Intercept(dict(values(own)), kinds, footprints, REWRITES, observer)
        try:
            with torch.enable_grad(), intercept:  # in this order: the other sends the grad mode's calls through it
                result = closure()
        finally:
            intercept.close()
        loss = loss_of(result)
        if not isinstance(loss, Tensor):
            raise RuntimeError("it returns a Python number, not a tensor")
        return loss

    losses: Tensor = torch.vmap(one, randomness="same")(numbers)
    return losses


class Compiled:
    """``evaluate_batch``, compiled.

    Args:
        backend: Of ``torch.compile``.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        # torch.compile limits how often it compiles one code object: each optimizer has its own.
        function = types.FunctionType(
            evaluate_batch.__code__.replace(), evaluate_batch.__globals__, "evaluate_batch", evaluate_batch.__defaults__
        )
        options: dict[str, Any] | None = (
            {"fallback_random": True} if backend == "inductor" else None
        )  # the masks of plain calls
        self._function = torch.compile(function, backend=backend, fullgraph=True, options=options)

    def __call__(
        self,
        closure: Closure,
        numbers: Tensor,
        values: Callable[[Tensor], Mapping[int, Tensor | Factored]],
        kinds: set[type[Tensor]],
    ) -> Tensor:
        """Evaluates all candidates; what buffers are modified, the caller must know.

        Raises:
            Exception: Of many kinds, if the closure cannot be compiled.
        """
        config = torch._dynamo.config
        options = (
            {"allow_rnn": True} if hasattr(config, "allow_rnn") else {}
        )  # older versions trace them anyway, or not
        with warnings.catch_warnings(), config.patch(options):
            warnings.simplefilter("ignore")
            losses: Tensor = self._function(closure, numbers, values, kinds)
        return losses
