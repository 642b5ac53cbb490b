"""A code book: the numbers that a few bits stand for, from 0 or a little more up to its top.

All is arithmetic: to search costs more than the rest of a step, and few devices have a fast table
look-up. The codes of magnitudes are numbered from 0 in the order of their values. Between them a
position is linear: half-way between two values it is half-way between their numbers. So to round a
number to a code, to the nearest or by chance, is to round its position to an integer.
"""

from abc import ABC, abstractmethod

import jax
import jax.numpy as jnp
from jax import lax

_FRACTION = 15  # bits of a position behind its point; 8 are before it


class CodeBook(ABC):
    """At most 256 codes, of one sign or both; subclasses are frozen dataclasses.

    `storage/linear.py` is the shortest.
    """

    #: Whether there are negative values.
    signed: bool

    @property
    @abstractmethod
    def bits(self) -> int:
        """The bits of a code, 8 or 4."""

    @property
    def bottom(self) -> float:
        """The smallest magnitude."""
        return 0.0

    @property
    def top(self) -> float:
        """The largest value."""
        return 1.0

    @property
    @abstractmethod
    def last(self) -> int:
        """The code of the largest value."""

    @abstractmethod
    def position(self, y: jax.Array) -> jax.Array:
        """Where magnitudes ``y``, up to `top`, are among the codes, to some units of float32.

        Linear between neighbours: half-way between two values it is half-way between their numbers.
        An inverse that is smooth is not, and rounds by chance with a bias.
        """

    @abstractmethod
    def value(self, k: jax.Array) -> jax.Array:
        """The value of the magnitude's code ``k``, rounded to float32 once."""

    @abstractmethod
    def pack(self, k: jax.Array, negative: jax.Array) -> jax.Array:
        """Magnitudes' codes with their signs, as they are stored."""

    @abstractmethod
    def decode(self, stored: jax.Array) -> jax.Array:
        """The values, float32, to some units in the last place."""

    def encode(self, y: jax.Array, bits: jax.Array | None, zero: bool = True) -> jax.Array:
        """Codes of ``y``: the nearest, or with random ``bits`` a neighbour, right on average.

        Ties go to the smaller magnitude.

        Args:
          y: numbers from -`top` to `top`, float32.
          bits: uint32 of their shape, uniformly random, or ``None`` for the nearest.
          zero: whether chance may round to 0 what is not.
        """
        size = jnp.abs(y)
        position = self.position(size)
        if bits is None:
            k = _fixed(position) >> _FRACTION
            up = size - self.value(k) > self.value(k + 1) - size  # exact where the position is not
            return self.pack(self._at_most_last(k + up.astype(k.dtype)), y < 0)
        if not zero and self.bottom == 0:
            position = jnp.where((size > 0) & (position < 1), 1, position)
        # A position and the upper bits, as a number in [0, 1): all in the same units.
        chance = lax.bitcast_convert_type(bits >> (32 - _FRACTION), jnp.int32)
        return self.pack(self._at_most_last((_fixed(position) + chance) >> _FRACTION), y < 0)

    def _at_most_last(self, k: jax.Array) -> jax.Array:
        # Not all devices divide with correct rounding, so that a y may be a little over the top.
        return least(k, jnp.full_like(k, self.last))


def _fixed(position: jax.Array) -> jax.Array:
    """A position in [0, 256) as an integer, in units of 2**-15: the mantissa of it plus 256.

    A conversion would do, and clamp and look for NaN at the cost of several operations.
    """
    mantissa = jnp.int32(2 ** (8 + _FRACTION) - 1)
    pattern: jax.Array = lax.bitcast_convert_type(position + 256, jnp.int32)
    fixed: jax.Array = pattern & mantissa
    return fixed


def least(a: jax.Array, b: jax.Array) -> jax.Array:
    """The minimum, in one instruction: `jnp.minimum` takes three, for it never loses a NaN."""
    return jnp.where(a < b, a, b)


def most(a: jax.Array, b: jax.Array) -> jax.Array:
    """The maximum, likewise."""
    return jnp.where(a > b, a, b)
