"""Where an optimizer's state lies: moments with their parameters, the rest on every device."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from adam_jax.diagnostics import require_arrays
from adam_jax.explicit import spec_of
from adam_jax.hyperparameters import transformation
from adam_jax.ownership import Path, walk
from adam_jax.parts import shape_of
from adam_jax.sharding.specs import Axes, array_axes, axes_of, named

_keystr = jax.tree_util.keystr

# While a state is computed abstractly: where arrays lie that are traced, and so do not know it.
# They are kept by their side, for the identity of one that is gone may be another's.
_LYING: ContextVar[dict[int, tuple[Any, Any]] | None] = ContextVar("lying", default=None)


def abstract_state(tx: optax.GradientTransformation, params: optax.Params) -> chex.ArrayTree:
    """The state of an optimizer as shapes, dtypes and shardings. Nothing is allocated.

    What restores a checkpoint wants to know, and of which each ``sharding`` is for
    ``out_shardings``. Moments lie with their parameter, codes and scales too: along each of its
    axes as it does, where the array has so many equal parts there, else whole. Those of other axes
    than the parameter's are whole, and what belongs to no parameter, such as counts. `zero` and
    `offload`, wherever they are in ``tx``, place what is theirs.

    Args:
      tx: an Optax transformation.
      params: the parameters: arrays, or `jax.ShapeDtypeStruct` with a ``sharding``.

    Returns:
      A tree like ``tx.init(params)``, of `jax.ShapeDtypeStruct`.

    Raises:
      TypeError: ``tx`` is no transformation, or a leaf of ``params`` no array.
      ValueError: a parameter whose moments want it has no sharding, or one that is not by axes.

    Example:
      >>> import adam_jax, jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((8,), ("model",))
      >>> lying = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
      >>> params = {"w": jax.ShapeDtypeStruct((4, 64), jnp.float32, sharding=lying)}
      >>> state = abstract_state(adam_jax.scale_by_adam(mu_dtype=jnp.bfloat16), params)
      >>> state.mu["w"].dtype.name, state.mu["w"].sharding.spec == lying.spec
      ('bfloat16', True)
      >>> state.count.sharding.is_fully_replicated
      True
    """
    transformation("tx", tx)
    require_arrays(params)
    shardings = {p: sharding_of(x) for p, x in jax.tree_util.tree_leaves_with_path(params)}
    known: list[Any] = []

    def traced(params: optax.Params) -> Any:
        pairs = zip(jax.tree.leaves(params), shardings.values(), strict=True)
        with _lying({id(leaf): (leaf, sharding) for leaf, sharding in pairs}) as lying:
            state = tx.init(params)
        known.extend(lying.get(id(leaf), (leaf, None))[1] for leaf in jax.tree.leaves(state))
        return state

    # Without shardings: of an Explicit mesh they would be types, and want their mesh to be set.
    bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(shape_of(x), jnp.result_type(x)), params)
    shapes = jax.eval_shape(traced, bare)
    beside = placed(shapes, params, shardings, {})
    flat: Any = jax.tree_util.tree_flatten_with_path(shapes)
    leaves, treedef = flat
    found = []
    for (path, x), sharding in zip(leaves, known, strict=True):
        lying = beside[path] if sharding is None else sharding
        if lying is None:
            _require_known(shardings)
        found.append(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lying))
    return treedef.unflatten(found)


def state_shardings(tx: optax.GradientTransformation, params: optax.Params) -> chex.ArrayTree:
    """Where each array of an optimizer's state lies: ``out_shardings`` for its ``init``.

    Arguments, rules and errors are those of `abstract_state`.

    Returns:
      A tree like ``tx.init(params)``, of `jax.sharding.Sharding`.

    Example:
      >>> import adam_jax, jax, jax.numpy as jnp
      >>> tx, params = adam_jax.adamw(1e-3), {"w": jnp.zeros((4, 64))}
      >>> init = jax.jit(tx.init, out_shardings=state_shardings(tx, params))
      >>> state = init(params)
    """
    return jax.tree.map(lambda x: x.sharding, abstract_state(tx, params))


def sharding_of(leaf: Any) -> Any:
    """Where an array lies, also one that is traced if that can be told; else ``None``."""
    lying = _LYING.get()
    if lying is not None and id(leaf) in lying:
        return lying[id(leaf)][1]
    if isinstance(leaf, jax.core.Tracer):
        # An Explicit mesh is in the type.
        aval: Any = leaf.aval
        return aval.sharding if any(spec_of(leaf)) else None
    return getattr(leaf, "sharding", None)


def is_abstract() -> bool:
    """Whether a state is computed only to know where it lies."""
    return _LYING.get() is not None


def lies(tree: chex.ArrayTree, shardings: Iterable[Any]) -> chex.ArrayTree:
    """The tree, of whose arrays it is known from here on where they lie.

    Only while a state is computed abstractly.
    """
    lying = _LYING.get()
    if lying is not None:
        pairs = zip(jax.tree.leaves(tree), shardings, strict=True)
        lying.update({id(leaf): (leaf, sharding) for leaf, sharding in pairs})
    return tree


@contextmanager
def _lying(found: dict[int, tuple[Any, Any]]) -> Iterator[dict[int, tuple[Any, Any]]]:
    token = _LYING.set(found)
    try:
        yield found
    finally:
        _LYING.reset(token)


def placed(
    state: Any,
    params: Any,
    shardings: Mapping[Path, Any],
    updated: Mapping[Path, Axes],
    rest: Any = None,
) -> dict[Path, Any]:
    """Where each array of a state lies, by its path; ``None`` where it cannot be told.

    Args:
      state: as arrays or shapes.
      params: likewise.
      shardings: of the parameters, by their paths.
      updated: the axes along which they are updated, where these are others.
      rest: where the rest lies; by default on every device that parameters do.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {path: shape_of(leaf) for path, leaf in leaves}
    rest = _on_every_device(shardings.values()) if rest is None else rest
    found: dict[Path, Any] = {}
    for path, part, owned in walk(state, params):
        if owned is None:
            found |= {path + p: rest for p, _ in jax.tree_util.tree_leaves_with_path(part)}
        for owner, moment in owned or ():
            own = shardings[owner]
            for below, x in jax.tree_util.tree_leaves_with_path(moment):
                place = path + owner + below
                if isinstance(own, NamedSharding):
                    name = f"params{_keystr(owner)}"
                    lying = axes_of(name, own.spec, shapes[owner], own.mesh)
                    new = updated.get(owner, lying)
                    axes = array_axes(x, moment, shapes[owner], lying, new, own.mesh)
                    found[place] = named(own.mesh, axes)
                else:
                    found[place] = own if own is not None and own.is_fully_replicated else None
    return found


def _on_every_device(shardings: Iterable[Any]) -> Any:
    """Where something lies that belongs to no parameter."""
    known = [s for s in shardings if s is not None]
    named = [s for s in known if isinstance(s, NamedSharding)]
    if named:
        return NamedSharding(named[0].mesh, PartitionSpec())
    return known[0] if known else None


def _require_known(shardings: Mapping[Path, Any]) -> None:
    """Raise for the first parameter that does not tell where its state lies."""
    for path, sharding in shardings.items():
        if not isinstance(sharding, NamedSharding | SingleDeviceSharding):
            got = "none" if sharding is None else type(sharding).__name__
            raise ValueError(f"params{_keystr(path)} must have a NamedSharding, got {got}")
