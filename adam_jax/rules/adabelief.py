"""AdaBelief, for one array: Adam that divides by how far gradients are from their mean.

    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * (g - mu)**2 + eps_root
    direction = mu / (1 - b1**t) / (sqrt(nu / (1 - b2**t)) + eps)

Zhuang et al. 2020, "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients",
Algorithm 2, where both eps are one. As there, and in Optax, eps_root is a part of nu that remains.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
from optax import ScaleByBeliefState

from adam_jax.rule import Coefficients, ema, quotient, root, square
from adam_jax.rules.adam import AdamBase


@dataclass(frozen=True)
class AdaBelief(AdamBase):
    """AdaBelief."""

    State: ClassVar = ScaleByBeliefState
    reach: ClassVar[float] = 2.0

    def update(
        self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The mean over the root of the mean square of what it did not foresee."""
        _, _, eps, _ = c
        mu = ema(self.b1, mu, g)
        nu = ema(self.b2, nu, square(g - mu)) + self.eps_root
        return quotient(self.mean(c, g, mu), root(nu) + eps, self.eps), mu, nu
