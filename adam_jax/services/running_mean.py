"""A weighted mean that takes in one tree of arrays after the other.

    W' = W + w
    m = m + (x - m) * w / W', from W = 0 on

of arrays x with weights w. Unlike a sum, it needs no room beyond the arrays' own, for it is never
larger than they are. It reads and writes as much; equal arrays are their mean to the bit, where a
sum of k over k may not be; and no weight must be known before the end, or divided by there.
"""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp

from adam_jax.hyperparameters import Scalar
from adam_jax.norms import precision
from adam_jax.rule import safe_divide
from adam_jax.storage.native import cast, hold


def running_mean(
    held: Scalar, weight: Scalar, mean: chex.ArrayTree, new: chex.ArrayTree
) -> chex.ArrayTree:
    """The mean, of weight ``held``, with ``new`` in it, in float32 or wider; 0 if of no weight."""
    return jax.tree.map(partial(_running_mean, held, weight), mean, new)


# Jitted by itself, so that leaves of one shape are traced once.
@jax.jit
def _running_mean(held: Scalar, weight: Scalar, mean: jax.Array, new: jax.Array) -> jax.Array:
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.promote_types(jnp.promote_types(mean.dtype, new.dtype), jnp.float32)
        # Chosen and not multiplied, for 0 * NaN is NaN.
        mean = jnp.where(held == 0, 0, mean.astype(dtype))
        new = jnp.where(weight == 0, mean, new.astype(dtype))
        # From the nearer end, and in halves: so neither a difference nor a sum overflows, and from
        # equal ends, or the first gradient, nothing is added.
        nearer = weight > held
        start, end = jnp.where(nearer, new, mean), jnp.where(nearer, mean, new)
        share = 2 * safe_divide(jnp.minimum(held, weight), held + weight)
        moved: jax.Array = start + share.astype(start.real.dtype) * (end / 2 - start / 2)
    return moved


def widen(x: Any) -> jax.Array:
    """An array in float32, or wider where it is."""
    return cast(jnp.asarray(x), precision(x))


def narrow_like(tree: chex.ArrayTree, other: chex.ArrayTree) -> chex.ArrayTree:
    """The tree in the dtypes of another; what is finite and real stays finite."""
    return jax.tree.map(lambda x, y: _narrow(x, y.dtype), tree, other)


def _narrow(x: jax.Array, dtype: Any) -> jax.Array:
    # Of bfloat16 too, for the mean of gradients may be as large as they are.
    largest = float(jnp.finfo(dtype).max)
    narrower = largest < float(jnp.finfo(x.dtype).max) and not jnp.iscomplexobj(x)
    return (hold(x, largest) if narrower else x).astype(dtype)
