"""What a state is to be restored into: its shapes, dtypes and shardings, and no arrays."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from adam_jax.diagnostics import require_arrays
from adam_jax.hyperparameters import brief
from adam_jax.parts import shape_of
from adam_jax.sharding import abstract_state

_keystr = jax.tree_util.keystr


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
      TypeError: a leaf of it is no sharding, or one of the parameters no array, or traced.
    """
    require_arrays(params)
    for path, p in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(p, jax.core.Tracer):
            raise TypeError(f"params{_keystr(path)} must be an array, outside of jit, got a tracer")
    state = abstract_state(tx, _placed(params))
    if shardings is None:
        return state
    given: Any = jax.tree.structure(shardings)
    if given != jax.tree.structure(state):
        raise ValueError("`shardings` must have the structure of tx.init(params)")
    for path, sharding in jax.tree_util.tree_leaves_with_path(shardings):
        if not isinstance(sharding, Sharding):
            name = f"`shardings`{_keystr(path)}"
            raise TypeError(f"{name} must be a jax.sharding.Sharding, got {brief(sharding)}")
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        shardings,
    )


def _placed(params: optax.Params) -> Any:
    """The parameters' shapes; what has no sharding is whole where the others lie."""
    known = [getattr(p, "sharding", None) for p in jax.tree.leaves(params)]
    anywhere = _whole(next((sharding for sharding in known if sharding is not None), None))

    def one(p: Any) -> Any:
        lies = getattr(p, "sharding", None) or anywhere
        return jax.ShapeDtypeStruct(shape_of(p), jnp.result_type(p), sharding=lies)

    return jax.tree.map(one, params)


def _whole(sharding: Any) -> Any:
    """What lies whole on all devices of a sharding, or on one where there is none."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(), memory_kind=sharding.memory_kind)
    return sharding or SingleDeviceSharding(jax.local_devices()[0])
