"""StableAdamW."""

from typing import Any

import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.stable_adam import StableAdam
from adam_jax.transform import lift


def stable_adamw(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Decay | Rate = 1e-4,
    mask: Mask = None,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """StableAdamW: AdamW that shortens its step where gradients outgrow their mean square.

    Each array's direction is divided by the root mean square of ``g / sqrt(nu)``, if that is above
    1: what clipping is for, without a threshold to tune.

    Args:
      learning_rate: see `adam`, as for what is not told here.
      b1: decay rate of the mean gradient.
      b2: decay rate of the mean square.
      eps: added to the root.
      weight_decay: see `adamw`; it is not shortened, as it is in the paper.
      mask: see `adamw`.
      mu_dtype: how the mean gradient rests.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    References:
      Wortsman et al. 2023, "Stable and Low-Precision Training for Large-Scale Vision-Language
      Models", Algorithm 2, https://arxiv.org/abs/2304.13013.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = stable_adamw(0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1000', '0.1000']
    """
    rule = StableAdam(b1, b2, eps)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate, weight_decay, mask)
