"""LAMB."""

from typing import Any

import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.adam import Adam
from adam_jax.transform import lift


def lamb(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    eps_root: Scalar = 0.0,
    weight_decay: Decay | Rate = 0.0,
    mask: Mask = None,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """LAMB: Adam whose step in each array has the learning rate's share of the array's norm.

    A drop-in for `optax.lamb`: the same arguments in the same order, and the same state. With
    ``r = direction + weight_decay * p`` a step is ``learning_rate * r * |p| / |r|``, and
    ``learning_rate * r`` where either norm is 0. Inside ``shard_map`` norms are a shard's.

    Args:
      learning_rate: see `adam`, as for what is not told here; a share of the norm.
      b1: decay rate of the mean gradient.
      b2: decay rate of the mean square.
      eps: added to the root.
      eps_root: added under the root.
      weight_decay: see `adamw`; a number's decay is a part of what is rescaled.
      mask: see `adamw`.
      mu_dtype: how the mean gradient rests.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    References:
      You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
      Algorithm 2 with phi the identity, https://arxiv.org/abs/1904.00962.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = lamb(0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1581', '0.1581']
    """
    direction = lift(Adam(b1, b2, eps, eps_root), mu_dtype, nu_dtype, seed=seed)
    ratio = optax.scale_by_trust_ratio()
    return descent(direction, learning_rate, weight_decay, mask, rescale=(ratio,))
