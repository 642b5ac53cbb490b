"""A state as its arrays by number, which is what Orbax writes of it.

Orbax joins the keys of a tree to names with dots, so that ``a.b`` and ``b`` in ``a`` are one array,
and it wants the tree again that it was given, down to what is empty. Of numbers neither matters;
which path has which number is in the description.
"""

from collections.abc import Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp

_keystr = jax.tree_util.keystr


def named(state: chex.ArrayTree) -> dict[str, Any]:
    """The arrays of a state by their paths, without those of no entries, which Orbax does not save.

    Raises:
      ValueError: two have one path.
    """
    found: dict[str, Any] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        if found.setdefault(_keystr(path), x) is not x:
            raise ValueError(f"two arrays of the state are called state{_keystr(path)}")
    return {path: x for path, x in found.items() if not _is_empty(x)}


def numbered(state: chex.ArrayTree, paths: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The arrays at these paths, by their numbers."""
    arrays = named(state)
    return {"arrays": {_number(i): arrays[path] for i, path in enumerate(paths)}}


def with_arrays(
    wanted: chex.ArrayTree, found: dict[str, dict[str, Any]], paths: Iterable[str]
) -> chex.ArrayTree:
    """The state that is wanted, of the arrays at these paths, and those of no entries again."""
    arrays = {path: found["arrays"][_number(i)] for i, path in enumerate(paths)}

    def one(path: Any, x: Any) -> Any:
        return jnp.zeros(x.shape, x.dtype) if _is_empty(x) else arrays[_keystr(path)]

    return jax.tree_util.tree_map_with_path(one, wanted)


def _number(index: int) -> str:
    return f"{index:06}"


def _is_empty(x: Any) -> bool:
    return getattr(x, "size", 1) == 0
