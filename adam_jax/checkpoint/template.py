"""What a state is to be restored into: its shapes, dtypes and shardings, and no arrays."""

import math
from typing import Any

import chex
import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from adam_jax.ownership import Path, walk


def template(
    tx: optax.GradientTransformation, params: optax.Params, shardings: Any
) -> chex.ArrayTree:
    """The state of ``tx``, of `jax.ShapeDtypeStruct` with shardings.

    Args:
      tx: an optimizer.
      params: arrays, or `jax.ShapeDtypeStruct` with shardings or without.
      shardings: a tree like the state, or ``None`` for those of the parameters.

    Raises:
      ValueError: ``shardings`` has another structure than the state.
    """
    state = jax.eval_shape(tx.init, params)
    if shardings is None:
        shardings = _beside(state, params)
    elif _structure(shardings) != _structure(state):
        raise ValueError("`shardings` must have the structure of tx.init(params)")
    return jax.tree.map(_placed, state, shardings)


def _structure(tree: Any) -> Any:
    return jax.tree.structure(tree)


def _placed(x: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _beside(state: Any, params: Any) -> Any:
    """For each array the sharding of the parameter that owns it; for others one of all devices."""
    known = {
        path: getattr(p, "sharding", None)
        for path, p in jax.tree_util.tree_leaves_with_path(params)
    }
    anywhere = _whole(next((s for s in known.values() if s is not None), None))
    owners: dict[Path, Any] = {}
    for path, _, owned in walk(state, params):
        for place, part in owned or ():
            for key, _ in jax.tree_util.tree_leaves_with_path(part):
                owners[path + place + key] = known[place] or anywhere
    flat: Any = jax.tree_util.tree_flatten_with_path(state)
    leaves, structure = flat
    return structure.unflatten([_fitting(owners.get(path, anywhere), x) for path, x in leaves])


def _whole(sharding: Any) -> Any:
    """What lies whole on all devices of a sharding, or on one where there is none."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(), memory_kind=sharding.memory_kind)
    return sharding or SingleDeviceSharding(jax.local_devices()[0])


def _fitting(sharding: Any, x: Any) -> Any:
    """The sharding for an array of other sizes than the parameter: whole along what cannot be."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    spec = list(sharding.spec) if len(sharding.spec) <= x.ndim else []
    for axis, names in enumerate(spec):
        several = (names,) if isinstance(names, str) else names or ()
        if x.shape[axis] % math.prod(sharding.mesh.shape[name] for name in several):
            spec[axis] = None
    return NamedSharding(sharding.mesh, PartitionSpec(*spec), memory_kind=sharding.memory_kind)
