"""ZeRO-1: each device of a data axis keeps and updates its own part of the state.

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
section 5.1, https://arxiv.org/abs/1910.02054. Departures: an array is divided along one of its
axes, and not flattened; and no collective is written here. Arrays are given shardings, from which
XLA takes what is needed: a reduce-scatter of gradients (a CPU: an all-reduce, of which each keeps
its part), and one all-gather of the updates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from adam_jax.diagnostics import require_arrays
from adam_jax.hyperparameters import transformation
from adam_jax.mismatch import same_structure
from adam_jax.ownership import Path, walk
from adam_jax.parts import shape_of
from adam_jax.sharding import specs as arithmetic
from adam_jax.sharding.placement import is_abstract, lies, placed, sharding_of
from adam_jax.sharding.specs import (
    Axes,
    axes_of,
    is_explicit,
    mesh_axes,
    named,
    partition_spec,
    place,
    require_one_kind,
    require_outside,
)

_keystr = jax.tree_util.keystr


def zero(
    inner: optax.GradientTransformation, mesh: Any, axis: str | tuple[str, ...], specs: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Divide the state of an optimizer over a data axis, along which parameters are replicated.

    Of n devices each holds an n-th of the state and makes an n-th of the step; updates, gathered
    once, lie as the parameters. Results are those of ``inner`` alone, to the rounding of sums over
    devices, in every storage format: random bits are of an element's place in the whole array.
    Norms inside of ``inner`` are of whole arrays, so put this outermost.

    A parameter is divided along one of its axes, besides what ``specs`` divides: that which divides
    most bytes of its moments, whole blocks of formats that have them; then one not divided yet;
    then the first. Over several mesh axes it is divided along one axis together, or where it cannot
    be, along one for each. What has no axis of equal parts is whole on each device; nothing is
    padded. ``print(adam_jax.sharding.plan(tx, params))`` tells what became of whom.

    For ``jit``, or no ``jit``, on Auto and Explicit meshes. ``init`` never has the whole state on a
    device, but where another ``init`` calls it outside of ``jit`` with the whole of its own. Inside
    ``shard_map`` use `scatter_mean` and `gather`.

    Args:
      inner: any optimizer.
      mesh: a `jax.sharding.Mesh` that all arrays lie on.
      axis: its axis, or axes, to divide over.
      specs: how parameters lie, if not all are replicated, for ``jit`` cannot see it: a prefix of
        their tree, of `jax.sharding.PartitionSpec`, or of what has one, such as the parameters
        themselves. Explicit meshes need none.

    Returns:
      An Optax transformation with the state of ``inner``. Its updates have their gradients' dtypes
      if those of ``inner`` do, and that is what is gathered.

    Raises:
      TypeError: an argument is of the wrong kind.
      ValueError: ``axis`` is not of the mesh, or ``specs`` not as parameters lie, where that is
        known; from ``init``, no state at all could be divided.

    References:
      Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054.

    Example:
      >>> import adam_jax, jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((8,), ("data",))
      >>> tx = zero(adam_jax.adamw(1e-3), mesh, "data")
      >>> state = tx.init({"w": jnp.zeros((64, 32))})
      >>> state[0].mu["w"].addressable_shards[0].data.shape
      (8, 32)
    """
    inner = optax.with_extra_args_support(transformation("inner", inner))
    division = Division(mesh, mesh_axes(mesh, axis), specs)
    require_one_kind(mesh)

    def init(params: optax.Params) -> Any:
        require_arrays(params)
        state = jax.eval_shape(inner.init, params)
        layout = division.of(state, params)
        layout.require_divided(division)
        if is_abstract():
            return lies(inner.init(params), jax.tree.leaves(layout.state))

        def build(params: optax.Params) -> Any:
            return jax.tree.map(place, inner.init(params), layout.state)

        return jax.jit(build, out_shardings=layout.state)(params)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        require_outside("zero", division.over)
        layout = division.of(state, updates if params is None else params)
        parts = layout.bring(updates, layout.updated)
        own = layout.bring(params, layout.updated)
        steps, new = inner.update(parts, state, own, **extra_args)
        new = jax.tree.map(place, new, layout.state)
        return layout.bring(steps, layout.lying), new

    return optax.GradientTransformationExtraArgs(init, update)


@dataclass(frozen=True)
class Layout:
    """Where all lies: parameters and their updates (by paths), their parts, and the state."""

    lying: Mapping[Path, NamedSharding]
    updated: Mapping[Path, NamedSharding]
    state: Any

    def bring(self, tree: Any, shardings: Mapping[Path, NamedSharding]) -> Any:
        """A tree like the parameters to these shardings; what is not known stays."""

        def one(path: Path, x: Any) -> Any:
            return place(x, shardings[path]) if path in shardings else x

        return jax.tree_util.tree_map_with_path(one, tree)

    def require_divided(self, division: "Division") -> None:
        """Raise where no parameter is updated in parts."""
        if self.lying == self.updated:
            shapes = "; ".join(f"params{_keystr(p)}" for p in list(self.lying)[:3])
            over = "x".join(division.over)
            raise ValueError(
                f"zero divides nothing over `{over}` ({division.size} devices): none of the"
                f" parameters ({shapes or 'there are none'}) has state that is not divided over it"
                f" already, and an axis of {division.size} equal parts"
            )


@dataclass(frozen=True)
class Division:
    """Over what the state is divided; see `zero`."""

    mesh: Any
    over: tuple[str, ...]
    specs: Any = None

    @property
    def size(self) -> int:
        """The number of parts."""
        return arithmetic.parts(self.mesh, self.over)

    def of(self, state: Any, params: optax.Params) -> Layout:
        """How a state, of arrays or shapes, is divided."""
        leaves = jax.tree_util.tree_leaves_with_path(params)
        shapes = {path: shape_of(leaf) for path, leaf in leaves}
        moments: dict[Path, list[Any]] = {path: [] for path in shapes}
        for _, _, owned in walk(state, params):
            for path, moment in owned or ():
                moments[path].append(moment)
        own = {p: self._own(p, s, x) for (p, x), s in zip(leaves, self._specs(params), strict=True)}
        new = {
            path: arithmetic.divided(own[path], shape, moments[path], self.mesh, self.over)
            for path, shape in shapes.items()
        }
        lying, updated = ({p: named(self.mesh, a) for p, a in axes.items()} for axes in (own, new))
        by_path = placed(state, params, lying, new, named(self.mesh, ()))
        shardings = jax.tree_util.tree_map_with_path(lambda path, _: by_path[path], state)
        return Layout(lying, updated, shardings)

    def _specs(self, params: optax.Params) -> list[Any]:
        """What ``specs`` has for each parameter; ``None`` if there are none."""
        if self.specs is None:
            return [None] * len(jax.tree.leaves(params))
        prefix = jax.tree.map(_spec, self.specs, is_leaf=_is_spec)
        with same_structure("`specs` must be a prefix of the parameters"):
            full = jax.tree.map(
                lambda s, part: jax.tree.map(lambda _: s, part), prefix, params, is_leaf=_is_spec
            )
        return jax.tree.leaves(full, is_leaf=_is_spec)

    def _own(self, path: Path, spec: Any, leaf: Any) -> Axes:
        """The axes of a parameter: as it is told, which must be as it is where that is known."""
        name = f"params{_keystr(path)}"
        shape = shape_of(leaf)
        told = axes_of(name, PartitionSpec() if spec is None else spec, shape, self.mesh)
        sharding = sharding_of(leaf)
        if not isinstance(sharding, NamedSharding) or sharding.mesh.shape != self.mesh.shape:
            return told
        known = axes_of(name, sharding.spec, shape, self.mesh)
        if told != known and not (spec is None and is_explicit(self.mesh)):
            given = "has none for it" if spec is None else f"has {partition_spec(told)}"
            raise ValueError(f"{name} lies as {partition_spec(known)}; `specs` {given}")
        return known


def _spec(leaf: Any) -> Any:
    """The spec of what has one."""
    sharding = getattr(leaf, "sharding", leaf)
    spec = getattr(sharding, "spec", sharding)
    if not isinstance(spec, PartitionSpec):
        raise TypeError(f"`specs` must be of PartitionSpecs, got {type(leaf).__name__}")
    return spec


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec) or hasattr(x, "sharding")
