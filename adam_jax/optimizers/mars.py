"""MARS."""

from typing import Any

import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.mars import Mars
from adam_jax.transform import lift


def mars(
    learning_rate: Rate,
    b1: Scalar = 0.95,
    b2: Scalar = 0.99,
    gamma: Scalar = 0.025,
    eps: Scalar = 1e-8,
    weight_decay: Decay | Rate = 0.0,
    mask: Mask = None,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """MARS: AdamW on gradients with less variance, which lean on how they changed.

    Args:
      learning_rate: see `adam`, as for what is not told here; the paper's is 3e-3.
      b1: decay rate of the mean gradient.
      b2: decay rate of the mean square.
      gamma: how far a gradient leans on its change, in units of ``b1 / (1 - b1)``; with 0
        gradients are clipped to norm 1 by array, and nothing else.
      eps: added to the root.
      weight_decay: see `adamw`.
      mask: see `adamw`.
      mu_dtype: how the mean gradient and the gradient before rest.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    References:
      Yuan et al. 2024, "MARS: Unleashing the Power of Variance Reduction for Training Large
      Models", Algorithm 2, https://arxiv.org/abs/2411.10438.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = mars(0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1000', '0.1000']
    """
    rule = Mars(b1, b2, eps, gamma=gamma)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate, weight_decay, mask)
