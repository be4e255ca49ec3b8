"""Gradient -> step: what is done with an estimate of the gradient, in units of the learning rate.

* ``"sgd"``: the heavy ball of B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964,
  https://doi.org/10.1016/0041-5553(64)90137-5.
* ``"adam"``: D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", 2014, https://arxiv.org/abs/1412.6980.
* ``"clipup"``: N. E. Toklu, P. Liskowski, R. K. Srivastava, "ClipUp: a simple and powerful optimizer for
  distribution-based policy evolution", 2020, https://arxiv.org/abs/2008.02387.
* The decay with the root of the number of steps: M. Zinkevich, "Online convex programming and generalized infinitesimal
  gradient ascent", 2003, https://www.aaai.org/Papers/ICML/2003/ICML03-120.pdf.

Differences from the papers: the norm of ClipUp is the root mean square over the coordinates, so that one learning rate
serves few parameters and many. Its greatest speed is twice the learning rate, as the paper recommends. The decay begins
after some steps, not with the first.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_gfo.options import check_choice, check_number

__all__ = ["UPDATES", "check_update", "descend", "memory"]

UPDATES = ("adam", "clipup", "sgd")

_BETA_2 = 0.999
_EPSILON = 1e-8
_MAX_SPEED = 2.0


def check_update(update: str, momentum: float, lr_decay: float) -> None:
    """Checks the arguments of ``descend``.

    Raises:
        ValueError: If one is outside its range.
    """
    check_choice("update", update, UPDATES)
    check_number("momentum", momentum, "[0, 1)")
    check_number("lr_decay", lr_decay, "[0, inf)", "; with 0, steps keep their length")


def memory(update: str, point: Tensor) -> dict[str, Any]:
    """The entries of an algorithm's state that ``descend`` works on, at rest.

    Args:
        update: One of ``UPDATES``.
        point: ``(dim,)``, any point, for the shape, dtype and device.
    """
    squares = {"squares": torch.zeros_like(point)} if update == "adam" else {}
    return {"velocity": torch.zeros_like(point), **squares, "n_updates": 0}


def descend(update: str, state: dict[str, Any], gradient: Tensor, momentum: float, lr_decay: float = 0.0) -> Tensor:
    """Returns the step ``(dim,)`` that goes down an estimate of the gradient, and renews the entries of ``memory``.

    With the gradient g, the momentum m, the velocity v, |.| a root mean square, t = 1 in the first step, and x moving
    by the learning rate times u / sqrt(1 + lr_decay (t - 1))::

        "sgd"     v = m v + g,                                              u = -v
        "clipup"  v = m v + g / |g|, then scaled to |v| <= 2,               u = -v
        "adam"    v = m v + (1 - m) g,  s = 0.999 s + 0.001 g^2,            u = -v' / (sqrt(s') + 1e-8)
                  v' = v / (1 - m^t),   s' = s / (1 - 0.999^t)
    """
    v: Tensor = momentum * state["velocity"]
    t = state["n_updates"] + 1
    state["n_updates"] = t
    length = 1 / math.sqrt(1 + lr_decay * (t - 1))
    if update == "adam":
        v = v.add_(gradient, alpha=1 - momentum)
        s = (_BETA_2 * state["squares"]).addcmul_(gradient, gradient, value=1 - _BETA_2)
        state.update(velocity=v, squares=s)
        rms = (s / (1 - _BETA_2**t)).sqrt_().add_(_EPSILON)
        return v.div(rms).div_((momentum**t - 1) / length)
    if update == "clipup":
        v = v.add_(_normalised(gradient))
        v = v * (_MAX_SPEED / _norm(v).clamp_min(_MAX_SPEED))
    else:
        v = v.add_(gradient)
    state["velocity"] = v
    return -length * v


def _norm(v: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(v) / v.numel() ** 0.5
    return norm


def _normalised(g: Tensor) -> Tensor:
    norm = _norm(g)
    return torch.where(norm > 0, g / norm, 0)
