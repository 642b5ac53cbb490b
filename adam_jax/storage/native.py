"""Moments in a floating dtype that needs no care in rounding: float32 or wider."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adam_jax.rule import Moment
from adam_jax.storage.format import Format


def cast(x: jax.Array, dtype: Any) -> jax.Array:
    """``x`` in the precision of ``dtype``, a real one: complex64 in float64 is complex128."""
    if jnp.iscomplexobj(x):
        dtype = jnp.complex128 if dtype == jnp.float64 else jnp.complex64
    return x.astype(dtype)


def hold(x: jax.Array, limit: float) -> jax.Array:
    """``x`` within the limit where it is finite; what is not stays loud."""
    # x - x is 0, and NaN where x is infinite; taken off, for -0 + 0 is 0. Clamped last, for XLA
    # repeats what has one operand in each loop that wants it, and may write others to memory.
    loud = x - (x - x)
    return lax.clamp(jnp.asarray(-limit, x.dtype), loud, jnp.asarray(limit, x.dtype))


def narrow(x: jax.Array, dtype: Any) -> jax.Array:
    """``x`` in ``dtype``; what is finite stays so, if it is real."""
    largest = float(jnp.finfo(dtype).max)
    # No direction comes near to the largest float32, so that bfloat16 has room for it too.
    enough = 1e38 if jnp.finfo(x.dtype).bits <= 32 else 1e300
    narrower = largest < enough and not jnp.iscomplexobj(x)
    return (hold(x, largest) if narrower else x).astype(dtype)


@dataclass(frozen=True)
class Native(Format):
    """A plain array: of ``dtype``, or as wide as the arithmetic where that is ``None``."""

    dtype: Any = None

    def encode(self, x: jax.Array, moment: Moment, bits: jax.Array | None) -> jax.Array:
        """``x``, cast."""
        del moment, bits
        if self.dtype is None:
            return x
        return cast(x, self.dtype) if jnp.iscomplexobj(x) else narrow(x, self.dtype)

    def decode(self, stored: jax.Array) -> jax.Array:
        """The array as it is."""
        return stored

    def holds(self, stored: Any) -> bool:
        """Whether it is a floating or complex array of this precision."""
        dtype = getattr(stored, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            return False
        bits = jnp.finfo(dtype).bits  # of the real part, where it is complex
        return bool(bits >= 32 if self.dtype is None else bits == jnp.finfo(self.dtype).bits)

    def __str__(self) -> str:
        return "float32 or wider" if self.dtype is None else str(jnp.dtype(self.dtype))
