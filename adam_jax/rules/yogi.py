"""Yogi, for one array: Adam whose mean square moves by as much as g**2 and no more.

    mu = b1 * mu + (1 - b1) * g
    nu = nu - (1 - b2) * sign(nu - g**2) * g**2
    direction = mu / (1 - b1**t) / (sqrt(nu / (1 - b2**t) + eps_root) + eps)

Zaheer et al. 2018, "Adaptive Methods for Nonconvex Optimization", Algorithm 2. The paper corrects
nothing; as in Optax both moments start at ``initial_accumulator_value`` and are corrected as if at
0, so that without a gradient the first steps are not quite 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from adam_jax.hyperparameters import NonNegative
from adam_jax.rule import Coefficients, Moment, ema, quotient, square
from adam_jax.rules.adam import AdamBase


@dataclass(frozen=True)
class Yogi(AdamBase):
    """Yogi."""

    initial_accumulator_value: NonNegative = 1e-6

    reach = 1.5

    @property
    def moments(self) -> Mapping[str, Moment]:  # type: ignore[override]
        """Adam's, from another start."""
        start = self.initial_accumulator_value
        return {"mu": Moment(initial=start), "nu": Moment(signed=False, initial=start)}

    def update(
        self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The mean over the root of what has slowly come to the square."""
        g2 = square(g)
        mu = ema(self.b1, mu, g)
        nu = nu - (1 - self.b2) * jnp.sign(nu - g2) * g2
        return quotient(self.mean(c, g, mu), self.size(c, nu), self.eps), mu, nu
