"""Rows of tables: what stands for a gradient or an update that is 0 but in a few rows.

    table + Rows(indices, values) = table, but with values added to its rows of these indices

An embedding of a million rows has, in a step, a gradient in some thousands of them. `Rows` holds
those alone, so that nothing the size of the table is made, read or written.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax

from adam_jax.explicit import laid, names_of, spec_of, together
from adam_jax.hyperparameters import brief, whole

# Of how many bytes a piece of rows shall be, how many there may be, and how many times larger.
_PIECE, _MOST, _LARGEST = 2**18, 8, 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a table of shape (size, ...), which is 0 in all others.

    ``table + rows`` adds them, so that `optax.apply_updates` does, in the place of the table where
    that is donated. In a tree it is one node in an array's place; those who take such trees here
    are `lazy_adam`, `clip_by_global_norm`, `skip_unstable`, `with_metrics` and
    `adam_jax.norms.global_norm`. Optax's transformations would scale indices too, and
    `jax.tree.map` would add them: give these `optax.partition`'s other leaves, and the learning
    rate to `lazy_adam`. And `jax.lax.psum` and
    ``pmean`` would add those of several devices, without an error: there take
    `jax.lax.all_gather` of both arrays, ``tiled``, as `Rows` not distinct, whose sum then counts;
    for a mean divide the values.

    The index ``size`` is padding: such rows are dropped, whatever their values are. So is any other
    that is out of range, -1 too, where it is traced; where it is known it is an error.

    Tables may be sharded, by rows and by columns, on meshes with Auto axes and, from JAX 0.10 on,
    with Explicit ones. Each device then has all rows that are touched, of its own columns.

    Attributes:
      indices: integers of shape (k,), in any order.
      values: of shape (k, ...), floating or complex.
      size: how many rows the table has.
      distinct: whether no row is there twice, and what is padding is 0. Of two of one index the
        sum counts.

    Raises:
      IndexError: an index is known, and neither a row nor padding.
      ValueError: there are not as many indices as values.
      TypeError: indices are no integers, or ``size`` is none.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> rows = Rows(jnp.array([2, 0, 2, 3]), jnp.ones((4, 2)), size=3)
      >>> print(optax.apply_updates(jnp.zeros((3, 2)), rows))
      [[1. 1.]
       [0. 0.]
       [2. 2.]]
    """

    indices: jax.Array
    values: jax.Array
    size: int = field(metadata={"static": True})
    distinct: bool = field(default=False, metadata={"static": True})

    #: NumPy's arrays leave the sum to us.
    __array_ufunc__ = None

    def __post_init__(self) -> None:
        if not _is_symbolic(self.size):
            rule = "how many rows the table has, in [0, 2**31)"
            whole("size", self.size, rule, lambda n: 0 <= n < 2**31)
        # JAX unflattens with placeholders too.
        if not all(hasattr(x, "shape") and hasattr(x, "dtype") for x in self._parts()):
            return
        if isinstance(self.indices, np.ndarray | jax.Array):
            require_rows("Rows", self)

    @property
    def shape(self) -> tuple[int, ...]:
        """The table's."""
        return (self.size, *self.values.shape[1:])

    @property
    def dtype(self) -> Any:
        """The values'."""
        return self.values.dtype

    def summed(self) -> "Rows":
        """The same with each index once, ascending; its values the sum, and after them padding.

        Raises:
          TypeError: indices or values are no arrays.
        """
        require_arrays("Rows", self)
        indices, values = map(together, self._parts())
        if self.distinct or getattr(self, "_has_sums", False):
            indices = _wide(indices)
        else:
            indices, values = _summed(self.size, indices, values)
        return Rows(indices, values, self.size, distinct=True)

    def like(self, indices: jax.Array, values: jax.Array, in_pieces: bool = False) -> "Rows":
        """Other values, at indices that are distinct; a node like this one.

        ``in_pieces`` is whether ``table + rows`` adds them in pieces: each of which then is in a
        core's cache where it was made in pieces too. But if these were made of the table's own
        rows, XLA no longer sees that all of them are read before one is overwritten, and copies it.
        """
        rows = Rows(indices, values, self.size, self.distinct)
        # Not of the node, which would be another one then; who sums these rows next need not.
        object.__setattr__(rows, "_has_sums", True)
        object.__setattr__(rows, "_in_pieces", in_pieces)
        return rows

    def pieces(self) -> "list[Rows]":
        """The same in a few parts, of the same size or nearly so.

        On CPUs a step on 10,000 rows of 64 takes three quarters of the time in parts, one after
        another, for each stays in a core's cache from its first use to its last. Elsewhere there is
        one part, for each is some more kernels to start.
        """
        if jax.default_backend() != "cpu" or any(map(_is_symbolic, self.values.shape)):
            return [self]
        count, each = self.indices.shape[0], self.values.size * self.values.dtype.itemsize / _PIECE
        n = min(_MOST, count, int(each))
        if n <= 1 or each > _LARGEST * n:
            return [self]
        return [
            replace(self, indices=self.indices[a:b], values=self.values[a:b])
            for a, b in pairwise(count * i // n for i in range(n + 1))
        ]

    def __radd__(self, table: Any) -> jax.Array:
        table, rows = jnp.asarray(table), self.summed()
        if table.shape != self.shape:
            raise ValueError(f"rows of a table {self.shape} cannot be added to one {table.shape}")
        with jax.numpy_dtype_promotion("standard"):
            if jnp.result_type(table, rows.values) == table.dtype and not _is_narrow(table):
                rows = replace(rows, values=rows.values.astype(table.dtype))
                in_pieces = getattr(self, "_in_pieces", False)
                return _added(table, rows.pieces() if in_pieces else [rows])
            # In the wider dtype, and rounded once, as `optax.apply_updates` does with arrays.
            new = gathered(table, rows) + rows.values
        wide: jax.Array = scattered(table, rows, new.astype(table.dtype))
        return wide

    def _parts(self) -> tuple[Any, Any]:
        return self.indices, self.values


def is_rows(x: Any) -> bool:
    """Whether it is `Rows`: for ``is_leaf`` of `jax.tree.map`."""
    return isinstance(x, Rows)


def require_arrays(name: str, rows: Rows) -> None:
    """Check that rows hold arrays, and not lists, ``None`` or what else a tree may have there.

    Raises:
      TypeError: they do not.

    >>> require_arrays("Rows", Rows([0, 1], np.zeros((2, 4)), size=3))
    Traceback (most recent call last):
    TypeError: Rows: indices must be an array, got [0, 1]
    """
    for part, x in zip(("indices", "values"), rows._parts(), strict=True):
        if not (hasattr(x, "shape") and hasattr(x, "dtype")):
            raise TypeError(f"{name}: {part} must be an array, got {brief(x)}")


def require_rows(name: str, rows: Rows) -> None:
    """Check that rows are of a table's.

    Raises:
      IndexError: an index is known, and neither a row nor padding.
      ValueError: there are not as many indices as values.
      TypeError: indices are no integers.

    >>> require_rows("Rows", Rows(np.array([0, -1]), np.zeros((2, 4)), size=3))
    Traceback (most recent call last):
    IndexError: Rows: indices must be in [0, 3), or 3 for padding, got -1 at position 1
    """
    indices, values = rows._parts()
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"{name}: indices must be integers, got {brief(indices)}")
    if indices.ndim != 1 or values.shape[:1] != indices.shape:
        found = f"{brief(indices)} and {brief(values)}"
        raise ValueError(f"{name}: indices (k,) and values (k, ...) must be as many, got {found}")
    require_in_range(name, indices, rows.size)


def integers(name: str, indices: Any) -> jax.Array:
    """Indices as an array.

    Raises:
      TypeError: they are no integers.

    >>> integers("`indices`", 0.5)
    Traceback (most recent call last):
    TypeError: `indices` must be integers, got 0.5
    """
    try:
        found = jnp.asarray(indices)
    except Exception:
        found = None  # of strings JAX asks whether they are the names of dtypes
    if found is None or not jnp.issubdtype(found.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {brief(indices)}")
    return found


def require_in_range(name: str, indices: Any, size: int) -> None:
    """Check indices that are known: each is a row, or padding.

    Raises:
      IndexError: one is not, the first of which the error names.
    """
    if isinstance(indices, jax.core.Tracer) or not getattr(indices, "is_fully_addressable", True):
        return
    known = np.asarray(indices)
    wrong = (known < 0) | (known > size)
    if wrong.any():
        place = np.argwhere(wrong)[0]
        at = ", ".join(map(str, place))
        rule = f"indices must be in [0, {size}), or {size} for padding"
        raise IndexError(f"{name}: {rule}, got {known[tuple(place)]} at position {at}")


def require_takeable(name: str, table: Any, axes: int | None = None) -> None:
    """Check that rows can be taken of a table: that JAX can be told how they shall lie, if need be.

    Raises:
      ValueError: one of its axes, or of the first, is sharded on an Explicit mesh, before JAX 0.10.
    """
    spec = spec_of(table)
    if any(spec[:axes]) and jax.__version_info__ < (0, 10):
        raise ValueError(
            f"{name} is sharded on an Explicit mesh, as {spec}; rows are taken of tables on meshes"
            " with Auto axes, or with JAX 0.10 or newer"
        )


def map_values(f: Callable[..., Any], tree: chex.ArrayTree, *rest: chex.ArrayTree) -> Any:
    """`jax.tree.map`, to which `Rows` are one leaf: ``f`` is given their values, and changes them.

    >>> rows = Rows(np.array([1, 3]), np.ones((2, 1)), size=4)
    >>> map_values(lambda x: 5 * x, {"table": rows})["table"].indices
    array([1, 3])
    """

    def one(x: Any, *others: Any) -> Any:
        if not is_rows(x):
            return f(x, *others)
        values = f(x.values, *[y.values if is_rows(y) else y for y in others])
        return Rows(x.indices, values, x.size, x.distinct)

    return jax.tree.map(one, tree, *rest, is_leaf=is_rows)


def summed(tree: chex.ArrayTree) -> Any:
    """The tree with the duplicates in its `Rows` summed; their structure stays as it is."""

    def one(x: Any) -> Any:
        if not is_rows(x):
            return x
        rows = x.summed()
        return x.like(rows.indices, rows.values)

    return jax.tree.map(one, tree, is_leaf=is_rows)


def values_of(tree: chex.ArrayTree) -> Any:
    """The tree with the values of its `Rows` in their place, duplicates summed, and padding 0."""
    return jax.tree.map(lambda x: x.summed().values if is_rows(x) else x, tree, is_leaf=is_rows)


def rows_of(tree: chex.ArrayTree, updates: chex.ArrayTree) -> Any:
    """Where ``updates`` have `Rows`, those rows of what ``tree`` has there; else it as it is."""

    def one(u: Any, x: Any) -> Any:
        return gathered(x, u.summed()) if is_rows(u) else x

    return jax.tree.map(one, updates, tree, is_leaf=lambda x: x is None or is_rows(x))


def one_a_row(x: jax.Array) -> jax.Array:
    """An array with an entry for each row of another, that lies as these do."""
    x = jnp.asarray(x)
    if any(spec_of(x)[1:]):  # of an axis sharded on an Explicit mesh JAX takes no single entry
        return jnp.any(jnp.signbit(x.real), axis=range(1, x.ndim)).astype(x.real.dtype)
    return x[:, *[0] * (x.ndim - 1)]


def gathered(table: chex.ArrayTree, rows: Rows) -> Any:
    """These rows of an array, or of each array of a node; 0 for what is padding."""
    return jax.tree.map(lambda x: taken(x, rows.indices), table)


def taken(x: jax.Array, indices: jax.Array) -> jax.Array:
    """Rows of an array; 0 for what is out of range, -1 too."""
    if x.shape[0] == 0:  # of which JAX takes nothing
        return jnp.zeros((*indices.shape, *x.shape[1:]), x.dtype)
    if not indices.ndim:
        found: jax.Array = taken(x, indices[None])[0]
        return found
    x, places = jnp.asarray(x), _unsigned(indices)
    inside = places < x.shape[0]
    spec = spec_of(indices)
    used = {name for axis in spec for name in names_of(axis)}
    spec += tuple(None if used & {*names_of(axis)} else axis for axis in spec_of(x)[1:])
    # What JAX's own mode "fill" does, in less time on CPUs: that looks at each entry's index.
    found = x.at[jnp.where(inside, places, 0)].get(
        mode="promise_in_bounds", **laid(spec, x, indices)
    )
    kept = jnp.expand_dims(inside, range(indices.ndim, found.ndim))
    return jnp.where(kept, found, jnp.zeros([], x.dtype))


def scattered(table: chex.ArrayTree, rows: Rows, new: chex.ArrayTree) -> Any:
    """The table with new rows, which are distinct; padding is dropped."""
    places = _unsigned(rows.indices)

    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        place = laid(spec_of(x), x, y)
        if not _is_narrow(x):
            return x.at[places].set(y, mode="drop", **place)
        # Few bits as integers: on CPUs XLA would make the whole table float32, and back.
        bits, row = (lax.bitcast_convert_type(z, f"uint{8 * x.dtype.itemsize}") for z in (x, y))
        return lax.bitcast_convert_type(bits.at[places].set(row, mode="drop", **place), x.dtype)

    return jax.tree.map(one, table, new)


def _added(table: jax.Array, pieces: "list[Rows]") -> jax.Array:
    """The table with pieces added, one after another; padding is dropped."""
    for rows in pieces:
        place = laid(spec_of(table), table, rows.values)
        table = table.at[_unsigned(rows.indices)].add(rows.values, mode="drop", **place)
    return table


def _is_narrow(x: jax.Array) -> bool:
    """Whether it is floating, of less than 32 bits."""
    return jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4


def _is_symbolic(size: Any) -> bool:
    """Whether it is a dimension that `jax.export` leaves open."""
    return export.is_symbolic_dim(size)


def _wide(indices: jax.Array) -> jax.Array:
    """Indices of as many bits as a size: beside uint8 300 would be 44."""
    return jnp.asarray(indices, jnp.promote_types(indices.dtype, jnp.int32))


def _unsigned(indices: jax.Array) -> jax.Array:
    """Indices of which those below 0 are out of range, and not counted from the end."""
    wide = _wide(indices)
    return wide.astype(f"uint{8 * wide.dtype.itemsize}")


# Jitted by itself, so that a step outside of the user's own jit has the same bits.
@partial(jax.jit, static_argnums=0)
def _summed(size: int, indices: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Distinct indices, ascending and then padding, and the sums of their values."""
    indices = _wide(indices)
    indices = jnp.where((indices < 0) | (indices >= size), size, indices).astype(jnp.int32)
    # On CPUs sorting keys, and looking these up, takes a third of the time of sorting pairs.
    ordered = jnp.sort(indices)
    place = jnp.cumsum(jnp.diff(ordered, prepend=-1) != 0) - 1
    distinct = jnp.full_like(ordered, size).at[place].set(ordered)
    kept = (indices < size).reshape(-1, *[1] * (values.ndim - 1))
    terms = jnp.where(kept, values.astype(jnp.promote_types(values.dtype, jnp.float32)), 0)
    sums = jnp.zeros(terms.shape, terms.dtype)
    if _is_symbolic(indices.shape[0]):  # then JAX does not know how often to halve
        places = jnp.zeros_like(place).at[jnp.argsort(indices)].set(place)
    else:
        places = jnp.searchsorted(distinct, indices)
    sums = sums.at[places].add(terms, **laid(spec_of(terms), terms))
    return distinct, sums.astype(values.dtype)
