"""How a moment rests between two steps: the storage formats.

``mu_dtype`` and ``nu_dtype`` of every optimizer take one of these, a dtype, or a function that
chooses one for each leaf. Bytes a parameter, of both moments together:

* `float32`: plain arrays, 8;
* `bfloat16`: plain arrays, 4; also what the dtype ``jnp.bfloat16`` means;
* `eight_bit`: Dettmers' dynamic map, 2.03;
* `float8`: E4M3, 2.06;
* `four_bit`: 1.06.

All but float32 round by chance (stochastic rounding), so that slow averages still move: to the
nearest of few values, an average of 1000 steps stops far from the truth. They have no effect on a
step itself, which takes the new moments before they are stored.

The last three store blocks of ``block_size`` elements along the last axis that is longer than 1,
each scaled by its largest magnitude. Shards that are multiples of a block need no communication;
inside ``shard_map`` they must be, for a block is a shard's own there. An entry that is not finite
makes its whole block so. Complex parameters are refused. Derivatives stop at codes, which are
integers. A state goes on in the formats that it was made in. (Flax's ``nnx.Optimizer`` would make
mappings of blocks: let ``init`` see plain arrays, ``tx.init(nnx.as_pure(params))``.)

A function ``(path, leaf) -> format`` (or dtype, or ``None`` for float32) chooses by the path, a key
path as of `jax.tree_util.tree_map_with_path`, and by the shape of the leaf, a
`jax.ShapeDtypeStruct` (not by its dtype, which in ``update`` is the gradient's).
`optax.inject_hyperparams` takes functions for schedules, unless they are ``static_args``:

>>> import jax
>>> def all_but_embeddings(path, leaf):
...     return float32() if "embed" in jax.tree_util.keystr(path) else eight_bit()

No format knows a rule, and no rule knows a format. `Format` says how to make one's own.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax.hyperparameters import brief
from adam_jax.storage.bfloat16 import BFloat16
from adam_jax.storage.blockwise import Blocks, Blockwise
from adam_jax.storage.code_book import CodeBook
from adam_jax.storage.dynamic import DynamicMap
from adam_jax.storage.float8 import E4M3
from adam_jax.storage.format import Format
from adam_jax.storage.linear import Linear
from adam_jax.storage.native import Native

__all__ = [
    "Blocks",
    "Blockwise",
    "CodeBook",
    "Format",
    "bfloat16",
    "eight_bit",
    "float8",
    "float32",
    "four_bit",
]

Choice: TypeAlias = Callable[[Any, jax.ShapeDtypeStruct], Format]


def float32() -> Format:
    """Float32 arrays, also where the parameter is float64; complex64 where it is complex."""
    return Native(jnp.float32)


def bfloat16(rounding: str = "stochastic") -> Format:
    """Bfloat16 arrays: 4 bytes a parameter for both moments.

    An element is rounded by bits that follow from the seed, the step, the leaf, the moment and its
    position, so that a run repeats bit for bit, sharded or not. Inside ``shard_map`` positions
    count from the shard's start, so shards of one shape share their bits; so do the lanes of
    ``vmap``, and the groups of `optax.partition` unless each gets a seed of its own.

    Args:
      rounding: ``"stochastic"``, or ``"nearest"``, with which a mean square never decays.

    Raises:
      ValueError: it is neither.
    """
    return BFloat16(rounding)


def eight_bit(
    block_size: int = 256, *, rounding: str = "stochastic", min_size: int = 4096
) -> Format:
    """Eight bits an element, on Dettmers' dynamic map: 2.03 bytes a parameter for both moments.

    Args:
      block_size: elements that share a scale: an even number.
      rounding: ``"stochastic"`` or ``"nearest"``.
      min_size: parameters of fewer elements have float32 moments; 0 for none.

    Raises:
      ValueError: an argument is out of its range.
      TypeError: a size is no integer.

    References:
      Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization",
      https://arxiv.org/abs/2110.02861.

    Example:
      >>> import jax, jax.numpy as jnp, adam_jax
      >>> tx = adam_jax.adam(1e-3, mu_dtype=eight_bit(), nu_dtype=eight_bit())
      >>> state = tx.init(jnp.zeros((64, 512)))
      >>> [(x.dtype.name, x.shape) for x in jax.tree.leaves(state[0].mu)]
      [('uint8', (64, 512)), ('float32', (64, 2))]
    """
    signed, magnitude = DynamicMap(7, signed=True), DynamicMap(7, signed=False)
    return Blockwise("eight_bit", signed, magnitude, block_size, rounding, min_size)


def four_bit(
    block_size: int = 128, *, rounding: str = "stochastic", min_size: int = 4096
) -> Format:
    """Four bits an element, two in a byte: 1.06 bytes a parameter for both moments.

    Signed moments are on the dynamic map, magnitudes on the linear map without zero. Arguments and
    errors are those of `eight_bit`.

    References:
      Li et al. 2023, "Memory Efficient Optimizers with 4-bit States",
      https://arxiv.org/abs/2309.01507.

    Example:
      >>> import jax, jax.numpy as jnp, adam_jax
      >>> state = adam_jax.scale_by_adam(nu_dtype=four_bit()).init(jnp.zeros((64, 512)))
      >>> [(x.dtype.name, x.shape) for x in jax.tree.leaves(state.nu)]
      [('uint8', (64, 256)), ('float32', (64, 4))]
    """
    signed, magnitude = DynamicMap(3, signed=True), Linear()
    return Blockwise("four_bit", signed, magnitude, block_size, rounding, min_size)


def float8(block_size: int = 128, *, rounding: str = "stochastic", min_size: int = 4096) -> Format:
    """Float8 (E4M3), magnitudes by their root: 2.06 bytes a parameter for both moments.

    Arguments and errors are those of `eight_bit`.

    References:
      Micikevicius et al. 2022, "FP8 Formats for Deep Learning", https://arxiv.org/abs/2209.05433.

    Example:
      >>> import jax, jax.numpy as jnp, adam_jax
      >>> state = adam_jax.scale_by_adam(nu_dtype=float8()).init(jnp.zeros((64, 512)))
      >>> [(x.dtype.name, x.shape) for x in jax.tree.leaves(state.nu)]
      [('float8_e4m3fn', (64, 512)), ('float32', (64, 4))]
    """
    signed, magnitude = E4M3(signed=True), E4M3(signed=False)
    return Blockwise("float8", signed, magnitude, block_size, rounding, min_size)


#: The constructors by their names, from many bits to few.
FORMATS: dict[str, Callable[[], Format]] = {
    make.__name__: make for make in (float32, bfloat16, eight_bit, float8, four_bit)
}


def choice_of(name: str, spec: Any) -> Choice:
    """The choice of a format for each leaf that an argument such as ``mu_dtype`` stands for.

    Args:
      name: the argument's name, for the error.
      spec: what `format_of` takes, or a function ``(path, leaf)`` to it.

    Raises:
      TypeError: it is none of them.
      ValueError: it is a dtype that cannot hold a moment.
    """
    if callable(spec) and not _is_constructor(spec) and not _is_dtype(spec):
        return lambda path, leaf: format_of(name, spec(path, leaf))
    storage = format_of(name, spec)
    return lambda *_: storage


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
    if _is_constructor(spec):
        made = f"storage.{spec.__name__}"
        raise TypeError(f"{rule}, got the function {made}; call it: {made}()")
    if not _is_dtype(spec):
        raise TypeError(f"{rule} such as storage.eight_bit(), got {brief(spec)}")
    dtype = jnp.dtype(spec)
    if dtype == jnp.bfloat16:
        return BFloat16()
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"{rule}, got {dtype}")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"{rule}; float64 needs jax.config.update('jax_enable_x64', True)")
    return Native(dtype)


def _is_constructor(spec: Any) -> bool:
    return any(spec is make for make in FORMATS.values())


def _is_dtype(spec: Any) -> bool:
    if isinstance(spec, jax.Array | np.ndarray | np.number):  # of which NumPy takes the dtype
        return False
    try:
        jnp.dtype(spec)
    except TypeError:
        return False
    return True
