"""How a moment rests between two steps: the storage formats.

``mu_dtype`` and ``nu_dtype`` of every optimizer take one of these, or a dtype:

* `float32`: plain float32 arrays, 8 bytes a parameter for both moments;
* `bfloat16`: half of that, stochastically rounded; also what the dtype ``jnp.bfloat16`` means.

No format knows a rule, and no rule knows a format. `Format` says how to make one's own.
"""

from typing import Any

import jax
import jax.numpy as jnp

from adam_jax.hyperparameters import brief
from adam_jax.storage.bfloat16 import BFloat16
from adam_jax.storage.format import Format
from adam_jax.storage.native import Native

__all__ = ["Format", "bfloat16", "float32", "format_of"]


def float32() -> Format:
    """Float32 arrays, also where the parameter is float64; complex64 where it is complex."""
    return Native(jnp.float32)


def bfloat16() -> Format:
    """Bfloat16 arrays, stochastically rounded: 4 bytes a parameter for both moments.

    An element is rounded by bits that follow from the seed, the step, the leaf, the moment and its
    position, so that a run repeats bit for bit, sharded or not. Inside ``shard_map`` positions
    count from the shard's start, so shards of one shape share their bits; so do the lanes of
    ``vmap``, and the groups of `optax.partition` unless each gets a seed of its own.
    """
    return BFloat16()


def format_of(name: str, spec: Any) -> Format:
    """The format that an argument such as ``mu_dtype`` names.

    Args:
      name: the argument's name, for the error.
      spec: a `Format`, a dtype, or ``None`` for float32, or the parameter's dtype where wider.

    Raises:
      TypeError: it is neither a format nor a dtype.
      ValueError: it is a dtype that cannot hold a moment, such as float16, whose smallest number,
        6e-8, is far above a mean square of small gradients.

    >>> import jax.numpy as jnp
    >>> format_of("nu_dtype", jnp.float16)
    Traceback (most recent call last):
    ValueError: `nu_dtype` must be float32, float64, bfloat16 or a storage format, got float16
    """
    rule = f"`{name}` must be float32, float64, bfloat16 or a storage format"
    if spec is None:
        return Native()
    if isinstance(spec, Format):
        return spec
    try:
        dtype = jnp.dtype(spec)
    except TypeError:
        raise TypeError(f"{rule}, got {brief(spec)}") from None
    if dtype == jnp.bfloat16:
        return BFloat16()
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"{rule}, got {dtype}")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"{rule}; float64 needs jax.config.update('jax_enable_x64', True)")
    return Native(dtype)
