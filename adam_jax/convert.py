"""A state that goes on in other formats: begun in float32, continued in 8 bits, and back.

What a moment has been stored in, the state itself says; what it is to be in, the new optimizer. So
formats may differ from leaf to leaf, before and after.
"""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.diagnostics import require_arrays
from adam_jax.hyperparameters import one_of, seed_word, transformation
from adam_jax.parts import Part, mapped, shape_of
from adam_jax.storage.at_rest import decoded, encoded, is_stored, is_writable
from adam_jax.storage.format import ROUNDINGS, Stored
from adam_jax.storage.random_bits import fold, random_bits


def convert_state(
    state: chex.ArrayTree,
    tx: optax.GradientTransformation,
    params: optax.Params,
    *,
    rounding: str = "nearest",
    seed: Any = 0,
) -> chex.ArrayTree:
    """The same state in the formats that ``tx`` stores its moments in.

    Counts and hyperparameters stay. What already is in its new format keeps its bits; moments that
    get a wider one keep their values. Others are rounded once: by nearest the error of an entry is
    at most half the distance of two neighbours in the new format, times its block's scale. A mean
    square that is not 0 does not become 0, but the smallest that the format has.

    Pure, and as well under ``jit``, where the old state may be donated, or `jax.eval_shape`.

    Args:
      state: of an optimizer that differs from ``tx`` in ``mu_dtype`` and ``nu_dtype`` alone.
      tx: the optimizer to go on with, of this package or Optax.
      params: its parameters, or `jax.ShapeDtypeStruct` in their places.
      rounding: ``"nearest"``, or ``"stochastic"``: right on average, with twice the largest error.
        How ``tx`` rounds in its steps is its own.
      seed: an integer, static or traced, for rounding by chance.

    Returns:
      A state of ``tx``.

    Raises:
      ValueError: the two states differ in more than formats: in structure, or in a shape.
      TypeError: a moment would be of a format that is not this package's, or lose its imaginary
        part; or a leaf of ``params`` is no array.

    Example:
      >>> import adam_jax, jax, jax.numpy as jnp
      >>> params = jnp.linspace(1.0, 2.0, 8192)
      >>> tx = adam_jax.adam(1e-3)
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> small = adam_jax.storage.eight_bit()
      >>> tx = adam_jax.adam(1e-3, mu_dtype=small, nu_dtype=small)
      >>> state = convert_state(state, tx, params)
      >>> print(state[0].nu, int(state[0].count))
      eight_bit(block_size=256) 1
      >>> updates, state = tx.update(params, state, params)
    """
    require_arrays(params)
    fresh = jax.eval_shape(transformation("tx", tx).init, params)
    by_chance = one_of("rounding", rounding, ROUNDINGS) == "stochastic"
    word = seed_word("seed", seed)
    slots = iter(range(2**31))

    def change(part: Part) -> Any:
        if shape_of(part.old) != shape_of(part.new):
            raise ValueError(f"{part}; `grow` is for parameters that have grown")
        slot = next(slots)
        return in_format(part, fold(word, slot) if by_chance else None)

    return mapped(change, fresh, state, params)


def in_format(part: Part, word: jax.Array | None = None) -> Any:
    """The old value of a part in its new format: to the nearest, or by chance as a word says.

    Raises:
      TypeError: the new format is not known, or real where the old one is complex.
    """
    old, new = part.old, part.new
    if _layout(old) == _layout(new) or not hasattr(new, "shape"):
        return old
    if not is_writable(new):
        raise TypeError(
            f"{part.where} would be {_kind(new)}; only arrays and Blocks can be written"
        )
    if _is_complex(old) and not _is_complex(new):
        raise TypeError(f"{part.where} is {old.dtype}, and would be {_kind(new)}")
    return _converted(new, part.is_magnitude, old, word)


def _layout(stored: Any) -> tuple[Any, ...]:
    """Equal where the format is, with all that it has beside its arrays."""
    leaves, structure = jax.tree.flatten(stored)
    return structure, [(shape_of(x), jnp.result_type(x)) for x in leaves]


def _is_complex(stored: Any) -> bool:
    return jnp.issubdtype(getattr(stored, "dtype", np.float32), jnp.complexfloating)


def _kind(stored: Any) -> str:
    return str(getattr(stored, "dtype", type(stored).__name__))


@partial(jax.jit, static_argnums=(0, 1))
def _converted(new: Stored, is_magnitude: bool, old: Stored, word: jax.Array | None) -> Stored:
    x = decoded(old)
    stored = encoded(new, x, None if word is None else random_bits(word, x.shape))
    if is_magnitude and not is_stored(stored):
        least = jnp.finfo(stored.dtype).tiny
        return jnp.where((x > 0) & (stored == 0), least, stored)
    return stored
