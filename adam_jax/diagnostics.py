"""What an optimizer's state costs: bytes by parameter and moment, without allocating any.

The state is computed abstractly (`jax.eval_shape`). Wherever a part of it has the parameters'
structure, what lies there belongs to them: an array, or a stored moment of several arrays. The
rest, such as the count of steps, belongs to no parameter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.hyperparameters import brief, transformation
from adam_jax.ownership import Path, name_of, walk
from adam_jax.parts import shape_of

_MOST_ROWS = 20

_keystr = jax.tree_util.keystr


@dataclass(frozen=True)
class ParameterMemory:
    """What the state holds for one parameter.

    Attributes:
      path: its place in the tree, as JAX writes it: ``['dense']['w']``; empty for a bare array.
      shape: its shape.
      bytes: by moment; what has no state, for example masked, is not in there.
    """

    path: str
    shape: tuple[int, ...]
    bytes: Mapping[str, int]

    @property
    def size(self) -> int:
        """The number of its entries."""
        return math.prod(self.shape)

    @property
    def total_bytes(self) -> int:
        """All of its moments together."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Memory:
    """What an optimizer's state costs; ``print`` shows it as a table. See `memory`.

    Attributes:
      parameters: a row a parameter, in the tree's order.
      moments: the names of the columns, in the state's order. Where two parts of the state have
        the same last name and parameters in common, their names are their whole paths.
      other: bytes of what belongs to no parameter, by its path in the state.
    """

    parameters: tuple[ParameterMemory, ...]
    moments: tuple[str, ...]
    other: Mapping[str, int]

    @property
    def size(self) -> int:
        """The number of entries of all parameters."""
        return sum(row.size for row in self.parameters)

    @property
    def total_bytes(self) -> int:
        """The whole state."""
        return sum(row.total_bytes for row in self.parameters) + sum(self.other.values())

    @property
    def bytes_per_parameter(self) -> float:
        """The whole state over the number of the parameters' entries; NaN where there are none."""
        return self.total_bytes / self.size if self.size else math.nan

    def __str__(self) -> str:
        largest = sorted(self.parameters, key=lambda row: row.total_bytes, reverse=True)
        shown, hidden = largest[:_MOST_ROWS], largest[_MOST_ROWS:]
        rows = [["parameter", "shape", *self.moments, "total"]]
        rows += [[row.path or "params", str(row.shape), *self._cells([row])] for row in shown]
        if hidden:
            rows.append([f"and {len(hidden):,} more", "", *self._cells(hidden)])
        if self.other:
            blank = [""] * len(self.moments)
            rows.append(["other", "", *blank, human(sum(self.other.values()))])
        *sums, _ = self._cells(self.parameters)
        rows.append(["total", "", *sums, human(self.total_bytes)])
        rate = f", {self.bytes_per_parameter:.2f} bytes a parameter" if self.size else ""
        return f"{aligned(rows, '<<' + '>' * (len(rows[0]) - 2))}\n\n{self.size:,} parameters{rate}"

    def _cells(self, rows: Sequence[ParameterMemory]) -> list[str]:
        """The sum of some rows, a cell a moment and one for their total."""
        cells = []
        for moment in self.moments:
            found = [row.bytes[moment] for row in rows if moment in row.bytes]
            cells.append(human(sum(found)) if found else "")
        return [*cells, human(sum(row.total_bytes for row in rows))]


def memory(tx: optax.GradientTransformation, params: optax.Params) -> Memory:
    """What the state of an optimizer costs, by parameter and moment. Nothing is allocated.

    It works for any Optax transformation. A stored moment counts with all its arrays, such as
    codes and scales; on several devices a sharded array counts once, a replicated one too.

    Args:
      tx: an Optax transformation.
      params: the parameters, a tree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
      The bytes. ``print`` shows them as a table, the largest parameters first, of which at most 20
      have a row of their own, in units of 1024 bytes (KiB) and its powers. ``other`` is what
      belongs to no parameter, such as the count of steps.

    Raises:
      TypeError: ``tx`` is no transformation, or a leaf of ``params``, which is named, no array.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> params = {"w": jnp.zeros((512, 256)), "b": jnp.zeros(256)}
      >>> print(memory(adam_jax.adam(1e-3, mu_dtype=jnp.bfloat16), params))
      parameter  shape               mu          nu       total
      ['w']      (512, 256)  256.00 KiB  512.00 KiB  768.00 KiB
      ['b']      (256,)           512 B    1.00 KiB    1.50 KiB
      other                                                 4 B
      total                  256.50 KiB  513.00 KiB  769.50 KiB
      <BLANKLINE>
      131,328 parameters, 6.00 bytes a parameter
    """
    transformation("tx", tx)
    require_arrays(params)
    state = jax.eval_shape(tx.init, params)
    sites, other = [], {}
    for path, part, owned in walk(state, params):
        if owned is None:
            other[_keystr(path)] = _bytes(part)
        elif owned:
            sites.append((path, {place: _bytes(moment) for place, moment in owned}))
    columns = _columns(sites)
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        held = {name: column[path] for name, column in columns.items() if path in column}
        rows.append(ParameterMemory(_keystr(path), shape_of(leaf), held))
    return Memory(tuple(rows), tuple(columns), other)


def human(count: int) -> str:
    """Bytes for people, in units of 1024.

    >>> human(1000), human(1024), human(5 * 2**30), human(2**20 - 1)
    ('1000 B', '1.00 KiB', '5.00 GiB', '1.00 MiB')
    """
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if round(amount, 2) < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{count} B" if unit == "B" else f"{amount:.2f} {unit}"


def aligned(rows: Sequence[Sequence[str]], sides: str) -> str:
    """Rows of cells as plain text; ``sides`` says for each column where its cells are.

    >>> print(aligned([["name", "bytes"], ["w", "8"]], "<>"))
    name  bytes
    w         8
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    forms = [f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True)]
    form = "  ".join(forms)
    return "\n".join(form.format(*row).rstrip() for row in rows)


def _columns(sites: list[tuple[Path, dict[Path, int]]]) -> dict[str, dict[Path, int]]:
    """Bytes by parameter for each moment.

    Parts of one name become one column where their parameters are different, as in the groups of
    `optax.partition`. Where they are not, as in a chain of two traces, they have to be told apart.
    """
    columns: dict[str, dict[Path, int]] = {}
    for path, held in sites:
        name = name_of(path)
        alike = [other for other_path, other in sites if name_of(other_path) == name]
        shared = sum(map(len, alike)) > len({p for other in alike for p in other})
        column = _keystr(path).removeprefix(".") if shared else name
        columns.setdefault(column, {}).update(held)
    return columns


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def require_arrays(params: Any) -> None:
    """Check that each leaf is an array, or the shape and dtype of one.

    Raises:
      TypeError: one is neither.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not _is_array(leaf):
            raise TypeError(
                f"params{_keystr(path)} must be an array or a jax.ShapeDtypeStruct,"
                f" got {brief(leaf)}"
            )


def require_known(name: str, x: Any, is_array: bool = True) -> None:
    """Check that an array is there, and not only its shape, as under ``jit``.

    Raises:
      TypeError: it is not.
    """
    if not is_array or isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct):
        raise TypeError(f"{name} must be an array, outside of jit, got {type(x).__name__}")


def _is_array(leaf: Any) -> bool:
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        return isinstance(leaf, int | float | complex)
    try:
        jnp.result_type(leaf)
    except TypeError:  # strings
        return False
    return True
