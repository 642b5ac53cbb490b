"""Accumulation: many micro-batches make one step, of the mean of their gradients.

    m = sum(w * g) / sum(w), as a running mean; the step is of m

of micro-gradients g with weights w. Up to the step a micro-batch costs what adding it up costs.
"""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from adam_jax.hyperparameters import Scalar, Schedule, brief, nonnegative, transformation, whole
from adam_jax.mismatch import require_float, require_gradients
from adam_jax.norms import precision, real_scalar
from adam_jax.services.running_mean import narrow_like, running_mean, widen
from adam_jax.states import like
from adam_jax.storage.native import cast
from adam_jax.transform import full_beside


class AccumulateState(NamedTuple):
    """How far the next step is, and the state of the optimizer that takes it.

    Attributes:
      micro_step: micro-batches since the last full step.
      full_steps: full steps so far.
      weight: of these micro-batches together. Where it is 0 there are none, whatever
        ``accumulator`` holds.
      accumulator: the mean of their gradients.
      inner_state: of the optimizer.
    """

    micro_step: Any
    full_steps: Any
    weight: Any
    accumulator: Any
    inner_state: Any


def accumulate(
    inner: optax.GradientTransformation,
    steps: int | jax.Array | Schedule,
    *,
    accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Let the optimizer step once for many gradients, with their mean.

    Between two steps ``inner`` does not run: its counts and its schedules are of full steps. It is
    given the mean as exact as it was taken, and what it then emits is cast to the dtype that it
    would have had for gradients of the caller's.

    ``update`` takes, by keyword, ``weight``: how much this gradient counts beside the others, such
    as its number of tokens, by default 1. One of weight 0 does not count, even if it is NaN.

    And ``full_step``: ``False`` only adds, ``True`` steps now, as the last batch of an epoch may
    want. Both are static: each leaves the other out of the program. A scalar array of booleans
    decides at run time, and so does ``steps`` where nothing is given; GPUs wait for the host there.

    In one ``jit`` with `optax.apply_updates`, the state donated, a gradient between two steps costs
    its addition to the mean and nothing else; where it is decided at run time, and not on a CPU,
    also a pass over the parameters. Moments of few bits want `adam_jax.compiler_options` for that.

    So what measures or skips whole steps stands inside: ``accumulate(with_metrics(inner), k)``, as
    `with_metrics` tells, and ``accumulate(skip_unstable(inner), k)``, where one bad micro-batch
    costs the whole step. Outside, `skip_unstable` leaves out the single micro-batch, and chooses at
    each between two states of ``inner``, moment by moment: of Adam, at the price of 18 additions.

    All other arguments go to ``inner`` with the gradient that completes a step, but for
    ``grad_norm``: of that gradient it is, and not of the mean. So where shards of parameters differ
    (inside ``shard_map``), what wants a norm over all of them belongs outside of this. A full step
    of no weight at all is a step by a gradient of 0: moments and weight decay take it.

    Args:
      inner: any optimizer.
      steps: how many gradients make a full step; or a schedule of it, from the number of full steps
        that are done, for batches that grow.
      accumulator_dtype: of the mean between two gradients. By default float32, or the parameter's
        where that is wider. In bfloat16 a mean of more than some 100 gradients stands still.

    Returns:
      An Optax transformation. Its updates are zeros until a step is full.

    Raises:
      TypeError: an argument is of the wrong kind; a leaf is no floating or complex array.
      ValueError: ``steps`` is below 1; trees or shapes differ.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = accumulate(optax.sgd(0.1), steps=2)
      >>> params = jnp.array([1.0, 2.0])
      >>> state = tx.init(params)
      >>> for gradient in jnp.array([[1.0, 2.0], [3.0, 6.0]]):
      ...     updates, state = tx.update(gradient, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(int(state.micro_step), int(state.full_steps), [f"{p:.1f}" for p in params])
      1 0 ['1.0', '2.0']
      0 1 ['0.8', '1.6']
    """
    inner = optax.with_extra_args_support(transformation("inner", inner))
    steps = _steps(steps)
    _require_dtype(accumulator_dtype)

    def init(params: optax.Params) -> AccumulateState:
        require_float(params)
        start = partial(_start, dtype=accumulator_dtype)
        zero = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32), jnp.zeros([], precision(params))
        return AccumulateState(*zero, jax.tree.map(start, params), inner.init(params))

    def update(
        updates: optax.Updates,
        state: AccumulateState,
        params: optax.Params | None = None,
        *,
        weight: Any = None,
        full_step: Any = None,
        grad_norm: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AccumulateState]:
        del grad_norm  # of this gradient, and not of the mean
        _require_state(updates, state)
        full = _is_full(full_step, state, steps)
        weight = _weight(weight, state.weight.dtype)

        def act(gradients: chex.ArrayTree) -> tuple[chex.ArrayTree, Any]:
            emitted, inner_state = inner.update(gradients, state.inner_state, params, **extra_args)
            return emitted, like(inner_state, state.inner_state)

        wanted, _ = jax.eval_shape(act, updates)
        mean = running_mean(state.weight, weight, state.accumulator, updates)
        mean = narrow_like(mean, state.accumulator)
        emitted, accumulator, inner_state = _either(full, act, mean, state.inner_state, wanted)
        done = optax.safe_increment(state.full_steps)
        return emitted, AccumulateState(
            jnp.where(full, 0, optax.safe_increment(state.micro_step)),
            jnp.where(full, done, state.full_steps),
            jnp.where(full, 0, state.weight + weight),
            accumulator,
            inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _either(
    full: bool | jax.Array, act: Any, mean: chex.ArrayTree, inner_state: Any, wanted: chex.ArrayTree
) -> tuple[chex.ArrayTree, chex.ArrayTree, Any]:
    """The updates in the dtypes that are wanted, the accumulator and the inner state.

    Either way leaves one array a parameter: the mean or, when that is not needed any more, the
    update. So a conditional passes everything on in place, and the zeros between two steps are made
    in the loop that applies them. As arrays of their own they cost several times what the addition
    does, for memory to get, to write and to read. The price: after a step that was decided at run
    time the accumulator holds the update. Its weight is 0, and nobody reads it.
    """
    room = jax.tree.map(_room, mean, wanted)

    def add() -> tuple[chex.ArrayTree, Any]:
        return narrow_like(mean, room), inner_state

    def step() -> tuple[chex.ArrayTree, Any]:
        emitted, new = act(jax.tree.map(widen, mean))
        return narrow_like(emitted, room), new

    if isinstance(full, bool):
        either, new = step() if full else add()
    else:
        either, new = lax.cond(full, step, add)
    # p - 0 is p to the bit, also where p is -0. CPUs skip the loop of such a sum, which is compiled
    # for either way; but where the way is known before, it is a sum with +0 that XLA leaves out.
    zero = 0.0 if full is False else -0.0
    emitted = jax.tree.map(lambda x: jnp.where(full, x, jnp.full_like(x, zero)), either)
    if full is True:
        either = jax.tree.map(lambda m: full_beside(m, 0), mean)
    return narrow_like(emitted, wanted), narrow_like(either, mean), new


def _room(mean: jax.Array, update: Any) -> jax.ShapeDtypeStruct:
    """What holds both."""
    with jax.numpy_dtype_promotion("standard"):
        return jax.ShapeDtypeStruct(mean.shape, jnp.promote_types(mean.dtype, update.dtype))


def _start(p: Any, dtype: Any) -> jax.Array:
    zero: jax.Array = full_beside(widen(p), 0)
    return zero if dtype is None else cast(zero, dtype)


def _steps(steps: Any) -> Any:
    rule = "a positive integer or a schedule"
    if callable(steps):
        return steps
    if isinstance(steps, jax.Array) and not steps.shape and jnp.isdtype(steps.dtype, "integral"):
        return steps
    return whole("steps", steps, rule, lambda n: n > 0)


def _require_dtype(dtype: Any) -> None:
    try:
        fits = dtype is None or jnp.finfo(dtype).bits >= 16
    except (TypeError, ValueError):
        fits = False
    if not fits:
        rule = "None or a floating dtype of 16 bits or more"
        raise TypeError(f"`accumulator_dtype` must be {rule}, got {brief(dtype)}")


def _require_state(updates: optax.Updates, state: Any) -> None:
    if getattr(state, "_fields", None) != AccumulateState._fields:
        raise TypeError(f"state must be AccumulateState, got {type(state).__name__}")
    require_gradients(updates, state.accumulator)
    flat: tuple[Any, Any] = jax.tree_util.tree_flatten_with_path(state.accumulator)
    leaves, treedef = flat
    for (path, mean), g in zip(leaves, treedef.flatten_up_to(updates), strict=True):
        where = f"params{jax.tree_util.keystr(path)}"
        if g is None:
            raise ValueError(f"no gradient for {where}, which is in the state")
        if jnp.iscomplexobj(g) != jnp.iscomplexobj(mean):
            dtype = jnp.result_type(g)
            raise TypeError(f"gradient for {where} is {dtype}; the state has {mean.dtype}")


def _weight(weight: Any, dtype: Any) -> Scalar:
    if weight is None:
        return 1.0
    if not isinstance(weight, jax.Array):
        weight = nonnegative("weight", weight)
    return real_scalar("weight", weight, dtype)


def _is_full(full_step: Any, state: AccumulateState, steps: Any) -> bool | jax.Array:
    """Whether this gradient completes a step, if that is known: else an array."""
    if full_step is None:
        if not callable(steps) and not isinstance(steps, jax.Array) and steps == 1:
            return True
        wanted = steps(state.full_steps) if callable(steps) else steps
        with jax.numpy_dtype_promotion("standard"):
            full: jax.Array = optax.safe_increment(state.micro_step) >= wanted
        return full
    if isinstance(full_step, np.ndarray | np.generic) and not full_step.shape:
        full_step = full_step.item()
    if isinstance(full_step, bool):
        return full_step
    if isinstance(full_step, jax.Array) and full_step.shape == () and full_step.dtype == bool:
        return full_step
    rule = "None, True or False, or a scalar array of booleans"
    raise TypeError(f"`full_step` must be {rule}, got {brief(full_step)}")
