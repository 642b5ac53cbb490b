"""Finding, choosing and keeping parts of any Optax transformation's state."""

from collections.abc import Callable, Iterator
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
    found = list(_all(state, kind))
    if len(found) != 1:
        raise ValueError(f"`state` must have one state of {made_by}, got {len(found)}")
    return found[0]


def like(new: chex.ArrayTree, old: chex.ArrayTree) -> chex.ArrayTree:
    """A new state in the old one's dtypes, for others' states may take those of what they see."""

    def one(n: Any, o: Any) -> Any:
        # A Python number has no dtype to keep.
        dtype = _dtype(o)
        return n if dtype is None or dtype == _dtype(n) else jnp.asarray(n, dtype)

    return jax.tree.map(one, new, old)


def choose(which: jax.Array, new: chex.ArrayTree, old: chex.ArrayTree) -> chex.ArrayTree:
    """``new`` where a scalar is true, else ``old``, whose dtypes it has."""
    return jax.tree.map(lambda n, o: jnp.where(which, n, o), like(new, old), old)


def where_moving(
    change: Callable[..., Any], updates: chex.ArrayTree, *trees: chex.ArrayTree
) -> Any:
    """``change`` of each update and of what other trees have there; ``None`` where it is ``None``.

    What has no gradient may be anything, such as the functions in an Equinox module.
    """

    def one(u: Any, *others: Any) -> Any:
        return None if u is None else change(u, *others)

    return jax.tree.map(one, updates, *trees, is_leaf=lambda x: x is None)


def with_gradient(updates: chex.ArrayTree, params: chex.ArrayTree) -> Any:
    """The parameters that have a gradient, ``None`` for the others."""
    return where_moving(lambda _, p: p, updates, params)


def _all(state: Any, kind: type[Kind]) -> Iterator[Kind]:
    """Those of a kind, also one inside another."""
    parts = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind) and x is not state)
    if isinstance(state, kind):
        yield state
    for part in parts:
        if isinstance(part, kind):
            yield from _all(part, kind)


def _dtype(x: Any) -> Any:
    return getattr(x, "dtype", None)
