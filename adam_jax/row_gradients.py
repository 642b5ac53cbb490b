"""Gradients with respect to rows that are looked up, without one of the size of the table.

    rows = stop_gradient(table)[indices] + tap

The gradient of a row is the sum of those of its taps. A tap is an array of zeros, one for each
lookup. The loss is differentiated with respect to the taps, and to all parameters that are no
tables. How many taps there are, and of what shapes, is found by tracing the loss once, without
computing anything.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from adam_jax.explicit import together
from adam_jax.hyperparameters import brief, flag, function
from adam_jax.leaves import Predicate, is_embedding
from adam_jax.mismatch import require_float
from adam_jax.rows import Rows, integers, require_in_range, require_takeable, taken

_keystr = jax.tree_util.keystr


class _NotLookedUpError(TypeError):
    """A table is used otherwise than by `lookup`."""


class Table:
    """A table inside of a loss that `value_and_row_grad` differentiates: only `lookup` takes it.

    Attributes:
      name: the parameter's.
      array: the table.
    """

    def __init__(self, name: str, array: jax.Array, taps: list[jax.Array] | None) -> None:
        self.name, self.array = name, array
        self._taps, self.indices = taps, list[jax.Array]()

    @property
    def shape(self) -> tuple[int, ...]:
        """The table's."""
        return self.array.shape

    @property
    def dtype(self) -> Any:
        """The table's."""
        return self.array.dtype

    def look_up(self, indices: jax.Array) -> jax.Array:
        """Rows, and their tap."""
        self.indices.append(indices)
        rows = lax.stop_gradient(taken(self.array, indices))
        return rows if self._taps is None else rows + self._taps[len(self.indices) - 1]

    def __getitem__(self, index: Any) -> "Table":
        # So do Flax's variables read themselves.
        if index is not Ellipsis:
            raise TypeError(f"{self._wrong()}: lookup(table, indices) in place of table[indices]")
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"{self._as_a_whole()}, as {name} does")

    @property
    def __jax_array__(self) -> Any:
        # A property, for JAX has its own error for whatever is so called and can be.
        raise _NotLookedUpError(self._as_a_whole())

    def _as_a_whole(self) -> str:
        return f"{self._wrong()}; leave it out of `tables` if it is used as a whole too"

    def _wrong(self) -> str:
        return f"{self.name} is a table, of which only `lookup` takes rows"


def lookup(table: Any, indices: Any) -> jax.Array:
    """Rows of a table: ``table[indices]``, whose gradient `value_and_row_grad` knows how to take.

    Elsewhere it is a lookup like any other. Indices follow the rule of `Rows`: the number of rows
    is padding, and gives zeros; so does what is traced and out of range, -1 too.

    Args:
      table: an array of shape (size, ...), or a module with one that is called ``embedding``, as
        Flax NNX's ``Embed``, whose ``dtype`` the rows then take.
      indices: integers of any shape.

    Returns:
      An array of the shape of ``indices`` and then that of a row.

    Raises:
      IndexError: an index is known, and out of range.
      TypeError: indices are no integers, or the table is no array.
      ValueError: the table has no rows, or these are sharded on an Explicit mesh before JAX 0.10.

    Example:
      >>> import jax.numpy as jnp
      >>> print(lookup(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, 2])))
      [[3. 4.]
       [0. 0.]]
    """
    if hasattr(table, "embedding"):
        rows = lookup(table.embedding[...], indices)
        return rows if table.dtype is None else rows.astype(table.dtype)
    if not isinstance(table, Table):
        table = _table(table)
    indices = integers("`indices`", indices)
    name = table.name if isinstance(table, Table) else "lookup"
    require_takeable(name, table.array if isinstance(table, Table) else table, axes=1)
    require_in_range(name, indices, table.shape[0])
    return table.look_up(indices) if isinstance(table, Table) else taken(table, indices)


def value_and_row_grad(
    loss: Callable[..., Any], *, tables: Predicate = is_embedding, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """As `jax.value_and_grad` of the first argument, but gradients of tables are `Rows`.

    In ``loss`` their rows are taken by `lookup`, as often as wanted. Neither memory nor time depend
    on how many rows a table has. A lookup must not be inside of another transformation that the
    loss calls (``jit``, ``scan``, ``vmap``, ``checkpoint``): look up before, and pass the rows on.

    Args:
      loss: ``(params, *args)`` to a real scalar, or with ``has_aux`` to it and anything else.
      tables: ``(path, leaf) -> bool``: which parameters are tables; by default those that
        `adam_jax.leaves.is_embedding` takes by their names.
      has_aux: whether ``loss`` returns something else too.

    Returns:
      ``(params, *args) -> (value, gradients)``. The gradients are a tree like ``params``, with
      `Rows` for tables, distinct ones: as many as there were indices.

    Raises:
      TypeError: an argument is of the wrong kind; when called, ``loss`` uses a table otherwise.
      ValueError: when called, ``tables`` takes no parameter, or a number; or ``loss`` looks up
        inside of another transformation.

    Example:
      >>> import adam_jax, jax, jax.numpy as jnp, optax
      >>> def loss(params, tokens):
      ...     return jnp.sum((lookup(params["embedding"], tokens) @ params["w"] - 1) ** 2)
      >>> params = {"embedding": jnp.ones((1000, 4)), "w": jnp.full(4, 0.5)}
      >>> value, gradients = value_and_row_grad(loss)(params, jnp.array([7, 3, 7]))
      >>> rows = gradients["embedding"]
      >>> print(rows.indices, rows.values[:, 0], rows.shape)
      [   3    7 1000] [1. 2. 0.] (1000, 4)
    """
    function("loss", loss)
    is_table, has_aux = function("tables", tables), flag("has_aux", has_aux)

    @_explained()
    def differentiated(params: optax.Params, *args: Any) -> tuple[Any, Any]:
        flat: tuple[Any, Any] = jax.tree_util.tree_flatten_with_path(params)
        leaves, treedef = flat
        require_float(params)
        chosen = [bool(is_table(path, _shape(leaf))) for path, leaf in leaves]
        _require_tables(leaves, chosen)

        def call(others: list[Any], taps: list[Any]) -> tuple[Any, tuple[Any, list[Any]]]:
            dense, each = iter(others), iter(taps)
            filled = [
                Table(f"params{_keystr(path)}", jnp.asarray(leaf), next(each))
                if is_in
                else next(dense)
                for (path, leaf), is_in in zip(leaves, chosen, strict=True)
            ]
            out = loss(treedef.unflatten(filled), *args)
            if has_aux and not (isinstance(out, tuple | list) and len(out) == 2):
                raise TypeError(f"`loss` must return (value, aux) with `has_aux`, got {brief(out)}")
            value, aux = out if has_aux else (out, None)
            return value, (aux, [x.indices for x in filled if isinstance(x, Table)])

        others = [leaf for (_, leaf), is_in in zip(leaves, chosen, strict=True) if not is_in]
        whole = [
            jnp.asarray(leaf) for (_, leaf), is_in in zip(leaves, chosen, strict=True) if is_in
        ]
        looked_up = jax.eval_shape(lambda: call(others, [None] * len(whole))[1][1])
        taps = [
            [jnp.zeros((*i.shape, *table.shape[1:]), table.dtype) for i in each]
            for table, each in zip(whole, looked_up, strict=True)
        ]
        (value, (aux, found)), (dense, moved) = jax.value_and_grad(call, (0, 1), has_aux=True)(
            others, taps
        )
        dense, rows = iter(dense), map(_summed, whole, found, moved)
        gradients = [next(rows) if is_in else next(dense) for is_in in chosen]
        return (value, aux) if has_aux else value, treedef.unflatten(gradients)

    return differentiated


@contextmanager
def _explained() -> Iterator[None]:
    """In place of JAX's errors of many lines, those that say what to do."""
    try:
        yield
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(
            "`loss` looks up inside of a transformation that it calls (jit, scan, vmap,"
            " checkpoint), or leaks a tracer otherwise: look up before, and pass the rows on"
        ) from error
    except TypeError as error:
        if isinstance(error.__context__, _NotLookedUpError):
            raise error.__context__ from None
        raise


def _table(table: Any) -> jax.Array:
    try:
        array = jnp.asarray(table)
    except Exception:
        what = "an array, or a module with an `embedding`"
        raise TypeError(f"`table` must be {what}, got {brief(table)}") from None
    if not array.shape:
        raise ValueError(f"`table` must have rows, got {brief(array)}")
    return array


def _summed(table: jax.Array, indices: list[jax.Array], gradients: list[jax.Array]) -> Rows:
    """The gradients of all lookups of one table."""
    size, *row = table.shape
    gradients = [together(g, i.ndim) for g, i in zip(gradients, indices, strict=True)]
    indices = [together(i, i.ndim) for i in indices]
    flat = jnp.concatenate([jnp.zeros(0, jnp.int32), *map(jnp.ravel, indices)])
    values = [jnp.zeros((0, *row), table.dtype), *(g.reshape(-1, *row) for g in gradients)]
    return Rows(flat, jnp.concatenate(values), size).summed()


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _require_tables(leaves: list[Any], chosen: list[bool]) -> None:
    if not any(chosen):
        raise ValueError("`tables` takes none of the parameters; see adam_jax.leaves.path_name")
    for (path, leaf), is_in in zip(leaves, chosen, strict=True):
        if is_in and not jnp.shape(leaf):
            raise ValueError(f"params{_keystr(path)} has no rows; `tables` takes it for a table")
