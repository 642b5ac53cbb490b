"""LaProp, for one array: Adam that divides first and averages then.

    nu = b2 * nu + (1 - b2) * g**2
    mu = b1 * mu + (1 - b1) * g / (sqrt(nu / (1 - b2**t)) + eps)
    direction = mu / (1 - b1**t)

Ziyin, Wang & Ueda 2020, "LaProp: Separating Momentum and Adaptivity in Adam", Algorithm 1.
Its own code has the learning rate inside of the mean, which differs where that changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from adam_jax.hyperparameters import DecayRate, NonNegative
from adam_jax.rule import (
    Coefficients,
    Moment,
    Rule,
    debias,
    ema,
    quotient,
    root,
    square,
)


class ScaleByLapropState(NamedTuple):
    """The state of LaProp: Adam's, but that ``mu`` averages what is divided already."""

    count: Any
    mu: Any
    nu: Any


@dataclass(frozen=True)
class LaProp(Rule):
    """LaProp."""

    b1: DecayRate
    b2: DecayRate
    eps: NonNegative

    State: ClassVar = ScaleByLapropState
    moments: ClassVar[Mapping[str, Moment]] = {"mu": Moment(), "nu": Moment(signed=False)}

    def coefficients(self, t: jax.Array) -> Coefficients:
        """The factors of mu and of g, and eps, the latter two times the root of nu's correction."""
        scale = jnp.sqrt(debias(self.b2, t))
        return 1 / debias(self.b1, t), scale, scale * self.eps

    def update(
        self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The mean of gradients, each over the root of the mean square."""
        of_mu, scale, eps = c
        nu = ema(self.b2, nu, square(g))
        mu = ema(self.b1, mu, quotient(scale * g, root(nu) + eps, self.eps))
        return of_mu * mu, mu, nu
