"""State that rests in the host's memory between two steps.

Of n bytes that are moved, 2n cross the bus at every step: worth it where the device's memory, and
not its time, is short. XLA overlaps it with what else there is to do.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.hyperparameters import transformation
from adam_jax.ownership import Path, walk
from adam_jax.parts import shape_of
from adam_jax.services.path_rules import predicate
from adam_jax.sharding.placement import is_abstract, lies, placed, sharding_of
from adam_jax.sharding.specs import HOST


def offload(
    inner: optax.GradientTransformation, rule: str | Callable[[Any, Any], bool] = ""
) -> optax.GradientTransformationExtraArgs:
    """Keep the moments of some parameters in pinned memory of the host between two steps.

    They go to the device for the step, which is the same to the bit, and back. What belongs to no
    parameter stays on the device. Put it around `zero`, and not inside.

    A ``jit`` that donates such a state wants ``out_shardings`` for all of its results, of the state
    those of `adam_jax.sharding.state_shardings`, and arguments that are on their devices by choice
    (`jax.device_put`): else JAX (0.10 too) gives memory of the host to results that belong on a
    device, and the process aborts.

    Args:
      inner: any optimizer.
      rule: which parameters: a regular expression that their names, as of
        `adam_jax.leaves.path_name`, are searched for; or a function ``(path, leaf) -> bool``, of
        the path as of `jax.tree_util.tree_map_with_path` and a `jax.ShapeDtypeStruct`. By default
        all.

    Returns:
      An Optax transformation with the state of ``inner``. Outside of it, such arrays take part in
      no arithmetic before ``jax.device_put(x, jax.memory.Space.Device)``.

    Raises:
      TypeError: an argument is of the wrong kind.
      ValueError: the backend has no such memory, or this JAX cannot name it; from ``init``, the
        rule takes no parameter that has state.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = offload(adam_jax.adam(1e-3), "embed")
      >>> state = tx.init({"embed": jnp.zeros((8, 4)), "out": jnp.zeros(4)})
      >>> [state[0].nu[name].sharding.memory_kind for name in ("embed", "out")]
      ['pinned_host', 'device']
    """
    inner = optax.with_extra_args_support(transformation("inner", inner))
    name, matches = predicate("`rule`", rule)

    def chosen(state: Any, params: optax.Params) -> set[Path]:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        shapes = {p: jax.ShapeDtypeStruct(shape_of(x), jnp.result_type(x)) for p, x in leaves}
        taken = {path for path, shape in shapes.items() if matches(path, shape)}
        return {
            path + owner
            for path, _, owned in walk(state, params)
            for owner, _ in owned or ()
            if owner in taken
        }

    def init(params: optax.Params) -> Any:
        state = inner.init(params)
        where = chosen(state, params)
        if jax.tree.leaves(params) and not where:
            raise ValueError(f"`rule` {name!r} takes no parameter that has state")
        host = _moved(state, where, _spaces().Host)
        if is_abstract():
            return lies(host, _lying(state, params, where))
        return host

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        where = chosen(state, updates if params is None else params)
        here = _moved(state, where, _spaces().Device)
        steps, new = inner.update(updates, here, params, **extra_args)
        return steps, _moved(new, where, _spaces().Host)

    return optax.GradientTransformationExtraArgs(init, update)


def _moved(state: Any, where: set[Path], space: Any) -> Any:
    """The state with those parts of it that are at these paths in another memory."""

    def one(path: Path, x: Any) -> Any:
        return jax.device_put(x, space) if _is_at(path, where) else x

    return jax.tree_util.tree_map_with_path(one, state)


def _lying(state: Any, params: optax.Params, where: set[Path]) -> list[Any]:
    """Where the arrays of a state lie that is computed abstractly, once it has been moved."""
    known = {p: sharding_of(x) for p, x in jax.tree_util.tree_leaves_with_path(params)}
    beside = placed(state, params, known, {})
    found = []
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        sharding = sharding_of(x) or beside[path]
        host = sharding is not None and _is_at(path, where)
        found.append(sharding.with_memory_kind(HOST) if host else sharding)
    return found


def _is_at(path: Path, where: set[Path]) -> bool:
    return any(path[: len(p)] == p for p in where)


def _spaces() -> Any:
    """The memories that JAX can name."""
    kinds = _memory_kinds()
    if HOST not in kinds:
        has = ", ".join(sorted(kinds)) or "none that it names"
        raise ValueError(f"offload needs memory of kind `{HOST}`; this backend has {has}")
    if not hasattr(jax, "memory"):
        raise ValueError(f"offload needs `jax.memory`, which JAX {jax.__version__} does not have")
    return jax.memory.Space


def _memory_kinds() -> set[str]:
    return {memory.kind for memory in jax.local_devices()[0].addressable_memories()}
