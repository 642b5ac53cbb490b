"""ADOPT and ADOPTW."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.adopt import Adopt
from adam_jax.transform import lift


def fourth_root(count: jax.Array) -> Any:
    """The paper's bound of a ratio, from the count of steps done."""
    return count**0.25


def scale_by_adopt(
    b1: Scalar = 0.9,
    b2: Scalar = 0.9999,
    eps: Scalar = 1e-6,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[jax.Array], Any] = fourth_root,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """ADOPT's direction: `adopt` without the learning rate.

    A drop-in for `optax.contrib.scale_by_adopt`.
    """
    rule = Adopt(b1, b2, eps, nesterov, use_clipping, clip_value_fn)
    return lift(rule, mu_dtype, nu_dtype, seed=seed)


def adopt(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.9999,
    eps: Scalar = 1e-6,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[jax.Array], Any] = fourth_root,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """ADOPT: divides a gradient by the past's mean square, and so converges with any b2.

    A drop-in for `optax.contrib.adopt`: the same arguments in the same order, and the same state.
    The first step only looks: it moves nothing.

    Args:
      learning_rate: see `adam`, as for what is not told here.
      b1: decay rate of the mean of gradients that were divided by the root mean square.
      b2: decay rate of the mean square.
      eps: the least root that divides. With 0, a first gradient after zeros is taken for 0; of the
        paper's infinite ratio clipping leaves its bound.
      mu_dtype: how the mean rests.
      nesterov: whether the mean looks one step ahead.
      use_clipping: whether the divided gradients are clipped.
      clip_value_fn: to what, from the count of steps done, which is floating.
        `optax.inject_hyperparams` takes it for a schedule unless told ``static_args``.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    References:
      Taniguchi et al. 2024, "ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal
      Rate", Algorithms 1 and 2, https://arxiv.org/abs/2411.02853.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adopt(0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.0000', '-0.0000']
    """
    rule = Adopt(b1, b2, eps, nesterov, use_clipping, clip_value_fn)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate)


def adoptw(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.9999,
    eps: Scalar = 1e-6,
    mu_dtype: Any = None,
    weight_decay: Decay | Rate = 1e-4,
    mask: Mask = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[jax.Array], Any] = fourth_root,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """ADOPT with decoupled weight decay: `adopt`, and the decay of `adamw`.

    References:
      Taniguchi et al. 2024, as `adopt`; Loshchilov & Hutter 2019, as `adamw`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adoptw(0.1, weight_decay=0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.0100', '0.0200']
    """
    rule = Adopt(b1, b2, eps, nesterov, use_clipping, clip_value_fn)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate, weight_decay, mask)
