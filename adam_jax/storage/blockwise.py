"""Moments in blocks of small codes: each block is scaled by its largest magnitude.

Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2,
https://arxiv.org/abs/2110.02861. A format is a code book for each kind of moment and a block size:
8-bit and 4-bit are one algorithm.

Blocks run along the last axis longer than 1, and never across it: codes and scales have the axes of
the parameter, and are sharded as it is. The last block of a row may be short.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adam_jax.explicit import shards
from adam_jax.hyperparameters import brief, one_of, whole
from adam_jax.rule import Moment
from adam_jax.storage.code_book import CodeBook, most
from adam_jax.storage.format import ROUNDINGS, Format
from adam_jax.storage.native import Native, narrow

Shape = tuple[int, ...]
_TINY = 2.0**-122  # below it the parts of a scale have fewer digits, and its inverse overflows
_SHORT = 32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks:
    """A moment at rest.

    Attributes:
      codes: uint8 or float8, one an element; of 4 bits two in a byte, the first the lower half.
      scales: float32, one a block: the largest magnitude in it, of which codes are parts.
      kind: the format's name.
      book: what the codes mean.
      block_size: elements a block.
      axes: how many axes of the moment there are from that of the blocks on; the others are 1.
      odd: whether the last byte of a row holds one code.
    """

    codes: jax.Array
    scales: jax.Array
    kind: str = field(metadata={"static": True})
    book: CodeBook = field(metadata={"static": True})
    block_size: int = field(metadata={"static": True})
    axes: int = field(metadata={"static": True})
    odd: bool = field(metadata={"static": True})

    @property
    def tail(self) -> Shape:
        """The moment's shape, from the axis of the blocks on.

        From the codes, for inside of ``shard_map`` they are a shard's.
        """
        if self.axes == 0:
            return ()
        size, *ones = self.codes.shape[self.codes.ndim - self.axes :]
        return (2 * size - self.odd if self.book.bits == 4 else size, *ones)

    @property
    def shape(self) -> Shape:
        """The moment's shape."""
        return self.codes.shape[: self.codes.ndim - self.axes] + self.tail

    def divides(self, axis: int, parts: int) -> bool:
        """Whether so many parts along an axis of the moment are of one length and cut no block."""
        size, along = self.shape[axis], axis == len(self.shape) - self.axes
        return size % parts == 0 and not (along and _cuts(size, parts, self.block_size))

    def decode(self) -> jax.Array:
        """The moment, float32: codes' values times their blocks' scales."""
        size = math.prod(self.tail)
        codes, scales = _merge(self.codes, self.tail), _merge(self.scales, self.tail)
        codes = _unpack(codes, size) if self.book.bits == 4 else codes
        scales = _spread(scales, self.block_size, size)
        # Chosen, and not just multiplied, so that no compiler fuses the product with what follows:
        # that would round once less, in some programs and not in others.
        rows = jnp.where(scales == 0, 0, self.book.decode(codes) * scales)
        return rows.reshape(self.shape)

    def __str__(self) -> str:
        return f"{self.kind}(block_size={self.block_size})"


@dataclass(frozen=True)
class Blockwise(Format):
    """A code book for the signed moments, one for the magnitudes, and how they are used."""

    kind: str
    signed: CodeBook
    magnitude: CodeBook
    block_size: int = 256
    rounding: str = "stochastic"
    min_size: int = 4096

    def __post_init__(self) -> None:
        whole("block_size", self.block_size, "a positive even number", lambda n: n > 0 == n % 2)
        whole("min_size", self.min_size, "an integer >= 0", lambda n: n >= 0)
        one_of("rounding", self.rounding, ROUNDINGS)
        for book in (self.signed, self.magnitude):
            if not isinstance(book, CodeBook) or book.bits not in (4, 8):
                raise TypeError(f"code books must be `CodeBook` of 4 or 8 bits, got {brief(book)}")
        if not self.signed.signed:
            raise ValueError(f"`signed` must be a code book of two signs, got {brief(self.signed)}")

    @property
    def sequential(self) -> bool:
        """Whether codes are unpacked into memory."""
        return 4 in (self.signed.bits, self.magnitude.bits)

    def fit(self, shape: Shape) -> Format:
        """Itself; for small arrays float32, which costs little and helps where it matters most."""
        return Native() if math.prod(shape) < self.min_size else self

    def encode(self, x: jax.Array, moment: Moment, bits: jax.Array | None) -> Blocks:
        """The codes and scales of ``x``."""
        book = self.signed if moment.signed else self.magnitude
        x, tail = narrow(x, jnp.float32), _tail(x.shape)
        self._require_whole_blocks(x, tail)
        rows = _merge(x, tail)
        size = rows.shape[-1]
        largest = _largest(rows, self.block_size)
        unit = jnp.maximum(largest * (1 / book.top), _TINY)
        scales = jnp.where(largest == 0, 0, unit)
        # Multiplied and not divided by: XLA would write what it divides to memory first. And in two
        # steps, for the inverse of the largest numbers is subnormal, which devices take as 0.
        shrink = jnp.where(unit > 2.0**100, jnp.full_like(unit, 2.0**-64), 1)
        inverse = jnp.where(largest == 0, 0, 1 / (unit * shrink))
        y = rows * _spread(shrink, self.block_size, size) * _spread(inverse, self.block_size, size)
        # A mean square that becomes 0 would make the next step as long as 1 / eps.
        if not moment.signed:
            y = jnp.where(rows > 0, most(y, jnp.full_like(y, 2.0**-100)), y)
        bits = None if bits is None else _merge(bits, tail)
        codes = book.encode(y, bits, zero=moment.signed)
        codes = _pack(codes) if book.bits == 4 else codes
        codes, scales = _unmerge(codes, tail), _unmerge(scales, tail)
        odd = book.bits == 4 and rows.shape[-1] % 2 == 1
        return Blocks(codes, scales, self.kind, book, self.block_size, len(tail), odd)

    def _require_whole_blocks(self, x: jax.Array, tail: Shape) -> None:
        # Only the axes of an Explicit mesh are in a type. Along others XLA gathers what it needs.
        if not tail:
            return
        axis = x.ndim - len(tail)
        parts = shards(x, axis)
        if _cuts(x.shape[axis], parts, self.block_size):
            part = x.shape[axis] // parts
            raise ValueError(
                f"on an Explicit mesh shards must be whole blocks of {self}, but along axis {axis}"
                f" of {x.aval} each has {part} elements; choose another sharding, block size or"
                f" format for this leaf"
            )

    def decode(self, stored: Blocks) -> jax.Array:
        """The moment again, float32."""
        return stored.decode()

    def holds(self, stored: Any) -> bool:
        """Whether it is blocks of this size and of one of the code books."""
        return (
            isinstance(stored, Blocks)
            and stored.kind == self.kind
            and stored.book in (self.signed, self.magnitude)
            and stored.block_size == self.block_size
        )

    def accepts(self, dtype: Any) -> bool:
        """Not complex: codes are of real numbers."""
        return not jnp.issubdtype(dtype, jnp.complexfloating)

    def __str__(self) -> str:
        return f"{self.kind}(block_size={self.block_size})"


def _tail(shape: Shape) -> Shape:
    """The shape from its last axis longer than 1 on: along it blocks run, and ones follow it."""
    long = [axis for axis, size in enumerate(shape) if size != 1]
    return shape[long[-1] :] if long else shape[-1:]


def _merge(x: jax.Array, tail: Shape) -> jax.Array:
    """``x`` with the axes of the tail, of which all but the first are 1, as its last one."""
    lead = x.shape[: x.ndim - len(tail)]
    return x.reshape(*lead, math.prod(x.shape[len(lead) :]))


def _unmerge(rows: jax.Array, tail: Shape) -> jax.Array:
    """Codes or scales with as many axes as the moment."""
    return rows.reshape(*rows.shape[:-1], *(rows.shape[-1:] + tail[1:])[: len(tail)])


def _largest(rows: jax.Array, block_size: int) -> jax.Array:
    """The largest magnitude of each block; infinite or NaN if there is such an entry.

    Magnitudes have the order of their patterns as integers, and NaN is above all of them. XLA's
    integer maximum is one instruction, and fuses with what computes the entries if the axes are
    short; longer ones it would split, and write everything to memory first.
    """
    blocks, width = _blocks(rows.shape[-1], block_size)
    patterns = _pad(lax.bitcast_convert_type(rows, jnp.int32) & 0x7FFFFFFF, blocks * width)
    short = math.gcd(width, _SHORT)
    parts = patterns.reshape(*rows.shape[:-1], blocks, width // short, short)
    largest: jax.Array = lax.bitcast_convert_type(jnp.max(parts, axis=(-2, -1)), jnp.float32)
    return largest


def _spread(scales: jax.Array, block_size: int, size: int) -> jax.Array:
    """Each block's scale for each element of a row."""
    blocks, width = _blocks(size, block_size)
    each = jnp.broadcast_to(scales[..., None], (*scales.shape, width))
    return each.reshape(*scales.shape[:-1], blocks * width)[..., :size]


def _blocks(size: int, block_size: int) -> tuple[int, int]:
    """How many blocks a row has, and their width: no more than a short row needs."""
    width = min(block_size, -(-max(size, 1) // _SHORT) * _SHORT)
    return -(-size // width), width


def _cuts(size: int, parts: int, block_size: int) -> bool:
    """Whether rows of this size, in so many parts, have a block in two of them."""
    return parts > 1 and size // parts % _blocks(size, block_size)[1] != 0


def _pack(codes: jax.Array) -> jax.Array:
    """Two codes of 4 bits in a byte."""
    length = -(-codes.shape[-1] // 2)
    wide = _pad(codes.astype(jnp.uint32), 2 * length).reshape(*codes.shape[:-1], length, 2)
    # As a sum, for XLA vectorises a reduction and not two slices. And as a product, for on an
    # Explicit mesh one cannot select from what is sharded by what is not.
    upper = lax.broadcasted_iota(jnp.int32, wide.shape, wide.ndim - 1) == 1
    place = jnp.where(upper, np.uint32(16), np.uint32(1))
    pairs = jnp.sum(place * wide, axis=-1, dtype=jnp.uint32)
    return pairs.astype(jnp.uint8)


def _unpack(packed: jax.Array, size: int) -> jax.Array:
    """The codes again, ``size`` in each row."""
    # As a reduction of a diagonal, for XLA does not repeat one in each loop that has use for it: so
    # the codes are written once, a byte each, by a loop that is vectorised.
    shape = (*packed.shape, 2, 2)
    row, column = (lax.broadcasted_iota(jnp.uint8, shape, len(shape) - axis) for axis in (2, 1))
    each = jnp.broadcast_to(packed[..., None, None], shape) >> (4 * column)
    diagonal = each & jnp.where(row == column, np.uint8(15), np.uint8(0))
    pairs: jax.Array = lax.reduce(diagonal, np.uint8(0), lax.bitwise_or, (len(shape) - 1,))
    return pairs.reshape(*packed.shape[:-1], packed.shape[-1] * 2)[..., :size]


def _pad(rows: jax.Array, size: int) -> jax.Array:
    """Rows filled up with zeros."""
    return jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, size - rows.shape[-1])])
