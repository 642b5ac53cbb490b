"""Arithmetic of partition specs: which mesh axes each axis of an array is divided over."""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
from jax.sharding import NamedSharding, PartitionSpec

from adam_jax.hyperparameters import brief
from adam_jax.storage.blockwise import Blocks

# The names of mesh axes for each axis of an array.
Axes: TypeAlias = tuple[tuple[str, ...], ...]
Shape: TypeAlias = tuple[int, ...]

#: The memory of the host from which devices read by themselves.
HOST = "pinned_host"


def axes_of(name: str, spec: Any, shape: Shape, mesh: Any) -> Axes:
    """A partition spec as a tuple of names for each axis of an array.

    Args:
      name: the array's, for the error.
      spec: a `jax.sharding.PartitionSpec`.
      shape: the array's.
      mesh: whose axes they are.

    Raises:
      TypeError: it is no spec.
      ValueError: it has too many entries, or names no axis of the mesh, or does not divide.
    """
    if not isinstance(spec, PartitionSpec):
        raise TypeError(f"the spec of {name} must be a PartitionSpec, got {type(spec).__name__}")
    entries = [() if e is None else (e,) if isinstance(e, str) else e for e in spec]
    unknown = [e for e in entries if not (isinstance(e, tuple) and set(e) <= set(mesh.shape))]
    if unknown:
        raise ValueError(f"the spec of {name} must name axes of {_known(mesh)}, got {spec}")
    axes = tuple(entries) + ((),) * (len(shape) - len(entries))
    whole = [n % parts(mesh, e) == 0 for n, e in zip(shape, axes, strict=False)]
    if len(axes) > len(shape) or not all(whole):
        raise ValueError(f"{name} has shape {shape}, which {spec} does not divide evenly")
    return axes


def mesh_axes(mesh: Any, axis: Any) -> tuple[str, ...]:
    """Check one name of a mesh's axes, or a tuple of names.

    Raises:
      ValueError: one is not of this mesh, or is there twice.
      TypeError: it is no mesh.
    """
    if not isinstance(getattr(mesh, "shape", None), Mapping):
        raise TypeError(f"`mesh` must be a jax.sharding.Mesh, got {brief(mesh)}")
    names = (axis,) if isinstance(axis, str) else axis
    known = isinstance(names, tuple) and all(n in list(mesh.shape) for n in names)
    if not names or not known or len(set(names)) < len(names):
        raise ValueError(f"`axis` must be among the mesh's {_known(mesh)}, got {axis!r}")
    return tuple(names)


def parts(mesh: Any, names: tuple[str, ...]) -> int:
    """Into how many parts these axes of a mesh divide."""
    return math.prod(mesh.shape[name] for name in names)


def partition_spec(axes: Axes) -> PartitionSpec:
    """The shortest spec of these axes."""
    entries = [names[0] if len(names) == 1 else names or None for names in axes]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def named(mesh: Any, axes: Axes) -> NamedSharding:
    """The sharding of an array that is so divided, with the spec that JAX itself would write.

    Another of the same meaning would be another program's.
    """
    spec = partition_spec(axes)
    if is_explicit(mesh):
        spec = PartitionSpec(*spec, *[None] * (len(axes) - len(spec)))
    return NamedSharding(mesh, spec)


def is_explicit(mesh: Any) -> bool:
    """Whether shardings on a mesh are types."""
    kind = getattr(jax.sharding, "AxisType", None)
    types = set(getattr(mesh, "axis_types", None) or ())
    return kind is not None and types == {kind.Explicit}


def require_one_kind(mesh: Any) -> None:
    """Check that arrays can be brought to shardings on a mesh.

    Raises:
      ValueError: it has axes of several types, or of one that this JAX does not reshard.
    """
    kind = getattr(jax.sharding, "AxisType", None)
    auto = kind is None or set(mesh.axis_types or ()) <= {kind.Auto}
    if not (auto or (is_explicit(mesh) and hasattr(jax.sharding, "reshard"))):
        raise ValueError(
            "`mesh` must have Auto axes only, or Explicit ones where jax.sharding.reshard is,"
            f" got {mesh}"
        )


def text(sharding: Any) -> str:
    """Where an array lies, in a word: ``data, *`` for one whose first axis is over ``data``."""
    if not isinstance(sharding, NamedSharding):
        return "" if sharding is None else "one device" if _is_single(sharding) else "other"
    names = [e or "*" for e in sharding.spec]
    words = ["+".join(e) if isinstance(e, tuple) else str(e) for e in names]
    where = ", ".join(words) if any(sharding.spec) else "whole"
    return f"{where} ({HOST})" if sharding.memory_kind == HOST else where


def divided(axes: Axes, shape: Shape, moments: list[Any], mesh: Any, over: tuple[str, ...]) -> Axes:
    """The axes of a parameter, one of them divided over ``over`` too, as suits its moments best.

    That one along which most bytes of the moments can be divided; among equals one that is not
    divided yet, and the first of these, along which shards are contiguous. If there is none, each
    name of ``over`` by itself; and what cannot be divided by any stays.
    """
    found = _divided_along_one(axes, shape, moments, mesh, over)
    if found == axes and len(over) > 1:
        for name in over:
            found = _divided_along_one(found, shape, moments, mesh, (name,))
    return found


def _divided_along_one(
    axes: Axes, shape: Shape, moments: list[Any], mesh: Any, over: tuple[str, ...]
) -> Axes:
    best, most = axes, (0, False)
    if any(name in names for names in axes for name in over):
        return axes
    for axis, size in enumerate(shape):
        count = parts(mesh, axes[axis] + over)
        if size % count:
            continue
        bytes_ = sum(_bytes(m) for m in moments if divides(m, shape, axis, count))
        if bytes_ and (bytes_, not axes[axis]) > most:
            most = bytes_, not axes[axis]
            best = (*axes[:axis], axes[axis] + over, *axes[axis + 1 :])
    return best


def divides(moment: Any, shape: Shape, axis: int, count: int) -> bool:
    """Whether a parameter's moment can be cut along an axis as the parameter is.

    Blocks where none of them is cut; other arrays where each entry is of as many of the parameter.
    """
    if isinstance(moment, Blocks):
        return moment.shape == shape and moment.divides(axis, count)
    return all(
        len(x.shape) == len(shape) and _even(x.shape[axis], shape[axis], count)
        for x in jax.tree.leaves(moment)
    )


def array_axes(x: Any, moment: Any, shape: Shape, own: Axes, new: Axes, mesh: Any) -> Axes:
    """The axes of one array of a moment; its parameter lies by ``own`` and is updated by ``new``.

    Along each axis as the parameter is updated, where the moment can be cut so; else as it lies,
    where the array has so many equal parts; else whole. An array with other axes than the
    parameter's is whole.
    """
    if len(x.shape) != len(shape):
        return ((),) * len(x.shape)

    def names_along(axis: int, size: int) -> tuple[str, ...]:
        if new[axis] != own[axis] and divides(moment, shape, axis, parts(mesh, new[axis])):
            return new[axis]
        return own[axis] if size % parts(mesh, own[axis]) == 0 else ()

    return tuple(names_along(axis, size) for axis, size in enumerate(x.shape))


def place(x: Any, sharding: NamedSharding) -> Any:
    """An array brought to a sharding, under ``jit`` or not."""
    if is_explicit(sharding.mesh):
        return jax.sharding.reshard(x, sharding)
    return jax.lax.with_sharding_constraint(x, sharding)


def require_outside(what: str, names: tuple[str, ...]) -> None:
    """Check that this is not inside ``shard_map`` over one of these mesh axes.

    Raises:
      ValueError: it is.
    """
    mesh = getattr(jax.sharding, "get_abstract_mesh", lambda: None)()
    inside = [name for name in names if name in getattr(mesh, "manual_axes", ())]
    if inside:
        raise ValueError(
            f"{what} is for jit; inside shard_map over `{inside[0]}` use"
            " adam_jax.sharding.scatter_mean and gather"
        )


def _even(entries: int, size: int, count: int) -> bool:
    return entries > 0 and entries % count == 0 and size % entries == 0


def _bytes(moment: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(moment))


def _known(mesh: Any) -> str:
    return ", ".join(f"{name} ({size})" for name, size in mesh.shape.items())


def _is_single(sharding: Any) -> bool:
    return isinstance(sharding, jax.sharding.SingleDeviceSharding)
