"""AdEMAMix."""

from typing import Any

import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.ademamix import AdEMAMix
from adam_jax.transform import lift


def scale_by_ademamix(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Rate = 0.9999,
    alpha: Rate = 6.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    *,
    warmup_steps: int | None = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """AdEMAMix's direction: `ademamix` without the learning rate.

    A drop-in for `optax.contrib.scale_by_ademamix`, whose alpha is 6 by default, and not 5.
    """
    rule = AdEMAMix(b1, b2, eps, eps_root, b3=b3, alpha=alpha, warmup_steps=warmup_steps)
    return lift(rule, mu_dtype, nu_dtype, seed=seed)


def ademamix(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Rate = 0.9999,
    alpha: Rate = 5.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    weight_decay: Decay | Rate = 0.0,
    mask: Mask = None,
    *,
    warmup_steps: int | None = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """AdEMAMix: Adam with a second mean, which remembers thousands of steps.

    A drop-in for `optax.contrib.ademamix`: the same arguments in the same order, and the same
    state, whose second count is kept and not read. Training from scratch wants
    ``warmup_steps``: the paper has all of its steps.

    Args:
      learning_rate: see `adam`, as for what is not told here.
      b1: decay rate of the fast mean.
      b2: decay rate of the mean square.
      b3: decay rate of the slow mean: a number, or a schedule of the count of steps done, whose
        values are float32 and so not exact near 1.
      alpha: weight of the slow mean: a number, or a schedule.
      eps: added to the root.
      eps_root: added under the root.
      mu_dtype: how both means rest.
      weight_decay: see `adamw`.
      mask: see `adamw`.
      warmup_steps: over how many steps alpha grows from 0 and b3 from b1, as in the paper; ``None``
        for none.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    References:
      Pagliardini, Ablin & Grangier 2024, "The AdEMAMix Optimizer: Better, Faster, Older",
      Algorithm 1, https://arxiv.org/abs/2409.03137.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = ademamix(0.1, warmup_steps=1000)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1000', '0.1000']
    """
    rule = AdEMAMix(b1, b2, eps, eps_root, b3=b3, alpha=alpha, warmup_steps=warmup_steps)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate, weight_decay, mask)
