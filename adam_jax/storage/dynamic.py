"""The dynamic map: codes spread evenly over decades, more of them in the larger ones.

Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", sections 1.3 and 2.2,
https://arxiv.org/abs/2110.02861. Positive codes fill ``decades`` decades up to 1. The lowest one
has ``first`` codes, each further one twice as many: the middles of equal parts of [0.1, 1), times a
power of 10. Zero and one are added to them.

No table is needed. Decade i has p = first * 2**i codes. Number them n = p, ..., 2 p - 1; then the
n-th of all is

    10**(i - decades) * (2 p + 18 (n - p) + 9) / (2 p) = (18 n + 9 - 16 p) / d_i,
    d_i = first * 2**(decades + 1) * 5**(decades - i),

a quotient of small integers. Their distances are 18 / d_i, and 54 / d_i to the next decade: they
grow, so that the value is a convex function of the number, the largest of a few lines, and the
position the smallest of a few. Only the last distance, from the largest of them to 1, is shorter.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adam_jax.storage.code_book import CodeBook, least, most

Lines = Sequence[tuple[float, float]]  # each a slope and an intercept


@dataclass(frozen=True)
class DynamicMap(CodeBook):
    """Codes of 8 bits with 7 decades (256 values), of 4 bits with 3 decades (16 values)."""

    decades: int
    signed: bool

    @property
    def bits(self) -> int:
        """The bits of a code."""
        return self.decades + 1

    @property
    def last(self) -> int:
        """The code of 1."""
        return int(2**self.decades * self._first - (self._first - 1))

    def position(self, y: jax.Array) -> jax.Array:
        """See `CodeBook.position`."""
        *lines, last = self._positions
        return most(_choose(least, y, lines), y * last[0] + last[1])

    def value(self, k: jax.Array) -> jax.Array:
        """See `CodeBook.value`."""
        n = k.astype(jnp.float32) + (self._first - 1)
        # The power of two at or below n is its float without a mantissa.
        pattern = lax.bitcast_convert_type(n, jnp.uint32) & jnp.uint32(0x7F800000)
        p = lax.bitcast_convert_type(pattern, jnp.float32)
        # Times 1 / d_i, in two parts, the first with so few digits that its product is exact: to
        # divide would cost more, and XLA would not repeat it where it is used twice.
        high, low = (jnp.full_like(n, part) for part in _parts(1 / self._divisor(0)))
        for decade in range(1, self.decades + 1):
            above = n >= self._first * 2.0**decade
            parts = _parts(1 / self._divisor(decade))
            high, low = jnp.where(above, parts[0], high), jnp.where(above, parts[1], low)
        numerator = 18 * n + 9 - 16 * p
        value = least(numerator * high + numerator * low, jnp.ones_like(n))
        return jnp.where(k == 0, 0, value)

    def pack(self, k: jax.Array, negative: jax.Array) -> jax.Array:
        """Codes in the order of their values: zero in the middle, if there are two signs.

        On the negative side there is no room for 1.
        """
        if self.signed:
            k = jnp.where(negative, most(self._zero - k, jnp.zeros_like(k)), self._zero + k)
        return k.astype(jnp.uint8)

    def decode(self, stored: jax.Array) -> jax.Array:
        """See `CodeBook.decode`."""
        k = (stored.astype(jnp.int32) - self._zero).astype(jnp.float32)
        size = _choose(most, jnp.abs(k), self._values)
        size = least(most(size, jnp.zeros_like(k)), jnp.ones_like(k))
        return jnp.where(k < 0, -size, size) if self.signed else size

    @property
    def _first(self) -> int:
        return 1 if self.signed else 2  # a sign takes one bit

    @property
    def _zero(self) -> int:
        return 2**self.decades - 1 if self.signed else 0

    def _divisor(self, decade: int) -> float:
        return float(self._first * 2 ** (self.decades + 1) * 5 ** (self.decades - decade))

    @cached_property
    def _values(self) -> Lines:
        """Through the codes of each decade."""
        decades = ((self._first * 2**i, self._divisor(i)) for i in range(self.decades))
        return [(18 / d, (9 - 16 * p + 18 * (self._first - 1)) / d) for p, d in decades]

    @cached_property
    def _positions(self) -> Lines:
        """Through neighbouring codes, from the lowest on, one for each distance."""
        k = np.arange(2**self.decades * self._first + 1 - (self._first - 1))
        values = np.max([slope * k + intercept for slope, intercept in self._values], axis=0)
        values[0], values[-1] = 0, 1
        slopes = 1 / np.diff(values)
        new = np.abs(np.diff(slopes, prepend=0)) > 1e-6 * slopes
        return [(float(slopes[j]), float(j - slopes[j] * values[j])) for j in np.flatnonzero(new)]


def _parts(x: float) -> tuple[float, float]:
    """Two numbers whose sum is ``x``, the first of at most 12 binary digits."""
    mantissa, exponent = math.frexp(x)
    high = math.ldexp(math.floor(mantissa * 2**12), exponent - 12)
    return high, x - high


def _choose(pick: Callable[..., jax.Array], x: jax.Array, lines: Lines) -> jax.Array:
    """The least or the most of some lines, pair by pair, which waits less than one by one."""
    ys = [x * slope + intercept for slope, intercept in lines]
    while len(ys) > 1:
        ys = [*map(pick, ys[::2], ys[1::2]), *ys[len(ys) // 2 * 2 :]]
    return ys[0]
