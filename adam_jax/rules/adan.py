"""Adan, for one array: Nesterov's momentum from the differences of gradients.

    d = g - g_before, and 0 at t = 1
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * d
    n = b3 * n + (1 - b3) * (g + b2 * d)**2
    mean = m / (1 - b1**t) + b2 * v / (1 - b2**t)
    direction = mean / (sqrt(n / (1 - b3**t) + eps_root) + eps)

Xie et al. 2022, "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
Algorithm 1, whose b are 1 less ours: what is kept, as in its own code, which also corrects. Optax
0.2.8 takes 1 - b2 for the two b2 that multiply d and v, 0.08 for 0.92; this follows the paper.
Paper and code have eps alone; eps_root is Optax's, whose `adan` has 1e-8 of it by default: the step
of gradients below 1e-4 is then ruled by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from optax import ScaleByAdanState

from adam_jax.hyperparameters import DecayRate, NonNegative, is_zero
from adam_jax.rule import Coefficients, Moment, Rule, debias, ema, quotient, root, square


@dataclass(frozen=True)
class Adan(Rule):
    """Adan."""

    b1: DecayRate
    b2: DecayRate
    b3: DecayRate
    eps: NonNegative
    eps_root: NonNegative

    State: ClassVar = ScaleByAdanState
    moments: ClassVar[Mapping[str, Moment]] = {
        "m": Moment(),
        "v": Moment(),
        "n": Moment(signed=False),
        "g": Moment(gradient=True),
    }
    reach: ClassVar[float] = 3.0

    def coefficients(self, t: jax.Array) -> Coefficients:
        """1 but at first, the factors of m and v, eps and eps_root; the four in units of n's."""
        correction = debias(self.b3, t)
        scale = jnp.sqrt(correction)
        return (
            (t > 1).astype(t.dtype),
            scale / debias(self.b1, t),
            scale * self.b2 / debias(self.b2, t),
            scale * self.eps,
            correction * self.eps_root,
        )

    def update(
        self,
        c: Coefficients,
        g: jax.Array,
        m: jax.Array,
        v: jax.Array,
        n: jax.Array,
        before: jax.Array,
    ) -> tuple[jax.Array, ...]:
        """The mean gradient and the mean difference over the root of the mean square of both."""
        seen, of_m, of_v, eps, eps_root = c
        d = seen * (g - before)
        m = ema(self.b1, m, g)
        v = ema(self.b2, v, d)
        n = ema(self.b3, n, square(g + self.b2 * d))
        size = root(n if is_zero(self.eps_root) else n + eps_root) + eps
        return quotient(of_m * m + of_v * v, size, self.eps), m, v, n
