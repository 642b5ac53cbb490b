"""Moments that come into a state from elsewhere, or leave it.

A member's state is a NamedTuple that counts the steps and has a mean, ``mu``. It is looked for in
the state of any transformation: in chains, under `optax.partition`, in wrappers. All else in there
is as new, but for what counts: schedules go on from the same step, and rows of tables are up to it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.diagnostics import require_arrays, require_known
from adam_jax.hyperparameters import brief, transformation
from adam_jax.lazy import own_states
from adam_jax.mismatch import same_structure
from adam_jax.ownership import Owned, Path, walk
from adam_jax.storage.at_rest import decoded, is_writable, written
from adam_jax.storage.format import Stored

Name: TypeAlias = str | int
Layout: TypeAlias = Callable[[Name, np.ndarray], np.ndarray]
_keystr = jax.tree_util.keystr


@dataclass(frozen=True)
class Arrival:
    """A moment from elsewhere.

    Attributes:
      name: what it is called there, for errors.
      value: the array, laid out as the parameter.
      at_rest: the same in the format of a stored moment, where its bits can be kept; else ``None``.
    """

    name: str
    value: np.ndarray
    at_rest: Callable[[Stored], Stored | None] = lambda _: None


def require_sound(name: str, x: np.ndarray, magnitude: bool) -> None:
    """Check that a moment is floating and finite, and of a magnitude that it is not below 0.

    Raises:
      TypeError: it is of integers, or complex.
      ValueError: an entry is out of range.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating, got {x.dtype}")
    for rule, bad in (("finite", ~np.isfinite(x)), (">= 0", magnitude & (x < 0))):
        if np.any(bad):
            index = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(bad)))
            raise ValueError(f"{name} must be {rule}, got {np.atleast_1d(x)[index]} at {[*index]}")


def count_of(name: str, x: np.ndarray, least: int) -> int:
    """A count of steps, which other frameworks keep as a number of any dtype.

    Raises:
      ValueError: it is none, or ours, of 32 bits, cannot hold it.
    """
    value = x.item() if x.size == 1 else None
    if (
        not isinstance(value, int | float)
        or not float(value).is_integer()
        or not least <= value < 2**31
    ):
        rule = f"a whole number in [{least}, 2**31)"
        raise ValueError(f"{name} must be a count, got {brief(x)}: {rule}")
    return int(value)


def _require_all_known(tree: chex.ArrayTree, whose: str) -> None:
    """Check that arrays are there, and not only their shapes, as under ``jit``.

    Raises:
      TypeError: one is not.
    """
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        require_known(f"{whose}{_keystr(path)}", x)


def named(params: optax.Params, names: Any) -> list[tuple[Path, Any, Name]]:
    """The path of each parameter, itself, and what it is called elsewhere.

    Raises:
      ValueError: ``names`` has another structure than the parameters, or a name twice.
      TypeError: what it has for a parameter is neither a name nor a position; or that is no array.
    """
    require_arrays(params)
    flat: Any = jax.tree_util.tree_flatten_with_path(params)
    leaves, treedef = flat
    with same_structure("`names` must have the parameters' structure"):
        found = treedef.flatten_up_to(names)
    owners: dict[Name, str] = {}
    for (path, _), name in zip(leaves, found, strict=True):
        where = f"params{_keystr(path)}"
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise TypeError(f"`names` for {where} must be a name or a position, got {brief(name)}")
        if name in owners:
            raise ValueError(f"`names` must differ, got {name!r} for {owners[name]} and {where}")
        owners[name] = where
    return [(path, p, name) for (path, p), name in zip(leaves, found, strict=True)]


def laid_out(layout: Layout | None, name: Name, x: np.ndarray, what: str, shape: Any) -> np.ndarray:
    """An array in the other framework's layout, or in ours, whose shape is known.

    Raises:
      ValueError: it has another shape.
    """
    y = x if layout is None else np.asarray(layout(name, x))
    if y.shape != tuple(shape):
        raise ValueError(
            f"{what} has shape {y.shape}, must have {tuple(shape)}: see `names` and `layout`"
        )
    if y.dtype != x.dtype:
        raise TypeError(f"`layout` must keep the dtype of {what}, {x.dtype}, got {y.dtype}")
    return y


def put(
    tx: optax.GradientTransformation,
    params: optax.Params,
    count: int,
    arrivals: Mapping[Path, Mapping[str, Arrival]],
) -> chex.ArrayTree:
    """A state of ``tx`` after ``count`` steps with these moments.

    Args:
      tx: the optimizer.
      params: its parameters.
      count: how many steps were done elsewhere.
      arrivals: by the parameter's path and the state's field.

    Raises:
      ValueError: the state has no place for one, or more than one, or needs one that is not there,
        or would round a float64.
      TypeError: the format of a moment cannot be written, or a parameter is traced.
    """
    _require_all_known(params, "params")
    left = {(path, field) for path, row in arrivals.items() for field in row}

    def replaced(state: Any, field: str) -> Any:
        new = {}
        for path, stored in _owned(state, field, params):
            where = f"{field} of params{_keystr(path)}"
            arrival = arrivals.get(path, {}).get(field)
            if arrival is None:
                raise ValueError(f"`tx` keeps {where}, and none is given")
            if (path, field) not in left:
                raise ValueError(f"`tx` keeps {where} twice")
            left.remove((path, field))
            new[id(stored)] = _stored(stored, arrival, where)
        part = getattr(state, field)
        return jax.tree.map(lambda x: new.get(id(x), x), part, is_leaf=lambda x: id(x) in new)

    state = _moved(transformation("tx", tx).init(params), count, replaced)
    for path, field in sorted(left, key=str):
        name = arrivals[path][field].name
        raise ValueError(f"{name} has no place: `tx` keeps no {field} of params{_keystr(path)}")
    return state


def take(
    state: chex.ArrayTree, params: optax.Params, by_rows: bool = False
) -> tuple[int, dict[Path, dict[str, np.ndarray]]]:
    """The count of steps in a state, and its moments, decoded: by parameter's path and field.

    Args:
      state: of any transformation.
      params: its parameters.
      by_rows: whether rows of tables that have skipped steps may wait there as they do here.

    Raises:
      ValueError: there is no member's state, or counts differ, or a parameter has two moments of a
        kind, or one is not finite, or rows have to catch up first.
      TypeError: an array is traced.
    """
    _require_all_known(state, "state")
    members = [x for x in jax.tree.leaves(state, is_leaf=_is_member) if _is_member(x)]
    counts = {int(member.count) for member in members}
    if len(counts) != 1:
        rule = "`state` must hold moments and one count of steps"
        raise ValueError(f"{rule}, got {len(members)} with the counts {sorted(counts)}")
    rows: dict[Path, dict[str, np.ndarray]] = {}
    for member in members:
        for field in _moments(member):
            for path, stored in _owned(member, field, params):
                row, where = rows.setdefault(path, {}), f"{field} of params{_keystr(path)}"
                if field in row:
                    raise ValueError(f"`state` has {where} twice")
                row[field] = np.array(decoded(stored))
                require_sound(where, row[field], field.startswith("nu"))
    count = counts.pop()
    if not by_rows:
        _require_caught_up(state, count, rows)
    return count, rows


def _require_caught_up(
    state: chex.ArrayTree, count: int, moments: Mapping[Path, Mapping[str, np.ndarray]]
) -> None:
    """Check that moments of all rows are as of the last step, as those that are 0 always are.

    Raises:
      ValueError: one row's are not.
    """
    for lazy in own_states(state):
        for path, last in jax.tree_util.tree_leaves_with_path(lazy.last):
            some = [x.reshape(len(x), -1).any(axis=1) for x in moments[path].values()]
            late = np.any(some, axis=0) & (np.asarray(last) != count)
            if late.any():
                row = int(np.argmax(late))
                raise ValueError(
                    f"row {row} of params{_keystr(path)} is as of step {last[row]} of {count}:"
                    " export what `tx.catch_up(params, state)` returns"
                )


def _is_member(node: Any) -> bool:
    return {"count", "mu"} <= set(getattr(node, "_fields", ()))


def _is_clock(node: Any) -> bool:
    """Whether it counts steps, for a schedule, for hyperparameters, or row by row."""
    fields = getattr(node, "_fields", ())
    return fields == ("count",) or {"count", "hyperparams"} <= {*fields} or "last" in fields


def _moments(member: Any) -> Iterator[str]:
    return (field for field in member._fields if field != "count")


def _moved(node: Any, count: int, replaced: Callable[[Any, str], Any]) -> Any:
    """A new state with other moments and counts."""
    if _is_member(node) or _is_clock(node):
        new = {}
        for field, part in zip(node._fields, node, strict=True):
            if field in ("count", "last"):
                new[field] = jax.tree.map(lambda x: _placed(jnp.full_like(x, count), x), part)
            elif _is_member(node):
                new[field] = replaced(node, field)
            else:
                new[field] = _moved(part, count, replaced)
        return type(node)(**new)

    def below(x: Any) -> bool:
        return _is_member(x) or _is_clock(x)

    return jax.tree.map(
        lambda x: _moved(x, count, replaced) if below(x) else x, node, is_leaf=below
    )


def _owned(member: Any, field: str, params: optax.Params) -> Owned:
    """What a moment's tree has of each parameter."""
    parts = list(walk(getattr(member, field), params))
    found = [owned for _, _, owned in parts if owned is not None]
    if len(parts) != 1 or not found:
        raise ValueError(f"the state's {field} is not laid out like the parameters")
    return found[0]


def _stored(stored: Stored, arrival: Arrival, where: str) -> Stored:
    """What has arrived, in the format of what is there."""
    if not is_writable(stored):
        raise TypeError(
            f"{where} is {type(stored).__name__}; only arrays and Blocks can be written"
        )
    kept = arrival.at_rest(stored)
    if kept is None:
        wide = getattr(stored, "dtype", None) == np.float64
        if arrival.value.dtype == np.float64 and not wide:
            raise ValueError(
                f"{arrival.name} is float64, which {where} would round: it needs float64 parameters"
                " and jax_enable_x64"
            )
        kept = _rewritten(stored, jnp.asarray(arrival.value))
    return jax.tree.map(_placed, kept, stored)


@jax.jit
def _rewritten(stored: Stored, x: jax.Array) -> Stored:
    return written(stored, x, jnp.ones(x.shape, bool))


def _placed(new: jax.Array, old: jax.Array) -> jax.Array:
    placed: jax.Array = jax.device_put(new, old.sharding)
    return placed
