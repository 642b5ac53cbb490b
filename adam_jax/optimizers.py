"""The optimizers, in Optax's conventions: a signature and a chain each.

Arguments that several share, and that mean the same wherever they stand:

* ``learning_rate``: the step's size, in units of the parameters: a number >= 0, a schedule
  ``count -> number`` (`optax.schedules`, counted from 0), or a scalar ``jax.Array``.
* ``b1``, ``b2``: decay rates in [0, 1) of the averages of the gradient and of its square.
* ``eps``: a number >= 0 added to the root, in units of the gradient; 0 is allowed.
* ``eps_root``: a number >= 0 added under the root, in units of the gradient squared.
* ``mu_dtype``, ``nu_dtype``: how the two averages rest between two steps: ``None`` for float32 (or
  the parameter's dtype where that is wider), a dtype, or a format of `adam_jax.storage`.
* ``nesterov``: whether the average looks one step ahead.
* ``seed``: of the random bits by which `storage.bfloat16` rounds; float32 state uses none.

Every number may be static or a scalar ``jax.Array``, traced or not (`optax.inject_hyperparams`,
``vmap``, ``grad``); static ones are checked, and arrays recompile nothing when their value changes.
Parameters and gradients are float or complex arrays of any shape; the arithmetic is float32
(float64 for float64), updates have the gradients' dtypes, and the state keeps its own.

All raise `ValueError` for a static number out of its range, `TypeError` for one that is no number,
and, from ``init`` and ``update``, errors that name the leaf: `TypeError` where it is neither float
nor complex, `ValueError` where its shape or its place in the tree is not the state's.
"""

from collections.abc import Callable
from typing import Any

import optax

from adam_jax.hyperparameters import Scalar, Schedule, scalar_or_schedule
from adam_jax.rules.adam import Adam
from adam_jax.transform import full_precision, lift


def scale_by_adam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adam's direction: the mean gradient over the root of the mean square.

    The state is `optax.ScaleByAdamState`, leaf for leaf the one of `optax.scale_by_adam`. For the
    arguments, and what they raise, see `adam_jax.optimizers`.

    References:
      Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", Algorithm 1,
      https://arxiv.org/abs/1412.6980; with ``nesterov``, Dozat 2016, "Incorporating Nesterov
      Momentum into Adam", https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_adam()
      >>> gradient = jnp.array([3.0, -0.5])
      >>> direction, state = tx.update(gradient, tx.init(gradient))
      >>> print(direction)
      [ 1. -1.]
    """
    return lift(Adam(b1, b2, eps, eps_root, nesterov), mu_dtype, nu_dtype, seed=seed)


def adam(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adam: each parameter moves by about the learning rate, against its mean gradient.

    A drop-in for `optax.adam`: the same arguments in the same order, and the same state, leaf for
    leaf. For the arguments, and what they raise, see `adam_jax.optimizers`.

    References:
      Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", Algorithm 1,
      https://arxiv.org/abs/1412.6980; with ``nesterov`` it is NAdam: Dozat 2016, "Incorporating
      Nesterov Momentum into Adam", https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> tx = adam(0.1)
      >>> params = jnp.array([1.0, -2.0])
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...     gradient = jax.grad(lambda x: jnp.sum(x**2))(params)
      ...     updates, state = tx.update(gradient, state)
      ...     return optax.apply_updates(params, updates), state
      >>> params, state = step(params, state)
      >>> print(params)
      [ 0.9 -1.9]
    """
    return _descend(
        learning_rate,
        scale_by_adam(
            b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov, nu_dtype=nu_dtype, seed=seed
        ),
    )


def adamw(
    learning_rate: Scalar | Schedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    weight_decay: Scalar | Schedule = 1e-4,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    nesterov: bool = False,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adam with decoupled weight decay: parameters also shrink, by a rate that no root divides.

    A drop-in for `optax.adamw`, and like it in this: the decay of a step is ``learning_rate *
    weight_decay * params``, as in PyTorch, while the paper's is not multiplied by the base learning
    rate. ``update`` needs the parameters. For the other arguments, and what they raise, see
    `adam_jax.optimizers`.

    Args:
      learning_rate: the step's size, here also a factor of the decay.
      b1: decay rate of the mean gradient.
      b2: decay rate of the mean square.
      eps: added to the root.
      eps_root: added under the root.
      mu_dtype: how the mean gradient is stored.
      weight_decay: a number >= 0, a schedule, or a scalar array; per step and learning rate.
      mask: a pytree of booleans that is a prefix of the parameters, or a function from these to
        one: which leaves decay. ``None`` for all.
      nesterov: whether the mean looks one step ahead.
      nu_dtype: how the mean square is stored.
      seed: of the random bits of rounding.

    References:
      Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", Algorithm 2,
      https://arxiv.org/abs/1711.05101.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = adamw(0.1, weight_decay=0.5, mask={"w": True, "b": False})
      >>> params = {"w": jnp.array(2.0), "b": jnp.array(2.0)}
      >>> zero = {"w": jnp.array(0.0), "b": jnp.array(0.0)}
      >>> updates, state = tx.update(zero, tx.init(params), params)
      >>> print(updates["w"], abs(updates["b"]))
      -0.1 0.0
    """
    decay = scalar_or_schedule("weight_decay", weight_decay)
    return _descend(
        learning_rate,
        scale_by_adam(
            b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov, nu_dtype=nu_dtype, seed=seed
        ),
        optax.add_decayed_weights(decay, mask),
    )


def _descend(
    learning_rate: Scalar | Schedule, *direction: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    rate = scalar_or_schedule("learning_rate", learning_rate)
    return full_precision(optax.chain(*direction, optax.scale_by_learning_rate(rate)))
