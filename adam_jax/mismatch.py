"""Checks of trees against each other; each error names the leaf by its path."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.rule import Rule
from adam_jax.storage import Format


def require_float(params: optax.Params, rule: Rule, formats: Sequence[Format]) -> None:
    """Check that the rule can update each parameter and the formats can store its moments.

    Raises:
      TypeError: a leaf is no array, or of integers, or complex where a format is real only.
    """
    for path, leaf in _leaves(params):
        name = f"params{path}"
        _require_inexact(name, leaf)
        for storage, moment in zip(formats, rule.moments, strict=True):
            if moment.signed and not storage.accepts(jnp.result_type(leaf)):
                raise TypeError(f"{name} is {_describe(leaf)}; its moments cannot be {storage}")


def require_like_state(
    updates: optax.Updates, state: Any, rule: Rule, formats: Sequence[Format]
) -> list[tuple[Any, ...]]:
    """Check gradients against the state, and return its stored moments: a tuple a gradient.

    Raises:
      ValueError: the trees differ, or two shapes do, or a moment is not of its format.
      TypeError: a gradient is no array, or of integers, or complex where its parameter was not.
    """
    fields = state._fields[1:]
    columns = [_flatten_like(updates, moment) for moment in state[1:]]
    rows = list(zip(*columns, strict=True))
    for (path, g), row in zip(_leaves(updates), rows, strict=True):
        _require_inexact(f"gradient for params{path}", g)
        for field, moment, storage, stored in zip(fields, rule.moments, formats, row, strict=True):
            if not storage.holds(stored):
                raise ValueError(f"state.{field}{path} must be {storage}, got {_describe(stored)}")
            _require_shape(path, g, stored, "the state was built for")
            if moment.signed and jnp.iscomplexobj(g) != jnp.iscomplexobj(stored):
                raise TypeError(
                    f"gradient for params{path} is {_describe(g)};"
                    f" the state was built for {_describe(stored)}"
                )
    return rows


def require_same_shapes(updates: optax.Updates, params: optax.Params | None) -> None:
    """Check gradients against their parameters, where these are given.

    Raises:
      ValueError: a gradient's parameter is missing or has another shape.
    """
    if params is None:
        return
    shapes = dict(_leaves(params))
    for path, g in _leaves(updates):
        if path not in shapes:
            raise ValueError(f"gradient for params{path} has no parameter")
        _require_shape(path, g, shapes[path], "the parameter has")


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path), leaf


def _flatten_like(updates: optax.Updates, moment: Any) -> list[Any]:
    """What ``moment`` holds for each leaf of ``updates``."""
    treedef: Any = jax.tree.structure(updates)
    try:
        return list(treedef.flatten_up_to(moment))
    except ValueError:
        built_for = jax.tree.structure(moment)
    # A stored moment may be a node, whose leaves lie below the gradient's path.
    given, known = [path for path, _ in _leaves(updates)], [path for path, _ in _leaves(moment)]
    for path in given:
        if not any(k.startswith(path) for k in known):
            raise ValueError(f"gradient for params{path}: the state has no such leaf")
    for path in known:
        if not any(path.startswith(g) for g in given):
            raise ValueError(f"no gradient for params{path}, which the state was built for")
    raise ValueError(f"gradients are {treedef}; the state was built for {built_for}")


def _require_inexact(name: str, leaf: Any) -> None:
    try:
        dtype = jnp.result_type(leaf)
    except TypeError:
        raise TypeError(f"{name} must be an array, got {leaf!r}") from None
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"{name} must be floating or complex, got {dtype}")


def _require_shape(path: str, g: Any, other: Any, whose: str) -> None:
    shape = getattr(other, "shape", ())
    if jnp.shape(g) != shape:
        raise ValueError(f"gradient for params{path} has shape {jnp.shape(g)}; {whose} {shape}")


def _describe(x: Any) -> str:
    return f"{jnp.result_type(x)}{list(jnp.shape(x))}" if hasattr(x, "dtype") else repr(x)
