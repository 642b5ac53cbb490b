"""What is done with the directions of a rule, written out likewise: masks, decay, the descent."""

from collections.abc import Callable
from typing import Any

import numpy as np
from oracle import Array, Moments, adam, at, double, sign


def cautious(directions: Array, gradients: Array) -> Array:
    """Liang et al. 2024, with the floor of its code, for stacked directions."""
    u, g = double(directions), double(gradients)
    mask = np.real(u * np.conj(g)) > 0
    share = mask.mean(axis=tuple(range(1, u.ndim)), keepdims=True)
    return u * mask / np.maximum(share, 1e-3)


def grams(directions: Array, gradients: Array) -> Array:
    """Cao et al. 2024, Algorithm 1: the size of the direction, the sign of the gradient."""
    return np.abs(directions) * sign(double(gradients))


def descend(
    rule: Callable[..., tuple[Array, Moments]],
    gradients: Array | Callable[[Array], Array],
    params: Array,
    *,
    learning_rate: float | Callable[[int], float],
    weight_decay: float | Callable[[int], float] = 0.0,
    form: str = "by_learning_rate",
    schedule: Callable[[int], float] = lambda count: 1.0,
    steps: int | None = None,
    **settings: Any,
) -> Array:
    """The parameters after each step along the rule's directions, with one form of weight decay.

    Gradients are stacked, or a function of the parameters, for so many steps. Forms "l2" and
    "by_schedule" are Adam with L2 and AdamW of Loshchilov & Hutter 2019, Algorithm 2;
    "by_learning_rate" is AdamW in PyTorch and Optax; "proximal" is Xie et al. 2022, Algorithm 1.
    """
    p, seen, path = double(params), [], []
    for count in range(len(gradients) if steps is None else steps):
        lr, wd = at(learning_rate, count), at(weight_decay, count)
        g = double(gradients(p) if callable(gradients) else gradients[count])
        seen.append(g + wd * p if form == "l2" else g)
        moved = p - lr * rule(np.stack(seen), **settings)[0][-1]
        p = {
            "l2": moved,
            "by_learning_rate": moved - lr * wd * p,
            "after": moved * (1 - lr * wd),
            "by_schedule": moved - wd * schedule(count) * p,
            "independent": moved - wd * p,
            "proximal": moved / (1 + lr * wd),
        }[form]
        path.append(p)
    return np.stack(path)


def lamb(
    gradients: Array,
    params: Array,
    *,
    learning_rate: float | Callable[[int], float],
    weight_decay: float = 0.0,
    eps: float = 1e-6,
    **settings: Any,
) -> Array:
    """You et al. 2020, Algorithm 2, phi(x) = x: one array's parameters after each step."""
    p, path = double(params), []
    for count, direction in enumerate(adam(gradients, eps=eps, **settings)[0]):
        r = direction + weight_decay * p
        sizes = [np.sqrt(np.sum(np.abs(x) ** 2)) for x in (p, r)]
        trust = sizes[0] / sizes[1] if min(sizes) > 0 else 1.0
        p = p - at(learning_rate, count) * trust * r
        path.append(p)
    return np.stack(path)
