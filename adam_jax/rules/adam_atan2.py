"""Adam-atan2, for one array: the angle of mean and root, which needs no eps.

    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * g**2
    direction = a * atan2(mu / (1 - b1**t), b * sqrt(nu / (1 - b2**t)))

Everett et al. 2024, "Scaling Exponents Across Parameterizations and Optimizers", section 4.2, which
takes a = b = 1; a = 1.27, about 4 / pi, makes the direction 1 where gradients agree. A complex mean
keeps its phase.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
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

# atan(r) = r (1 + r**2 P(r**2)) for r from 0 to 1: P's coefficients, the highest first, which make
# the largest relative error least (Remez): 2.6e-9.
_ATAN = (
    *(-0.001793620289, 0.01091459896, -0.03117783214, 0.05795757842, -0.08403449336),
    *(0.1095218539, -0.1426424159, 0.1999854827, -0.3333329909),
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
    """``atan2(y, x)`` for ``x >= 0``; its derivative at the origin is taken as 0 and not as NaN."""
    return jnp.arctan2(y, x) if y.dtype == jnp.float64 else _angle(y, x)


def _angle(y: jax.Array, x: jax.Array) -> jax.Array:
    """The same in float32, by what any device computes many entries of at once.

    Of ``atan2`` XLA:CPU calls the C library for each, which takes ten times as long as a step. That
    is within 1.5 units in the last place, and this within 2; of two infinite numbers it is NaN.
    """
    height = jnp.abs(y)
    tangent = safe_divide(jnp.minimum(height, x), jnp.maximum(height, x))
    z = tangent * tangent
    # Not by `jnp.polyval`, whose loop carries what has no Explicit mesh's sharding at first.
    slope = z * reduce(lambda sum_, c: sum_ * z + c, _ATAN[1:], jnp.full_like(z, _ATAN[0]))
    flat = tangent + tangent * slope
    return jnp.copysign(jnp.where(height > x, jnp.asarray(math.pi / 2, y.dtype) - flat, flat), y)


@angle.defjvp
def _angle_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (y, x), (dy, dx) = primals, tangents
    return angle(y, x), safe_divide(x * dy - y * dx, x * x + y * y)
