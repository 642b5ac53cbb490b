"""AMSGrad, with decay or without."""

from typing import Any

import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.amsgrad import AMSGrad
from adam_jax.transform import lift


def scale_by_amsgrad(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    correct_after_max: bool = False,
    eps_hat: bool = False,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """AMSGrad's direction: `amsgrad` without the learning rate.

    A drop-in for `optax.scale_by_amsgrad`.
    """
    rule = AMSGrad(
        *(b1, b2, eps, eps_root),
        eps_hat=eps_hat,
        bias_correction_mu=bias_correction_mu,
        bias_correction_nu=bias_correction_nu,
        correct_after_max=correct_after_max,
    )
    return lift(rule, mu_dtype, nu_dtype, seed=seed)


def amsgrad(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    correct_after_max: bool = False,
    eps_hat: bool = False,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """AMSGrad: Adam that divides by the largest mean square so far.

    A drop-in for `optax.amsgrad`: the same arguments in the same order, and the same state. With
    ``correct_after_max`` it is Adam as long as the mean square grows, as it does in early training.

    Args:
      learning_rate: see `adam`, as for what is not told here.
      b1: decay rate of the mean gradient.
      b2: decay rate of the mean square.
      eps: added to the root.
      eps_root: added under the root.
      mu_dtype: how the mean gradient rests.
      bias_correction_mu: whether the mean is corrected for its start at 0; not so in the paper.
      bias_correction_nu: likewise the mean square.
      correct_after_max: whether the maximum is of the mean square as it is, and corrected then, as
        in PyTorch and Keras, and not of the corrected one, as in Optax.
      eps_hat: whether eps is added to the maximum before it is corrected, as in Keras.
      nu_dtype: how the mean square and its maximum rest, the latter rounded to nearest. In blocks a
        maximum moves with its block's scale: by up to a code, which is little with eight bits, and
        much with four.
      seed: the seed of formats that round by chance.

    Raises:
      ValueError: as `adam`, and where ``correct_after_max`` comes without ``bias_correction_nu``,
        or ``eps_hat`` without ``correct_after_max``.

    References:
      Reddi, Kale & Kumar 2018, "On the Convergence of Adam and Beyond", Algorithm 2,
      https://arxiv.org/abs/1904.09237.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = amsgrad(0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1000', '0.1000']
    """
    rule = AMSGrad(
        *(b1, b2, eps, eps_root),
        eps_hat=eps_hat,
        bias_correction_mu=bias_correction_mu,
        bias_correction_nu=bias_correction_nu,
        correct_after_max=correct_after_max,
    )
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate)


def amsgradw(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    weight_decay: Decay | Rate = 1e-4,
    mask: Mask = None,
    *,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    correct_after_max: bool = False,
    eps_hat: bool = False,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """AMSGrad with decoupled weight decay: `amsgrad`, and the decay of `adamw`.

    PyTorch's ``AdamW(amsgrad=True)`` with ``correct_after_max``.

    References:
      Reddi, Kale & Kumar 2018, as `amsgrad`; Loshchilov & Hutter 2019, as `adamw`.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = amsgradw(0.1, weight_decay=0.1)
      >>> params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0])
      >>> updates, state = tx.update(gradient, tx.init(params), params)
      >>> [f"{x:.4f}" for x in updates]
      ['-0.1100', '0.1200']
    """
    rule = AMSGrad(
        *(b1, b2, eps, eps_root),
        eps_hat=eps_hat,
        bias_correction_mu=bias_correction_mu,
        bias_correction_nu=bias_correction_nu,
        correct_after_max=correct_after_max,
    )
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate, weight_decay, mask)
