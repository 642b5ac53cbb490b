"""What a state holds of one parameter, changed by who does not know its format.

An array, or a node that knows its value, as `Blocks` do; these can also be written. Blocks in which
nothing changes keep their bits: decoded and encoded again, some would not.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adam_jax.rule import Moment
from adam_jax.storage.bfloat16 import BFloat16
from adam_jax.storage.blockwise import (
    Blocks,
    Blockwise,
    _largest,
    _merge,
    _spread,
    _tail,
    _unmerge,
)
from adam_jax.storage.dynamic import DynamicMap
from adam_jax.storage.format import Stored
from adam_jax.storage.native import narrow


def is_stored(x: Any) -> bool:
    """Whether it is a node that knows its value: it has a ``shape`` and a ``decode()``."""
    # Of its class, for Flax's boxes pass on what their values have.
    return all(hasattr(type(x), name) for name in ("shape", "decode"))


def decoded(stored: Stored) -> jax.Array:
    """The value; of floating arrays in float32 or wider."""
    x = jnp.asarray(stored.decode() if is_stored(stored) else stored)
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(jnp.float32) if floating and jnp.finfo(x.dtype).bits < 32 else x


def is_writable(stored: Any) -> bool:
    """Whether `written` knows how: it is an array or `Blocks`."""
    return isinstance(stored, Blocks) or hasattr(stored, "dtype")


def written(stored: Stored, x: jax.Array, where: jax.Array) -> Stored:
    """What ``stored`` is with ``x`` in it where that is said; formats round to nearest.

    Args:
      stored: an array or `Blocks`.
      x: the whole value; elsewhere the one that is decoded.
      where: booleans of its shape.
    """
    if isinstance(stored, Blocks):
        return _written_blocks(stored, x, where)
    return jnp.where(where, encoded(stored, x), stored)


def scaled(stored: Stored, factor: jax.Array) -> Stored:
    """What ``stored`` is, times a factor from 0 to 1 for each row; of blocks the codes stay.

    Arrays of few bits are rounded to nearest.

    Args:
      stored: an array or `Blocks`, whose blocks lie within rows.
      factor: of its first axis' size, and as many axes.
    """
    if isinstance(stored, Blocks):
        return dataclasses.replace(stored, scales=stored.scales * factor)
    return (decoded(stored) * factor).astype(stored.dtype)


def enlarged(stored: Stored, like: Stored) -> Stored | None:
    """What ``stored`` is in the corner of a larger ``like``, to be written elsewhere.

    ``None`` if it has another format, or is none that is in blocks.
    """
    if not (isinstance(stored, Blocks) and isinstance(like, Blocks)):
        return None
    one, other = ((s.kind, s.book, s.block_size) for s in (stored, like))
    if one != other:
        return None
    # A block without a new element is where it was, for it is full or its row is as long as before.
    return dataclasses.replace(
        like, codes=corner(stored.codes, like.codes), scales=corner(stored.scales, like.scales)
    )


def corner(x: jax.Array, like: jax.Array) -> jax.Array:
    """``like`` with ``x`` at the beginning of each axis."""
    larger: jax.Array = lax.dynamic_update_slice(like, x.astype(like.dtype), (0,) * x.ndim)
    return larger


def encoded(like: Stored, x: jax.Array, bits: jax.Array | None = None) -> Stored:
    """The value ``x`` in the format of ``like``, of which only shapes and dtypes are looked at.

    To the nearest, or by chance; but what blocks of magnitudes hold never becomes 0.

    Args:
      like: an array or `Blocks`, or either of `jax.ShapeDtypeStruct`.
      x: of its shape.
      bits: uint32 of that shape, uniformly random, to round by chance where there is less precision
        than float32's; ``None`` for the nearest.
    """
    if isinstance(like, Blocks):
        signed = like.book.signed
        # The book of the other kind is not used.
        book = like.book if signed else DynamicMap(7, signed=True)
        storage = Blockwise(like.kind, book, like.book, like.block_size)
        # The same bits for all: to the nearest, but a mean square never to 0.
        half = jnp.full(x.shape, 2**31, jnp.uint32)
        return storage.encode(x, Moment(signed=signed), half if bits is None else bits)
    if like.dtype == jnp.bfloat16 and bits is not None:
        return BFloat16().encode(x, Moment(), bits)
    floating = all(jnp.issubdtype(each.dtype, jnp.floating) for each in (x, like))
    return narrow(x, like.dtype) if floating else x.astype(like.dtype)


def _written_blocks(stored: Blocks, x: jax.Array, where: jax.Array) -> Blocks:
    new: Any = encoded(stored, x)
    tail = _tail(x.shape)
    changed = _largest(_merge(where, tail).astype(jnp.float32), stored.block_size) > 0
    each = stored.block_size // (2 if stored.book.bits == 4 else 1)
    codes = _spread(changed, each, _merge(new.codes, tail).shape[-1])
    return dataclasses.replace(
        stored,
        codes=jnp.where(_unmerge(codes, tail), new.codes, stored.codes),
        scales=jnp.where(_unmerge(changed, tail), new.scales, stored.scales),
    )
