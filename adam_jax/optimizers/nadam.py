"""NAdam and NAdamW."""

from typing import Any

import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.nadam import NAdam
from adam_jax.transform import lift


def nadam(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    momentum_decay: Scalar | None = None,
    eps_hat: bool = False,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """NAdam: Adam whose mean looks one step ahead.

    A drop-in for `optax.nadam`, and with ``momentum_decay`` PyTorch's NAdam (4e-3) and Keras's
    Nadam (1). Arguments are those of `adam`, but for:

    Args:
      learning_rate: see `adam`, as for what is not told here.
      b1: decay rate of the mean gradient.
      b2: decay rate of the mean square.
      eps: added to the root.
      eps_root: added under the root.
      mu_dtype: how the mean gradient rests.
      nesterov: without it, this is `adam`.
      momentum_decay: a number >= 0: the momentum at step t, which weighs the mean, is
        ``b1 * (1 - 0.96**(t * momentum_decay) / 2)``; ``None`` for b1 at every step.
      eps_hat: whether eps is TensorFlow's.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    Raises:
      ValueError: as `adam`, and where ``momentum_decay`` comes without ``nesterov``.

    References:
      Dozat 2016, "Incorporating Nesterov Momentum into Adam", Algorithm 2,
      https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = nadam(0.1, momentum_decay=4e-3)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1056', '0.1056']
    """
    rule = NAdam(b1, b2, eps, eps_root, nesterov, eps_hat, momentum_decay=momentum_decay)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate)


def nadamw(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    weight_decay: Decay | Rate = 1e-4,
    mask: Mask = None,
    *,
    nesterov: bool = True,
    momentum_decay: Scalar | None = None,
    eps_hat: bool = False,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """NAdam with decoupled weight decay: `nadam`, and the decay of `adamw`.

    A drop-in for `optax.nadamw`; PyTorch's NAdam with ``decoupled_weight_decay``.

    References:
      Dozat 2016, as `nadam`; Loshchilov & Hutter 2019, as `adamw`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = nadamw(0.1, weight_decay=0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1574', '0.1674']
    """
    rule = NAdam(b1, b2, eps, eps_root, nesterov, eps_hat, momentum_decay=momentum_decay)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate, weight_decay, mask)
