"""Adam-atan2, for one array: the angle of mean and root, which needs no eps.

    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * g**2
    direction = a * atan2(mu / (1 - b1**t), b * sqrt(nu / (1 - b2**t)))

Everett et al. 2024, "Scaling Exponents Across Parameterizations and Optimizers", section 4.2, which
takes a = b = 1; a = 1.27, about 4 / pi, makes the direction 1 where gradients agree. A complex mean
keeps its phase.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from optax import ScaleByAdamState

from adam_jax.hyperparameters import DecayRate, NonNegative
from adam_jax.rule import (
    Coefficients,
    Moment,
    Rule,
    debias,
    ema,
    root,
    safe_divide,
    square,
    with_magnitude,
)


@dataclass(frozen=True)
class AdamAtan2(Rule):
    """Adam-atan2."""

    b1: DecayRate
    b2: DecayRate
    a: NonNegative
    b: NonNegative

    State: ClassVar = ScaleByAdamState
    moments: ClassVar[Mapping[str, Moment]] = {"mu": Moment(), "nu": Moment(signed=False)}

    def coefficients(self, t: jax.Array) -> Coefficients:
        """The factors of mu and of the root."""
        return 1 / debias(self.b1, t), self.b / jnp.sqrt(debias(self.b2, t))

    def update(
        self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The angle."""
        of_mu, of_root = c
        mu = ema(self.b1, mu, g)
        nu = ema(self.b2, nu, square(g))
        mean, size = of_mu * mu, of_root * root(nu)
        if jnp.iscomplexobj(mean):
            return with_magnitude(mean, lambda length: self.a * angle(length, size)), mu, nu
        return self.a * angle(mean, size), mu, nu


@jax.custom_jvp
def angle(y: jax.Array, x: jax.Array) -> jax.Array:
    """``atan2(y, x)``, whose derivative at the origin is taken as 0 and not as NaN."""
    return jnp.arctan2(y, x)


@angle.defjvp
def _angle_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (y, x), (dy, dx) = primals, tangents
    return angle(y, x), safe_divide(x * dy - y * dx, x * x + y * y)
