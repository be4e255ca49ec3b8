"""The base class of every algorithm: the only ``step()``, the state, the randomness, and exact checkpoints."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from torch_gfo import guards
from torch_gfo.checkpoint import loading_exactly
from torch_gfo.distributed import refuse_to_ask, share
from torch_gfo.evaluation import Evaluator, Plan
from torch_gfo.interrupts import undivided
from torch_gfo.options import CommonOptions, check_group, complete
from torch_gfo.perturbation import Candidates, Population, as_rows
from torch_gfo.search import Search, generator
from torch_gfo.space import Directions, ParameterVector, searchable
from torch_gfo.start import Start, agree, initial_states, look

__all__ = ["GradientFreeOptimizer"]

Conversation = Generator[Candidates, Tensor, dict[str, Any]]


class GradientFreeOptimizer(torch.optim.Optimizer, ABC):
    """Base of all algorithms: drives one of them through a step, and owns its state, seed and counters.

    An algorithm is a subclass with three methods: ``_init_state``, ``_iterate`` and ``_n_stored``. Everything that it
    remembers is in ``self.state`` under the first parameter, hyper-parameters are in ``self.param_groups``, and what
    else lies on ``self`` is a cache.

    Args:
        params: Parameters, parameter groups or named parameters, as for every ``torch.optim`` optimizer.
        defaults: The algorithm's own hyper-parameters, ``lr`` and ``sigma`` among them.
        common: The options of every optimizer, see ``CommonOptions``.

    Raises:
        TypeError: For an argument that the class does not take.
        ValueError: For a value outside its range, in the arguments or in a group.
        RuntimeError: If the algorithm does not fit into the machine's memory with that many parameters.
    """

    _evaluator: Evaluator
    _pending: tuple[Start, Conversation, Candidates] | None  # asked, not yet told
    _directions: Directions
    _warned: bool

    _auto_sigma: ClassVar[float] = 1.0  # sigma=None: the radius in standard deviations of each tensor's initial values
    _look = staticmethod(look)  # at the parameters and the schedule, where a step begins
    _lr_is_step: ClassVar[bool] = False  # lr is the length of the model's step, not a factor of all displacements

    def __init__(self, params: ParamsT, defaults: dict[str, Any], common: CommonOptions) -> None:
        super().__init__(guards.check_params(params), complete(type(self).__name__, defaults, common))
        searched = [parameter for parameter in self._all_parameters() if searchable(parameter)]
        suited = self._suited_to(ParameterVector(searched).dim)
        if not suited.keys() & common.keys():
            for options in (self.defaults, *self.param_groups):
                options.update(suited)
        self._reset_caches()
        self._initialise()

    # What an algorithm defines.

    @abstractmethod
    def _init_state(self, search: Search) -> dict[str, Any]:
        """Returns all that the algorithm remembers, in its final shape and dtype: tensors, ints and floats."""

    @abstractmethod
    def _iterate(
        self, state: dict[str, Any], search: Search
    ) -> Generator[Tensor | Population, Tensor, tuple[Tensor, Tensor]]:
        """Makes one step: yields candidates ``(P, dim)`` and receives their losses ``(P,)``, as often as it likes.

        Entries of ``state`` are replaced, never modified in place: a step that fails is thrown away.

        Returns:
            The model's next point, and its loss; ``nan`` if it was not evaluated. Where ``lr`` is the length of the
            model's step, the model's point plus the step in units of ``lr``: the search goes on around the same point.
        """

    @abstractmethod
    def _n_stored(self, dim: int) -> int:
        """Estimates how many numbers the algorithm holds at a time for ``dim`` coordinates."""

    def _suited_to(self, dim: int) -> CommonOptions:
        """Common options that suit a search of ``dim`` parameters, where the user gives none of them."""
        return {}

    # One step, driven by a closure, or by ask() and tell().

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step of the search.

        The closure is evaluated at the model's current parameters, then at the candidates. Afterwards the model holds
        the algorithm's recommendation.

        Args:
            closure: Evaluates the model and returns the loss. ``zero_grad()`` and ``backward()`` in it do no harm: no
                gradient is computed.

        Returns:
            What the closure returned at the parameters from before the step.

        Raises:
            RuntimeError: If there is no closure.
            TypeError: If the closure does not return one real number.
        """
        closure = guards.check_closure(type(self).__name__, closure)
        start, plan = self._start(), Plan(*(self._shared[name] for name in Plan._fields))
        step, alone = self._shared["step"], self._evaluator.session(closure, start.vector, plan, start.inputs)
        with alone.undone_unless(lambda: self._shared["step"] > step):
            with share(alone, start, self, step) as session:
                if start.vector.dim == 0:
                    if not self._warned:
                        guards.warn_of_nothing()
                    self._warned = True
                    return session.model()[0]
                conversation = self._converse(start)
                x = next(conversation)
                if not start.known:
                    result, loss = session.model()
                    x = conversation.send(start.x.new_tensor([loss]))
                update = None
                while update is None:
                    losses = session.losses(x)
                    try:
                        x = conversation.send(losses)
                    except StopIteration as stop:
                        update = stop.value
            if start.known:
                value = start.value(self._shared, update)
                result = start.x.new_tensor(value) if session.returns_tensor else value
            self._commit(start, {**update, **session.plan._asdict()})
        return result

    @torch.no_grad()
    def ask(self) -> Tensor:
        """Returns the parameter vectors ``(P, dim)`` to evaluate next; for losses that no closure computes.

        Rows are laid out as by ``torch.nn.utils.parameters_to_vector``. A step takes one or more rounds; unless its
        loss is known, the first asks for the model's current point. Asking again before telling gives the same rows.

        Example:
            >>> import torch, torch_gfo
            >>> x = torch.nn.Parameter(torch.ones(3))
            >>> optimizer = torch_gfo.RandomSearch([x], seed=0)
            >>> for _ in range(400):
            ...     candidates = optimizer.ask()
            ...     optimizer.tell((candidates**2).sum(1))
            >>> bool(x.square().sum() < 1e-3)
            True
        """
        refuse_to_ask(self.param_groups[0]["distributed"])
        if self._pending is None:
            start = self._start()
            if start.vector.dim == 0:
                raise RuntimeError("There is nothing to ask for: no parameter requires grad.")
            conversation = self._converse(start)
            self._pending = (start, conversation, next(conversation))
        return as_rows(self._pending[2]).clone()

    @torch.no_grad()
    def tell(self, losses: Tensor | Sequence[float]) -> None:
        """Takes the losses ``(P,)`` of the rows of the last ``ask()``, in their order.

        Raises:
            RuntimeError: If nothing was asked.
            ValueError: If their number is not that of the rows.
        """
        if self._pending is None:
            raise RuntimeError("tell() takes the losses of the rows that ask() returned; call ask() first.")
        start, conversation, x = self._pending
        values = torch.as_tensor(losses, dtype=x.dtype, device=x.device).detach()
        if values.shape != (len(x),):
            raise ValueError(f"tell() takes one loss for each of the {len(x)} rows, got shape {tuple(values.shape)}.")
        self._pending = None  # an algorithm that is interrupted cannot go on
        try:
            self._pending = (start, conversation, conversation.send(values))
        except StopIteration as stop:
            self._commit(start, stop.value)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients that somebody else has put there, as for every optimizer of ``torch.optim``."""
        if not torch.compiler.is_compiling():  # a compiled closure computes none, and cannot call torch's method
            super().zero_grad(set_to_none)

    def _converse(self, start: Start) -> Conversation:
        """One step: yields parameter vectors, receives what the closure gives for them, returns the new state."""
        group, step, state = self.param_groups[0], int(self._shared["step"]), dict(self._shared)
        changed = start.stale
        if start.known:
            loss = start.x.new_tensor(state["loss"])
        else:
            loss = start.losses((yield start.x[None]), start.x[None], state)[0]
            changed = changed or not agree(state["loss"], float(loss), start.x.dtype)
        if group["subspace_refresh"] and step and step % group["subspace_refresh"] == 0:
            state.update(self._fresh(start, step))
            changed = False  # nothing is remembered that could be stale
        frame = start.frame(state["point"], self._directions.basis(start.x, step))
        rng = generator(group["seed"], "step", step, start.x.device)
        remembered = state["loss"] if changed else None
        search = frame.search(rng, loss, remembered, self._evaluator.pages, deterministic=group["deterministic"])
        algorithm = self._iterate(state, search)
        any_finite = False
        z = next(algorithm)
        try:
            while True:
                x = frame.parameters(z)
                values = yield x
                losses = start.losses(values, x, state)
                any_finite = any_finite or math.isfinite(float(losses.min()))
                z = algorithm.send(losses)
        except StopIteration as stop:
            point, loss = stop.value
        if not any_finite:
            guards.warn_of_losses(step)
            return {"x": start.x, "evaluations": state["evaluations"]}
        after = {"x": frame.moved(point), "loss": float(loss)}
        return {**state, **after, "point": search.point if self._lr_is_step else point}

    def _commit(self, start: Start, update: dict[str, Any]) -> None:
        """Ends a step: the only place where parameters and state change."""
        with undivided():
            self._pending = None
            start.write(update)
            self._shared.update(update)
            for parameter in self._all_parameters():
                self.state[parameter]["step"] += 1
            start.remember(self.state)

    # Where the search stands.

    @property
    def evaluations(self) -> int:
        """How many evaluations the search has used: one for each candidate and each look at the model."""
        return int(self._shared["evaluations"])

    @property
    def best_loss(self) -> float:
        """The best value that the closure has returned: the lowest, or the highest with ``maximize``."""
        best = float(self._shared["best_loss"])
        return -best if self.param_groups[0]["maximize"] else best

    @property
    def _shared(self) -> dict[str, Any]:
        """The search's state, registered under the first parameter."""
        state: dict[str, Any] = self.state[next(self._all_parameters())]
        return state

    def _all_parameters(self) -> Iterator[Tensor]:
        return (parameter for parameter, _ in self._with_groups())

    def _with_groups(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        return ((parameter, group) for group in self.param_groups for parameter in group["params"])

    def _start(self) -> Start:
        """Looks at the parameters and the schedule as they stand; any conversation under way is given up."""
        self._pending = None
        if any(searchable(p) and not self.state[p]["searched"] for p in self._all_parameters()):
            guards.warn_of_newcomers()
            with undivided():
                self._initialise()
        searched = [pair for pair in self._with_groups() if self.state[pair[0]]["searched"]]
        return self._look(searched, self.state, self._shared, lr_is_step=self._lr_is_step)

    # Construction, and beginning anew.

    def _reset_caches(self) -> None:
        group = self.param_groups[0]
        self._evaluator = Evaluator(group["evaluation"], group["chunk_size"])
        self._pending = None
        self._directions = Directions(group["seed"], group["subspace"], group["subspace_refresh"])
        self._warned = False

    @torch.no_grad()
    def _initialise(self) -> None:
        """Fills the state with every entry that there will ever be, for every parameter."""
        earlier = dict(self._shared)
        searched = [pair for pair in self._with_groups() if searchable(pair[0])]
        vector = ParameterVector([parameter for parameter, _ in searched])
        guards.check_search(type(self).__name__, searched, vector, self.param_groups[0]["subspace"], self._n_stored)
        self.state.update(initial_states(self._all_parameters(), earlier.get("step", 0), self._auto_sigma))
        counters = {"evaluations": 0, "best_loss": math.inf, **Plan()._asdict()}
        self._shared.update({name: earlier.get(name, value) for name, value in counters.items()})
        self._begin(vector)

    def _begin(self, vector: ParameterVector) -> None:
        self._shared.update({"x": vector.read(), "loss": math.nan, "point": torch.zeros(0)})
        if vector.parameters:
            start = self._start()
            start.remember(self.state)
            self._shared.update(self._fresh(start, self._shared["step"]))

    def _fresh(self, start: Start, step: int) -> dict[str, Any]:
        """The state of an algorithm that begins at the model's point."""
        group = self.param_groups[0]
        point = start.x.new_zeros(group["subspace"] or start.x.numel())
        rng = generator(group["seed"], "init", step, start.x.device)
        frame = start.frame(point, self._directions.basis(start.x, step))
        nan, pages = start.x.new_tensor(math.nan), self._evaluator.pages
        search = frame.search(rng, nan, None, pages, deterministic=group["deterministic"])
        return {"point": point, **self._init_state(search)}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters. A search that is under way starts anew from the model's point, with all of them.

        Raises:
            ValueError: If an option is outside its range, or one that holds for the whole search differs.
        """
        if isinstance(param_group, dict):
            check_group(param_group, self.defaults)
        super().add_param_group(param_group)
        if "_evaluator" not in vars(self):
            return  # the constructor adds its groups before there is a search
        try:
            self._initialise()
        except (RuntimeError, ValueError):
            for parameter in self.param_groups.pop()["params"]:
                self.state.pop(parameter, None)
            raise

    # Checkpoints.

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a copy or a pickle; caches are rebuilt, options that it does not know get their defaults."""
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # which the base class adds
        for group in self.param_groups:
            group.update({**self.defaults, **group})
        self._reset_caches()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint, exactly: the search goes on as if it had never stopped.

        ``torch.optim.Optimizer`` casts every tensor of the state to its parameter's dtype; the search keeps float32 or
        float64 beside parameters of any dtype, so this restores the checkpoint's own.

        Raises:
            ValueError: If the checkpoint is incomplete, or of another class, ``popsize`` or model; nothing has changed.
        """
        with undivided(), loading_exactly(self):
            super().load_state_dict(state_dict)
