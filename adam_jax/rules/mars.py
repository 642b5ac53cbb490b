"""MARS, for one array: Adam on gradients that lean on how they changed.

    c = g + gamma * b1 / (1 - b1) * (g - g_before), and g at t = 1
    c = c / max(1, |c|)
    mu = b1 * mu + (1 - b1) * c
    nu = b2 * nu + (1 - b2) * c**2
    direction = mu / (1 - b1**t) / (sqrt(nu / (1 - b2**t)) + eps)

Yuan et al. 2024, "MARS: Unleashing the Power of Variance Reduction for Training Large Models",
Algorithm 2, approximate: g_before is of the batch before, and not of this one. nu averages c**2 and
the norm is the array's, as in its own code; inside ``shard_map`` the shard's. That code takes 0 for
the first g_before, and leaves arrays of one axis to AdamW, as `optax.partition` would.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from adam_jax.hyperparameters import NonNegative
from adam_jax.rule import Coefficients, Moment, norm
from adam_jax.rules.adam import Adam


class ScaleByMarsState(NamedTuple):
    """The state of MARS: Adam's, and the gradient before."""

    count: Any
    mu: Any
    nu: Any
    g: Any


@dataclass(frozen=True)
class Mars(Adam):
    """MARS, with AdamW."""

    gamma: NonNegative = 0.025

    State: ClassVar = ScaleByMarsState
    moments: ClassVar[Mapping[str, Moment]] = {**Adam.moments, "g": Moment(gradient=True)}

    def coefficients(self, t: jax.Array) -> Coefficients:
        """Adam's, and the factor of the change."""
        lean = (t > 1).astype(t.dtype) * (self.gamma * self.b1 / (1 - self.b1))
        return *super().coefficients(t), lean

    def update(  # type: ignore[override]  # one moment more
        self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array, before: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Adam's, of the corrected gradient."""
        *adams, lean = c
        corrected = g + lean * (g - before)
        clipped = corrected / jnp.maximum(1, norm(corrected))
        return super().update(tuple(adams), clipped, mu, nu)
