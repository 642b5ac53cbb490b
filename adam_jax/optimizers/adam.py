"""Adam and AdamW."""

from typing import Any

import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.adam import Adam
from adam_jax.transform import lift


def scale_by_adam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    eps_hat: bool = False,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adam's direction: the mean gradient over the root of the mean square.

    A drop-in for `optax.scale_by_adam`: `adam` without the learning rate, with its arguments,
    state, errors and references. A step goes against the direction; its entries are about 1 where
    gradients agree. Without ``nesterov``, with both corrections and b1**2 < b2, none is ever above
    (1 - b1) / sqrt((1 - b2) * (1 - b1**2 / b2)), 7.3 by default.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_adam()
      >>> gradient = jnp.array([3.0, -0.5])
      >>> direction, state = tx.update(gradient, tx.init(gradient))
      >>> [f"{x:.4f}" for x in direction]
      ['1.0000', '-1.0000']
    """
    corrections = bias_correction_mu, bias_correction_nu
    rule = Adam(b1, b2, eps, eps_root, nesterov, eps_hat, *corrections)
    return lift(rule, mu_dtype, nu_dtype, seed=seed)


def adam(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    eps_hat: bool = False,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adam: each parameter moves by about the learning rate, against its mean gradient.

    A drop-in for `optax.adam`: the same arguments in the same order, and the same state, leaf for
    leaf, so that checkpoints carry over. Parameters and gradients are trees of float or complex
    arrays of any shape. The arithmetic is float32 (float64 for float64) whatever their dtypes;
    updates have the gradients' dtypes, and the state keeps its own.

    Every number may be static, and is then checked here, or a scalar ``jax.Array``, traced or not
    (`with_hyperparameters`, ``vmap``, ``grad``), whose value may change without recompilation.

    To climb: ``optax.chain(optax.scale(-1.0), tx)``, in this order, for behind weight decay it
    would turn that too. Of complex parameters, what `jax.grad` gives is to be conjugated first,
    which only `train_step` does by itself.

    Args:
      learning_rate: the step's size, in units of the parameters: a number >= 0, a schedule from the
        count of steps done to a number, or a scalar array.
      b1: decay rate of the mean gradient, in [0, 1).
      b2: decay rate of the mean square, in [0, 1).
      eps: added to the root, in units of the gradient; >= 0. With 0, an entry does not move while
        its mean square is 0: where gradients were 0 or, in float32, below about 3e-18.
      eps_root: added under the root, in units of the gradient squared; >= 0.
      mu_dtype: how the mean gradient rests between two steps: a dtype, a format of
        `adam_jax.storage`, a function ``(path, leaf)`` to one of these (which
        `optax.inject_hyperparams` takes for a schedule, unless told ``static_args``), or ``None``
        for float32, or the parameter's dtype where that is wider.
      nesterov: whether the mean looks one step ahead, as in NAdam.
      eps_hat: whether eps and eps_root are added to the mean square as it is, and not to the
        corrected one: the paper's "epsilon hat", which is TensorFlow's and Keras's eps.
      bias_correction_mu: whether the mean is corrected for its start at 0, as in the paper.
      bias_correction_nu: whether the mean square is.
      nu_dtype: how the mean square rests.
      seed: an integer, the seed of formats that round by chance, as all do but float32.
        `optax.inject_hyperparams` adds it to its state unless told ``static_args=("seed",)``.

    Returns:
      An Optax transformation. Its ``update`` accepts extra arguments, and ignores them. Finite
      gradients whose squares overflow are held just below. One that is not finite makes the update
      and the state of its entry so, for good: `optax.apply_if_finite` leaves such steps out.

    Raises:
      ValueError: a number is out of its range; from ``update``, a gradient has another shape or
        place in the tree than its parameter, or the state another format. The error names the leaf.
      TypeError: an argument is no number; from ``init`` and ``update``, a leaf is neither float nor
        complex.

    References:
      Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", Algorithm 1,
      https://arxiv.org/abs/1412.6980; with ``nesterov``, Dozat 2016, "Incorporating Nesterov
      Momentum into Adam", https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ.

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
      >>> [f"{x:.4f}" for x in params]
      ['0.9000', '-1.9000']
    """
    corrections = bias_correction_mu, bias_correction_nu
    rule = Adam(b1, b2, eps, eps_root, nesterov, eps_hat, *corrections)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate)


def adamw(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    weight_decay: Decay | Rate = 1e-4,
    mask: Mask = None,
    *,
    nesterov: bool = False,
    eps_hat: bool = False,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adam with decoupled weight decay: parameters also shrink, by a rate that no root divides.

    A drop-in for `optax.adamw`: the same arguments in the same order, and the same state. Like
    there and in PyTorch, a step takes ``learning_rate * weight_decay * params`` off the parameters;
    in the paper the decay is not multiplied by the base learning rate. ``update`` needs the
    parameters.

    Args:
      learning_rate: as in `adam`, and like there all that follow, but for two.
      b1: decay rate of the mean gradient.
      b2: decay rate of the mean square.
      eps: added to the root.
      eps_root: added under the root.
      mu_dtype: how the mean gradient rests.
      weight_decay: a number >= 0, a schedule, or a scalar array: the share of a parameter that a
        step takes off it, in units of the learning rate; or another convention, by a name of
        `adam_jax.decay`.
      mask: which leaves decay: a tree of booleans that is a prefix of the parameters, or a function
        from these to one; ``None`` for all.
      nesterov: whether the mean looks one step ahead.
      eps_hat: whether eps is TensorFlow's.
      bias_correction_mu: whether the mean is corrected.
      bias_correction_nu: whether the mean square is.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    References:
      Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", Algorithm 2,
      https://arxiv.org/abs/1711.05101.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = adamw(0.1, weight_decay=0.5, mask={"w": True, "b": False})
      >>> params = {"w": jnp.array(2.0), "b": jnp.array(2.0)}
      >>> zero = {"w": jnp.array(0.0), "b": jnp.array(0.0)}
      >>> updates, state = tx.update(zero, tx.init(params), params)
      >>> [f"{abs(updates[leaf]):.4f}" for leaf in ("w", "b")]
      ['0.1000', '0.0000']
    """
    corrections = bias_correction_mu, bias_correction_nu
    rule = Adam(b1, b2, eps, eps_root, nesterov, eps_hat, *corrections)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate, weight_decay, mask)
