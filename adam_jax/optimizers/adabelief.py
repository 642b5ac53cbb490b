"""AdaBelief."""

from typing import Any

import optax

from adam_jax.decay import Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.adabelief import AdaBelief
from adam_jax.transform import lift


def scale_by_belief(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
    *,
    nesterov: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """AdaBelief's direction: `adabelief` without the learning rate.

    A drop-in for `optax.scale_by_belief`.
    """
    rule = AdaBelief(b1, b2, eps, eps_root, nesterov)
    return lift(rule, mu_dtype, nu_dtype, seed=seed)


def adabelief(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
    *,
    nesterov: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """AdaBelief: Adam that divides by how far gradients are from their mean.

    A drop-in for `optax.adabelief`: the same arguments in the same order, and the same state. Where
    gradients hardly change, steps are far longer than the learning rate.

    Args:
      learning_rate: see `adam`, as for what is not told here.
      b1: decay rate of the mean gradient.
      b2: decay rate of the mean square of gradients less their mean.
      eps: added to the root.
      eps_root: added to the mean square at every step, and kept there.
      nesterov: whether the mean looks one step ahead.
      mu_dtype: how the mean gradient rests.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    References:
      Zhuang et al. 2020, "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed
      Gradients", Algorithm 2, https://arxiv.org/abs/2010.07468.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adabelief(0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1111', '0.1111']
    """
    rule = AdaBelief(b1, b2, eps, eps_root, nesterov)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate)
