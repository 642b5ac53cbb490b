"""Adam-atan2."""

from typing import Any

import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.adam_atan2 import AdamAtan2
from adam_jax.transform import lift


def adam_atan2(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    a: Scalar = 1.27,
    b: Scalar = 1.0,
    weight_decay: Decay | Rate = 0.0,
    mask: Mask = None,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adam-atan2: Adam without an eps, invariant to the gradients' scale, and bounded.

    No entry moves by more than ``learning_rate * a * pi / 2``. It is invariant where float32 has
    the gradients' squares, between 1e-18 and 1e19.

    Args:
      learning_rate: see `adam`, as for what is not told here.
      b1: decay rate of the mean gradient.
      b2: decay rate of the mean square.
      a: the direction's unit; 1.27 makes it 1 where gradients agree.
      b: what the root is multiplied by: the larger, the later the angle bends.
      weight_decay: see `adamw`.
      mask: see `adamw`.
      mu_dtype: how the mean gradient rests.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    References:
      Everett et al. 2024, "Scaling Exponents Across Parameterizations and Optimizers", section 4.2,
      https://arxiv.org/abs/2407.05872.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adam_atan2(0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.0997', '0.0997']
    """
    rule = AdamAtan2(b1, b2, a, b)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate, weight_decay, mask)
