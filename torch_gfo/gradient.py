"""Gradients from evaluations alone: they fill ``p.grad``, and any optimizer of ``torch.optim`` works on top.

* Y. Nesterov, V. Spokoiny, "Random gradient-free minimization of convex functions", 2017,
  https://doi.org/10.1007/s10208-015-9296-2: gradients of the loss, smoothed by a Gaussian, ``"forward"`` and
  ``"antithetic"``.
* T. Salimans, J. Ho, X. Chen, S. Sidor, I. Sutskever, "Evolution strategies as a scalable alternative to reinforcement
  learning", 2017, https://arxiv.org/abs/1703.03864: pairs of mirrored perturbations.
* J. C. Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient approximation", 1992,
  https://doi.org/10.1109/9.119632: ``"spsa"``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from torch_gfo.distributed import MODES, SharedSession, common_seed
from torch_gfo.evaluation import BACKENDS, Evaluator, Plan, Session
from torch_gfo.options import check_choice, check_integer, check_number, invalid
from torch_gfo.search import generator
from torch_gfo.space import ParameterVector, automatic_scales, searchable, with_groups

__all__ = ["GradientEstimator", "estimate_gradient"]

_ESTIMATORS = ("antithetic", "spsa", "forward", "coordinate")
_FRACTION = 0.05  # of the parameters' typical scale: sigma of the random estimators
_BLOCK = 2**24  # most numbers in the perturbations that are evaluated at a time


class GradientEstimator:
    """Estimates gradients, call after call, from evaluations of a closure; the form for training loops.

    A call evaluates the closure once at the parameters and at perturbations of them, and adds the estimate to the
    ``grad`` of each parameter that requires grad, as ``backward()`` would. Then clip it, and step any optimizer of
    ``torch.optim``. A call leaves no other trace: parameters, buffers and random state are as after one plain call of
    the closure; if that raises, as before.

    With u_i random vectors, i = 1, ..., n_samples, and e_j the unit vectors of all coordinates, it estimates g as::

        "antithetic"   mean of (L(x + sigma u_i) - L(x - sigma u_i)) / (2 sigma) u_i,  u_i standard normal      (1)
        "spsa"         the same with random signs, u_i in {-1, 1}^dim                                           (2)
        "forward"      mean of (L(x + sigma u_i) - L(x)) / sigma u_i,  u_i standard normal                      (3)
        "coordinate"   g_j = (L(x + sigma e_j) - L(x - sigma e_j)) / (2 sigma)                                  (4)

    (1) and (3) are unbiased estimates of the gradient of the loss averaged over normal perturbations of size sigma,
    which exists also where the loss has steps. Losses that are not finite contribute nothing to the means.

    Args:
        params: Tensors, or the ``param_groups`` of an optimizer, whose groups may have a ``sigma`` of their own. Those
            that require grad at the time of a call take part in it.
        estimator: ``"antithetic"``, ``"spsa"``, ``"forward"`` or ``"coordinate"``.
        sigma: Size of the perturbations in parameter units. Default: None, 0.05 of the parameters' typical scale, one
            number for all tensors: the geometric mean, over all entries, of the standard deviations of the tensors they
            are part of. For ``"coordinate"``, the cube root of the machine precision instead of 0.05.
        n_samples: Number of random vectors; ``"coordinate"`` takes every coordinate. Default: 16.
        seed: Of the private random numbers; None draws one from the operating system.
        evaluation: As for the optimizers, ``"auto"``, ``"sequential"``, ``"vectorized"`` or ``"compiled"``.
        chunk_size: Most perturbations in one batched call. Default: None (bounded by memory).
        distributed: As for the optimizers, None, ``"candidates"`` or ``"data"``; all ranks get the same gradient.

    Attributes:
        seed: Of the private random numbers.
        step: How many calls there have been: ``seed`` and ``step`` decide the random numbers of the next.

    Raises:
        ValueError: For a value outside its range.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
        >>> optimizer = torch.optim.Adam([x], lr=0.1)
        >>> estimate = torch_gfo.GradientEstimator([x], seed=0)
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     loss = estimate(lambda: ((x - 3) ** 2).sum())
        ...     optimizer.step()
        >>> bool(loss < 1e-3)
        True
    """

    def __init__(
        self,
        params: Iterable[Any],
        estimator: str = "antithetic",
        *,
        sigma: float | None = None,
        n_samples: int = 16,
        seed: int | None = None,
        evaluation: str = "auto",
        chunk_size: int | None = None,
        distributed: str | None = None,
    ) -> None:
        check_choice("estimator", estimator, _ESTIMATORS)
        _check_sigma(sigma)
        numbers: dict[str, Any] = {"n_samples": n_samples, "chunk_size": 1 if chunk_size is None else chunk_size}
        for name, value in numbers.items():
            check_integer(name, value, 1)
        check_choice("evaluation", evaluation, BACKENDS)
        check_choice("distributed", distributed, MODES)
        if seed is not None and not isinstance(seed, int):
            raise invalid("seed", seed, "None or an integer")
        if isinstance(params, Tensor):
            raise TypeError(
                "params must be an iterable of tensors or parameter groups, got a Tensor. Put it in a list."
            )
        self.seed = common_seed(seed, distributed)
        self.step = 0
        self._params = params if isinstance(params, list) else list(params)
        self._estimator = estimator
        self._sigma = sigma
        self._n_samples = n_samples
        self._evaluator = Evaluator(evaluation, chunk_size)
        self._plan = Plan()
        self._distributed = distributed

    @torch.no_grad()
    def __call__(self, closure: Callable[[], Any]) -> Any:
        """Adds an estimate of the gradient to ``p.grad`` of every parameter that requires grad.

        Args:
            closure: Evaluates the model and returns the loss. ``backward()`` and ``zero_grad()`` in it do nothing:
                clear the gradients before the call.

        Returns:
            What the closure returned at the parameters.

        Raises:
            RuntimeError: If no parameter requires grad.
            TypeError: If the closure does not return one real number.
        """
        parameters, given = self._taking_part()
        vector = ParameterVector(parameters)
        sigma = self._sizes(vector, given)
        x = vector.read()
        with self._session(closure, vector, x) as session:
            result, loss = session.model()
            g = self._gradient(x, loss, sigma, session)
        estimate = vector.tensors(g)
        for parameter in parameters:
            own = torch.empty_like(parameter).copy_(estimate[id(parameter)])
            parameter.grad = own if parameter.grad is None else parameter.grad.add_(own)
        self.step += 1
        self._plan = session.plan
        return result

    def state_dict(self) -> dict[str, Any]:
        """Returns what the next calls depend on: a run that loads it goes on exactly."""
        return {"seed": self.seed, "step": self.step, "plan": list(self._plan)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where another estimator with the same arguments was."""
        self.seed, self.step, self._plan = state_dict["seed"], state_dict["step"], Plan(*state_dict["plan"])

    def _session(self, closure: Callable[[], Any], vector: ParameterVector, x: Tensor) -> Session | SharedSession:
        """The evaluations of a call, on this rank or on all."""
        session = self._evaluator.session(closure, vector, self._plan)
        if self._distributed is None:
            return session
        facts = {"estimator": self._estimator, "sigma": self._sigma, "n_samples": self._n_samples}
        facts |= {"seed": self.seed, "step": self.step, "distributed": self._distributed}
        return SharedSession(session, self._distributed, vector, x.split_with_sizes(vector.sizes), facts)

    def _taking_part(self) -> tuple[list[Tensor], list[float | None]]:
        """The parameters that require grad, each once, and the ``sigma`` given for each."""
        pairs: dict[int, tuple[Tensor, float | None]] = {}
        for parameter, group in with_groups(self._params):
            if searchable(parameter):
                pairs[id(parameter)] = (parameter, _check_sigma(group.get("sigma", self._sigma)))
        if not pairs:
            raise RuntimeError("There is no gradient to estimate: no parameter requires grad. Call requires_grad_().")
        return [p for p, _ in pairs.values()], [sigma for _, sigma in pairs.values()]

    def _sizes(self, vector: ParameterVector, given: list[float | None]) -> Tensor:
        """Sigma, 0-d or ``(dim,)``."""
        if None in given:
            fraction = torch.finfo(vector.dtype).eps ** (1 / 3) if self._estimator == "coordinate" else _FRACTION
            scales = automatic_scales(vector.parameters, 1.0)
            logs = sum(size * math.log(scale) for size, scale in zip(vector.sizes, scales, strict=True))
            automatic = fraction * math.exp(logs / vector.dim)
            given = [automatic if sigma is None else sigma for sigma in given]
        return vector.expand([float(sigma) for sigma in given if sigma is not None])

    def _gradient(self, x: Tensor, loss: float, sigma: Tensor, session: Session | SharedSession) -> Tensor:
        """The estimate (1), (2), (3) or (4), ``(dim,)``."""
        total, n_finite = torch.zeros_like(x), 0
        for u in self._directions(x):
            if self._estimator == "forward":
                slopes = session.losses(x + sigma * u) - loss
            else:
                plus, minus = torch.split(session.losses(torch.cat([x + sigma * u, x - sigma * u])), len(u))
                slopes = plus / 2 - minus / 2  # a difference might overflow
            finite = torch.isfinite(slopes)
            total += torch.where(finite, slopes, 0) @ u
            n_finite += int(finite.sum())
        if n_finite == 0:
            warnings.warn(
                f"All losses around the parameters are NaN or infinite in call {self.step}: the gradient counts as "
                "zero. If this goes on, sigma may be too large, or the parameters themselves at such a point.",
                stacklevel=4,
            )
        return total / sigma / (1 if self._estimator == "coordinate" else max(1, n_finite))

    def _directions(self, x: Tensor) -> Iterator[Tensor]:
        """Yields the perturbations, in units of sigma, in blocks ``(n, dim)``."""
        dim = x.numel()
        rng = generator(self.seed, "gradient", self.step, x.device)
        rows = torch.arange(dim if self._estimator == "coordinate" else self._n_samples, device=x.device)
        for block in torch.split(rows, max(1, _BLOCK // dim)):
            u = torch.zeros(len(block), dim, dtype=x.dtype, device=x.device)
            if self._estimator == "coordinate":
                yield u.scatter_(1, block[:, None], 1.0)
            elif self._estimator == "spsa":
                yield u.random_(0, 2, generator=rng).mul_(2).sub_(1)
            else:
                yield u.normal_(generator=rng)


def _check_sigma(sigma: float | None) -> float | None:
    check_number("sigma", sigma, "(0, inf)", " for one from the parameters' scale", optional=True)
    return sigma


def estimate_gradient(
    closure: Callable[[], Any],
    params: Iterable[Any],
    estimator: str = "antithetic",
    *,
    sigma: float | None = None,
    n_samples: int = 16,
    seed: int | None = None,
    step: int | None = None,
    evaluation: str = "auto",
    chunk_size: int | None = None,
    distributed: str | None = None,
) -> Any:
    """Adds one estimate of the gradient, from evaluations alone, to ``p.grad``, and returns what the closure returned.

    The form for a single call; a loop has it better with ``GradientEstimator``, which finds out once, not in each call,
    how to evaluate the closure, and which counts the calls itself.

    Args:
        closure: Evaluates the model and returns the loss.
        params: See ``GradientEstimator`` for this and the other arguments.
        estimator: ``"antithetic"``, ``"spsa"``, ``"forward"`` or ``"coordinate"``.
        sigma: Size of the perturbations.
        n_samples: Number of random vectors.
        seed: Of the random numbers, together with ``step``; None draws one from the operating system in each call.
        step: The number of the call. It must be given with a seed, for the same two give the same perturbations.
        evaluation: ``"auto"``, ``"sequential"`` or ``"vectorized"``.
        chunk_size: Most perturbations in one batched call.
        distributed: None, ``"candidates"`` or ``"data"``.

    Returns:
        What the closure returned at the parameters.

    Raises:
        RuntimeError: If no parameter requires grad.
        TypeError: If the closure does not return one real number.
        ValueError: For a value outside its range, or a seed without a step.

    Example:
        >>> import torch, torch_gfo
        >>> x = torch.nn.Parameter(torch.tensor([-1.0, 2.0], dtype=torch.float64))
        >>> loss = torch_gfo.estimate_gradient(lambda: (x**2).sum(), [x], "coordinate")
        >>> bool(torch.allclose(x.grad, 2 * x))
        True
    """
    if (seed is None) != (step is None):
        raise ValueError(
            f"seed={seed}, step={step}: the two belong together. A seed alone would perturb in the same directions in "
            "every call; give the number of the call as step, or leave out both for other numbers each time."
        )
    options: dict[str, Any] = {"sigma": sigma, "n_samples": n_samples, "seed": seed, "distributed": distributed}
    estimate = GradientEstimator(params, estimator, evaluation=evaluation, chunk_size=chunk_size, **options)
    estimate.step = step or 0
    return estimate(closure)
