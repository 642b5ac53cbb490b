"""NAdam, for one array: Adam whose mean looks one step ahead, by a momentum that grows.

    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * g**2
    b1_t = b1 * (1 - 0.96**(momentum_decay * t) / 2)
    mean = b1_{t+1} * mu / (1 - b1_1 * ... * b1_{t+1}) + (1 - b1_t) * g / (1 - b1_1 * ... * b1_t)
    direction = mean / (sqrt(nu / (1 - b2**t) + eps_root) + eps)

Dozat 2016, "Incorporating Nesterov Momentum into Adam", Algorithm 2 and section 3. As in PyTorch,
whose ``momentum_decay`` is 4e-3 as in the paper, and in Keras, where it is 1, mu itself is averaged
with b1. Without one b1_t is b1, as in Optax, and that is `adam` with ``nesterov``.

Others keep the product in their state. Here it is computed from t alone, so that the state is
Adam's: log(1 - x) is expanded, and the powers of 0.96 in each term are a geometric series. With
``rounded_rates`` all that is made of b1 and b2 is of them rounded to float32, as in Keras's Nadam.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax.hyperparameters import Flag, Scalar, optional_nonnegative
from adam_jax.rule import Coefficients, Terms, log, quotient, rounded
from adam_jax.rules.adam import Adam

_LOG = math.log(0.96)
_TERMS = np.arange(1, 53)  # of which the last is below 2**-52


@dataclass(frozen=True)
class NAdam(Adam):
    """NAdam, with the momentum's schedule or without.

    With ``apart`` its direction is `Terms`, for an optimizer that adds them as PyTorch does.
    """

    momentum_decay: Annotated[Scalar | None, optional_nonnegative] = None
    apart: Flag = False

    def astype(self, dtype: Any) -> Self:
        """As of every rule, and with ``rounded_rates`` b1 and b2 in ``dtype`` too."""
        rule = super().astype(dtype)
        if not self.rounded_rates:
            return rule
        return replace(rule, b1=rounded(rule.b1, dtype), b2=rounded(rule.b2, dtype))

    def factors(self, t: jax.Array) -> tuple[Scalar, Scalar]:
        """What mu and g are multiplied by for the mean gradient."""
        if self.momentum_decay is None:
            return super().factors(t)
        rate = -_LOG * self.momentum_decay  # of 0.96**(momentum_decay * t) = exp(-rate * t)
        ahead = self.b1 * (1 - jnp.exp(-rate * (t + 1)) / 2)
        rest = (1 - self.b1) + self.b1 * jnp.exp(-rate * t) / 2  # one less today's momentum
        return ahead / _debias(self.b1, rate, t + 1), rest / _debias(self.b1, rate, t)

    def direction(self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array) -> Any:
        """The direction; with ``apart`` that of the gradient, and then that of the mean."""
        if not self.apart:
            return super().direction(c, g, mu, nu)
        of_mu, of_g, *_ = c
        size = self.size(c, nu)
        return Terms(tuple(quotient(x, size, self.eps) for x in (of_g * g, of_mu * mu)))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.apart and not self.nesterov:
            raise ValueError("`apart` needs `nesterov`: without it, there is one term")
        if self.momentum_decay is not None and not (self.nesterov and self.bias_correction_mu):
            raise ValueError("`momentum_decay` needs `nesterov`: it is the look-ahead's")


def _debias(b1: Scalar, rate: Scalar, t: jax.Array) -> jax.Array:
    """One minus the product of the momentums until ``t``."""
    k = jnp.asarray(_TERMS, t.dtype)
    # The sum of exp(-rate * k * i) for i from 1 to t, which is t where the rate is 0.
    rates = k * jnp.maximum(rate, 1e-30)
    sums = jnp.expm1(-rates * t) / -jnp.expm1(rates)
    logarithm = jnp.sum(sums * jnp.asarray(0.5**_TERMS / -_TERMS, t.dtype))
    return -jnp.expm1(t * log(b1) + logarithm)
