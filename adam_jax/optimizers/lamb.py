"""LAMB."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rule import norm, safe_divide
from adam_jax.rules.adam import Adam
from adam_jax.states import where_moving
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
    return descent(direction, learning_rate, weight_decay, mask, rescale=(scale_by_trust_ratio(),))


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """Give an update its parameter's norm: `optax.scale_by_trust_ratio` with norms of any size.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_trust_ratio()
      >>> p = jnp.array([3e30, 4e30])
      >>> updates, _ = tx.update(jnp.array([0.0, 2.0]), tx.init(p), p)
      >>> [f"{x:.1e}" for x in updates]
      ['0.0e+00', '5.0e+30']
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("lamb needs `params`: update(updates, state, params)")
        return where_moving(_scaled, updates, params), state

    return optax.GradientTransformation(optax.scale_by_trust_ratio().init, update)


@jax.jit
def _scaled(u: jax.Array, p: jax.Array) -> jax.Array:
    ours, theirs = norm(u), norm(p)
    # Divided first, for the ratio of the norms may overflow.
    return jnp.where((ours == 0) | (theirs == 0), u, safe_divide(u, ours) * theirs)
