"""Adan."""

from typing import Any

import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.adan import Adan
from adam_jax.transform import lift


def scale_by_adan(
    b1: Scalar = 0.98,
    b2: Scalar = 0.92,
    b3: Scalar = 0.99,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adan's direction: `adan` without the learning rate.

    A drop-in for `optax.scale_by_adan`, but for what `adan` tells of b2.
    """
    rule = Adan(b1, b2, b3, eps, eps_root)
    return lift(rule, mu_dtype, nu_dtype, seed=seed)


def adan(
    learning_rate: Rate,
    b1: Scalar = 0.98,
    b2: Scalar = 0.92,
    b3: Scalar = 0.99,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 1e-8,
    weight_decay: Decay | Rate = 0.0,
    mask: Mask = None,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adan: Nesterov's momentum from how gradients change.

    The arguments and the state of `optax.adan`, but the paper's formula: Optax 0.2.8 multiplies the
    changes by 1 - b2 where the paper has b2 (in ours and Optax's sense of b2, 0.92).

    Args:
      learning_rate: see `adam`, as for what is not told here.
      b1: decay rate of the mean gradient.
      b2: decay rate of the mean change, and its weight.
      b3: decay rate of the mean square.
      eps: added to the root.
      eps_root: added under the root; Optax's, and 0 in the paper. 1e-8 rules the step of gradients
        below 1e-4.
      weight_decay: see `adamw`. The paper's is ``adam_jax.decay.proximal(rate)``.
      mask: see `adamw`.
      mu_dtype: how the mean gradient, the mean change and the gradient before rest.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    References:
      Xie et al. 2022, "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep
      Models", Algorithm 1, https://arxiv.org/abs/2208.06677.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adan(0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1000', '0.1000']
    """
    rule = Adan(b1, b2, b3, eps, eps_root)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate, weight_decay, mask)
