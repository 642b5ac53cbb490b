"""Lion, for one array: the sign of a mean. A cousin of Adam, here for comparison.

    direction = sign(b1 * mu + (1 - b1) * g)
    mu = b2 * mu + (1 - b2) * g

Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", Algorithm 2. The other modes are
Optax's: tanh(smooth_beta * x) and clip(x, -1, 1) in place of sign(x). A complex mean keeps its
phase.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from optax import ScaleByLionState

from adam_jax.hyperparameters import DecayRate, NonNegative, one_of
from adam_jax.rule import Coefficients, Moment, Rule, ema, with_magnitude

_MODES = ("hard", "smooth", "refined")


def _mode(name: str, value: Any) -> str:
    return one_of(name, value, _MODES)


@dataclass(frozen=True)
class Lion(Rule):
    """Lion, in each mode."""

    b1: DecayRate
    b2: DecayRate
    mode: Annotated[str, _mode]
    smooth_beta: NonNegative

    State: ClassVar = ScaleByLionState
    moments: ClassVar[Mapping[str, Moment]] = {"mu": Moment()}

    def coefficients(self, t: jax.Array) -> Coefficients:  # noqa: ARG002 - there are none
        """None."""
        return ()

    def update(self, c: Coefficients, g: jax.Array, mu: jax.Array) -> tuple[jax.Array, ...]:
        """The sign, hard or soft."""
        del c
        mean = ema(self.b1, mu, g)
        match self.mode:
            case "hard":
                direction = jnp.sign(mean)
            case "smooth":
                direction = with_magnitude(mean, lambda size: jnp.tanh(self.smooth_beta * size))
            case _:
                direction = with_magnitude(mean, lambda size: jnp.minimum(size, 1))
        return direction, ema(self.b2, mu, g)
