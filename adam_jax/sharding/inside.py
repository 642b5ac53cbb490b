"""ZeRO-1 by hand inside ``shard_map``: where each part is, and the two collectives.

    parts = part_specs(tx, params, mesh, "data")

    def step(params, state, batch):  # what one device does
        gradients = scatter_mean(jax.grad(loss)(params, batch), parts, "data")
        updates, state = tx.update(gradients, state, part_of(params, parts, "data"))
        return optax.apply_updates(params, gather(updates, parts, "data")), state

Sent by each of n devices: (n - 1) / n of the gradients' bytes, and as much of the updates' (see
`adam_jax.sharding`).
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import optax
from jax import lax
from jax.sharding import PartitionSpec

from adam_jax.hyperparameters import transformation
from adam_jax.sharding.specs import mesh_axes
from adam_jax.sharding.zero import Division


def part_specs(
    tx: optax.GradientTransformation, params: optax.Params, mesh: Any, axis: str, specs: Any = None
) -> chex.ArrayTree:
    """How `zero` would divide the step: for each parameter, the spec of its part.

    Arguments and errors are those of `zero`; ``params`` may be of `jax.ShapeDtypeStruct`.

    Returns:
      A tree like the parameters, of `jax.sharding.PartitionSpec`.
    """
    state = jax.eval_shape(transformation("tx", tx).init, params)
    layout = Division(mesh, mesh_axes(mesh, axis), specs).of(state, params)
    return jax.tree_util.tree_map_with_path(lambda path, _: layout.updated[path].spec, params)


def scatter_mean(gradients: optax.Updates, parts: Any, axis: str) -> optax.Updates:
    """Each device's part of the mean of all devices' gradients; of what is not divided, the mean.

    Args:
      gradients: this device's own, not yet summed: under ``check_vma=False`` (once ``check_rep``),
        for else JAX sums them where they are taken.
      parts: of `part_specs`.
      axis: the mesh axis.
    """

    def scattered(g: jax.Array, dimension: int) -> jax.Array:
        total = lax.psum_scatter(g, axis, scatter_dimension=dimension, tiled=True)
        mean: jax.Array = total / lax.psum(1, axis)
        return mean

    return _each(gradients, parts, axis, scattered, lambda g: lax.pmean(g, axis))


def part_of(params: optax.Params, parts: Any, axis: str) -> optax.Params:
    """This device's part of what it has whole. Arguments are those of `scatter_mean`."""

    def part(p: jax.Array, dimension: int) -> jax.Array:
        size = p.shape[dimension] // lax.psum(1, axis)
        return lax.dynamic_slice_in_dim(p, lax.axis_index(axis) * size, size, dimension)

    return _each(params, parts, axis, part, lambda p: p)


def gather(updates: optax.Updates, parts: Any, axis: str) -> optax.Updates:
    """The whole of which each device has a part. Arguments are those of `scatter_mean`."""

    def whole(u: jax.Array, dimension: int) -> jax.Array:
        gathered: jax.Array = lax.all_gather(u, axis, axis=dimension, tiled=True)
        return gathered

    return _each(updates, parts, axis, whole, lambda u: u)


def _each(
    tree: chex.ArrayTree,
    parts: Any,
    axis: str,
    divided: Callable[[jax.Array, int], jax.Array],
    left: Callable[[jax.Array], jax.Array],
) -> chex.ArrayTree:
    """Each array changed, with its axis that is divided, or without."""

    def one(spec: PartitionSpec, x: jax.Array) -> jax.Array:
        along = [i for i, e in enumerate(spec) if axis in (e if isinstance(e, tuple) else (e,))]
        return divided(x, along[0]) if along else left(x)

    return jax.tree.map(one, parts, tree, is_leaf=lambda x: isinstance(x, PartitionSpec))
