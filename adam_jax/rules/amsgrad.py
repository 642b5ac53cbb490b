"""AMSGrad, for one array: Adam whose mean square never falls.

    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * g**2
    nu_max = max(nu_max, nu / (1 - b2**t))
    direction = mu / (1 - b1**t) / (sqrt(nu_max + eps_root) + eps)

Reddi, Kale & Kumar 2018, "On the Convergence of Adam and Beyond", Algorithm 2; the paper corrects
nothing (``bias_correction_mu`` and ``bias_correction_nu`` off), and Optax as above. PyTorch and
Keras take the maximum of nu as it is and divide it by today's 1 - b2**t (``correct_after_max``), so
that their nu_max does fall in the first steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from optax import ScaleByAmsgradState

from adam_jax.hyperparameters import Flag
from adam_jax.rule import Coefficients, Moment, ema, quotient, square
from adam_jax.rules.adam import AdamBase


@dataclass(frozen=True)
class AMSGrad(AdamBase):
    """AMSGrad, in each order of maximum and correction."""

    correct_after_max: Flag = False

    State: ClassVar = ScaleByAmsgradState
    moments: ClassVar[Mapping[str, Moment]] = {
        **AdamBase.moments,
        "nu_max": Moment(signed=False, average=False),
    }

    def coefficients(self, t: jax.Array) -> Coefficients:
        """Adam's, and what nu is multiplied by before the maximum."""
        before = 1.0 if self.correct_after_max else 1 / super().correction(t)
        return *super().coefficients(t), before

    def correction(self, t: jax.Array) -> jax.Array:
        """What the maximum is divided by."""
        return super().correction(t) if self.correct_after_max else jnp.ones_like(t)

    def update(
        self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array, nu_max: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The mean over the root of the largest mean square so far."""
        *_, before = c
        mu = ema(self.b1, mu, g)
        nu = ema(self.b2, nu, square(g))
        nu_max = jnp.maximum(nu_max, before * nu)
        return quotient(self.mean(c, g, mu), self.size(c, nu_max), self.eps), mu, nu, nu_max

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correct_after_max and not self.bias_correction_nu:
            raise ValueError("`correct_after_max` needs `bias_correction_nu`: it says where")
        if self.eps_hat and not self.correct_after_max:
            raise ValueError("`eps_hat` needs `correct_after_max`: without it, nothing differs")
