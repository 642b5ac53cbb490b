"""Eight-bit floating point, E4M3: 4 bits of exponent and 3 of mantissa; magnitudes by their root.

Micikevicius et al. 2022, "FP8 Formats for Deep Learning", table 1, https://arxiv.org/abs/2209.05433.
A mean square spans twice the decades of a mean, more than these exponents reach: what fell to zero
would divide by ``eps`` alone. Its root fits.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from adam_jax.storage.code_book import CodeBook, least

_LARGEST = 448.0
_LAST = 126  # its code; the next one is NaN
_NORMAL = 2.0**-6  # below it numbers are 2**-9 apart
# A float32's pattern, less all but 3 bits of mantissa, is 8 times its exponent plus these three.
_MANTISSA, _BIAS = 20, (127 - 7) * 8


@dataclass(frozen=True)
class E4M3(CodeBook):
    """Float8 numbers; their squares, where unsigned. A code is the pattern of its number."""

    signed: bool

    @property
    def bits(self) -> int:
        """The bits of a code."""
        return 8

    @property
    def top(self) -> float:
        """The largest value."""
        return _LARGEST if self.signed else _LARGEST**2

    @property
    def last(self) -> int:
        """The pattern of 448."""
        return _LAST

    def position(self, y: jax.Array) -> jax.Array:
        """See `CodeBook.position`."""
        z = y if self.signed else jnp.sqrt(y)
        normal = (lax.bitcast_convert_type(z, jnp.int32) >> _MANTISSA) - _BIAS
        k = jnp.where(z < _NORMAL, (z * 2.0**9).astype(jnp.int32), normal)
        k = least(k, jnp.full_like(k, _LAST))
        low, high = self.value(k), self.value(k + 1)
        return k.astype(jnp.float32) + (y - low) / (high - low)

    def value(self, k: jax.Array) -> jax.Array:
        """See `CodeBook.value`."""
        normal = lax.bitcast_convert_type((k + _BIAS) << _MANTISSA, jnp.float32)
        z = jnp.where(k < 8, k.astype(jnp.float32) * 2.0**-9, normal)
        return z if self.signed else z * z

    def pack(self, k: jax.Array, negative: jax.Array) -> jax.Array:
        """The float8 numbers."""
        k = k | jnp.where(negative, 0x80, 0)
        return lax.bitcast_convert_type(k.astype(jnp.uint8), jnp.float8_e4m3fn)

    def decode(self, stored: jax.Array) -> jax.Array:
        """See `CodeBook.decode`."""
        code = lax.bitcast_convert_type(stored, jnp.uint8).astype(jnp.int32)
        size = self.value(code & 0x7F)
        return jnp.where(code >= 0x80, -size, size) if self.signed else size
