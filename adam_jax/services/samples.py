"""What is measured of a sample of each leaf: some hundred entries, always the same, evenly spaced.

    eps_share = the share of entries with sqrt(nu_hat) < eps
    signal_to_noise = the mean of |mu_hat| / sqrt(nu_hat)
    effective_learning_rate = quantiles of |u| / |mu_hat|

with Adam's corrections: mu_hat = mu / (1 - b1**t), nu_hat = nu / (1 - b2**t). So no stored moment
is decoded as a whole, and nothing large is sorted.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adam_jax.explicit import laid
from adam_jax.norms import precision
from adam_jax.rule import safe_divide, spread
from adam_jax.rules.adam import Adam
from adam_jax.storage.at_rest import decoded

# Entries of all leaves together, in equal shares; but no less of a leaf than this.
_TOGETHER, _EACH = 2048, 256
_QUANTILES = {"05": 0.05, "50": 0.5, "95": 0.95}
_NAMES = ("eps_share", "signal_to_noise", *(f"effective_learning_rate_{q}" for q in _QUANTILES))
_BITS = np.asarray([1 << i for i in reversed(range(31))], np.int32)
_HELD = 1e38  # for finite ratios that are larger: a mean of them is finite too


class Samples(NamedTuple):
    """Entries of |u|, |mu| and nu, a row a leaf, filled up with zeros; and the moments' step."""

    u: jax.Array
    mu: jax.Array
    nu: jax.Array
    t: jax.Array


def sample(
    updates: Sequence[jax.Array], moments: Sequence[Any], counts: Sequence[jax.Array]
) -> tuple[Samples, np.ndarray]:
    """The samples of some leaves, of which there is one, and each has an entry.

    Args:
      updates: the leaves' updates.
      moments: for each ``(mu, nu)``, as the state holds them.
      counts: for each the steps that they have seen.

    Returns:
      The samples, and for how many entries of its leaf each of theirs stands: static.
    """
    most = max(_TOGETHER // len(updates), _EACH)
    rows = [_entries(u, *both, most) for u, both in zip(updates, moments, strict=True)]
    sizes = [row[0].size for row in rows]
    weights = np.zeros((len(rows), max(sizes)))
    for row, u, size in zip(weights, updates, sizes, strict=True):
        row[:size] = u.size / size
    u, mu, nu = (
        jnp.stack([jnp.pad(x, (0, max(sizes) - x.size)) for x in column])
        for column in zip(*rows, strict=True)
    )
    alone = len({id(count) for count in counts}) == 1
    return Samples(u, mu, nu, counts[0] if alone else jnp.stack(counts)[:, None]), weights


def of_samples(
    rule: Adam, samples: Samples, weights: np.ndarray
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The metrics of all leaves together, scalars, and those of each leaf, vectors."""
    weight = jnp.asarray(weights / weights.sum(), jnp.float32)
    share = jnp.sum(weight, axis=1)
    below_eps, signal_to_noise, rate, has_rate = _read(rule, samples)
    means = [jnp.sum(weight * x, axis=1) for x in (below_eps, signal_to_noise)]
    has_rate = weight * has_rate
    rates = _quantiles(rate, has_rate)
    (all_rates,) = _quantiles(rate.reshape(1, -1), has_rate.reshape(1, -1)).T
    together = [*(jnp.sum(mean) for mean in means), *all_rates]
    each = [*(mean / share for mean in means), *rates]
    return dict(zip(_NAMES, together, strict=True)), dict(zip(_NAMES, each, strict=True))


def _read(rule: Adam, samples: Samples) -> tuple[jax.Array, ...]:
    """Of each entry whether it is below eps, its signal to noise, its rate, and if it has one."""
    dtype = precision(samples[:3])
    u, mu, size = samples.u.astype(dtype), samples.mu.astype(dtype), samples.nu.astype(dtype)
    size = jnp.sqrt(size)
    # Not yet 1 where all steps so far were skipped.
    t = jnp.maximum(samples.t, 1).astype(dtype)
    of_mu, _ = rule.factors(t)
    of_size = jnp.sqrt(rule.correction(t))
    found = (
        size < rule.eps * of_size,
        ratio(mu, size) * (of_mu * of_size),
        ratio(u, mu) / of_mu,
        mu > 0,
    )
    return tuple(x.astype(jnp.float32) for x in found)


def ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x / y`` of magnitudes, 0 where ``y`` is; finite where ``x`` is."""
    quotient = safe_divide(x, y)
    return jnp.where(jnp.isinf(x), quotient, jnp.minimum(quotient, _HELD))


def _quantiles(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Of each row's entries the least that a quantile takes, a row a quantile; 0 without weights.

    By bisection, for to sort would take ten times as long on a CPU.
    """
    # Numbers that are not negative have the order of their patterns.
    patterns = lax.bitcast_convert_type(x, jnp.int32)[None]
    # A little more, lest rounding decide where a quantile is between two entries.
    shares = jnp.asarray([[share * (1 + 1e-5)] for share in _QUANTILES.values()], jnp.float32)
    allowed = shares * jnp.sum(weights, axis=1)[None]

    def halve(low: jax.Array, bit: jax.Array) -> tuple[jax.Array, None]:
        middle = low + bit
        below = jnp.sum(jnp.where(patterns < middle[..., None], weights[None], 0), axis=2)
        return jnp.where((below <= allowed) & (allowed > 0), middle, low), None

    # Zeros, of the type that `allowed` has inside of shard_map.
    low, _ = lax.scan(halve, (allowed < 0).astype(jnp.int32), jnp.asarray(_BITS))
    found: jax.Array = lax.bitcast_convert_type(low, jnp.float32)
    return found


# Jitted by itself, so that leaves of one shape are traced once.
@partial(jax.jit, static_argnums=3)
def _entries(u: jax.Array, mu: Any, nu: Any, most: int) -> tuple[jax.Array, ...]:
    """About so many entries of a leaf's |u|, |mu| and nu."""
    mu, nu = decoded(mu), decoded(nu)
    nu = nu if nu.shape == mu.shape else spread(nu, mu.shape)
    return tuple(jnp.abs(_thinned(x, most)) for x in (u, mu, nu))


def _thinned(x: jax.Array, most: int) -> jax.Array:
    """About so many entries of an array, evenly spaced, as a vector."""
    where = laid((), x)  # of what is taken of several shards each device has all
    if x.size <= most and not where:
        return x.reshape(-1)
    # Gathered by their places: of shards that is one sum over devices, where a slice of the array
    # as a vector would bring together all of it.
    places = np.unravel_index(np.arange(0, x.size, _step(x.shape, most)), x.shape)
    return x.at[places].get(mode="promise_in_bounds", **where)


def _step(shape: tuple[int, ...], most: int) -> int:
    """How far apart the entries of an array are, as a vector, of which there are about so many.

    If that is longer than a row, it goes the golden part of one farther than whole rows, and has no
    divisor in common with it: so that it comes through all columns.

    >>> _step((4096, 512), 256)
    7997
    """
    step, row = -(-math.prod(shape) // most), max(shape[-1], 1)
    if step >= row:
        step = round((round(step / row - 0.618) + 0.618) * row)
    while math.gcd(step, row) > 1:
        step += 1
    return step
