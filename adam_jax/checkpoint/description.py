"""What a checkpoint says of the state in it: which states, and of each leaf its format and shape.

Compared with what an optimizer wants before anything is read, it names the first leaf that differs.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import chex
import jax

from adam_jax.checkpoint.arrays import named
from adam_jax.hyperparameters import brief
from adam_jax.ownership import Path, level
from adam_jax.storage import Blocks
from adam_jax.storage.at_rest import is_stored

#: Of the layout on disk; what reads it reads all from 1 on.
VERSION = 1

_PARTS = {"version": int, "written_by": str, "states": Mapping, "leaves": Mapping, "arrays": list}

_keystr = jax.tree_util.keystr


def describe(state: chex.ArrayTree) -> dict[str, Any]:
    """What a checkpoint says of a state, for JSON.

    Args:
      state: of arrays, or of `jax.ShapeDtypeStruct`.

    Returns:
      ``version``, of this layout; ``written_by``, the package's version; ``states``, the class of
      each state by its path; ``leaves``, by their paths, with ``format`` and ``shape``, and those
      in blocks with their block size, code book and arrays; ``arrays``, the paths of all that are
      written, in the order of their numbers there.

    Raises:
      ValueError: two arrays of the state have one path.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> said = describe(adam_jax.scale_by_adam().init({"w": jnp.ones(2)}))
      >>> said["states"], list(said["leaves"])
      ({'': 'ScaleByAdamState'}, ['.count', ".mu['w']", ".nu['w']"])
      >>> said["leaves"][".mu['w']"]
      {'format': 'float32', 'shape': [2]}
    """
    states: dict[str, str] = {}
    leaves: dict[str, Any] = {}
    _look(state, (), states, leaves)
    by = f"adam_jax {version('adam_jax')}"
    said = {"version": VERSION, "written_by": by, "states": states, "leaves": leaves}
    return said | {"arrays": list(named(state))}


def require_like(found: Any, state: chex.ArrayTree) -> None:
    """Check that what a checkpoint says is what a state is.

    Args:
      found: what `describe` made, as JSON gives it back.
      state: the one that is wanted, of arrays or of `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: it is of a later version, of another member, or has another leaf, which is named.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> params = {"w": jnp.ones(2)}
      >>> said = describe(adam_jax.scale_by_adam(mu_dtype=jnp.bfloat16).init(params))
      >>> require_like(said, adam_jax.scale_by_adam().init(params))
      Traceback (most recent call last):
      ValueError: state.mu['w'] is bfloat16[2] in the checkpoint, and float32[2] in the optimizer; \
restore it as it is, and then take `convert_state`
    """
    _require_readable(found)
    wanted = describe(state)
    for path in wanted["states"].keys() | found["states"].keys():
        pair = [each["states"].get(path) for each in (found, wanted)]
        if None not in pair and pair[0] != pair[1]:
            raise ValueError(
                f"state{path} is {pair[0]} in the checkpoint, {pair[1]} in the optimizer"
            )
    for path, leaf in found["leaves"].items():
        if path not in wanted["leaves"]:
            raise ValueError(
                f"state{path}, {_kind(leaf)} in the checkpoint, is not in the optimizer's state"
            )
    for path, leaf in wanted["leaves"].items():
        _require_leaf(f"state{path}", found["leaves"].get(path), leaf)
    if sorted(found["arrays"]) != sorted(wanted["arrays"]):
        raise ValueError("its list of arrays is not that of its leaves")


def _require_leaf(name: str, found: Any, wanted: Any) -> None:
    if found is None:
        raise ValueError(
            f"{name}, {_kind(wanted)} in the optimizer's state, is not in the checkpoint"
        )
    if found == wanted:
        return
    both = f"{name} is {_kind(found)} in the checkpoint, and {_kind(wanted)} in the optimizer"
    if _kind(found) == _kind(wanted):
        raise ValueError(f"{both}, but the arrays of the two differ")
    if found["shape"] != wanted["shape"]:
        raise ValueError(both)
    raise ValueError(f"{both}; restore it as it is, and then take `convert_state`")


def _require_readable(found: Any) -> None:
    parts = [found.get(name) if isinstance(found, Mapping) else None for name in _PARTS]
    fits = all(isinstance(part, kind) for part, kind in zip(parts, _PARTS.values(), strict=True))
    if not (fits and all(map(_is_leaf, found["leaves"].values())) and _are_names(found["arrays"])):
        raise ValueError(f"it does not describe a state of adam_jax: {brief(found)}")
    number, by = found["version"], found["written_by"]
    if not 1 <= number <= VERSION:
        raise ValueError(
            f"it is in version {number} of its layout, by {by}; this adam_jax reads 1 to {VERSION}"
        )


def _is_leaf(said: Any) -> bool:
    """Whether that is said of a leaf which must be."""
    return isinstance(said, Mapping) and {"format", "shape"} <= set(said)


def _are_names(arrays: list[Any]) -> bool:
    return all(isinstance(path, str) for path in arrays)


def _look(node: Any, path: Path, states: dict[str, str], leaves: dict[str, Any]) -> None:
    """Note the states and leaves from a node on."""
    children, structure = level(node)
    if not jax.tree.leaves(node):
        return
    if jax.tree_util.treedef_is_leaf(structure) or is_stored(node):
        leaves[_keystr(path)] = _leaf(node)
        return
    if hasattr(node, "_fields"):
        states[_keystr(path)] = type(node).__name__
    for key, child in children:
        _look(child, path + key, states, leaves)


def _leaf(x: Any) -> dict[str, Any]:
    said: dict[str, Any] = {"format": _format(x), "shape": list(getattr(x, "shape", ()))}
    if isinstance(x, Blocks):
        said |= {"format": x.kind, "block_size": x.block_size, "book": repr(x.book)}
    if is_stored(x):
        arrays = jax.tree_util.tree_leaves_with_path(x)
        said["arrays"] = {_keystr(path): f"{part.dtype}{list(part.shape)}" for path, part in arrays}
    return said


def _format(x: Any) -> str:
    return str(x.dtype) if hasattr(x, "dtype") else type(x).__name__


def _kind(leaf: Any) -> str:
    size = f"(block_size={leaf['block_size']})" if "block_size" in leaf else ""
    return f"{leaf['format']}{size}{leaf['shape']}"
