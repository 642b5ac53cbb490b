"""RAdam and RAdamW."""

from typing import Any

import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.radam import RAdam
from adam_jax.transform import lift


def scale_by_radam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
    *,
    nesterov: bool = False,
    eps_hat: bool = False,
    above: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """RAdam's direction: `radam` without the learning rate.

    A drop-in for `optax.scale_by_radam`.
    """
    rule = RAdam(b1, b2, eps, eps_root, nesterov, eps_hat, threshold=threshold, above=above)
    return lift(rule, mu_dtype, nu_dtype, seed=seed)


def radam(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
    *,
    nesterov: bool = False,
    eps_hat: bool = False,
    above: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """RAdam: Adam that trusts its mean square as far as it has seen gradients.

    A drop-in for `optax.radam`: the same arguments in the same order, and the same state. By
    default the first five steps are those of momentum: they have the size of the gradients.

    Args:
      learning_rate: see `adam`, as for what is not told here.
      b1: decay rate of the mean gradient.
      b2: decay rate of the mean square.
      eps: added to the root.
      eps_root: added under the root.
      threshold: of how many gradients the mean square must be in effect to be used; >= 4.
      nesterov: whether the mean looks one step ahead.
      eps_hat: whether eps is added to the root before it is corrected, as in PyTorch.
      above: whether they must be more than ``threshold``, as in PyTorch.
      mu_dtype: how the mean gradient rests.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    References:
      Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond", Algorithm 2,
      https://arxiv.org/abs/1908.03265.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = radam(0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.0500', '0.3000']
    """
    rule = RAdam(b1, b2, eps, eps_root, nesterov, eps_hat, threshold=threshold, above=above)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate)


def radamw(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
    weight_decay: Decay | Rate = 1e-4,
    mask: Mask = None,
    *,
    nesterov: bool = False,
    eps_hat: bool = False,
    above: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """RAdam with decoupled weight decay: `radam`, and the decay of `adamw`.

    PyTorch's RAdam with ``decoupled_weight_decay``, by ``eps_hat`` and ``above``.

    References:
      Liu et al. 2020, as `radam`; Loshchilov & Hutter 2019, as `adamw`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = radamw(0.1, weight_decay=0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.0600', '0.3200']
    """
    rule = RAdam(b1, b2, eps, eps_root, nesterov, eps_hat, threshold=threshold, above=above)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate, weight_decay, mask)
