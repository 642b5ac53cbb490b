"""Moments in bfloat16, rounded by chance, so that slow averages still move on average.

Rounding to nearest cannot store a mean square: near 1 the next bfloat16 below is 2**-8 away, a step
of (1 - b2) = 0.001 towards zero rounds back to where it was, and ``nu`` never decays. Rounding up
with a probability equal to the distance travelled (stochastic rounding) is right in expectation.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from adam_jax.rule import Moment
from adam_jax.storage.format import Format

_DROPPED = 0xFFFF  # bfloat16 is the upper half of a float32


@dataclass(frozen=True)
class BFloat16(Format):
    """A plain bfloat16 array, stochastically rounded."""

    stochastic: ClassVar[bool] = True

    def encode(self, x: jax.Array, moment: Moment, bits: jax.Array | None) -> jax.Array:
        """``x`` rounded to one of its two bfloat16 neighbours; never over the largest of them."""
        del moment
        if bits is None:
            return x.astype(jnp.bfloat16)
        return _round(x.astype(jnp.float32), bits)

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
    # Adding up to 2**16 - 1 to the pattern carries into the kept half as often as it should.
    largest = float(jnp.finfo(jnp.bfloat16).max)
    pattern = lax.bitcast_convert_type(jnp.clip(x, -largest, largest), jnp.uint32)
    rounded = (pattern + (bits & _DROPPED)) & ~jnp.uint32(_DROPPED)
    finite = jnp.where(jnp.isfinite(x), lax.bitcast_convert_type(rounded, jnp.float32), x)
    return finite.astype(jnp.bfloat16)


@_round.defjvp
def _round_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # As of a cast: rounding is right on average, and bits have no derivative.
    return _round(*primals), tangents[0].astype(jnp.bfloat16)
