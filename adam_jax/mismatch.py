"""Checks of trees against each other; each error is one line and names the leaf by its path."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.hyperparameters import brief
from adam_jax.rows import is_rows
from adam_jax.rule import Rule, divides
from adam_jax.storage import Format
from adam_jax.storage.rounding import is_low

_keystr = jax.tree_util.keystr


def require_float(tree: chex.ArrayTree, whose: str = "params") -> None:
    """Check that each leaf is an array that a rule can work on.

    Raises:
      TypeError: a leaf is no array, or of integers.
    """
    _require_no_rows(tree, whose)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        _require_inexact(f"{whose}{_keystr(path)}", leaf)


def require_storable(
    params: optax.Params, rule: Rule, formats: Sequence[tuple[Format, ...]]
) -> None:
    """Check that the formats, a tuple for each parameter, can store its moments.

    Raises:
      TypeError: a leaf is complex where a format is real only.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), row in zip(leaves, formats, strict=True):
        for storage, moment in zip(row, rule.moments.values(), strict=True):
            if moment.signed and not storage.accepts(jnp.result_type(leaf)):
                name = f"params{_keystr(path)}"
                raise TypeError(f"{name} is {_describe(leaf)}; its moments cannot be {storage}")


def require_like_state(
    updates: optax.Updates, state: Any, rule: Rule, formats: Sequence[tuple[Format, ...]]
) -> tuple[list[tuple[Format, ...]], list[tuple[Any, ...]]]:
    """Check gradients against the state, and return its formats and moments: a tuple a gradient.

    Whether a moment is in its format, or in what that has for small parameters, is as the state has
    it: inside ``shard_map`` shapes are those of shards.

    Raises:
      ValueError: the trees differ, or two shapes do, or a moment is not of its format.
      TypeError: it is no state of this rule, or a gradient is complex where its parameter was not.
    """
    if getattr(state, "_fields", None) != rule.State._fields:
        raise TypeError(f"state must be {rule.State.__name__}, got {type(state).__name__}")
    leaves, treedef = jax.tree_util.tree_flatten_with_path(updates)
    moments = [getattr(state, field) for field in rule.moments]
    columns = [flatten_like(leaves, treedef, moment, "the state") for moment in moments]
    rows = list(zip(*columns, strict=True)) if columns else [()] * len(leaves)
    found = []
    for (path, g), row, wanted in zip(leaves, rows, formats, strict=True):
        fitting = tuple(
            storage if storage.holds(stored) else storage.fit(getattr(stored, "shape", ()))
            for storage, stored in zip(wanted, row, strict=True)
        )
        found.append(fitting)
        name = f"gradient for params{_keystr(path)}"
        for (field, moment), storage, stored in zip(
            rule.moments.items(), fitting, row, strict=True
        ):
            # The shape first, for the format may depend on it.
            if moment.blocked:
                _require_blocks(name, g, stored, field)
            else:
                _require_shape(name, g, stored, "the state was built for")
            if not storage.holds(stored):
                raise ValueError(
                    f"state.{field}{_keystr(path)} must be {storage}, got {_describe(stored)};"
                    f" mu_dtype and nu_dtype say what the state holds, parameter by parameter"
                )
            if moment.signed and _is_complex(g) != _is_complex(stored):
                raise TypeError(
                    f"{name} is {_describe(g)}; the state was built for {_describe(stored)}"
                )
    return found, rows


def require_gradients(updates: optax.Updates, params: optax.Params | None) -> None:
    """Check that gradients are floating, and like their parameters, where these are given.

    Whatever has no gradient (``None``) may be anything, as the functions in an Equinox module are.

    Raises:
      TypeError: a gradient is no array, or of integers.
      ValueError: the trees differ, or a gradient and its parameter in shape.
    """
    _require_no_rows(updates, "gradient for params")
    leaves, treedef = jax.tree_util.tree_flatten_with_path(updates, is_leaf=lambda x: x is None)
    names = [f"gradient for params{_keystr(path)}" for path, _ in leaves]
    for name, (_, g) in zip(names, leaves, strict=True):
        if g is not None:
            _require_inexact(name, g)
    if params is None:
        return
    found = flatten_like(leaves, treedef, params, "the parameters")
    for name, (_, g), p in zip(names, leaves, found, strict=True):
        if g is not None:
            _require_shape(name, g, p, "the parameter has")


@contextmanager
def same_structure(rule: str) -> Iterator[None]:
    """Where JAX finds that a tree has another structure, the rule and the first line that it says.

    >>> with same_structure("`names` must have the parameters' structure"):
    ...     jax.tree.structure([0, 0]).flatten_up_to([0])
    Traceback (most recent call last):
    ValueError: `names` must have the parameters' structure: List arity mismatch: 1 != 2; list: [0].
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{rule}: {str(error).splitlines()[0]}") from None


def require_mask(mask: Any, params: optax.Params) -> None:
    """Check that a mask is a tree of booleans and a prefix of the parameters.

    Raises:
      ValueError: it is no prefix of the parameters' tree.
      TypeError: a leaf is not a boolean.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(mask):
        if np.shape(leaf) or not jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), np.bool_):
            raise TypeError(f"`mask`{_keystr(path)} must be True or False, got {brief(leaf)}")
    treedef: Any = jax.tree.structure(mask)
    with same_structure("`mask` must be a prefix of the parameters' tree"):
        treedef.flatten_up_to(params)


def require_low_precision(name: str, params: optax.Params, remainder: bool = False) -> None:
    """Check that parameters have no dtype that ``name`` cannot round to, nor ``remainder`` split.

    Raises:
      TypeError: one has less than 16 bits, or is float16 where its remainder is wanted.
    """
    for path, p in jax.tree_util.tree_leaves_with_path(params):
        dtype, where = getattr(p, "dtype", jnp.float32), f"params{_keystr(path)}"
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 16:
            raise TypeError(f"{where} is {dtype}; {name} is for bfloat16 and float16")
        if remainder and dtype == jnp.float16:
            raise TypeError(f"{where} is float16; `remainder` is for bfloat16, half a float32")


def match_low_precision(
    cls: Any, updates: Any, state: Any, params: Any, field: str = "", dtype: Any = None
) -> tuple[Any, list[tuple[bool, Any, Any, Any]]]:
    """The updates' structure; for each, whether it is rounded, it, its parameter, what is kept.

    Args:
      cls: the state's class.
      updates: what comes in.
      state: likewise.
      params: likewise.
      field: the state's field that keeps something of each parameter; empty if there is none.
      dtype: what it is kept in.

    Raises:
      ValueError: there are no parameters, trees or shapes differ, or the dtype of what is kept.
      TypeError: it is no such state, or an update is complex.
    """
    if params is None:
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__.removesuffix("State")).lower()
        raise ValueError(f"{name} needs `params`: update(updates, state, params)")
    if getattr(state, "_fields", None) != cls._fields:
        raise TypeError(f"state must be {cls.__name__}, got {type(state).__name__}")
    require_gradients(updates, params)
    flat: tuple[Any, Any] = jax.tree_util.tree_flatten_with_path(updates, lambda x: x is None)
    leaves, treedef = flat
    found = treedef.flatten_up_to(params)
    try:
        kept = treedef.flatten_up_to(getattr(state, field)) if field else [None] * len(leaves)
    except ValueError:
        raise ValueError(f"state.{field} has another structure than the gradients") from None
    rows = [
        (u is not None and is_low(p), u, p, k)
        for (_, u), p, k in zip(leaves, found, kept, strict=True)
    ]
    for (path, _), (moves, u, p, k) in zip(leaves, rows, strict=True):
        where = _keystr(path)
        if moves and jnp.iscomplexobj(u):
            raise TypeError(f"gradient for params{where} is {u.dtype}; the parameter is {p.dtype}")
        wanted = f"{jnp.dtype(dtype)}{list(p.shape)}" if moves else "MaskedNode"
        given = f"{k.dtype}{list(k.shape)}" if hasattr(k, "dtype") else type(k).__name__
        if field and u is not None and wanted != given:
            raise ValueError(f"state.{field}{where} must be {wanted}, got {given}")
    return treedef, rows


def flatten_like(leaves: list[tuple[Any, Any]], treedef: Any, tree: Any, whose: str) -> list[Any]:
    """What ``tree`` holds for each of the gradients, whose leaves and structure are given."""
    try:
        found = list(treedef.flatten_up_to(tree))
    except ValueError:
        found = []
    pairs = zip(leaves, found, strict=False)
    if len(found) == len(leaves) and not any(g is not None and _is_tree(x) for (_, g), x in pairs):
        return found
    # A stored moment may be a node, whose leaves lie below the gradient's path.
    given = [path for path, _ in leaves]
    known = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for path in given:
        if not any(k[: len(path)] == path for k in known):
            raise ValueError(f"gradient for params{_keystr(path)}: no such leaf in {whose}")
    for path in known:
        if not any(path[: len(g)] == g for g in given):
            raise ValueError(f"no gradient for params{_keystr(path)}, which is in {whose}")
    raise ValueError(f"gradients have other containers than {whose}, such as a list for a tuple")


def _require_no_rows(tree: chex.ArrayTree, whose: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_rows):
        if is_rows(leaf):
            raise TypeError(
                f"{whose}{_keystr(path)} is Rows, which only lazy_adam, clip_by_global_norm,"
                " skip_unstable and with_metrics take"
            )


def _is_tree(x: Any) -> bool:
    """Whether it is a container where an array, or a stored moment with its shape, should be."""
    return not hasattr(x, "shape") and not jax.tree_util.all_leaves([x])


def _require_inexact(name: str, leaf: Any) -> None:
    try:
        # Of a string JAX would say which dtype it names.
        dtype = jnp.result_type(np.asarray(leaf) if isinstance(leaf, str) else leaf)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an array, got {brief(leaf)}") from None
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"{name} must be floating or complex, got {dtype}")


def _require_shape(name: str, g: Any, other: Any, whose: str) -> None:
    shape = getattr(other, "shape", ())
    if jnp.shape(g) != shape:
        raise ValueError(f"{name} has shape {jnp.shape(g)}; {whose} {shape}")


def _require_blocks(name: str, g: Any, stored: Any, field: str) -> None:
    shape, blocks = jnp.shape(g), getattr(stored, "shape", ())
    if not divides(blocks, shape):
        raise ValueError(f"{name} has shape {shape}; the state's {field} was built for {blocks}")


def _is_complex(x: Any) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", type(x)), jnp.complexfloating)


def _describe(x: Any) -> str:
    if not hasattr(x, "shape"):
        return brief(x)
    kind = jnp.result_type(x) if hasattr(x, "dtype") else x  # a stored moment tells its format
    return f"{kind}{list(x.shape)}"
