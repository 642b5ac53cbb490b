"""PyTorch's optimizers, called as there: names, arguments, their order, and defaults.

For ``torch.optim.AdamW(model.parameters(), 3e-4, weight_decay=0.1)`` write

>>> from adam_jax import like_torch
>>> tx = like_torch.AdamW(3e-4, weight_decay=0.1)

The parameters go to ``tx.init``.

Each is an optimizer of this package, with the settings by which it takes PyTorch's steps: where eps
is, how AMSGrad corrects its maximum, how NAdam's momentum grows, that a ``weight_decay`` of `Adam`
is L2, and that parameters change in place, rounded each time (`decay.in_place`). Traces of PyTorch
itself hold it to that, for 200 steps: to 1e-13 of every parameter in float64, and to 1e-6 in
float32, where PyTorch's own are up to 7e-6 from those in float64.

What differs:

* Arguments that only choose an implementation (``foreach``, ``fused``, ``capturable``,
  ``differentiable``) are not taken, and ``mu_dtype``, ``nu_dtype`` and ``seed`` are added.
* ``lr`` and ``weight_decay`` may be schedules, from the count of steps done, or scalar arrays.
* Parameter groups are Optax's `optax.partition` and `optax.masked`.
* In float32 PyTorch's mean square settles up to 1e-5 off its average, at b2 = 0.999. Ours does not.
* ``lr * weight_decay`` of two numbers is in double precision, as there; of schedules and arrays it
  is in float32, which may give another factor ``1 - lr * weight_decay``.
* Of bfloat16 and float16 parameters the arithmetic is float32 here, their own dtype there.
* An entry of a complex array has one mean square here; there, its two parts have one each.
* In float64 `torch.optim.NAdam` rounds the product of its momenta to float32, unless float64 is the
  default dtype.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import optax

from adam_jax import decay
from adam_jax.hyperparameters import (
    Scalar,
    Schedule,
    brief,
    decay_rate,
    flag,
    is_zero,
    scalar_or_schedule,
)
from adam_jax.optimizers.adam import adamw
from adam_jax.optimizers.adamax import adamaxw
from adam_jax.optimizers.amsgrad import amsgradw
from adam_jax.optimizers.radam import radamw
from adam_jax.rules.nadam import NAdam as NAdamRule
from adam_jax.transform import lift


def Adam(
    lr: Scalar | Schedule = 1e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar | Schedule = 0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """`torch.optim.Adam`: `adam_jax.adam`, or `adam_jax.amsgrad`.

    Args:
      lr: the learning rate: a number >= 0, a schedule, or a scalar array.
      betas: the decay rates of the mean gradient and of the mean square, in [0, 1).
      eps: added to the root; >= 0.
      weight_decay: what is added to the gradient, in units of the parameters; >= 0. Unless it is 0,
        ``update`` needs the parameters.
      amsgrad: whether the mean square is the largest so far.
      maximize: whether steps go up the gradient; a weight decay still makes parameters smaller.
      decoupled_weight_decay: whether the decay is `AdamW`'s.
      mu_dtype: how the mean gradient rests, as in `adam_jax.adam`.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    Returns:
      An Optax transformation.

    Raises:
      ValueError: a number is out of its range; the argument is named.
      TypeError: an argument is no number, or ``betas`` are not two.

    References:
      https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html

    Example:
      >>> import jax.numpy as jnp
      >>> tx = Adam(0.1, weight_decay=0.5, maximize=True)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, _ = tx.update(jnp.array([3.0, 0.2]), tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['0.1000', '0.1000']
    """
    make = partial(amsgradw, correct_after_max=True) if flag("amsgrad", amsgrad) else adamw
    return _optimizer(
        make,
        lr,
        weight_decay,
        decoupled_weight_decay,
        maximize,
        **_rates(betas),
        eps=eps,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
        seed=seed,
    )


def AdamW(
    lr: Scalar | Schedule = 1e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar | Schedule = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """`torch.optim.AdamW`: `adam_jax.adamw`, or `adam_jax.amsgradw`.

    Arguments are those of `Adam`. A step takes ``lr * weight_decay * params`` off the parameters.
    That is rounded as there: see `decay.in_place`.

    References:
      https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html

    Example:
      >>> import jax.numpy as jnp
      >>> tx = AdamW(0.1, weight_decay=0.4)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, _ = tx.update(jnp.array([3.0, 0.2]), tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1400', '-0.0200']
    """
    return Adam(
        lr,
        betas,
        eps,
        weight_decay,
        amsgrad,
        maximize=maximize,
        decoupled_weight_decay=True,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
        seed=seed,
    )


def NAdam(
    lr: Scalar | Schedule = 2e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar | Schedule = 0,
    momentum_decay: Scalar = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """`torch.optim.NAdam`: `adam_jax.nadam` with a momentum that grows.

    Arguments are those of `Adam`, and ``momentum_decay``: how fast the momentum grows from half of
    ``betas[0]`` to all of it.

    References:
      https://docs.pytorch.org/docs/stable/generated/torch.optim.NAdam.html

    Example:
      >>> import jax.numpy as jnp
      >>> tx = NAdam(0.1)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, _ = tx.update(jnp.array([3.0, 0.2]), tx.init(params))
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1056', '-0.1056']
    """
    return _optimizer(
        _nadamw,
        lr,
        weight_decay,
        decoupled_weight_decay,
        maximize,
        terms=2,
        momentum_decay=momentum_decay,
        **_rates(betas),
        eps=eps,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
        seed=seed,
    )


def RAdam(
    lr: Scalar | Schedule = 1e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar | Schedule = 0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """`torch.optim.RAdam`: `adam_jax.radam`, with ``eps_hat``, rectified where rho is above 5.

    Arguments are those of `Adam`.

    References:
      https://docs.pytorch.org/docs/stable/generated/torch.optim.RAdam.html

    Example:
      >>> import jax.numpy as jnp
      >>> tx = RAdam(0.1)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, _ = tx.update(jnp.array([3.0, 0.2]), tx.init(params))
      >>> [f"{x:.4f}" for x in updates]
      ['-0.3000', '-0.0200']
    """
    return _optimizer(
        radamw,
        lr,
        weight_decay,
        decoupled_weight_decay,
        maximize,
        eps_hat=True,
        above=True,
        **_rates(betas),
        eps=eps,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
        seed=seed,
    )


def Adamax(
    lr: Scalar | Schedule = 2e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar | Schedule = 0,
    *,
    maximize: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """`torch.optim.Adamax`: `adam_jax.adamax`.

    Arguments are those of `Adam`; the largest gradient takes the place of the mean square.

    References:
      https://docs.pytorch.org/docs/stable/generated/torch.optim.Adamax.html

    Example:
      >>> import jax.numpy as jnp
      >>> tx = Adamax(0.1)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, _ = tx.update(jnp.array([3.0, 0.2]), tx.init(params))
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1000', '-0.1000']
    """
    return _optimizer(
        adamaxw,
        lr,
        weight_decay,
        False,
        maximize,
        **_rates(betas),
        eps=eps,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
        seed=seed,
    )


def _optimizer(
    make: Callable[..., optax.GradientTransformationExtraArgs],
    lr: Scalar | Schedule,
    weight_decay: Scalar | Schedule,
    decoupled: bool,
    maximize: bool,
    terms: int = 1,
    **settings: Any,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer without or with decay, down or up the gradient, by a step of so many terms."""
    decoupled = flag("decoupled_weight_decay", decoupled)
    rate: Any = weight_decay
    if not (decoupled and isinstance(rate, decay.Decay)):  # which names another form itself
        rate = scalar_or_schedule("weight_decay", rate)
    form: decay.Decay
    if isinstance(rate, decay.Decay):
        form = rate
    elif decoupled and not is_zero(rate):
        form = decay.in_place(rate)
    else:
        form = decay.NO_DECAY if is_zero(rate) else decay.l2(rate)
        if terms > 1:  # a single one is rounded once there too
            form = decay.TermByTerm(form.rate, form)
    tx = make(learning_rate=scalar_or_schedule("lr", lr), weight_decay=form, **settings)
    return optax.chain(optax.scale(-1.0), tx) if flag("maximize", maximize) else tx


def _nadamw(
    learning_rate: Scalar | Schedule,
    b1: Scalar,
    b2: Scalar,
    eps: Scalar,
    weight_decay: decay.Decay,
    momentum_decay: Scalar,
    **storage: Any,
) -> optax.GradientTransformationExtraArgs:
    """`adam_jax.nadamw`, whose two terms are added to parameters one after the other."""
    apart = decay.adds_terms(weight_decay)
    rule = NAdamRule(b1, b2, eps, nesterov=True, momentum_decay=momentum_decay, apart=apart)
    return decay.descent(lift(rule, **storage), learning_rate, weight_decay)


def _rates(betas: Any) -> dict[str, Any]:
    """Both decay rates, by our names; errors have PyTorch's."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise TypeError(f"`betas` must be two decay rates, got {brief(betas)}")
    b1, b2 = (decay_rate(f"betas[{i}]", b) for i, b in enumerate(betas))
    return {"b1": b1, "b2": b2}
