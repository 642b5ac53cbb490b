"""Finding, choosing and keeping parts of any Optax transformation's state."""

from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp

Kind = TypeVar("Kind")


def only(state: chex.ArrayTree, kind: type[Kind], made_by: str) -> Kind:
    """The only part of a state that is of this kind, wherever it is nested.

    Args:
      state: of any Optax transformation.
      kind: a class of states.
      made_by: the function that makes such states, for the error.

    Raises:
      ValueError: there is none, or more than one.

    >>> import optax
    >>> state = optax.chain(optax.identity(), optax.scale_by_adam()).init(1.0)
    >>> only(state, optax.ScaleByAdamState, "scale_by_adam").count
    Array(0, dtype=int32)
    >>> only(state, optax.TraceState, "trace")
    Traceback (most recent call last):
    ValueError: `state` must have one state of trace, got 0
    """

    def is_it(part: Any) -> bool:
        return isinstance(part, kind)

    found = [part for part in jax.tree.leaves(state, is_leaf=is_it) if is_it(part)]
    if len(found) != 1:
        raise ValueError(f"`state` must have one state of {made_by}, got {len(found)}")
    return found[0]  # type: ignore[no-any-return]


def like(new: chex.ArrayTree, old: chex.ArrayTree) -> chex.ArrayTree:
    """A new state in the old one's dtypes, for others' states may take those of what they see."""
    return jax.tree.map(
        lambda n, o: n if _dtype(n) == _dtype(o) else jnp.asarray(n, o.dtype), new, old
    )


def choose(which: jax.Array, new: chex.ArrayTree, old: chex.ArrayTree) -> chex.ArrayTree:
    """``new`` where a scalar is true, else ``old``, whose dtypes it has."""
    return jax.tree.map(lambda n, o: jnp.where(which, n, o), like(new, old), old)


def _dtype(x: Any) -> Any:
    return getattr(x, "dtype", None)
