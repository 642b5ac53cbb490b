"""Yogi."""

from typing import Any

import optax

from adam_jax.decay import Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.yogi import Yogi
from adam_jax.transform import lift


def scale_by_yogi(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-3,
    eps_root: Scalar = 0.0,
    initial_accumulator_value: Scalar = 1e-6,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Yogi's direction: `yogi` without the learning rate.

    A drop-in for `optax.scale_by_yogi`. Both moments start at ``initial_accumulator_value``.
    """
    start = initial_accumulator_value
    rule = Yogi(b1, b2, eps, eps_root, initial_accumulator_value=start)
    return lift(rule, mu_dtype, nu_dtype, seed=seed)


def yogi(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-3,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Yogi: Adam whose mean square comes down slowly.

    A drop-in for `optax.yogi`: the same arguments in the same order, and the same state.

    Args:
      learning_rate: see `adam`, as for what is not told here.
      b1: decay rate of the mean gradient.
      b2: 1 less what of a gradient's square is added to the mean square, or taken off it.
      eps: added to the root.
      mu_dtype: how the mean gradient rests.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    References:
      Zaheer et al. 2018, "Adaptive Methods for Nonconvex Optimization", Algorithm 2,
      https://papers.nips.cc/paper/2018/hash/90365351ccc7437a1309dc64e4db32a3-Abstract.html.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = yogi(0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.0996', '0.1000']
    """
    rule = Yogi(b1, b2, eps)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate)
