"""Moments in bfloat16, rounded by chance, so that slow averages still move on average.

Rounding to nearest cannot store a mean square: near 1 the next bfloat16 below is 2**-8 away, a step
of (1 - b2) = 0.001 towards zero rounds back to where it was, and ``nu`` never decays. Rounding up
with a probability equal to the distance travelled (stochastic rounding) is right in expectation.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adam_jax.hyperparameters import one_of
from adam_jax.rule import Moment
from adam_jax.storage.format import ROUNDINGS, Format
from adam_jax.storage.native import hold, narrow
from adam_jax.storage.rounding import round_to


@dataclass(frozen=True)
class BFloat16(Format):
    """A plain bfloat16 array."""

    rounding: str = "stochastic"

    def __post_init__(self) -> None:
        one_of("rounding", self.rounding, ROUNDINGS)

    def encode(self, x: jax.Array, moment: Moment, bits: jax.Array | None) -> jax.Array:
        """``x`` rounded to one of its two bfloat16 neighbours; never over the largest of them."""
        del moment
        x = narrow(x, jnp.float32)
        if bits is not None:
            return _round(x, bits)
        return hold(x, float(jnp.finfo(jnp.bfloat16).max)).astype(jnp.bfloat16)

    def decode(self, stored: jax.Array) -> jax.Array:
        """The array as it is; every bfloat16 is a float32."""
        return stored

    def holds(self, stored: Any) -> bool:
        """Whether it is a bfloat16 array."""
        return bool(getattr(stored, "dtype", None) == jnp.bfloat16)

    def accepts(self, dtype: Any) -> bool:
        """Not complex: JAX has no complex dtype of bfloat16 parts."""
        return not jnp.issubdtype(dtype, jnp.complexfloating)

    def __str__(self) -> str:
        return "bfloat16"


@jax.custom_jvp
def _round(x: jax.Array, bits: jax.Array) -> jax.Array:
    # Its upper half as it is, for a cast would round once more.
    pattern = lax.bitcast_convert_type(round_to(x, jnp.bfloat16, bits), jnp.uint32)
    return lax.bitcast_convert_type((pattern >> 16).astype(jnp.uint16), jnp.bfloat16)


@_round.defjvp
def _round_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # As of a cast: rounding is right on average, and bits have no derivative.
    return _round(*primals), tangents[0].astype(jnp.bfloat16)
