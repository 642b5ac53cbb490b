"""A state taken apart beside another of the same layout: which part is whose, and what it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from adam_jax.mismatch import same_structure
from adam_jax.ownership import Path, name_of, walk
from adam_jax.storage.at_rest import is_writable

Shape: TypeAlias = tuple[int, ...]

# Mean squares and their like, by their names in the states of this package and of Optax.
_MAGNITUDES = ("nu", "nu_max", "n", "exp_avg_sq")

_keystr = jax.tree_util.keystr


@dataclass(frozen=True)
class Part:
    """A part of a state: an array, or a moment at rest.

    Attributes:
      path: where it is in the state.
      owner: the path of the parameter that it belongs to; ``None`` if it belongs to none.
      name: its field's.
      new: as in a new state.
      old: as it is.
    """

    path: Path
    owner: Path | None
    name: str
    new: Any
    old: Any

    @property
    def is_magnitude(self) -> bool:
        """Whether it is a mean square or the like."""
        return is_magnitude(self.name)

    @property
    def counts_rows(self) -> bool:
        """Whether it is the last step of each row of a table."""
        dtype = getattr(self.old, "dtype", jnp.float32)
        is_count = self.owner is not None and jnp.issubdtype(dtype, jnp.signedinteger)
        return self.name == "last" and bool(is_count)

    @property
    def where(self) -> str:
        """Its name in an error."""
        return f"state{_keystr(self.path)}"

    def require_writable(self) -> None:
        """Check that the formats are known.

        Raises:
          TypeError: one is not.
        """
        for stored in (self.old, self.new):
            if not is_writable(stored):
                kind = type(stored).__name__
                raise TypeError(f"{self.where} is {kind}; only arrays and Blocks can be changed")

    def __str__(self) -> str:
        before, new = shape_of(self.old), shape_of(self.new)
        return f"{self.where} has shape {before}; for these parameters it is {new}"


def mapped(change: Callable[[Part], Any], fresh: Any, state: Any, params: Any) -> Any:
    """The state, each part of it changed beside that of a new state, which may be abstract.

    Raises:
      ValueError: the two states differ in structure.
    """
    owners: dict[Path, tuple[Path, str]] = {}
    moments = []
    for path, _, owned in walk(fresh, params):
        for place, moment in owned or ():
            owners[path + place] = place, name_of(path)
            moments.append(moment)
    known = set(map(id, moments))
    flat: Any = jax.tree_util.tree_flatten_with_path(fresh, is_leaf=lambda x: id(x) in known)
    parts, treedef = flat
    with same_structure("`state` must have the structure of tx.init(params)"):
        found = treedef.flatten_up_to(state)
    results = []
    for (path, new), old in zip(parts, found, strict=True):
        owner, name = owners.get(path, (None, name_of(path)))
        results.append(change(Part(path, owner, name, new, old)))
    return treedef.unflatten(results)


def is_magnitude(name: str) -> bool:
    """Whether a field of this name holds mean squares or the like."""
    return name in _MAGNITUDES


def shape_of(part: Any) -> Shape:
    """The shape of an array or of a moment at rest; of a Python number ``()``."""
    return tuple(getattr(part, "shape", ()))
