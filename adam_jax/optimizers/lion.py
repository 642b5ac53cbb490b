"""Lion, a cousin of Adam."""

from typing import Any

import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.lion import Lion
from adam_jax.transform import lift


def scale_by_lion(
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    mu_dtype: Any = None,
    *,
    mode: str = "hard",
    smooth_beta: Scalar = 1.0,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Lion's direction: `lion` without the learning rate.

    A drop-in for `optax.scale_by_lion`.

    Args:
      b1: weight of the mean in the direction.
      b2: decay rate of the mean gradient.
      mu_dtype: how the mean gradient rests.
      mode: "hard" for signs, "smooth" for ``tanh(smooth_beta * x)``, "refined" for x between -1 and
        1.
      smooth_beta: see there.
      seed: the seed of formats that round by chance.
    """
    rule = Lion(b1, b2, mode, smooth_beta)
    return lift(rule, mu_dtype, seed=seed)


def lion(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    mu_dtype: Any = None,
    weight_decay: Decay | Rate = 1e-3,
    mask: Mask = None,
    *,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Lion: every entry steps by the learning rate, by the sign of a mean.

    A drop-in for `optax.lion`: the same arguments in the same order, and the same state. It wants a
    learning rate of a third to a tenth of Adam's, and as much more decay.

    Args:
      learning_rate: see `adam`, as for what is not told here.
      b1: weight of the mean in the direction.
      b2: decay rate of the mean gradient.
      mu_dtype: how the mean gradient rests.
      weight_decay: see `adamw`.
      mask: see `adamw`.
      seed: the seed of formats that round by chance.

    References:
      Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", Algorithm 2,
      https://arxiv.org/abs/2302.06675.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = lion(0.1, weight_decay=0.0)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1000', '0.1000']
    """
    rule = Lion(b1, b2, "hard", 1.0)
    return descent(lift(rule, mu_dtype, seed=seed), learning_rate, weight_decay, mask)
