"""A printed plan: how each parameter's state is divided, and what it costs a device."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax

from adam_jax.diagnostics import aligned, human
from adam_jax.ownership import Path, walk
from adam_jax.parts import shape_of
from adam_jax.sharding.placement import abstract_state, sharding_of
from adam_jax.sharding.specs import text

_MOST_ROWS = 20


@dataclass(frozen=True)
class ParameterPlan:
    """Where a parameter and its state lie.

    Attributes:
      path: its place in the tree, as JAX writes it; empty for what belongs to no parameter.
      shape: its shape.
      lies: where it does: for each axis the mesh axes that it is divided over, ``*`` for none; or
        ``whole``; empty where that is not known.
      state_lies: the same of its moments, those with most bytes first.
      bytes: of its state, each array once.
      device_bytes: of its state on one device.
    """

    path: str
    shape: tuple[int, ...]
    lies: str
    state_lies: tuple[str, ...]
    bytes: int
    device_bytes: int


@dataclass(frozen=True)
class Plan:
    """How an optimizer's state is divided; ``print`` shows it as a table. See `plan`.

    Attributes:
      rows: one a parameter, in the tree's order.
      other: of what belongs to no parameter.
    """

    rows: tuple[ParameterPlan, ...]
    other: ParameterPlan

    @property
    def bytes(self) -> int:
        """The whole state, each array once."""
        return sum(row.bytes for row in (*self.rows, self.other))

    @property
    def device_bytes(self) -> int:
        """What of it is on one device; the same on each."""
        return sum(row.device_bytes for row in (*self.rows, self.other))

    @property
    def whole(self) -> tuple[str, ...]:
        """The paths of parameters whose state is whole on each device."""
        return tuple(row.path for row in self.rows if row.bytes and row.bytes == row.device_bytes)

    def __str__(self) -> str:
        largest = sorted(self.rows, key=lambda row: row.bytes, reverse=True)
        hidden = largest[_MOST_ROWS:]
        cells = [["parameter", "shape", "lies", "its state", "bytes", "a device"]]
        for row in largest[:_MOST_ROWS]:
            where = [str(row.shape), row.lies, "; ".join(row.state_lies) or "none"]
            cells.append([row.path or "params", *where, *_sizes([row])])
        if hidden:
            cells.append([f"and {len(hidden):,} more", "", "", "", *_sizes(hidden)])
        cells.append(["other", "", "", "; ".join(self.other.state_lies), *_sizes([self.other])])
        cells.append(["total", "", "", "", human(self.bytes), human(self.device_bytes)])
        held = sum(row.bytes for row in self.rows if row.path in self.whole)
        note = f"whole on each device: {len(self.whole):,} of {len(self.rows):,} parameters' state"
        return f"{aligned(cells, '<<<<>>')}\n\n{note}, {human(held)}"


def plan(tx: optax.GradientTransformation, params: optax.Params) -> Plan:
    """How the state of any optimizer is divided over devices. Nothing is allocated.

    Args:
      tx: an Optax transformation, such as one of `zero`.
      params: arrays, or `jax.ShapeDtypeStruct` with a ``sharding``; under `zero` alone also
        without, where they are replicated or ``specs`` says how they lie. A mesh may also be a
        `jax.sharding.AbstractMesh`, of devices that one does not have.

    Returns:
      The plan. ``print`` shows it as a table, the largest first, of which at most 20 have a row of
      their own, in units of 1024 bytes.

    Raises:
      TypeError: ``tx`` is no transformation, or a leaf of ``params`` no array.
      ValueError: a parameter has no sharding; those of `zero`.

    Example:
      >>> import adam_jax, jax, jax.numpy as jnp
      >>> mesh = jax.sharding.AbstractMesh((4, 8), ("data", "model"))
      >>> lying = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
      >>> w = jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=lying)
      >>> tx = adam_jax.adam(1e-3, nu_dtype=adam_jax.storage.eight_bit(32))
      >>> print(plan(adam_jax.sharding.zero(tx, mesh, "data", specs={"w": w}), {"w": w}))
      parameter  shape       lies      its state         bytes   a device
      ['w']      (512, 256)  *, model  data, model  656.00 KiB  20.50 KiB
      other                            whole               4 B        4 B
      total                                         656.00 KiB  20.50 KiB
      <BLANKLINE>
      whole on each device: 0 of 1 parameters' state, 0 B
    """
    state = abstract_state(tx, params)
    held: dict[Path, list[Any]] = {}
    other: list[Any] = []
    for _, part, owned in walk(state, params):
        if owned is None:
            other.append(part)
        for owner, moment in owned or ():
            held.setdefault(owner, []).extend(jax.tree.leaves(moment))
    rows = [
        _row(
            jax.tree_util.keystr(path), shape_of(leaf), text(sharding_of(leaf)), held.get(path, [])
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    return Plan(tuple(rows), _row("", (), "", other))


def _row(path: str, shape: tuple[int, ...], lies: str, arrays: Sequence[Any]) -> ParameterPlan:
    largest = sorted(arrays, key=lambda x: math.prod(x.shape) * x.dtype.itemsize, reverse=True)
    places = dict.fromkeys(text(x.sharding) for x in largest)
    sums = [sum(each) for each in zip(*map(_bytes, arrays), strict=True)] or [0, 0]
    return ParameterPlan(path, shape, lies, tuple(places), *sums)


def _bytes(x: Any) -> Iterator[int]:
    """Of the whole array, and of its part on one device."""
    for shape in (x.shape, x.sharding.shard_shape(x.shape) if x.sharding else x.shape):
        yield math.prod(shape) * x.dtype.itemsize


def _sizes(rows: Sequence[ParameterPlan]) -> list[str]:
    return [human(sum(row.bytes for row in rows)), human(sum(row.device_bytes for row in rows))]
