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

from adam_jax.diagnostics import require_arrays
from adam_jax.hyperparameters import brief, transformation
from adam_jax.mismatch import same_structure
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
    axes = mesh_axes(mesh, axis)
    require_arrays(params)
    state = jax.eval_shape(transformation("tx", tx).init, params)
    layout = Division(mesh, axes, specs).of(state, params)
    return jax.tree_util.tree_map_with_path(lambda path, _: layout.updated[path].spec, params)


def scatter_mean(gradients: optax.Updates, parts: Any, axis: str) -> optax.Updates:
    """Each device's part of the mean of all devices' gradients; of what is not divided, the mean.

    Args:
      gradients: this device's own, not yet summed: under ``check_vma=False`` (once ``check_rep``),
        for else JAX sums them where they are taken.
      parts: of `part_specs`.
      axis: the mesh axis.

    Raises:
      TypeError: ``axis`` is no name, or a leaf of ``parts`` no spec.
      ValueError: the trees differ, or an array has no equal parts; the error names it.
      NameError: this is not inside ``shard_map`` over ``axis``.
    """

    def scattered(g: jax.Array, dimension: int) -> jax.Array:
        total = lax.psum_scatter(g, axis, scatter_dimension=dimension, tiled=True)
        mean: jax.Array = total / lax.psum(1, axis)
        return mean

    return _each(gradients, parts, axis, scattered, lambda g: lax.pmean(g, axis))


def part_of(params: optax.Params, parts: Any, axis: str) -> optax.Params:
    """This device's part of what it has whole. Arguments and errors are those of `scatter_mean`."""

    def part(p: jax.Array, dimension: int) -> jax.Array:
        size = p.shape[dimension] // lax.psum(1, axis)
        return lax.dynamic_slice_in_dim(p, lax.axis_index(axis) * size, size, dimension)

    return _each(params, parts, axis, part, lambda p: p)


def gather(updates: optax.Updates, parts: Any, axis: str) -> optax.Updates:
    """The whole of which each device has a part. As `scatter_mean` in its arguments and errors."""

    def whole(u: jax.Array, dimension: int) -> jax.Array:
        gathered: jax.Array = lax.all_gather(u, axis, axis=dimension, tiled=True)
        return gathered

    return _each(updates, parts, axis, whole, lambda u: u, cuts=False)


def _each(
    tree: chex.ArrayTree,
    parts: Any,
    axis: str,
    divided: Callable[[jax.Array, int], jax.Array],
    left: Callable[[jax.Array], jax.Array],
    cuts: bool = True,
) -> chex.ArrayTree:
    """Each array changed, with its axis that is divided, or without; ``None`` stays.

    Raises:
      TypeError: ``axis`` is no name, or a leaf of ``parts`` no spec.
      ValueError: the trees differ, or an array that is to be cut has no equal parts.
    """
    if not isinstance(axis, str):
        raise TypeError(f"`axis` must be the name of one mesh axis, got {brief(axis)}")
    count = lax.psum(1, axis)

    def one(path: Any, spec: Any, x: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if not isinstance(spec, PartitionSpec):
            raise TypeError(f"`parts`{name} must be a PartitionSpec, got {brief(spec)}")
        along = [i for i, e in enumerate(spec) if axis in (e if isinstance(e, tuple) else (e,))]
        if x is None or not along:
            return x if x is None else left(x)
        if len(x.shape) <= along[0] or (cuts and x.shape[along[0]] % count):
            raise ValueError(
                f"params{name} has shape {x.shape}, which {spec} does not divide into {count}"
            )
        return divided(x, along[0])

    flat: Any = jax.tree_util.tree_flatten_with_path(parts, is_leaf=_is_spec)
    specs, treedef = flat
    with same_structure("`parts` must have the structure of the tree"):
        found = treedef.flatten_up_to(tree)
    pairs = zip(specs, found, strict=True)
    return treedef.unflatten([one(path, spec, x) for (path, spec), x in pairs])


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)
