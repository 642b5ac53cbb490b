"""Adam, for one array.

    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * g**2
    direction = mu / (1 - b1**t) / (sqrt(nu / (1 - b2**t) + eps_root) + eps)

Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", Algorithm 1. ``eps_root`` is
Optax's. With ``nesterov`` the mean looks one step ahead, as in Dozat 2016, "Incorporating Nesterov
Momentum into Adam", Algorithm 2, with a constant b1 and without its extra factor b2 on nu:

    b1 * mu / (1 - b1**(t + 1)) + (1 - b1) * g / (1 - b1**t)

Both corrections are moved to scalars, as section 2 of the paper suggests: numerator and denominator
are multiplied by sqrt(1 - b2**t), which changes nothing but the work.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from optax import ScaleByAdamState

from adam_jax.hyperparameters import DecayRate, Flag, NonNegative, is_positive, is_zero
from adam_jax.rule import Coefficients, Moment, Rule, debias, ema, root, safe_divide, square


@dataclass(frozen=True)
class Adam(Rule):
    """Adam, with or without Nesterov's look-ahead."""

    b1: DecayRate
    b2: DecayRate
    eps: NonNegative
    eps_root: NonNegative
    nesterov: Flag

    State: ClassVar = ScaleByAdamState
    moments: ClassVar = (Moment(), Moment(signed=False))

    def coefficients(self, t: jax.Array) -> Coefficients:
        """The factor of the mean, eps, eps_root, and the factor of mu with ``nesterov``."""
        mu_debias, nu_debias = debias(self.b1, t), debias(self.b2, t)
        scale = jnp.sqrt(nu_debias)
        return (
            scale / mu_debias,
            scale * self.eps,
            nu_debias * self.eps_root,
            mu_debias / debias(self.b1, t + 1),
        )

    def update(
        self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The mean over the root of the mean square."""
        scale, eps, eps_root, ahead = c
        mu = ema(self.b1, mu, g)
        nu = ema(self.b2, nu, square(g))
        mean = ema(self.b1, ahead * mu, g) if self.nesterov else mu
        size = root(nu if is_zero(self.eps_root) else nu + eps_root) + eps
        divide = jnp.divide if is_positive(self.eps) else safe_divide
        return divide(scale * mean, size), mu, nu
