"""What Adam does to rows in the steps in which they have no gradient: all of them at once.

    mu_s = b1 mu_(s-1);  nu_s = b2 nu_(s-1);  p_s = (1 - lost_s) p_(s-1) - rate_s direction_s

Of n steps the moments are ``b**n`` times what they were. The parameters' way is a sum of n terms,
which fall off by about b1 / sqrt(b2), for the momentum decays faster than the root of the mean
square: the terms after `terms` are, together, less than the rounding of the first.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adam_jax.hyperparameters import DYNAMIC, Scalar, Schedule
from adam_jax.rule import log
from adam_jax.rules.adam import Adam

# Steps whose rates are computed at once.
_CHUNK = 512


@dataclass(frozen=True)
class Rates:
    """The learning rate and the decay, whose product is the share that a step takes off.

    Attributes:
      learning_rate: a number, or a schedule of the count of steps before.
      weight_decay: likewise; ``None`` if there is none.
    """

    learning_rate: Scalar | Schedule
    weight_decay: Scalar | Schedule | None

    @property
    def vary(self) -> bool:
        """Whether steps differ in them."""
        return callable(self.learning_rate) or callable(self.weight_decay)

    def at(self, count: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array | None]:
        """The learning rate, and the share that is lost, for each count of steps before."""
        rate = _at(self.learning_rate, count, dtype)
        if self.weight_decay is None:
            return rate, None
        return rate, rate * _at(self.weight_decay, count, dtype)


def _at(rate: Scalar | Schedule, count: jax.Array, dtype: Any) -> jax.Array:
    # A schedule is a function of one count.
    found = jax.vmap(rate)(count) if callable(rate) else rate
    return jnp.broadcast_to(jnp.asarray(found, dtype), count.shape)


def left(b: Scalar, steps: jax.Array, dtype: Any) -> jax.Array:
    """``b**steps``: what so many steps without a gradient leave of an average.

    Its relative error is that of the exponent's rounding, ``steps * log(b)`` times 6e-8.
    """
    with jax.numpy_dtype_promotion("standard"):
        factor: jax.Array = jnp.exp(steps.astype(dtype) * jnp.asarray(log(b), dtype))
        # Not 0 times infinity, nor e**-690: without a step all is left.
        return jnp.where(steps == 0, 1, factor)


def terms(rule: Adam, dtype: Any) -> int | None:
    """After how many terms the others are, together, less than a rounding of the first.

    ``None`` where that is not known, for b1 or b2 may change, or b1 is not below sqrt(b2).

    >>> terms(Adam(0.9, 0.999, 1e-8), jnp.float32), terms(Adam(0.9, 0.8, 1e-8), jnp.float32)
    (207, None)
    """
    if isinstance(rule.b1, DYNAMIC) or isinstance(rule.b2, DYNAMIC) or rule.b1**2 >= rule.b2:
        return None
    if rule.b1 == 0:
        return 1
    ratio = rule.b1 / math.sqrt(rule.b2)
    # The corrections can make later terms longer than the first, by no more than 1 / sqrt(1 - b2).
    enough = float(jnp.finfo(dtype).eps) * (1 - ratio) * math.sqrt(1 - rule.b2)
    return math.ceil(math.log(enough) / math.log(ratio))


def drift(
    rule: Adam,
    rates: Rates,
    p: jax.Array | None,
    mu: jax.Array,
    nu: jax.Array,
    last: jax.Array,
    skipped: jax.Array,
) -> jax.Array:
    """How far parameters move in the steps that their rows have skipped.

    Args:
      rule: Adam.
      rates: of the steps.
      p: the parameters after step ``last``, float32 or wider; not needed without decay.
      mu: the mean gradient after it.
      nu: the mean square after it.
      last: for each row the last step that it had; its next one is step ``last + 1``.
      skipped: for each row how many steps since then; 0 for none.
    """
    dtype = nu.dtype
    most = terms(rule, dtype)
    some = skipped if most is None else jnp.minimum(skipped, most)
    some = jnp.where(last > 0, some, 0)  # before the first gradient moments are 0
    with jax.numpy_dtype_promotion("standard"):
        moved = _by_momentum(rule.astype(dtype), rates, p, (mu, nu), last, some)
        if rates.weight_decay is None or p is None:
            return moved
        kept = _log_kept(rates, last + some, skipped - some, dtype)
        return moved + (p + moved) * jnp.expm1(column(kept, mu.ndim))


def column(x: jax.Array, ndim: int) -> jax.Array:
    """A number for each row, with as many axes as the rows have."""
    return x.reshape(-1, *[1] * (ndim - 1))


def _by_momentum(
    rule: Adam, rates: Rates, p: Any, moments: Any, last: jax.Array, steps: jax.Array
) -> jax.Array:
    """The sum of the first ``steps`` of each row's steps, one after another."""
    mu, dtype = moments[0], moments[1].dtype
    zero = jnp.zeros_like(mu)

    def go_on(carry: Any) -> Any:
        return carry[0] < jnp.max(steps, initial=0)

    def step(carry: Any) -> Any:
        done, moved, *before = carry
        t = column((last + done + 1).astype(dtype), mu.ndim)
        c = tuple(jnp.asarray(x, dtype) for x in rule.coefficients(t))
        direction, *after = rule.update(c, zero, *before)
        rate, lost = rates.at(last + done, dtype)
        way = -column(rate, mu.ndim) * direction
        if lost is not None:
            way = way - column(lost, mu.ndim) * (p + moved)
        takes = column(done < steps, mu.ndim)
        return done + 1, jnp.where(takes, moved + way, moved), *after

    moved: jax.Array = lax.while_loop(go_on, step, (jnp.int32(0), zero, *moments))[1]
    return moved


def _log_kept(rates: Rates, start: jax.Array, steps: jax.Array, dtype: Any) -> jax.Array:
    """The logarithm of the share of parameters that decay leaves, of each row's steps.

    Where rates vary it is a number a step from the first one that is skipped on, once for all rows,
    of which each takes the sum over its own; a chunk of steps at a time, whose sums are short.
    """

    def logarithm(count: jax.Array) -> jax.Array:
        lost: Any = rates.at(count, dtype)[1]
        # Not -inf, of which differences of sums would be NaN; its exponential is 0 too.
        return jnp.maximum(jnp.log1p(-lost), -800)

    if not rates.vary:
        return jnp.where(steps == 0, 0, steps.astype(dtype) * logarithm(start))

    end = jnp.max(start + steps, initial=0)

    def go_on(carry: Any) -> Any:
        return carry[0] < end

    def chunk(carry: Any) -> Any:
        first, kept = carry
        count = first + jnp.arange(_CHUNK, dtype=jnp.int32)
        # Not of steps that are still to come, of which a schedule may know nothing.
        each = jnp.where(count < end, logarithm(jnp.minimum(count, end - 1)), 0)
        sums = jnp.concatenate([jnp.zeros(1, dtype), jnp.cumsum(each)])
        low, high = (jnp.clip(x - first, 0, _CHUNK) for x in (start, start + steps))
        return first + _CHUNK, kept + (sums[high] - sums[low])

    begin = jnp.min(jnp.where(steps > 0, start, end), initial=jnp.iinfo(jnp.int32).max)
    zero = jnp.zeros(start.shape, dtype)
    kept: jax.Array = lax.while_loop(go_on, chunk, (begin.astype(jnp.int32), zero))[1]
    return kept
