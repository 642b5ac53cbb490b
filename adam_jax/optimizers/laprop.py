"""LaProp."""

from typing import Any

import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.laprop import LaProp
from adam_jax.transform import lift


def laprop(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-15,
    weight_decay: Decay | Rate = 0.0,
    mask: Mask = None,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """LaProp: Adam that divides first and averages then, so that b1 and b2 are free of each other.

    Args:
      learning_rate: see `adam`, as for what is not told here; the paper's is 4e-4.
      b1: decay rate of the mean of gradients that were divided by the root mean square.
      b2: decay rate of the mean square.
      eps: added to the root.
      weight_decay: see `adamw`.
      mask: see `adamw`.
      mu_dtype: how the mean rests.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    References:
      Ziyin, Wang & Ueda 2020, "LaProp: Separating Momentum and Adaptivity in Adam", Algorithm 1,
      https://arxiv.org/abs/2002.04839.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = laprop(0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1000', '0.1000']
    """
    rule = LaProp(b1, b2, eps)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate, weight_decay, mask)
