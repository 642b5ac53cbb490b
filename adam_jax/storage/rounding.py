"""Rounding float32 to bfloat16 or float16, to nearest or by chance."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def is_low(x: Any) -> bool:
    """Whether it is an array of one of these dtypes."""
    return getattr(x, "dtype", None) in (jnp.bfloat16, jnp.float16)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def round_to(x: jax.Array, dtype: Any, bits: jax.Array | None = None) -> jax.Array:
    """Float32 ``x`` at a number of ``dtype``: finite where it is, and still float32.

    The nearest, ties away from zero; or, with random ``bits``, one of its two neighbours, up as
    often as its share of the way says.
    """
    # On patterns: XLA may leave out a cast to a narrow dtype and back, and flush subnormals.
    info = jnp.finfo(dtype)
    unit = 1 << (23 - info.nmant)
    carry = jnp.uint32(unit // 2) if bits is None else bits >> (9 + info.nmant)
    pattern = lax.bitcast_convert_type(x, jnp.uint32)
    sign = pattern & jnp.uint32(2**31)
    held = jnp.minimum(pattern ^ sign, np.float32(info.max).view(np.uint32))
    rounded = lax.bitcast_convert_type((held + carry) & jnp.uint32(2**32 - unit), jnp.float32)
    if dtype == jnp.float16:  # whose subnormals are evenly spaced, and normal in float32
        size = jnp.abs(x) * 2.0**24
        share = carry.astype(jnp.float32) / unit
        size = lax.round(size) if bits is None else jnp.floor(size + share)
        rounded = jnp.where(jnp.abs(x) < 2.0**-14, size * 2.0**-24, rounded)
    signed = lax.bitcast_convert_type(rounded, jnp.uint32) | sign
    # A sum has a NaN's mark in its upper half, wherever it was.
    return jnp.where(jnp.isfinite(x), lax.bitcast_convert_type(signed, jnp.float32), x + x)


@round_to.defjvp
def _round_to_jvp(dtype: Any, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return round_to(primals[0], dtype, *primals[1:]), tangents[0]  # as of a cast
