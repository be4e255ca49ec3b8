"""Evaluations that the ranks of ``torch.distributed`` share: only losses travel.

Every rank holds the same model, seed and state; so it draws the same candidates and, given the same losses, takes the
same decisions. With ``"candidates"`` each rank evaluates its part of a population, with ``"data"`` all of it on its own
part of the data.
"""

from __future__ import annotations

import contextlib
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from torch_gfo.evaluation import Plan, Session
from torch_gfo.perturbation import Candidates
from torch_gfo.probing import PerturbedModels
from torch_gfo.space import ParameterVector
from torch_gfo.start import Start, agree

__all__ = ["MODES", "SharedSession", "common_seed", "refuse_to_ask", "share"]

MODES = (None, "candidates", "data")

_N_HEADER = 3 + len(Plan._fields)  # numbers that an exchange sends before the losses
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their number of bytes

T = TypeVar("T")


class SharedSession:
    """The evaluations of one step, shared among all ranks; the same for a step as a ``Session``.

    An exchange is one ``all_gather`` of numbers: whether the sender has failed, a fingerprint of where it stands, what
    its session has found out, and its losses. Means are taken here, in the order of the ranks: the order in which
    ``all_reduce`` adds is the backend's affair, and models must stay identical to the last bit.

    Args:
        session: The evaluations of this rank.
        mode: ``"candidates"`` or ``"data"``.
        vector: The parameters that the search moves.
        values: Of each of them, real.
        facts: What must be the same on all ranks, by name.

    Raises:
        RuntimeError: If ``torch.distributed`` is not initialised.
    """

    def __init__(
        self, session: Session, mode: str, vector: ParameterVector, values: Sequence[Tensor], facts: dict[str, Any]
    ) -> None:
        _require_group(mode)
        self._session = session
        self._mode = mode
        self._vector, self._values = vector, values
        self._facts = facts
        self._fingerprint = zlib.crc32(repr((facts, self._checksums())).encode())
        self._rank, self._n_ranks = dist.get_rank(), dist.get_world_size()
        self._device = _device_of_messages(vector.device)
        self._met = False  # the first message of a step has the same length, whatever the ranks disagree in

    def __enter__(self) -> SharedSession:
        """Opens the evaluations of this rank."""
        self._session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Puts everything back, on this rank as on all others."""
        self._session.__exit__(kind, error, trace)

    @property
    def plan(self) -> Plan:
        """How the next step is to evaluate; on all ranks the same, although they measure different times."""
        return self._session.plan

    @property
    def returns_tensor(self) -> bool:
        """Whether the closure returns tensors."""
        return self._session.returns_tensor

    def model(self) -> tuple[object, float]:
        """Evaluates the model on every rank; the loss is the mean, or rank 0's where all have the same data."""
        result, own = self._attempt(self._session.model, 1)
        losses = self._exchange(torch.tensor([own], dtype=torch.float64))[:, 0]
        loss = float(losses.mean() if self._mode == "data" else losses[0])
        if self._mode == "candidates" and not all(agree(loss, other, self._vector.dtype) for other in losses.tolist()):
            warnings.warn(
                f"The loss of one model is {', '.join(f'{other:.6g}' for other in losses.tolist())} on the ranks: they "
                "evaluate their candidates on different minibatches or random numbers. Give all ranks the same seeds "
                'and batches, or distributed="data" if each has its own part of the data.',
                stacklevel=6,
            )
        if own == loss:
            return result, loss
        if not isinstance(result, Tensor):
            return loss, loss
        return torch.full_like(result, loss, dtype=torch.promote_types(result.dtype, torch.float16)), loss

    def losses(self, x: Candidates | PerturbedModels) -> Tensor:
        """Evaluates candidates.

        Args:
            x: ``(P, dim)``, parameter vectors; or a population of them; or perturbed models.

        Returns:
            ``(P,)``, their losses, in the dtype of ``x``.
        """
        if not self._met:
            self._exchange(torch.zeros(1, dtype=torch.float64))
        n_parts = self._n_ranks if self._mode == "candidates" else 1
        ends = [-(-len(x) * part // n_parts) for part in range(n_parts + 1)]  # rounded up: rank 0 is never idle
        first, last = ends[self._rank : self._rank + 2] if n_parts > 1 else ends
        padded = torch.zeros(ends[1], dtype=torch.float64, device=x.device)
        if first == last and isinstance(x, PerturbedModels):  # their first evaluation is what moves the random state
            self._attempt(lambda: self._session.losses(x[:1]), len(padded))
        if last > first:
            padded[: last - first] = self._attempt(lambda: self._session.losses(x[first:last]), len(padded))
        replies = self._exchange(padded)
        if self._mode == "candidates":
            losses = torch.cat([reply[: ends[i + 1] - ends[i]] for i, reply in enumerate(replies)])
        else:
            losses = replies.mean(0)
        return losses.to(x.device, x.dtype)

    def _attempt(self, evaluate: Callable[[], T], n: int) -> T:
        """Evaluates; where that fails, the other ranks hear of it in the place of ``n`` losses."""
        try:
            return evaluate()
        except BaseException as error:
            with contextlib.suppress(RuntimeError):  # where another rank is gone too, this error is the one to report
                self._gather(torch.zeros(n), failed=True)
                self._gather_objects(f"{type(error).__name__}: {error}")
            raise

    def _exchange(self, losses: Tensor) -> Tensor:
        """Sends ``(n,)`` losses to all ranks; returns theirs, ``(ranks, n)``, on the CPU."""
        replies = self._gather(losses, failed=False)
        self._met = True
        failed, fingerprints, returns_tensor, *plan = replies[:, :_N_HEADER].T.tolist()
        if any(failed):
            reasons = self._gather_objects("")
            culprit = failed.index(True)
            raise RuntimeError(
                f"The closure has failed on rank {culprit} with {reasons[culprit]!r}: this step is undone on rank "
                f"{self._rank}, as on all ranks. The output of rank {culprit} shows where."
            )
        if len(set(fingerprints)) > 1:
            raise RuntimeError(self._differences())
        self._session.plan = Plan(*(int(numbers[0]) for numbers in plan))  # rank 0 is never idle
        self._session.returns_tensor = bool(returns_tensor[0])
        return replies[:, _N_HEADER:]

    def _gather(self, losses: Tensor, *, failed: bool) -> Tensor:
        """One exchange: ``(ranks, _N_HEADER + n)``."""
        header = [failed, self._fingerprint, self._session.returns_tensor, *self._session.plan]
        own = torch.tensor(header, dtype=torch.float64, device=self._device)
        own = torch.cat([own, losses.to(self._device, torch.float64)])
        replies = [torch.empty_like(own) for _ in range(self._n_ranks)]
        try:
            dist.all_gather(replies, own)
        except RuntimeError as error:
            raise RuntimeError(
                f"Rank {self._rank} has lost another rank in step {self._facts['step']}: that one was ended, or has "
                "not come to this step within the timeout of init_process_group(). Start the job again and load the "
                "last checkpoint, on as many ranks as you like."
            ) from error
        return torch.stack(replies).cpu()

    def _gather_objects(self, own: T) -> list[T]:
        objects: list[Any] = [None] * self._n_ranks
        dist.all_gather_object(objects, own)
        return objects

    def _differences(self) -> str:
        """An error message that says in what ranks differ."""
        own = dict(self._facts)
        for i, (parameter, checksum) in enumerate(zip(self._vector.parameters, self._checksums(), strict=True)):
            own[f"the values of parameter {i} of shape {tuple(parameter.shape)}"] = checksum
        stands = self._gather_objects(own)
        rank, other = next((i, stand) for i, stand in enumerate(stands) if stand != stands[0])
        names = [name for name in {**stands[0], **other} if stands[0].get(name) != other.get(name)]
        shown = [f"{n}, {other.get(n)!r} and {stands[0].get(n)!r}" if n in self._facts else n for n in names]
        return (
            f"Rank {rank} and rank 0 differ in {'; '.join(shown)}. All ranks must do the same search: build the model "
            "after the same torch.manual_seed() on all, or broadcast the parameters of rank 0; give the optimizers the "
            "same arguments and schedules; load the same checkpoint. Ranks that part later differ in hardware, number "
            "of threads or versions, and so in rounding."
        )

    def _checksums(self) -> list[int]:
        """Of each parameter's values, the sum of the bits as integers: exact, in whatever order a device adds."""
        sums = [v.view(_INTEGERS[v.element_size()]).sum().to(self._vector.device) for v in self._values]
        return torch.stack(sums).tolist() if sums else []


def share(session: Session, start: Start, optimizer: torch.optim.Optimizer, step: int) -> Session | SharedSession:
    """The evaluations of an optimizer's step: of this process alone, or of all ranks if its options say so."""
    mode = optimizer.param_groups[0]["distributed"]
    if mode is None:
        return session
    facts = {"class": type(optimizer).__name__, "step": step}
    for i, group in enumerate(optimizer.param_groups):
        own = {name: value for name, value in group.items() if name in optimizer.defaults}
        facts |= {
            f"{name} of group {i}" if i else name: float(value) if isinstance(value, Tensor) else value
            for name, value in own.items()
        }
    return SharedSession(session, mode, start.vector, start.values(), facts)


def common_seed(seed: int | None, mode: str | None) -> int:
    """Returns the seed; for None, one from the operating system, which is the same on all ranks.

    Raises:
        RuntimeError: If the search is to be distributed and ``torch.distributed`` is not initialised.
    """
    drawn = [int.from_bytes(os.urandom(7), "big")]
    if mode is not None:
        _require_group(mode)
        dist.broadcast_object_list(drawn, src=0)  # by all ranks, even if some have a seed: then none waits in vain
    return drawn[0] if seed is None else seed


def refuse_to_ask(mode: str | None) -> None:
    """Refuses ``ask()``, whose evaluations nothing here can share.

    Raises:
        RuntimeError: If the search is distributed.
    """
    if mode is not None:
        raise RuntimeError(
            f"distributed={mode!r} shares the evaluations that step() makes; those of ask() are yours. Leave out "
            "distributed, and give the optimizers of all ranks the same seed: they ask for the same rows."
        )


def _require_group(mode: str) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"distributed={mode!r} shares evaluations among the processes of torch.distributed, which is not "
            "initialised. Start the script with 'torchrun --nproc-per-node 2 script.py', and call "
            'torch.distributed.init_process_group("gloo"), or "nccl" on GPUs, before the optimizer is made.'
        )


def _device_of_messages(device: torch.device) -> torch.device:
    """The CPU where the ranks can exchange its tensors: losses have to be read there anyway."""
    backends = dist.get_backend_config()  # such as "cuda:nccl"
    if "cpu:" in backends:
        return torch.device("cpu")
    if f"{device.type}:" not in backends:
        raise RuntimeError(
            f"The parameters lie on {device}, and torch.distributed was initialised for {backends}. Move the model to "
            'the other device, or call init_process_group("cpu:gloo,cuda:nccl").'
        )
    return device
