"""A state's rows, as a small state of its own: taken out of it, and put back.

An optimizer of arrays steps on what is taken out as on any other tree. So its mathematics, its
formats and its checks are those of the whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Self

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.mismatch import flatten_like, same_structure
from adam_jax.rows import (
    Rows,
    gathered,
    integers,
    is_rows,
    require_arrays,
    require_in_range,
    require_rows,
    scattered,
)
from adam_jax.storage import Blockwise, Choice, Format
from adam_jax.storage.at_rest import decoded
from adam_jax.storage.native import Native, narrow

_keystr = jax.tree_util.keystr
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Touched:
    """What a step touches of each leaf of a tree of gradients.

    Attributes:
      treedef: the tree's structure, in which `Rows` are leaves.
      leaves: the gradients as they came, with their paths.
      gradients: the gradients; of tables they are `Rows`, distinct, and all of them if need be;
        ``None`` for a leaf that is left out.
      shapes: the shape of each table, by its path.
    """

    treedef: Any
    leaves: list[tuple[Any, Any]]
    gradients: list[Any]
    shapes: Shapes

    def pieces(self, *moments: chex.ArrayTree) -> list[Self]:
        """The same in parts, to be touched one after another; what is no table is in the first.

        So is a table of which all rows are given, as an array; or with moments in formats of few
        bits, for taking these out and putting them back costs more a part than it saves. Outside of
        `jax.jit` there is one part, for each would be a copy of the tables.
        """
        stored = zip(*map(self.treedef.flatten_up_to, moments), strict=True)
        each = [
            g.pieces() if is_rows(given) and all(map(_is_wide, both)) else [g]
            for (_, given), g, both in zip(self.leaves, self.gradients, stored, strict=True)
        ]
        return [replace(self, gradients=list(turn)) for turn in zip_longest(*each)] or [self]

    def values(self) -> Any:
        """The gradients of what is touched, in float32 or wider."""
        values = [g.values if is_rows(g) else g for g in self.gradients]
        return self.treedef.unflatten([x if x is None else decoded(jnp.asarray(x)) for x in values])

    def take(self, tree: chex.ArrayTree, whose: str = "the state") -> list[Any]:
        """What is touched of each leaf of a tree of parameters or moments."""
        found = flatten_like(self.leaves, self.treedef, tree, whose)
        for (path, _), g, x in zip(self.leaves, self.gradients, found, strict=True):
            if is_rows(g):
                _require_shape(path, x, self.shapes[_keystr(path)], whose)
        pairs = zip(self.gradients, found, strict=True)
        return [gathered(x, g) if is_rows(g) else None if g is None else x for g, x in pairs]

    def described(self, params: optax.Params | None = None) -> Any:
        """The shapes of whole leaves, tables too; of the parameters, for their dtypes, if given."""
        found = [g for _, g in self.leaves]
        if params is not None:
            found = flatten_like(self.leaves, self.treedef, params, "the parameters")
        shapes = [x.shape if is_rows(x) else jnp.shape(x) for x in found]
        dtypes = [x.dtype if is_rows(x) else jnp.result_type(x) for x in found]
        return self.treedef.unflatten(map(jax.ShapeDtypeStruct, shapes, dtypes))

    def put(self, tree: chex.ArrayTree, new: Sequence[Any]) -> Any:
        """The tree with ``new`` in what is touched."""
        triples = zip(self.gradients, self.treedef.flatten_up_to(tree), new, strict=True)
        return self.treedef.unflatten(
            [scattered(x, g, y) if is_rows(g) else x if g is None else y for g, x, y in triples]
        )

    def like_given(self, steps: Sequence[Sequence[Any]], in_pieces: bool) -> Any:
        """Updates, from those of each piece, as the gradients came: the same nodes and dtypes.

        ``in_pieces`` is whether they may be added so too.
        """

        def one(given: Any, g: Any, *pieces: Any) -> Any:
            there = [x for x in pieces if x is not None]
            step = there[0] if len(there) == 1 else jnp.concatenate(there)
            step = narrow(step, jnp.result_type(given))
            if not is_rows(given):
                return step
            return given.like(g.indices, step, in_pieces=in_pieces and len(there) > 1)

        each = zip(self.leaves, self.gradients, *steps, strict=True)
        return self.treedef.unflatten([one(given, *x) for (_, given), *x in each])


def touched(updates: optax.Updates, moments: chex.ArrayTree, last: chex.ArrayTree) -> Touched:
    """What gradients touch of a state.

    Args:
      updates: the gradients, arrays or `Rows`.
      moments: one tree of moments.
      last: a tree like it, ``None`` for what is no table.

    Raises:
      ValueError: trees or shapes differ, or there are `Rows` for what is no table.
      IndexError: an index is known, and out of range.
    """
    flat: tuple[Any, Any] = jax.tree_util.tree_flatten_with_path(updates, is_leaf=is_rows)
    leaves, treedef = flat
    stored = flatten_like(leaves, treedef, moments, "the state")
    gradients: list[Any] = []
    shapes = {}
    for (path, g), moment, counts in zip(leaves, stored, treedef.flatten_up_to(last), strict=True):
        name = f"gradient for params{_keystr(path)}"
        if is_rows(g):
            require_arrays(name, g)
            if counts is None:
                raise ValueError(f"{name} is Rows; `tables` of this state does not take that leaf")
            if g.shape != moment.shape:
                raise ValueError(
                    f"{name} has shape {g.shape}; the state was built for {moment.shape}"
                )
            require_rows(name, g)
        if counts is not None:
            shapes[_keystr(path)] = tuple(moment.shape)
        whole = counts is not None and not is_rows(g) and jnp.shape(g) == moment.shape
        gradients.append(all_rows(g) if whole else g.summed() if is_rows(g) else g)
    return Touched(treedef, leaves, gradients, shapes)


def by_rows(choose: Choice, shapes: Shapes) -> Callable[[Any, Any], Format]:
    """A choice of formats that sees tables of these shapes, whatever part of them is there.

    Their rows are stored apart. So with one column they are float32, where formats in blocks would
    have blocks of many rows.
    """

    def chosen(path: Any, leaf: Any) -> Format:
        shape = shapes.get(_keystr(path))
        if shape is None:
            return choose(path, leaf)
        storage = choose(path, jax.ShapeDtypeStruct(shape, leaf.dtype))
        if isinstance(storage, Blockwise) and np.prod(shape[1:]) <= 1:
            return Native()
        return storage.fit(shape)

    return chosen


def require_stored_by_rows(
    path: Any, shape: tuple[int, ...], stored: Any, scales: bool = True
) -> None:
    """Check that a stored moment has a row for each of the table's, and that these can be scaled.

    Raises:
      TypeError: it has not, or they cannot, as may be with a format of someone else's.
    """
    name = f"moments of params{_keystr(path)}"
    if any(x.shape[:1] != shape[:1] for x in jax.tree.leaves(stored)):
        raise TypeError(f"{name} are stored otherwise than by rows")
    if not scales:
        raise TypeError(f"{name} can only be decayed in a format of `adam_jax.storage`")


def requested(
    params: optax.Params, moments: chex.ArrayTree, last: chex.ArrayTree, indices: Any
) -> Touched:
    """The rows of these indices, a tree like the parameters; ``None`` for all of all tables.

    Raises:
      ValueError: trees or shapes differ, or there are indices for what is no table.
      TypeError: indices are no integers.
      IndexError: an index is known, and out of range.
    """
    flat: tuple[Any, Any] = jax.tree_util.tree_flatten_with_path(params)
    leaves, treedef = flat
    columns = [treedef.flatten_up_to(last)]
    columns.append(columns[0] if indices is None else treedef.flatten_up_to(indices))
    gradients: list[Any] = []
    shapes = {}
    for (path, p), moment, counts, wanted in zip(
        leaves, treedef.flatten_up_to(moments), *columns, strict=True
    ):
        name = f"`indices`{_keystr(path)}"
        if counts is not None:
            shapes[_keystr(path)] = tuple(moment.shape)
            _require_shape(path, p, tuple(moment.shape), "the parameters")
        if wanted is not None and counts is None:
            raise ValueError(f"{name}: `tables` does not take that leaf")
        if wanted is None:
            gradients.append(None)
        elif indices is None:
            gradients.append(all_rows(p))
        else:
            chosen = jnp.ravel(integers(name, wanted))
            require_in_range(name, chosen, p.shape[0])
            gradients.append(Rows(chosen, jnp.zeros((chosen.size, 0)), p.shape[0]).summed())
    return Touched(treedef, leaves, gradients, shapes)


def within(name: str, tree: chex.ArrayTree, last: chex.ArrayTree) -> Any:
    """The tree as a transformation sees it that is masked, as by `optax.partition`.

    Raises:
      ValueError: it has another structure than the parameters.
    """
    treedef: Any = jax.tree.structure(last, is_leaf=_has_no_counts)
    with same_structure(f"`{name}` must have the parameters' structure"):
        treedef.flatten_up_to(tree)
    return jax.tree.map(lambda c, x: c if _masks(c) else x, last, tree, is_leaf=_has_no_counts)


def beside(tree: chex.ArrayTree, new: chex.ArrayTree, last: chex.ArrayTree) -> Any:
    """The tree with what is new of that part of it."""
    return jax.tree.map(
        lambda c, x, y: x if _masks(c) else y, last, tree, new, is_leaf=_has_no_counts
    )


def _require_shape(path: Any, x: Any, shape: tuple[int, ...], whose: str) -> None:
    """Check a table's shape: JAX takes rows that are not there for padding, without a word."""
    if tuple(x.shape) != shape:
        name = f"params{_keystr(path)}"
        raise ValueError(f"{name} has shape {x.shape} in {whose}; the state was built for {shape}")


def _is_wide(stored: Any) -> bool:
    """Whether it is traced, and of 32 bits or more."""
    return isinstance(stored, jax.core.Tracer) and stored.dtype.itemsize >= 4


def _masks(counts: Any) -> bool:
    return isinstance(counts, optax.MaskedNode)


def _has_no_counts(counts: Any) -> bool:
    return counts is None or _masks(counts)


def all_rows(g: Any) -> Rows:
    """An array as the rows of a table that are all there."""
    g = jnp.asarray(g)
    return Rows(jnp.arange(g.shape[0], dtype=jnp.int32), g, g.shape[0], distinct=True)
