"""Adamax and AdamaxW."""

from typing import Any

import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.adamax import Adamax
from adam_jax.transform import lift


def scale_by_adamax(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    *,
    eps_inside: bool = True,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adamax's direction: `adamax` without the learning rate.

    A drop-in for `optax.scale_by_adamax`.
    """
    rule = Adamax(b1, b2, eps, eps_inside)
    return lift(rule, mu_dtype, nu_dtype, seed=seed)


def adamax(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    *,
    eps_inside: bool = True,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adamax: Adam with the largest recent gradient in place of the root mean square.

    A drop-in for `optax.adamax`: the same arguments in the same order, and the same state.

    Args:
      learning_rate: see `adam`, as for what is not told here.
      b1: decay rate of the mean gradient.
      b2: decay rate of the largest gradient.
      eps: added to a gradient's magnitude, in its units.
      eps_inside: whether that is inside of the maximum, as in Optax and PyTorch, or to it, as in
        Keras.
      mu_dtype: how the mean gradient rests.
      nu_dtype: how the largest gradient rests.
      seed: the seed of formats that round by chance.

    References:
      Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", Algorithm 2,
      https://arxiv.org/abs/1412.6980.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adamax(0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1000', '0.1000']
    """
    rule = Adamax(b1, b2, eps, eps_inside)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate)


def adamaxw(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Decay | Rate = 1e-4,
    mask: Mask = None,
    *,
    eps_inside: bool = True,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adamax with decoupled weight decay: `adamax`, and the decay of `adamw`.

    A drop-in for `optax.adamaxw`.

    References:
      Kingma & Ba 2015, as `adamax`; Loshchilov & Hutter 2019, as `adamw`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adamaxw(0.1, weight_decay=0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1100', '0.1200']
    """
    rule = Adamax(b1, b2, eps, eps_inside)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate, weight_decay, mask)
