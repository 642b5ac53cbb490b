"""Parts of a state begun again, or made larger, in the middle of training.

A row of an embedding is given to another token, a dead unit is drawn anew, a vocabulary grows: such
moments are of something else, and should go. Those of all others should stay, and the counts, and
with them the schedules and the bias corrections.

What begins again is what a new state would hold: mean gradients of 0, an average or a float32 copy
of the parameters themselves. But not a mean square. Its bias correction is over, and from 0 it
would take hundreds of steps to grow: Adam's first one would be 3.16 learning rates long, and the
twelfth of a steady gradient 6.57. So it becomes the mean of the others in its array. The first step
is then 0.1 learning rates, times the gradient over its usual size there, and steps grow with the
mean gradient to 1.

A gradient that is kept, as by Adan and MARS, begins at 0 too: the first difference is the gradient
itself, where their papers begin with none. And an unfinished mean of `accumulate` begins at 0, but
its weight, which is of all leaves, stays: so reset between two full steps. To `lazy_adam` a row
that begins again as a whole has skipped no step yet; let the others catch up before, for their mean
square is otherwise as of their last steps.
"""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.hyperparameters import brief, transformation
from adam_jax.lazy import begun_now
from adam_jax.mismatch import same_structure
from adam_jax.ownership import Path, is_of_all
from adam_jax.parts import Part, Shape, mapped, shape_of
from adam_jax.rule import divides, mean_of_blocks
from adam_jax.storage.at_rest import corner, decoded, enlarged, written
from adam_jax.transform import full_beside

_keystr = jax.tree_util.keystr


def reset(
    tx: optax.GradientTransformation, state: chex.ArrayTree, params: optax.Params, mask: Any
) -> chex.ArrayTree:
    """Begin a part of the state again: whole parameters, or single entries of them.

    Mean squares (``nu``, ``nu_max``, Adan's ``n``, ``exp_avg_sq``) become the mean of those in
    their array that stay and are finite, or of all if none stays. The rest becomes what
    ``tx.init(params)`` has. Counts stay: to begin all again, take ``tx.init(params)`` itself. What
    has one entry for a block of the parameter's begins again with all of the block, and what has
    any other shape with the whole parameter.

    Pure, and as well under ``jit``. Moments stay in their formats; of those in blocks, only what
    shares one with an entry that begins again is rounded, to nearest. Inside of ``shard_map`` a
    mean is a shard's own.

    Args:
      tx: the optimizer, of Optax or this package.
      state: its state.
      params: the parameters from which it begins, new values included.
      mask: a tree of booleans that is a prefix of the parameters, true where to begin again; or of
        arrays of booleans that broadcast to the parameters' shapes, such as (rows, 1).

    Returns:
      The new state, like the old one in structure, shapes and dtypes.

    Raises:
      ValueError: trees or shapes do not match, or the state is not laid out like the parameters, as
        that of `optax.flatten`.
      TypeError: an argument is of the wrong kind, or a moment's format cannot be written.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx, params = adam_jax.adam(1e-3), {"embed": jnp.zeros((3, 2)), "out": jnp.zeros(2)}
      >>> gradients = {"embed": jnp.array([[1.0, 1], [2, 2], [3, 3]]), "out": jnp.ones(2)}
      >>> _, state = tx.update(gradients, tx.init(params), params)
      >>> mask = {"embed": jnp.array([[False], [True], [False]]), "out": False}
      >>> adam = reset(tx, state, params, mask)[0]
      >>> [f"{row[0]:.3f}" for row in adam.mu["embed"]]
      ['0.100', '0.000', '0.300']
      >>> [f"{row[0]:.3f}" for row in adam.nu["embed"]]
      ['0.001', '0.005', '0.009']
    """
    fresh = begun_now(transformation("tx", tx).init(params), state)
    masks = _masks(mask, params)
    owned: set[Path | None] = set()
    strangers: list[Part] = []

    def change(part: Part) -> Any:
        which, shape = masks.get(part.owner, (False, ()))
        if part.owner is not None:
            owned.add(part.owner)
        elif shape_of(part.old) and not is_of_all(part.path, is_array=True):
            strangers.append(part)
        if which is False:
            return part.old
        if shape_of(part.old) != shape_of(part.new):
            raise ValueError(f"{part}; `grow` is for parameters that have grown")
        part.require_writable()
        if part.counts_rows:
            which, shape = _rows(which, shape), shape[:1]
        return _begun_again(shape, part.is_magnitude, which, part.new, part.old)

    changed = mapped(change, fresh, state, params)
    if strangers and not owned:
        raise ValueError(
            f"{strangers[0].where} belongs to no parameter that is known: it cannot be reset"
        )
    return changed


def grow(
    tx: optax.GradientTransformation, state: chex.ArrayTree, params: optax.Params
) -> chex.ArrayTree:
    """Make the state larger for parameters that have grown, such as a longer vocabulary.

    Old entries stay at the beginning of each axis, new ones behind begin as in `reset`. What keeps
    its shape keeps its bits. A moment that grows takes the format that it has in
    ``tx.init(params)``; blocks of the same format keep their bits if no entry of theirs is new, as
    rows do where rows are added.

    Args:
      tx: the optimizer, of Optax or this package, for the new parameters.
      state: its state for the old ones.
      params: the new ones, in the old ones' structure.

    Returns:
      A state for the new parameters.

    Raises:
      ValueError: trees do not match, or an array has other axes than before or a shorter one, or
        belongs to no parameter that is known.
      TypeError: ``tx`` is no transformation, or a moment's format cannot be written.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx, params = adam_jax.adam(1e-3), jnp.zeros((2, 1))
      >>> _, state = tx.update(jnp.array([[1.0], [3]]), tx.init(params), params)
      >>> adam = grow(tx, state, jnp.zeros((3, 1)))[0]
      >>> [f"{x:.3f}" for x in adam.nu[:, 0]]
      ['0.001', '0.009', '0.005']
    """
    fresh = begun_now(transformation("tx", tx).init(params), state)

    def change(part: Part) -> Any:
        before, after = shape_of(part.old), shape_of(part.new)
        if before == after:
            return part.old
        if part.owner is None:
            raise ValueError(f"{part}, and it belongs to no parameter: it cannot grow")
        if len(before) != len(after) or any(m > n for m, n in zip(before, after, strict=True)):
            raise ValueError(f"{part}; axes can only grow")
        part.require_writable()
        return _larger(part.is_magnitude, part.new, part.old)

    return mapped(change, fresh, state, params)


def _masks(mask: Any, params: Any) -> dict[Path | None, tuple[Any, Shape]]:
    """By a parameter's path, where it begins again (or a static ``False``), and its shape."""
    with same_structure("`mask` must be a prefix of the parameters' tree"):
        full = jax.tree.map(lambda m, part: jax.tree.map(lambda _: m, part), mask, params)
    masks: dict[Path | None, tuple[Any, Shape]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, p), which in zip(leaves, jax.tree.leaves(full), strict=True):
        name = f"`mask` for params{_keystr(path)}"
        if not jnp.issubdtype(getattr(which, "dtype", type(which)), np.bool_):
            raise TypeError(f"{name} must be True, False or an array of them, got {brief(which)}")
        if not _broadcasts(jnp.shape(which), jnp.shape(p)):
            raise ValueError(
                f"{name} has shape {jnp.shape(which)}, which does not broadcast to {jnp.shape(p)}"
            )
        static = isinstance(which, bool | np.bool_)
        masks[path] = (bool(which) if static else which), jnp.shape(p)
    return masks


def _rows(which: Any, shape: Shape) -> jax.Array:
    """The rows that begin again as a whole."""
    return jnp.all(jnp.broadcast_to(which, shape), axis=tuple(range(1, len(shape))))


def _broadcasts(shape: Shape, to: Shape) -> bool:
    """Whether an array of one shape can be broadcast to another."""
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(n in (1, size) for n, size in pairs)


@partial(jax.jit, static_argnums=(0, 1))
def _begun_again(shape: Shape, is_magnitude: bool, which: Any, new: Any, old: Any) -> Any:
    """A moment of a parameter of this shape, begun again where ``which`` says."""
    where = _of_shape(which, shape, old.shape)
    x = decoded(old)
    return written(old, jnp.where(where, _start(is_magnitude, new, x, ~where), x), where)


@partial(jax.jit, static_argnums=0)
def _larger(is_magnitude: bool, new: Any, old: Any) -> Any:
    """A moment in the shape and format of a new one."""
    x, kept = decoded(old), jnp.ones(old.shape, bool)
    larger, added = enlarged(old, new), ~corner(kept, jnp.zeros(new.shape, bool))
    if larger is None:
        larger, added = new, jnp.ones(new.shape, bool)
    return written(larger, corner(x, _start(is_magnitude, new, x, kept)), added)


def _start(is_magnitude: bool, new: Any, x: jax.Array, others: jax.Array) -> jax.Array:
    """What begins again: as in a new moment; of a mean square ``x`` the mean of its others."""
    fresh = decoded(new)
    return full_beside(fresh, _mean(x, others)) if is_magnitude else fresh


def _of_shape(which: Any, shape: Shape, stored: Shape) -> jax.Array:
    """A mask of a parameter's shape for what may have another: true where all of the entries are.

    Those of a block, where it has one entry for each; else of the whole parameter.
    """
    where = jnp.broadcast_to(which, shape)
    if stored == shape:
        return where
    if divides(stored, shape):
        return mean_of_blocks(jnp.where(where, 0.0, 1.0), stored) == 0
    return jnp.broadcast_to(jnp.all(where), stored)


def _mean(x: jax.Array, others: jax.Array) -> jax.Array:
    """The mean of the finite entries among these, else of all finite ones, else 0."""
    finite = jnp.isfinite(x)
    which = jnp.where(jnp.any(others & finite), others & finite, finite)
    # Of parts of the largest, for neither a sum nor a share of it may leave the range.
    top = jnp.max(jnp.where(which, x, 0), initial=0)
    part = jnp.where(which, x / jnp.where(top == 0, 1, top), 0)
    return top * (jnp.sum(part) / jnp.maximum(jnp.sum(which), 1).astype(x.dtype))
