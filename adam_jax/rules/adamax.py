"""Adamax, for one array: Adam with the largest gradient in place of the root mean square.

    mu = b1 * mu + (1 - b1) * g
    nu = max(b2 * nu, |g| + eps)
    direction = mu / (1 - b1**t) / nu

Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", Algorithm 2, which has no eps. It is
inside of the maximum in Optax and PyTorch, and in Keras outside: nu = max(b2 * nu, |g|), divided by
nu + eps. With ``rounded_rates`` the b1 in the correction is rounded to float32, as by Keras.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from optax import ScaleByAdamState

from adam_jax.hyperparameters import DecayRate, Flag, NonNegative
from adam_jax.rule import Coefficients, Moment, Rule, debias, ema, quotient


@dataclass(frozen=True)
class Adamax(Rule):
    """Adamax, with eps inside of the maximum or outside."""

    b1: DecayRate
    b2: DecayRate
    eps: NonNegative
    eps_inside: Flag = True
    rounded_rates: Flag = False

    State: ClassVar = ScaleByAdamState
    moments: ClassVar[Mapping[str, Moment]] = {"mu": Moment(), "nu": Moment(signed=False)}

    def coefficients(self, t: jax.Array) -> Coefficients:
        """The factor of mu."""
        return (1 / debias(self.b1, t, self.rounded_rates),)

    def update(
        self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The mean over the largest."""
        (of_mu,) = c
        inside, outside = (self.eps, 0) if self.eps_inside else (0, self.eps)
        mu = ema(self.b1, mu, g)
        nu = jnp.maximum(ema(self.b2, nu, jnp.zeros_like(nu)), jnp.abs(g) + inside)
        return quotient(of_mu * mu, nu + outside, self.eps), mu, nu
