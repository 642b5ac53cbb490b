"""Keras 3's optimizers, called as there: names, arguments, their order, and defaults.

For ``keras.optimizers.AdamW(3e-4, weight_decay=0.1)`` write

>>> from adam_jax import like_keras
>>> tx = like_keras.AdamW(3e-4, weight_decay=0.1)

Each is an optimizer of this package, with the settings by which it takes Keras's steps: where
epsilon is, how AMSGrad corrects its maximum, how Nadam's momentum grows, when weights decay, and in
float32 what is rounded: parameters each time that they change (`decay.in_place`), and the decay
rates in the corrections of Adam, Adamax and Lamb, and in Nadam. Traces of Keras itself hold it to
that, for 200 steps: to 1e-13 of every parameter in float64, and to 1e-6 in float32, where Keras's
own are up to 3e-6 (Lion 8e-6) from those in float64.

What differs:

* What every optimizer of Keras takes besides is not taken. Gradients are clipped, accumulated and
  scaled, and parameters averaged, by what Optax has for it around any optimizer. ``mu_dtype``,
  ``nu_dtype`` and ``seed`` are added.
* A schedule is any function of the count of steps done; ``weight_decay`` may be one too.
* Of bfloat16 and float16 parameters the arithmetic is float32 here, their own dtype there.
"""

from functools import partial
from typing import Any

import optax

from adam_jax import decay
from adam_jax.hyperparameters import (
    Scalar,
    Schedule,
    decay_rate,
    flag,
    nonnegative,
    scalar_or_schedule,
)
from adam_jax.optimizers.lamb import scale_by_trust_ratio
from adam_jax.optimizers.lion import lion
from adam_jax.rules.adam import Adam as AdamRule
from adam_jax.rules.adamax import Adamax as AdamaxRule
from adam_jax.rules.amsgrad import AMSGrad as AMSGradRule
from adam_jax.rules.nadam import NAdam as NAdamRule
from adam_jax.transform import lift


def Adam(
    learning_rate: Scalar | Schedule = 0.001,
    beta_1: Scalar = 0.9,
    beta_2: Scalar = 0.999,
    epsilon: Scalar = 1e-7,
    amsgrad: bool = False,
    weight_decay: Scalar | Schedule | None = None,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """`keras.optimizers.Adam`: `adam_jax.adam` with "epsilon hat", or `adam_jax.amsgrad`.

    Args:
      learning_rate: a number >= 0, a schedule, or a scalar array.
      beta_1: decay rate of the mean gradient, in [0, 1).
      beta_2: decay rate of the mean square, in [0, 1).
      epsilon: added to the root before the mean square is corrected, so that it counts most in the
        first steps; >= 0.
      amsgrad: whether the mean square is the largest so far.
      weight_decay: the share of a parameter that a step takes off it, in units of the learning
        rate; >= 0. Unless it is ``None``, ``update`` needs the parameters.
      mu_dtype: how the mean gradient rests, as in `adam_jax.adam`.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    Returns:
      An Optax transformation.

    Raises:
      ValueError: a number is out of its range; the argument is named.
      TypeError: an argument is no number.

    References:
      https://keras.io/api/optimizers/adam/

    Example:
      >>> import jax.numpy as jnp
      >>> tx = Adam(0.1)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, _ = tx.update(jnp.array([3.0, 1e-6]), tx.init(params))
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1000', '-0.0240']
    """
    make = partial(AMSGradRule, correct_after_max=True) if flag("amsgrad", amsgrad) else AdamRule
    rule = make(
        *_rates(beta_1, beta_2), nonnegative("epsilon", epsilon), eps_hat=True, rounded_rates=True
    )
    direction = lift(rule, mu_dtype, nu_dtype, seed=seed)
    return decay.descent(direction, learning_rate, _or_none(weight_decay))


def AdamW(
    learning_rate: Scalar | Schedule = 0.001,
    weight_decay: Scalar | Schedule = 0.004,
    beta_1: Scalar = 0.9,
    beta_2: Scalar = 0.999,
    epsilon: Scalar = 1e-7,
    amsgrad: bool = False,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """`keras.optimizers.AdamW`: `Adam` with its arguments in another order.

    References:
      https://keras.io/api/optimizers/adamw/

    Example:
      >>> import jax.numpy as jnp
      >>> tx = AdamW(0.1, weight_decay=0.4)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, _ = tx.update(jnp.array([3.0, 0.2]), tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1400', '-0.0200']
    """
    return Adam(
        learning_rate,
        beta_1,
        beta_2,
        epsilon,
        amsgrad,
        scalar_or_schedule("weight_decay", weight_decay),  # not None
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
        seed=seed,
    )


def Nadam(
    learning_rate: Scalar | Schedule = 0.001,
    beta_1: Scalar = 0.9,
    beta_2: Scalar = 0.999,
    epsilon: Scalar = 1e-7,
    weight_decay: Scalar | Schedule | None = None,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """`keras.optimizers.Nadam`: `adam_jax.nadam` with a momentum that soon has grown.

    Arguments are those of `Adam`; epsilon is added after the mean square is corrected.

    References:
      https://keras.io/api/optimizers/Nadam/

    Example:
      >>> import jax.numpy as jnp
      >>> tx = Nadam(0.1)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, _ = tx.update(jnp.array([3.0, 0.2]), tx.init(params))
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1063', '-0.1063']
    """
    rule = NAdamRule(
        *_rates(beta_1, beta_2),
        nonnegative("epsilon", epsilon),
        nesterov=True,
        rounded_rates=True,
        momentum_decay=1.0,
    )
    direction = lift(rule, mu_dtype, nu_dtype, seed=seed)
    return decay.descent(direction, learning_rate, _or_none(weight_decay))


def Adamax(
    learning_rate: Scalar | Schedule = 0.001,
    beta_1: Scalar = 0.9,
    beta_2: Scalar = 0.999,
    epsilon: Scalar = 1e-7,
    weight_decay: Scalar | Schedule | None = None,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """`keras.optimizers.Adamax`: `adam_jax.adamax` with epsilon outside of the maximum.

    Arguments are those of `Adam`; the largest gradient takes the place of the mean square.

    References:
      https://keras.io/api/optimizers/adamax/

    Example:
      >>> import jax.numpy as jnp
      >>> tx = Adamax(0.1)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, _ = tx.update(jnp.array([3.0, 1e-7]), tx.init(params))
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1000', '-0.0500']
    """
    rule = AdamaxRule(
        *_rates(beta_1, beta_2),
        nonnegative("epsilon", epsilon),
        eps_inside=False,
        rounded_rates=True,
    )
    direction = lift(rule, mu_dtype, nu_dtype, seed=seed)
    return decay.descent(direction, learning_rate, _or_none(weight_decay))


def Lion(
    learning_rate: Scalar | Schedule = 0.001,
    beta_1: Scalar = 0.9,
    beta_2: Scalar = 0.99,
    weight_decay: Scalar | Schedule | None = None,
    *,
    mu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """`keras.optimizers.Lion`: `adam_jax.lion`.

    Arguments are those of `Adam`; there is no mean square, and so neither its dtype nor epsilon.

    References:
      https://keras.io/api/optimizers/lion/

    Example:
      >>> import jax.numpy as jnp
      >>> tx = Lion(0.1)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, _ = tx.update(jnp.array([3.0, 0.2]), tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1000', '-0.1000']
    """
    return lion(
        learning_rate,
        *_rates(beta_1, beta_2),
        weight_decay=_or_none(weight_decay),
        mu_dtype=mu_dtype,
        seed=seed,
    )


def Lamb(
    learning_rate: Scalar | Schedule = 0.001,
    beta_1: Scalar = 0.9,
    beta_2: Scalar = 0.999,
    epsilon: Scalar = 1e-7,
    weight_decay: Scalar | Schedule | None = None,
    *,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """`keras.optimizers.Lamb`: `adam_jax.lamb`, with the decay outside of the trust ratio.

    Arguments are those of `Adam`; epsilon is added after the mean square is corrected. ``update``
    needs the parameters, for their norm, which shrinks as they do before the rest of the step.

    References:
      https://keras.io/api/optimizers/lamb/

    Example:
      >>> import jax.numpy as jnp
      >>> tx = Lamb(0.1)
      >>> params = jnp.array([3.0, -4.0])
      >>> updates, _ = tx.update(jnp.array([3.0, 0.2]), tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.3536', '-0.3536']
    """
    rule = AdamRule(*_rates(beta_1, beta_2), nonnegative("epsilon", epsilon), rounded_rates=True)
    direction = lift(rule, mu_dtype, nu_dtype, seed=seed)
    ratio = scale_by_trust_ratio()
    return decay.descent(direction, learning_rate, _or_none(weight_decay), rescale=(ratio,))


def _rates(beta_1: Scalar, beta_2: Scalar) -> tuple[Scalar, Scalar]:
    """Both decay rates, which are checked again by other names: errors have Keras's."""
    return decay_rate("beta_1", beta_1), decay_rate("beta_2", beta_2)


def _or_none(weight_decay: Any) -> decay.Decay:
    """The decay, where ``None`` is none, and not a rate of 0, which wants parameters."""
    if weight_decay is None:
        return decay.NO_DECAY
    if isinstance(weight_decay, decay.Decay):  # which names another form
        return weight_decay
    return decay.in_place(weight_decay, factor=False)
