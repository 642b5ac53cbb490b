"""StableAdam, for one array: Adam with shorter steps where gradients outgrow their mean square.

    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * g**2
    rms = sqrt(mean(g**2 / max(nu / (1 - b2**t), eps**2)))
    direction = mu / (1 - b1**t) / (sqrt(nu / (1 - b2**t)) + eps) / max(1, rms)

Wortsman et al. 2023, "Stable and Low-Precision Training for Large-Scale Vision-Language Models",
Algorithm 2, with AdaFactor's update clipping. The mean is over the array, inside ``shard_map`` over
the shard. There the weight decay is divided by max(1, rms) too; here it is `adamw`'s.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from adam_jax.rule import Coefficients, quotient, root, square
from adam_jax.rules.adam import Adam


@dataclass(frozen=True)
class StableAdam(Adam):
    """StableAdam."""

    def coefficients(self, t: jax.Array) -> Coefficients:
        """Adam's, and the root of nu's correction."""
        return *super().coefficients(t), jnp.sqrt(self.correction(t))

    def update(
        self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Adam's, divided by how far gradients outgrew their mean square."""
        _, _, eps, _, scale = c
        direction, mu, nu = super().update(c, g, mu, nu)
        surprise = square(quotient(scale * g, jnp.maximum(root(nu), eps), self.eps))
        rms = root(jnp.sum(surprise) / max(g.size, 1))
        return direction / jnp.maximum(1, rms), mu, nu
