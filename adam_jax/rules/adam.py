"""Adam, for one array.

    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * g**2
    direction = mu / (1 - b1**t) / (sqrt(nu / (1 - b2**t) + eps_root) + eps)

Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", Algorithm 1. ``eps_root`` is
Optax's. With ``nesterov`` the mean looks one step ahead, as in Dozat 2016, "Incorporating Nesterov
Momentum into Adam", Algorithm 2, with a constant b1 and without its extra factor b2 on nu:

    b1 * mu / (1 - b1**(t + 1)) + (1 - b1) * g / (1 - b1**t)

Both corrections are moved to scalars, as section 2 of the paper suggests: numerator and denominator
are multiplied by sqrt(1 - b2**t), which changes nothing but the work. With ``eps_hat`` eps and
eps_root are not: that is the paper's "epsilon hat", TensorFlow's and Keras's. With
``rounded_rates`` the b1 and b2 in them are rounded to float32, as by Keras: at b2 = 0.999 the mean
square is then corrected by up to 1.3e-5 too much.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from optax import ScaleByAdamState

from adam_jax.hyperparameters import DecayRate, Flag, NonNegative, Scalar, is_zero
from adam_jax.rule import Coefficients, Moment, Rule, debias, ema, quotient, root, square


@dataclass(frozen=True)
class AdamBase(Rule):
    """What Adam shares with its descendants: a mean, corrected, and what it is divided by."""

    b1: DecayRate
    b2: DecayRate
    eps: NonNegative
    eps_root: NonNegative = 0.0
    nesterov: Flag = False
    eps_hat: Flag = False
    bias_correction_mu: Flag = True
    bias_correction_nu: Flag = True
    rounded_rates: Flag = False

    State: ClassVar = ScaleByAdamState
    moments: ClassVar[Mapping[str, Moment]] = {"mu": Moment(), "nu": Moment(signed=False)}

    def coefficients(self, t: jax.Array) -> Coefficients:
        """The factors of mu and g in the mean, eps and eps_root; all times the root of nu's."""
        of_mu, of_g = self.factors(t)
        correction = self.correction(t)
        scale = jnp.sqrt(correction)
        if self.eps_hat:
            return scale * of_mu, scale * of_g, self.eps, self.eps_root
        return scale * of_mu, scale * of_g, scale * self.eps, correction * self.eps_root

    def factors(self, t: jax.Array) -> tuple[Scalar, Scalar]:
        """What mu and g are multiplied by for the mean gradient."""
        if not self.nesterov:
            return (1 / self.debias(self.b1, t) if self.bias_correction_mu else 1.0), 0.0
        if not self.bias_correction_mu:
            return self.b1, 1 - self.b1
        return self.b1 / self.debias(self.b1, t + 1), (1 - self.b1) / self.debias(self.b1, t)

    def correction(self, t: jax.Array) -> jax.Array:
        """What nu is divided by."""
        return self.debias(self.b2, t) if self.bias_correction_nu else jnp.ones_like(t)

    def debias(self, b: Scalar, t: jax.Array) -> jax.Array:
        """``1 - b**t``."""
        return debias(b, t, self.rounded_rates)

    def mean(self, c: Coefficients, g: jax.Array, mu: jax.Array) -> jax.Array:
        """The mean gradient, corrected, and with ``nesterov`` looking ahead."""
        of_mu, of_g, *_ = c
        return of_mu * mu + of_g * g if self.nesterov else of_mu * mu

    def size(self, c: Coefficients, nu: jax.Array) -> jax.Array:
        """The root of the mean square, and eps."""
        _, _, eps, eps_root, *_ = c
        return root(nu if is_zero(self.eps_root) else nu + eps_root) + eps

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps_hat and not self.bias_correction_nu:
            raise ValueError("`eps_hat` needs `bias_correction_nu`: without it, nothing differs")


@dataclass(frozen=True)
class Adam(AdamBase):
    """Adam, with or without Nesterov's look-ahead."""

    def update(
        self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The mean over the root of the mean square."""
        mu = ema(self.b1, mu, g)
        nu = ema(self.b2, nu, square(g))
        return self.direction(c, g, mu, nu), mu, nu

    def direction(self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array) -> jax.Array:
        """The direction, from this step's moments."""
        return quotient(self.mean(c, g, mu), self.size(c, nu), self.eps)
