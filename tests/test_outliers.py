"""Which norms and losses are outliers, against an oracle of the standard library."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits
from jax import lax
from training import descend, gradients, moved, parameters, stepper

import adam_jax
from adam_jax.services.skip_unstable import skip_unstable


def outliers(numbers, threshold, window):
    """The oracle, and the limits."""
    seen, found, limits = [], [], []
    for x in numbers:
        last, limit = seen[-window:], np.inf
        if len(last) >= min(16, window):
            median = statistics.median(last)
            mad = statistics.median(abs(y - median) for y in last)
            scale = max(1.4826 * mad, 0.05 * abs(median))
            limit = median + threshold * scale if scale else np.inf
        found.append(not np.isfinite(x) or x > limit)
        limits.append(limit)
        if np.isfinite(x):
            seen.append(x)
    return found, limits


def walk(seed, steps=300):
    """Positive numbers that drift, with outliers, a new level, and some that are not finite."""
    rng = np.random.default_rng(seed)
    x = np.exp(np.cumsum(0.02 * rng.normal(size=steps)) + 0.1 * rng.normal(size=steps))
    x *= np.where(rng.uniform(size=steps) < 0.05, 10.0 ** rng.uniform(0, 2, steps), 1)
    x[steps // 2 :] *= 5
    x[rng.integers(0, steps, 5)] = np.nan
    return x.astype(np.float32)


@pytest.mark.costly
@pytest.mark.parametrize("window", [1, 5, 32, 128])
@pytest.mark.parametrize("of", ["norm", "loss", "negative loss"])
def test_outliers_are_those_of_the_oracle(of, window):
    numbers = walk(window) - (20 if of == "negative loss" else 0)
    tx = skip_unstable(optax.scale(-1.0), threshold=4.0, window=window)

    def step(state, x):
        extra = {"value": jnp.float32(1)} if of == "norm" else {"value": x}
        norm = x if of == "norm" else jnp.float32(1)
        _, new = tx.update(jnp.ones(()), state, grad_norm=norm, **extra)
        return new, new.skipped_total > state.skipped_total

    state, skipped = jax.jit(lambda x: lax.scan(step, tx.init(jnp.ones(())), x))(numbers)
    expected, limits = outliers(numbers.tolist(), 4.0, window)
    # Where float32 and float64 cannot disagree.
    sure = ~np.isfinite(numbers - limits) | (np.abs(numbers - limits) > 1e-4 * np.abs(limits))
    assert sure.mean() > 0.97
    np.testing.assert_array_equal(skipped[sure], np.asarray(expected)[sure])
    assert 5 < sum(expected) < 150
    kept = state.norms if of == "norm" else state.values
    finite = numbers[np.isfinite(numbers)]
    np.testing.assert_array_equal(kept, finite[::-1][:window])
    # The twin: with the mean and the standard deviation others are found.
    others = [x > np.mean(finite) + 4 * np.std(finite) for x in numbers]
    assert others != expected


def test_a_new_level_is_normal_once_it_has_lasted_for_half_of_the_window():
    tx = skip_unstable(optax.scale(-1.0), threshold=6.0, window=32)
    state, g = tx.init(jnp.ones(())), jnp.ones(())
    step = jax.jit(lambda state, norm: tx.update(g, state, grad_norm=norm)[1])
    taken = []
    for norm in [1.0] * 40 + [9.0] * 40:
        new = step(state, norm)
        taken.append(int(new.skipped_total) == int(state.skipped_total))
        state = new
    assert taken == [True] * 40 + [False] * 16 + [True] * 24


def test_a_huge_gradient_is_skipped_as_if_it_had_not_been():
    params = parameters()
    tx = skip_unstable(adam_jax.adamw(1e-2), threshold=6.0)
    step, (gradient,) = stepper(tx), gradients(1, params)
    params, state = descend(step, params, tx.init(params), [gradient] * 16)
    huge = gradient | {"scale": jnp.float32(1e30)}
    after, new = step(params, state, huge)
    assert_same_bits((after, new.inner_state), (params, state.inner_state))
    assert (int(new.skipped_total), float(new.norm)) == (1, pytest.approx(1e30))
    # The twin: without a threshold it is taken, and Adam remembers it.
    plain = skip_unstable(adam_jax.adamw(1e-2))
    _, state = moved(plain, params, [huge])
    assert float(state.inner_state[0].nu["scale"]) > 1e30


@pytest.mark.parametrize("numbers", [[0.0] * 20 + [5e-3] * 20, [0.0, 0.0, 1e-3] * 20])
def test_beside_zeros_nothing_is_usual(numbers):
    tx = skip_unstable(optax.sgd(1.0), threshold=6.0, window=32)
    state = tx.init(jnp.zeros(1))
    for x in numbers:
        gradient = jnp.array([x])
        updates, state = tx.update(gradient, state, value=jnp.float32(x))
        assert float(updates[0]) == -float(gradient[0])
    assert int(state.skipped_total) == 0
    # But what is not finite is.
    _, state = tx.update(jnp.array([jnp.nan]), state, value=jnp.float32(1))
    assert int(state.skipped_total) == 1
