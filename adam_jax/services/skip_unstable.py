"""Steps left out whose gradients or loss are not finite, or far above what they were.

    outlier: x > median + threshold * max(1.4826 * MAD, 0.05 * |median|), of the last finite x

The median absolute deviation from the median, MAD, times 1.4826 is the standard deviation of normal
numbers (Hampel 1974, "The Influence Curve and Its Role in Robust Estimation"); unlike it, it stays
as it is while up to half of the numbers are outliers.
"""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.hyperparameters import Scalar, number, one_of, optional_steps, transformation, whole
from adam_jax.lazy import chosen
from adam_jax.norms import given_norm, precision, real_scalar
from adam_jax.rows import Rows, is_rows, map_values
from adam_jax.states import only
from adam_jax.storage.native import narrow

_ENOUGH = 16  # values, before any is called an outlier


class SkipUnstableState(NamedTuple):
    """What `skip_unstable` remembers, to be read.

    Attributes:
      inner_state: the state of the wrapped transformation.
      skipped_in_row: how many steps up to the last one have been skipped without one between them
        that was taken; 0 once one is taken, whatever it was.
      skipped_total: how many have been skipped since ``init``.
      norm: the norm of the last gradients, skipped or not.
      norms: the last finite norms, the newest first; infinite where there are none yet. ``None``
        without a threshold.
      values: the same of the losses.
      exhausted: whether ``max_consecutive`` steps in a row have been skipped, ever, by an optimizer
        that is to keep skipping.
    """

    inner_state: Any
    skipped_in_row: Any
    skipped_total: Any
    norm: Any
    norms: Any
    values: Any
    exhausted: Any


def skip_unstable(
    inner: optax.GradientTransformation,
    *,
    threshold: Scalar | None = None,
    window: int = 128,
    max_consecutive: int | None = None,
    then: str = "let_through",
) -> optax.GradientTransformationExtraArgs:
    """Take no step where the gradients or the loss are not finite, or, if wanted, outliers.

    A step that is skipped is as if it had not been: every bit of the inner state stays as it was,
    moments, counts of schedules and all, and the updates are -0.0, which changes no bit of a
    parameter. The decision is made on the device, by selects: nothing waits for the host.

    A norm or loss is an outlier if it is above the median of those before by more than
    ``threshold`` robust standard deviations, and by more than as many twentieths of that median.
    A low one never is. Outliers enter the window too, so that a level that lasts for half of it is
    the normal one. None is called so before ``min(16, window)`` are known, nor while half of the
    window is 0, beside which nothing is usual. So before that many steps only a limit guards the
    moments: ``skip_unstable(optax.chain(clip_by_global_norm(1.0), tx), threshold=6.0)``.

    Around `accumulate` single micro-batches are skipped, each at the price of a pass over the whole
    state: of Adam, 18 times that of adding a gradient. ``accumulate(skip_unstable(tx), k)`` skips
    whole steps, by their mean, and a micro-step costs its addition.

    Args:
      inner: any optimizer, whole: what comes behind this in a chain is not skipped. It sees what is
        not finite too, but nothing is kept of that.
      threshold: above 0; a usual one is 6. ``None``: only what is not finite is skipped.
      window: how many of the last finite norms and losses to compare with.
      max_consecutive: after so many skipped steps in a row comes ``then``. ``None``: never.
      then: ``"let_through"``, the next step is taken whatever it is, and the count starts anew; or
        ``"keep_skipping"``, and the state is marked so that `check_stable` raises.

    Returns:
      An Optax transformation. Its ``update`` takes ``value``, the loss, without which it looks at
      gradients only, and ``grad_norm``, the norm where it is known already; ``inner`` gets both.
      Inside ``shard_map`` the norm is a shard's own unless it is given: give the one over all
      shards, and a ``value`` that is common to them too, such as `jax.lax.pmean` of the losses.
      Else shards skip different steps; and steps can be scanned there with both.

    Raises:
      ValueError: a number is out of its range, or ``then`` another string.
      TypeError: an argument is of the wrong kind.

    References:
      Hampel 1974, "The Influence Curve and Its Role in Robust Estimation",
      https://doi.org/10.1080/01621459.1974.10482962.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = skip_unstable(adam_jax.adam(0.1))
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, state = tx.update(jnp.array([1.0, jnp.nan]), tx.init(params), params)
      >>> [f"{x:.1f}" for x in updates], int(state.skipped_total), int(state.inner_state[0].count)
      (['-0.0', '-0.0'], 1, 0)
    """
    inner = optax.with_extra_args_support(transformation("inner", inner))
    if threshold is not None:
        threshold = number("None or a number > 0", lambda x: x > 0)("threshold", threshold)
    window = whole("window", window, "a positive integer", lambda n: n > 0)
    most = optional_steps("max_consecutive", max_consecutive)
    gives_in = one_of("then", then, ("let_through", "keep_skipping")) == "let_through"

    def init(params: optax.Params) -> SkipUnstableState:
        dtype = precision(params)
        # Arrays of their own, for donation wants none twice. Not NaN, at which `jax_debug_nans`
        # would stop.
        norms, values = [
            None if threshold is None else jnp.full([window], jnp.inf, dtype) for _ in range(2)
        ]
        in_row, total = [jnp.zeros([], jnp.int32) for _ in range(2)]
        exhausted = jnp.zeros([], jnp.bool_)
        norm = jnp.zeros([], dtype)
        return SkipUnstableState(inner.init(params), in_row, total, norm, norms, values, exhausted)

    def update(
        updates: optax.Updates,
        state: SkipUnstableState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SkipUnstableState]:
        dtype = state.norm.dtype
        norm = given_norm(extra_args.get("grad_norm"), updates, precision([state.norm, updates]))
        takes, norms = _judge(norm, state.norms, threshold)
        norm = narrow(norm, dtype)
        values = state.values
        if extra_args.get("value") is not None:
            value = real_scalar("value", extra_args["value"], dtype)
            value_is_fine, values = _judge(value, values, threshold)
            takes = takes & value_is_fine
        if most is not None and gives_in:
            takes = takes | (state.skipped_in_row >= most)
        in_row = jnp.where(takes, 0, optax.safe_increment(state.skipped_in_row))
        total = jnp.where(takes, state.skipped_total, optax.safe_increment(state.skipped_total))
        exhausted = state.exhausted
        if most is not None and not gives_in:
            exhausted = exhausted | (in_row >= most)
        kept = jax.tree.map(partial(_rows_or_none, takes), updates, is_leaf=is_rows)
        steps, new = inner.update(kept, state.inner_state, params, **extra_args)
        steps = map_values(partial(_or_nothing, takes), steps)
        new = chosen(takes, new, state.inner_state, kept)
        return steps, SkipUnstableState(new, in_row, total, norm, norms, values, exhausted)

    return optax.GradientTransformationExtraArgs(init, update)


def check_stable(state: chex.ArrayTree) -> None:
    """Raise if an optimizer has skipped too many steps in a row; call it now and then.

    It waits for the step that made the state.

    Args:
      state: of `skip_unstable` with ``max_consecutive`` and ``then="keep_skipping"``, or of an
        optimizer that has it anywhere in it.

    Raises:
      FloatingPointError: as many steps in a row as that have been skipped, since ``init``.
      ValueError: there is no such state, or more than one.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = skip_unstable(adam_jax.adam(0.1), max_consecutive=1, then="keep_skipping")
      >>> _, state = tx.update(jnp.array(jnp.inf), tx.init(jnp.array(1.0)))
      >>> check_stable(state)
      Traceback (most recent call last):
      FloatingPointError: unstable training: skipped 1 steps, too many in a row; last norm inf
    """
    found = only(state, SkipUnstableState, "skip_unstable")
    parts = found.exhausted, found.skipped_total, found.norm
    exhausted, total, norm = (np.ravel(part) for part in jax.device_get(parts))
    if exhausted.any():
        first = exhausted.argmax()  # of several under `vmap`
        raise FloatingPointError(
            f"unstable training: skipped {total[first]} steps, too many in a row;"
            f" last norm {norm[first]:.4g}"
        )


def _judge(x: jax.Array, before: Any, threshold: Scalar | None) -> tuple[jax.Array, Any]:
    """Whether a number is finite and no outlier of those before, and these with it."""
    finite = jnp.isfinite(x)
    if threshold is None:
        return finite, before
    x = narrow(x, before.dtype)
    after = jnp.where(finite, jnp.concatenate([x[None], before[:-1]]), before)
    return finite & ~_is_outlier(x, before, jnp.asarray(threshold, x.dtype)), after


@jax.jit
def _is_outlier(x: jax.Array, before: jax.Array, threshold: jax.Array) -> jax.Array:
    known = before < jnp.inf
    count = jnp.sum(known, dtype=jnp.int32)
    middle = _median(before, count)
    spread = 1.4826 * _median(jnp.where(known, jnp.abs(before - middle), jnp.inf), count)
    scale = jnp.maximum(spread, 0.05 * jnp.abs(middle))
    # Where half of them are 0 there is no scale, by which anything were far above.
    enough = (count >= min(_ENOUGH, before.size)) & (scale > 0)
    return enough & (x > middle + threshold * scale)


def _median(x: jax.Array, count: jax.Array) -> jax.Array:
    """Of the ``count`` smallest; 0 of none."""
    ordered = jnp.sort(x)
    low, high = ordered[jnp.maximum(count - 1, 0) // 2], ordered[count // 2]
    return jnp.where(count > 0, low / 2 + high / 2, 0)


def _rows_or_none(takes: jax.Array, u: Any) -> Any:
    """Rows, padding all where no step is taken, which then touches none of their table."""
    if not is_rows(u):
        return u
    indices = u.indices.astype(jnp.promote_types(u.indices.dtype, jnp.int32))
    indices, values = jnp.where(takes, indices, u.size), jnp.where(takes, u.values, 0)
    return Rows(indices, values, u.size, u.distinct)


def _or_nothing(takes: jax.Array, u: chex.Array) -> jax.Array:
    u = jnp.asarray(u)
    return jnp.where(takes, u, -jnp.zeros([], u.dtype))
