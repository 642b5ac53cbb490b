"""Whose the parts of a state are: wherever one has the parameters' structure, it belongs to them.

What lies there in a parameter's place is its own: an array, or a stored moment of several arrays.
The rest, such as the count of steps, belongs to no parameter, and neither does what only looks like
it by the side of a single array: there the name of the field tells.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Path: TypeAlias = tuple[Any, ...]
Owned: TypeAlias = list[tuple[Path, Any]]

# Fields that hold hyperparameters, by whatever names these have.
_NUMBERS = {"hyperparams", "hyperparams_states", "remainders"}

# Arrays of this package's states that are of all parameters together.
_TOGETHER = {"norm", "norms", "values", "vector", "weight"}


def walk(
    node: Any, params: Any, path: Path = (), ours: bool = False
) -> Iterator[tuple[Path, Any, Owned | None]]:
    """The outermost parts of a state that the parameters own, and the leaves that they do not.

    Args:
      node: the state, of any Optax transformation.
      params: the parameters.
      path: where the node is.
      ours: whether it is a field of one of this package's states.

    Returns:
      For each part its path, itself, and what it holds of each parameter, with that one's path;
      ``None`` of a leaf that belongs to none.
    """
    children, structure = level(node)
    is_array = jax.tree_util.treedef_is_leaf(structure)
    owned = None if is_of_all(path, is_array and ours) else _owned(node, params)
    if owned is not None or is_array:
        yield path, node, owned
        return
    ours = type(node).__module__.startswith("adam_jax.")
    for key, child in children:
        yield from walk(child, params, path + key, ours)


def is_of_all(path: Path, is_array: bool) -> bool:
    """Whether the names of fields say that what is there belongs to no parameter.

    That of an array counts only where it is the array itself, and not a tree like the parameters.
    """
    names = [getattr(key, "name", None) for key in path]
    return not _NUMBERS.isdisjoint(names) or (is_array and not _TOGETHER.isdisjoint(names[-1:]))


def name_of(path: Path) -> str:
    """The last field's name of a path in the state, and the position in it where there is one."""
    for index in reversed(range(len(path))):
        name = getattr(path[index], "name", getattr(path[index], "key", None))
        if isinstance(name, str):
            return name + jax.tree_util.keystr(path[index + 1 :])
    return jax.tree_util.keystr(path) or "state"


def _owned(node: Any, params: Any, path: Path = ()) -> Owned | None:
    """What each parameter owns of a node with the parameters' structure; ``None`` for another.

    What is empty, such as ``None`` or `optax.MaskedNode`, fits in place of any part of the tree.
    """
    if not jax.tree.leaves(node):
        return []
    children, structure = level(params)
    if jax.tree_util.treedef_is_leaf(structure):
        return [(path, node)] if _fits(node, params, bare=not path) else None
    found, same = level(node)
    if same != structure:
        return None
    owned = []
    for (key, param), (_, part) in zip(children, found, strict=True):
        below = _owned(part, param, path + key)
        if below is None:
            return None
        owned += below
    return owned


def _fits(part: Any, param: Any, bare: bool) -> bool:
    """Whether it may be a moment of the parameter: an array, or a node with a ``shape``.

    Inside of a tree the place alone tells, also for moments of another shape, such as rows' sums.
    A bare parameter has no place: there the shape tells, but not of a number such as the count. A
    table may have a count for each row.
    """
    if not hasattr(part, "shape"):
        return False
    if not bare:
        return True
    shape = tuple(getattr(param, "shape", ()))  # a Python number has none
    dtype = getattr(part, "dtype", jnp.float32)
    counts_rows = jnp.issubdtype(dtype, jnp.signedinteger) and part.shape == shape[:1] != ()
    floating = jnp.issubdtype(dtype, jnp.inexact)
    return bool(counts_rows or (part.shape == shape and (shape or floating)))


def level(tree: Any) -> tuple[list[tuple[Path, Any]], Any]:
    """The children of a tree's root with their keys, and the structure of the root alone."""
    children, structure = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: x is not tree
    )
    return children, structure
