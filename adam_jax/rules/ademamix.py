"""AdEMAMix, for one array: Adam with a second mean that forgets much more slowly.

    m1 = b1 * m1 + (1 - b1) * g
    m2 = b3_t * m2 + (1 - b3_t) * g
    nu = b2 * nu + (1 - b2) * g**2
    mean = m1 / (1 - b1**t) + alpha_t * m2
    direction = mean / (sqrt(nu / (1 - b2**t) + eps_root) + eps)

Pagliardini, Ablin & Grangier 2024, "The AdEMAMix Optimizer: Better, Faster, Older", Algorithm 1. In
the first ``warmup_steps`` = T alpha_t is alpha * t / T, and b3_t goes from b1 to b3 evenly in the
steps after which half is forgotten (appendix A.1): 1 / log(b3_t) is linear in t. Optax has
schedules instead, of the count of steps done.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from optax.contrib import ScaleByAdemamixState

from adam_jax.hyperparameters import (
    Scalar,
    Schedule,
    decay_rate_or_schedule,
    optional_steps,
    scalar_or_schedule,
)
from adam_jax.rule import Coefficients, Moment, ema, log, quotient, square
from adam_jax.rules.adam import AdamBase


@dataclass(frozen=True)
class AdEMAMix(AdamBase):
    """AdEMAMix, warmed up or scheduled."""

    b3: Annotated[Scalar | Schedule, decay_rate_or_schedule] = 0.9999
    alpha: Annotated[Scalar | Schedule, scalar_or_schedule] = 5.0
    warmup_steps: Annotated[int | None, optional_steps] = None

    State: ClassVar = ScaleByAdemamixState
    moments: ClassVar[Mapping[str, Moment]] = {
        "m1": Moment(),
        "m2": Moment(),
        "nu": Moment(signed=False),
    }

    def coefficients(self, t: jax.Array) -> Coefficients:
        """Adam's, 1 - b3, and alpha times the root of nu's correction."""
        count = (t - 1).astype(jnp.int32)
        alpha = self.alpha(count) if callable(self.alpha) else self.alpha
        rate = 1 - (self.b3(count) if callable(self.b3) else self.b3)
        if self.warmup_steps is not None:
            done = jnp.minimum(t / self.warmup_steps, 1)
            # Not 1 - b3_t, of which float32 keeps three digits.
            inverse = (1 - done) * _inverse_log(self.b1) + done * _inverse_log(self.b3)
            alpha, rate = alpha * done, -jnp.expm1(1 / inverse)
        return *super().coefficients(t), rate, alpha * jnp.sqrt(self.correction(t))

    def update(
        self, c: Coefficients, g: jax.Array, m1: jax.Array, m2: jax.Array, nu: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The sum of both means over the root of the mean square."""
        *_, rate, alpha = c
        m1 = ema(self.b1, m1, g)
        m2 = m2 + rate * (g - m2)  # as in `ema`, for a rate that is small
        nu = ema(self.b2, nu, square(g))
        mean = self.mean(c, g, m1) + alpha * m2
        return quotient(mean, self.size(c, nu), self.eps), m1, m2, nu

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps is not None and (callable(self.b3) or callable(self.alpha)):
            raise ValueError("`warmup_steps` needs numbers for `b3` and `alpha`, not schedules")


def _inverse_log(b: Any) -> Scalar:
    """``1 / log(b)``, and 0 for 0."""
    inverse = 1 / log(b)
    if isinstance(inverse, jax.Array):
        return jnp.where(b > 0, inverse, 0)
    return inverse if b > 0 else -0.0
