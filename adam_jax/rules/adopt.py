"""ADOPT, for one array: divide by the past's mean square, which does not know this gradient.

    t = 1: nu = g**2, direction = 0
    ratio = clip(g / max(sqrt(nu), eps), -(t - 1)**0.25, (t - 1)**0.25)
    mu = b1 * mu + (1 - b1) * ratio
    direction = mu
    nu = b2 * nu + (1 - b2) * g**2

Taniguchi et al. 2024, "ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate",
Algorithms 1 (without clipping) and 2. ``nesterov`` is Optax's. A complex ratio is clipped in its
magnitude. With eps = 0 a ratio over a root of 0 is 0, and not the infinity that the paper clips.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from optax import ScaleByAdamState

from adam_jax.hyperparameters import DecayRate, Flag, NonNegative, Scalar, function
from adam_jax.rule import Coefficients, Moment, Rule, ema, quotient, root, square, with_magnitude


@dataclass(frozen=True)
class Adopt(Rule):
    """ADOPT, clipped or not."""

    b1: DecayRate
    b2: DecayRate
    eps: NonNegative
    nesterov: Flag
    use_clipping: Flag
    clip_value_fn: Annotated[Callable[[jax.Array], Any], function]

    State: ClassVar = ScaleByAdamState
    moments: ClassVar[Mapping[str, Moment]] = {"mu": Moment(), "nu": Moment(signed=False)}

    def coefficients(self, t: jax.Array) -> Coefficients:
        """1 from the second step on, before it 0; and the bound of the ratio."""
        bound = self.clip_value_fn(t - 1) if self.use_clipping else 0.0
        return (t > 1).astype(t.dtype), bound

    def update(
        self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The mean of gradients over the root of the mean square before each."""
        moving, bound = c
        ratio = quotient(moving * g, jnp.maximum(root(nu), self.eps), self.eps)
        if self.use_clipping:
            ratio = _clip(ratio, bound)
        mu = ema(self.b1, mu, ratio)
        nu = ema(self.b2, jnp.where(moving > 0, nu, square(g)), square(g))
        return ema(self.b1, mu, ratio) if self.nesterov else mu, mu, nu


def _clip(x: jax.Array, bound: Scalar) -> jax.Array:
    if jnp.iscomplexobj(x):
        return with_magnitude(x, lambda size: jnp.minimum(size, bound))
    return jnp.clip(x, -bound, bound)
