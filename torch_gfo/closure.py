"""Running an ordinary zero-argument closure with other values in place of the parameters.

A torch function mode sees every torch call inside the closure. It puts stand-ins in the place of the optimized
parameters, turns ``backward()`` into a no-op, and remembers the buffers that the closure modifies, so that an
evaluation can be undone.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torch_gfo.inputs import Inputs
from torch_gfo.products import METADATA, PRODUCTS, Factored, StandIn

__all__ = ["Footprints", "Intercept", "Memory", "Observer", "loss_of"]

_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_INPLACE_OPERATORS = frozenset({"__setitem__", *(f"__i{name}__" for name in _OPERATORS)})


class Footprints:
    """The tensors that a closure has modified in place and that outlive it: buffers, with their earlier values."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}

    def record(self, tensor: Tensor) -> None:
        """Remembers the value of a tensor that is about to be modified, directly or through a view of it."""
        if tensor._base is not None:
            tensor = tensor._base
        key = id(tensor)
        if key not in self._before:
            # A temporary dies with the closure and takes its entry along.
            reference = weakref.ref(tensor, lambda _: self._before.pop(key, None))
            self._before[key] = (reference, tensor.detach().clone())

    def references(self) -> list[weakref.ref[Tensor]]:
        """The tensors."""
        return [weakref.ref(tensor) for tensor in (ref() for ref, _ in self._before.values()) if tensor is not None]

    def erase(self) -> None:
        """Gives every modified tensor its earlier value back."""
        with torch.no_grad():
            for reference, before in list(self._before.values()):
                tensor = reference()
                if tensor is not None:
                    tensor.copy_(before)
        self._before.clear()


class Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Measures the operations inside it: how many there are, and the most bytes that they hold at a time, ``peak``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_operations = 0
        self.peak = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Takes note of what an operation has allocated; views allocate nothing."""
        result = func(*args, **(kwargs or {}))
        self.n_operations += 1
        given = {tensor.untyped_storage()._cdata for tensor in _tensors(args)}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in given and key not in self._live:
                self._live[key] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, key, None).atexit = False
        self.peak = max(self.peak, sum(self._live.values()))
        return result


class Observer:
    """Watches the tensors that a closure computes: which outlive it."""

    def __init__(self) -> None:
        self._seen: list[weakref.ref[Tensor]] = []

    def see(self, result: Any, args: tuple[Any, ...]) -> None:
        """Takes note of what a torch call computed; what it was given (``add_``, ``contiguous``) is not new."""
        given = {id(tensor) for tensor in _tensors(args)}
        for tensor in _tensors(result):
            if id(tensor) in given:
                continue
            self._seen.append(weakref.ref(tensor))

    def release(self) -> int:
        """Counts the tensors of a finished ``vmap`` that something still refers to, and makes them usable.

        Such a tensor is only valid inside the ``vmap``. Each is given the value that it has for the first candidate.
        """
        if any(reference() is not None for reference in self._seen):
            gc.collect()
        alive = [tensor for tensor in (reference() for reference in self._seen) if tensor is not None]
        self._seen.clear()  # tensors with weak references cannot be swapped
        batched = [tensor for tensor in alive if is_batchedtensor(tensor)]
        for tensor in batched:
            torch.utils.swap_tensors(tensor, get_unwrapped(tensor)[0].clone())  # type: ignore[no-untyped-call]
        return len(batched)


class Intercept(TorchFunctionMode):
    """Stands between a closure and torch while one evaluation runs.

    Args:
        stand_ins: ``id(parameter)`` -> the tensor that takes its place, or what a call that needs one makes it from.
            Calls that multiply by the parameter use its factors, where it has some. Stand-ins do not require grad: no
            graph is built through the parameters, even though grad mode is on.
        kinds: The types of the parameters; tensors of other types are not looked up.
        footprints: Where modified buffers are remembered; None where the caller knows them.
        rewrites: Function -> the function that takes its place, see ``batching``. They decide whether the running
            statistics of BatchNorm and InstanceNorm move.
        observer: Sees every result, if given.
        inputs: Sees what parameters are multiplied by, if given.
    """

    def __init__(
        self,
        stand_ins: dict[int, Tensor | StandIn],
        kinds: set[type[Tensor]],
        footprints: Footprints | None,
        rewrites: Mapping[Callable[..., Any], Callable[..., Any]],
        observer: Observer | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        super().__init__()
        self._inputs = inputs
        self._stand_ins = stand_ins
        self._footprints = footprints
        self._rewrites = rewrites
        self._observer = observer
        self._kinds = kinds
        self._closed = False

    def close(self) -> None:
        """Ends it for good: Ctrl-C may come before torch has taken it off its stack of modes."""
        self._closed = True

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls ``func`` with stand-ins in the place of parameters."""
        kwargs = kwargs or {}
        if self._closed:
            return func(*args, **kwargs)
        if func is Tensor.backward:
            return None
        func = self._rewrites.get(func, func)
        if self._inputs is not None:
            self._inputs.see(func, args, kwargs)
        if self._footprints is not None:
            for tensor in _modified(func, args, kwargs):
                stand_in = self._stand_ins.get(id(tensor))
                if isinstance(stand_in, StandIn):
                    self._stand_ins[id(tensor)] = stand_in.dense()  # it is modified instead
                else:
                    self._footprints.record(tensor)
        result = self._product(func, args, kwargs) if func in PRODUCTS else NotImplemented
        if result is NotImplemented:
            if func in METADATA:
                return func(*map(self._common, args), **kwargs)
            result = func(*self._replaced(args), **{name: self._replaced(value) for name, value in kwargs.items()})
        if self._observer is not None:
            self._observer.see(result, args)
        if self._inputs is not None:
            self._inputs.follow(result, args)
        return result

    def _product(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call's result if its weight is a parameter whose factors it can use."""
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        factored = self._stand_ins.get(id(weight)) if type(weight) in self._kinds else None
        if not isinstance(factored, Factored):
            return NotImplemented
        others = {name: self._replaced(value) for name, value in kwargs.items() if name != "weight"}
        return PRODUCTS[func](factored, *self._replaced(args[:1] + args[2:]), **others)

    def _common(self, value: Any) -> Any:
        stand_in = self._stand_ins.get(id(value), value) if type(value) in self._kinds else value
        return stand_in.common if isinstance(stand_in, StandIn) else stand_in

    def _replaced(self, value: Any) -> Any:
        kind = type(value)
        if kind in self._kinds:
            stand_in = self._stand_ins.get(id(value), value)
            if not isinstance(stand_in, StandIn):
                return stand_in
            dense = stand_in.dense()
            if stand_in.kept:
                self._stand_ins[id(value)] = dense
            return dense
        if kind is tuple or kind is list:
            return kind(self._replaced(item) for item in value)
        return value


def _modified(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yields the tensors that a torch call writes to, by torch's naming conventions."""
    name = getattr(func, "__name__", "")
    if name.endswith("_") and args and (not name.endswith("__") or name in _INPLACE_OPERATORS):
        yield from _tensors(args[0])
    if func is functional.batch_norm or func is functional.instance_norm:
        given = inspect.signature(func).bind(*args, **kwargs).arguments
        yield from _tensors((given.get("running_mean"), given.get("running_var")))
    if kwargs.get("out") is not None:
        yield from _tensors(kwargs["out"])


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def loss_of(result: object) -> float | Tensor:
    """Checks what a closure returned and gives the loss as a 0-d tensor or a float.

    Raises:
        TypeError: If it is not one real number.
    """
    if isinstance(result, Tensor):
        if result.numel() != 1 or result.is_complex():
            raise TypeError(
                f"The closure returned a tensor of shape {tuple(result.shape)} and dtype {result.dtype}; an optimizer "
                "minimises one real number. Reduce it, for example with .mean()."
            )
        return result.detach().reshape(())
    if not isinstance(result, (str, bytes)) and hasattr(result, "__float__"):
        with contextlib.suppress(TypeError, ValueError):  # a NumPy array of several elements
            return float(cast(Any, result))
    raise TypeError(
        f"The closure returned {result!r} of type {type(result).__name__}; an optimizer minimises one real number. "
        "End the closure with 'return loss', where loss is a 1-element tensor or a Python number."
    )
