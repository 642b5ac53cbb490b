"""Parameters in bfloat16 or float16 that move, however small the step.

Near 1 the bfloat16 numbers are 2**-7 apart, and a step of Adam is smaller: rounded to nearest, the
sum is where it was. Each transformation here chooses a number q of the parameter's own dtype and
emits float32 ``q - p``, so that `optax.apply_updates`, which adds in float32 and casts back, lands
on q bit for bit. (Unless q is under 2**-13 of p, and beyond 0: then on the nearest in reach.)

Put them last, for a step that is rescaled misses q, with wrappers that may skip a step inside
(`optax.apply_if_finite`). Where nothing casts back, as in Equinox's ``apply_updates``, parameters
become float32. Those of 32 bits and more are updated as if none of this were there. Finite sums are
held at the largest number of the dtype; what is not finite is passed on; below 1.2e-38, devices may
flush to zero.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from adam_jax.hyperparameters import flag, seed_word, transformation
from adam_jax.mismatch import match_low_precision, require_low_precision
from adam_jax.storage.random_bits import fold, random_bits
from adam_jax.storage.rounding import is_low, round_to
from adam_jax.transform import columns, full_beside

_DOMAIN = np.uint32(0x70726563)  # other bits than those of moments with the same seed
_LARGEST = float(jnp.finfo(jnp.float32).max)


class StochasticRoundingState(NamedTuple):
    """How many steps are done."""

    count: Any


class KahanSummationState(NamedTuple):
    """What rounding has taken from each parameter and the next step gives back."""

    compensation: Any


class MasterWeightsState(NamedTuple):
    """Float32 parameters (or int16 remainders), and the state of the optimizer that moves them."""

    changed: Any
    checksum: Any
    master: Any
    inner_state: Any


def stochastic_rounding(seed: Any = 0) -> optax.GradientTransformationExtraArgs:
    """Sums rounded by chance, up as often as their share of the way says: right on average.

    The last member of a chain: before another one it does nothing, and cannot tell. It has no
    memory. Its noise is up to half a unit of the parameter a step: 16 random bits decide for
    bfloat16 and 13 for float16, the same eager, jitted and sharded.

    Gradients of bfloat16 parameters are bfloat16, and so are then the updates of `adam_jax.adam`,
    to 2**-9 of themselves: enough for a step. It is the sum that would lose it. Widen the gradients
    for float32 steps.

    Args:
      seed: an integer in [0, 2**32), or a scalar array of integers.

    Raises:
      ValueError: ``update`` has no parameters, or trees or shapes that differ; in the others here
        also, the state is of parameters of another dtype or shape, which the error names.
      TypeError: a parameter has less than 16 bits; an argument is of the wrong kind.

    References:
      Zamirai et al. 2020, "Revisiting BFloat16 Training", https://arxiv.org/abs/2010.06192.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx, params = stochastic_rounding(), jnp.ones(10_000, jnp.bfloat16)
      >>> updates, state = tx.update(jnp.full(10_000, 1e-3), tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)  # each 1, or 1 + 2**-7
      >>> f"{params.astype(jnp.float32).mean():.4f}"
      '1.0010'
    """
    word = seed_word("seed", seed)

    def init(params: optax.Params) -> StochasticRoundingState:
        require_low_precision("stochastic_rounding", params)
        return StochasticRoundingState(jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, StochasticRoundingState]:
        del extra_args
        treedef, rows = match_low_precision(StochasticRoundingState, updates, state, params)
        count = optax.safe_increment(state.count)
        key = fold(word, _DOMAIN, count)
        moved = [
            _by_chance(key, index, p, u) if moves else u
            for index, (moves, u, p, _) in enumerate(rows)
        ]
        return treedef.unflatten(moved), StochasticRoundingState(count)

    return optax.GradientTransformationExtraArgs(init, update)


def kahan_summation() -> optax.GradientTransformationExtraArgs:
    """Sums rounded to nearest, whose errors are kept, and given back with the next step.

    The last member of a chain: before another one it does nothing, and cannot tell. The errors rest
    in bfloat16, which has float32's range: 8 bits below the parameter's own. (`master_weights`
    keeps 16 in the same memory, with ``remainder``.) Whoever changes parameters makes a new state,
    or gets up to half a unit of the old ones with the new.

    References:
      Zamirai et al. 2020, "Revisiting BFloat16 Training", https://arxiv.org/abs/2010.06192; Kahan
      1965, "Further remarks on reducing truncation errors", https://doi.org/10.1145/363707.363723.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx, params = kahan_summation(), jnp.ones([], jnp.bfloat16)
      >>> state = tx.init(params)
      >>> for _ in range(1000):
      ...     updates, state = tx.update(jnp.float32(1e-3), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> float(params)  # and 1.0 without
      2.0
    """

    def init(params: optax.Params) -> KahanSummationState:
        require_low_precision("kahan_summation", params)
        return KahanSummationState(_keep(lambda p: full_beside(p, 0, jnp.bfloat16), params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, KahanSummationState]:
        del extra_args
        treedef, rows = match_low_precision(
            KahanSummationState, updates, state, params, "compensation", jnp.bfloat16
        )
        new = [_compensate(p, u, c) if moves else (u, c) for moves, u, p, c in rows]
        moved, compensation = columns(treedef, new, 2)
        return moved, KahanSummationState(compensation)

    return optax.GradientTransformationExtraArgs(init, update)


def master_weights(
    inner: optax.GradientTransformation, *, remainder: bool = False, detect_changes: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Parameters in float32 for the optimizer, kept in its state, and rounded for the model.

    ``inner`` sees gradients and parameters in float32. The model's land on them rounded to nearest,
    ties away from zero: 65,536 float32 numbers round so to each bfloat16 (to even, it would be
    65,537 to some), and so 16 bits, the lower half of the pattern, rebuild them exactly. That is
    ``remainder``: half the memory, and no bit of training changes.

    Checkpoint state and parameters together; a new state begins at the parameters as they are. If
    you change parameters between steps, one that is not its master rounded becomes its master; a
    rebuilt master always rounds to its parameter, whence a change leaves it the old remainder, up
    to half a unit. ``changed`` in the state counts the steps that found parameters other than they
    were left. Where that is not 0 and nobody did it, steps miss: something rescales them.

    Args:
      inner: an Optax transformation that makes whole steps, such as `adam_jax.adamw`.
      remainder: whether to keep 16 bits of a bfloat16 parameter instead of 32.
      detect_changes: whether to count them, by a checksum: it costs a pass over the parameters and,
        where they are sharded, a sum over devices of one integer a leaf. Inside `jax.shard_map`
        each device would have its own, so there it must be off; ``changed`` is then 0.

    References:
      Micikevicius et al. 2018, "Mixed Precision Training", https://arxiv.org/abs/1710.03740. The
      remainder is ``store_param_remainders`` of the FusedAdam in NVIDIA's Transformer Engine.

    Example:
      >>> import adam_jax, jax.numpy as jnp, optax
      >>> tx = master_weights(adam_jax.adam(1e-3), remainder=True)
      >>> params = jnp.ones([], jnp.bfloat16)
      >>> state = tx.init(params)
      >>> for _ in range(1000):
      ...     updates, state = tx.update(jnp.bfloat16(-1), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> float(params), int(state.changed)  # and 1.0 without
      (2.0, 0)
    """
    inner = optax.with_extra_args_support(transformation("inner", inner))
    dtype = jnp.int16 if flag("remainder", remainder) else jnp.float32
    detect_changes = flag("detect_changes", detect_changes)

    def init(params: optax.Params) -> MasterWeightsState:
        require_low_precision("master_weights", params, remainder)
        # Widened twice: `inner` may keep what it sees, and no two arrays of a state may be one.
        wide = jax.tree.map(lambda p: _widen(p) if is_low(p) else p, params)
        master = _keep(lambda p: full_beside(p, 0, dtype) if remainder else _widen(p), params)
        checksum = _checksum(params, detect_changes)
        return MasterWeightsState(jnp.zeros([], jnp.int32), checksum, master, inner.init(wide))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, MasterWeightsState]:
        treedef, rows = match_low_precision(
            MasterWeightsState, updates, state, params, "master", dtype
        )
        masters = [_master(p, m) if moves else p for moves, _, p, m in rows]
        wide = [_widen(u) if is_low(u) else u for _, u, _, _ in rows]
        steps, inner_state = inner.update(
            treedef.unflatten(wide), state.inner_state, treedef.unflatten(masters), **extra_args
        )
        each = zip(rows, masters, treedef.flatten_up_to(steps), strict=True)
        new = [_advance(p, x, u, m) if moves else (u, p, m) for (moves, _, p, m), x, u in each]
        moved, landed, master = columns(treedef, new, 3)
        same = _checksum(params, detect_changes) == state.checksum
        changed = jnp.where(same, state.changed, optax.safe_increment(state.changed))
        checksum = _checksum(landed, detect_changes)
        return moved, MasterWeightsState(changed, checksum, master, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


@jax.custom_jvp
def _rebuild(x: jax.Array, remainder: jax.Array) -> jax.Array:
    """The float32 number that rounds to the bfloat16 ``x`` and ends in ``remainder``."""
    upper = lax.bitcast_convert_type(x, jnp.uint32)
    lower = lax.bitcast_convert_type(remainder.astype(jnp.int32), jnp.uint32)
    pattern = upper + lower
    # There is none beyond infinity or below zero, where the sign turns: this is of another `x`.
    own = jnp.isfinite(x) & ((pattern ^ upper) < jnp.uint32(2**31))
    return jnp.where(own, lax.bitcast_convert_type(pattern, jnp.float32), x)


_rebuild.defjvps(lambda tangent, *_: tangent, None)


@jax.custom_jvp
def _difference(q: jax.Array, x: jax.Array) -> jax.Array:
    # -0 is what leaves every number as it is: -0 + 0 is 0.
    return jnp.where(q == x, -0.0, jnp.clip(q - x, -_LARGEST, _LARGEST))


_difference.defjvps(lambda tangent, *_: tangent, lambda tangent, *_: -tangent)


def _land(x: jax.Array, u: jax.Array, q: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The update from ``x`` to ``q`` or next to it, and where it lands; ``u`` where not finite."""
    finite = jnp.isfinite(x) & jnp.isfinite(u)
    landing = round_to(x + _difference(q, x), dtype)
    return jnp.where(finite, _difference(landing, x), u), jnp.where(finite, landing, x + u)


@jax.jit
def _widen(x: jax.Array) -> jax.Array:
    # Rounded too, for XLA may have left out the cast that made it.
    return round_to(x.astype(jnp.float32), x.dtype)


@jax.jit
def _by_chance(key: jax.Array, index: Any, p: jax.Array, u: jax.Array) -> jax.Array:
    x, u = _widen(p), u.astype(jnp.float32)
    total = jnp.clip(x + u, -_LARGEST, _LARGEST)
    q = round_to(total, p.dtype, random_bits(fold(key, index), p.shape))
    return _land(x, u, q, p.dtype)[0]


@jax.jit
def _compensate(p: jax.Array, u: jax.Array, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, u = _widen(p), u.astype(jnp.float32)
    due = u + kept.astype(jnp.float32)
    total = jnp.clip(x + due, -_LARGEST, _LARGEST)
    update, _ = _land(x, u, round_to(total, p.dtype), p.dtype)
    # What does not fit, or is not finite, leaves nothing.
    fits = jnp.abs(total) <= float(jnp.finfo(p.dtype).max)
    return update, round_to(jnp.where(fits, due - update, 0), kept.dtype).astype(kept.dtype)


@jax.jit
def _master(p: jax.Array, kept: jax.Array) -> jax.Array:
    """The float32 parameter that rounds to ``p``: the one kept, where that does."""
    x = _widen(p)
    if kept.dtype == jnp.int16:
        return _rebuild(x, kept)
    return jnp.where(round_to(kept, p.dtype) == x, kept, x)


@jax.jit
def _advance(p: jax.Array, master: jax.Array, u: jax.Array, kept: jax.Array) -> tuple[Any, ...]:
    """The update, where it lands, and what is kept of the new master."""
    x, u = _widen(p), u.astype(jnp.float32)
    largest = float(jnp.finfo(p.dtype).max)
    new = jnp.clip(master + u, -largest, largest)
    update, landing = _land(x, u, round_to(new, p.dtype), p.dtype)
    if kept.dtype == jnp.int16:
        lower = lax.bitcast_convert_type(new, jnp.uint32).astype(jnp.uint16)
        new = lax.bitcast_convert_type(lower, jnp.int16)
    return update, landing.astype(p.dtype), new


@jax.jit
def _leaf_checksum(index: Any, p: jax.Array) -> jax.Array:
    # The weights are odd, so that what differs in one element always differs in the sum. Zero has
    # two signs and devices may flush subnormals: only normal numbers count.
    x = _widen(p)
    normal = jnp.isfinite(x) & (jnp.abs(x) >= float(jnp.finfo(jnp.float32).tiny))
    pattern = jnp.where(normal, lax.bitcast_convert_type(x, jnp.uint32), 0)
    return jnp.sum(pattern * (random_bits(fold(index), p.shape) | 1), dtype=jnp.uint32)


def _checksum(params: optax.Params, wanted: bool) -> jax.Array:
    low = [p for p in jax.tree.leaves(params) if is_low(p)] if wanted else []
    return sum(map(_leaf_checksum, range(len(low)), low), start=jnp.zeros([], jnp.uint32))


def _keep(make: Callable[[jax.Array], jax.Array], params: optax.Params) -> Any:
    """What the state holds of each parameter: nothing, where it needs no help."""
    return jax.tree.map(lambda p: make(p) if is_low(p) else optax.MaskedNode(), params)
