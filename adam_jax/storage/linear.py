"""The linear map without zero: (k + 1) / 16, for magnitudes in four bits.

Li et al. 2023, "Memory Efficient Optimizers with 4-bit States", section 4.1,
https://arxiv.org/abs/2309.01507. A mean square that is rounded to zero divides by ``eps`` alone,
and a code book this coarse would round many to it: so it has no zero. Departures: their scales of a
matrix are one a row and one a column, ours one a block; and ours round by chance.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from adam_jax.storage.code_book import CodeBook, most

_LEVELS = 16


@dataclass(frozen=True)
class Linear(CodeBook):
    """Codes of 4 bits for 1/16, 2/16, ..., 1."""

    signed: bool = False

    @property
    def bits(self) -> int:
        """The bits of a code."""
        return 4

    @property
    def bottom(self) -> float:
        """The smallest value."""
        return 1 / _LEVELS

    @property
    def last(self) -> int:
        """The code of 1."""
        return _LEVELS - 1

    def position(self, y: jax.Array) -> jax.Array:
        """See `CodeBook.position`; what is below the first code takes the first."""
        return most(y * _LEVELS - 1, jnp.zeros_like(y))

    def value(self, k: jax.Array) -> jax.Array:
        """See `CodeBook.value`."""
        return (k + 1).astype(jnp.float32) * (1 / _LEVELS)

    def pack(self, k: jax.Array, negative: jax.Array) -> jax.Array:
        """Codes in the order of their values."""
        del negative
        return k.astype(jnp.uint8)

    def decode(self, stored: jax.Array) -> jax.Array:
        """See `CodeBook.decode`."""
        return self.value(stored.astype(jnp.int32))
