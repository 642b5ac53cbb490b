"""The average is the one of the paper, of where steps land, in every format, and helps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits
from family import FORMATS
from training import parameters

import adam_jax
from adam_jax import storage
from adam_jax.averaging import average_params, averaged_params


def walk(tx, start, stream):
    """The parameters after each step, and their averages."""

    def advance(carry, g):
        updates, state = tx.update(g, carry[1], carry[0])
        params = optax.apply_updates(carry[0], updates)
        return (params, state), (params, averaged_params(state))

    return jax.jit(lambda: jax.lax.scan(advance, (start, tx.init(start)), stream)[1])()


def wandering(b, dtype=jnp.float32, make=adam_jax.adam, *before, steps=50):
    """The same of an optimizer on noise of 4 decades."""
    rng = np.random.default_rng(1)
    stream = 10.0 ** rng.uniform(-3, 1, (steps, 7)) * rng.normal(size=(steps, 7))
    tx = optax.chain(make(0.05), *before, average_params(b))
    return walk(tx, jnp.asarray(rng.normal(size=7), dtype), jnp.asarray(stream, dtype))


def oracle(path, b):
    """The last debiased average in float64, by its weights."""
    weights = float(b) ** np.arange(len(path) - 1, -1, -1)
    return np.average(np.asarray(path, np.float64), axis=0, weights=weights)


def worst_error(path, averages, b):
    """The largest error of any average, over the largest of what it averages."""
    errors = [a - oracle(path[:t], b) for t, a in enumerate(averages, 1)]
    return np.max(np.abs(errors)) / np.max(np.abs(np.asarray(path, np.float64)))


# --- the experiment ------------------------------------------------------------------------------


def ends(b, steps=4000, seeds=8):
    """The loss at the last parameters and at their average, on a noisy quadratic."""
    h = jnp.logspace(-1, 1, 100)
    tx = optax.chain(adam_jax.adam(0.05), average_params(b))

    def run(key):
        def advance(carry, key):
            x, state = carry
            updates, state = tx.update(h * x + jax.random.normal(key, h.shape), state, x)
            return (optax.apply_updates(x, updates), state), None

        start = jnp.ones(100)
        keys = jax.random.split(key, steps)
        (x, state), _ = jax.lax.scan(advance, (start, tx.init(start)), keys)
        return [jnp.sum(h * x**2) / 2 for x in (x, averaged_params(state))]

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), seeds)))


@pytest.mark.exhaustive
def test_the_average_is_nearer_to_the_optimum_than_the_last_iterate():
    """Kingma & Ba 2015, section 7.2: under noise the last iterate wanders, its average does not.

    Curvatures of 0.1 to 10, unit noise, Adam at 0.05, from 1: over 24 seeds the last loss was 0.90
    to 1.56, and that of the average of b = 0.999 from 0.035 to 0.076.
    """
    last, average = ends(0.999)
    assert last.min() > 0.85
    assert average.max() < 0.1
    assert (last / average).min() > 10


def test_an_average_of_the_last_one_alone_does_not_help():
    last, average = ends(0.0, steps=100)
    np.testing.assert_array_equal(last, average)


# --- the formula ---------------------------------------------------------------------------------


@pytest.mark.costly
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("b", [0.0, 0.3, 0.9, 0.9999])
def test_it_is_the_debiased_average(b, traced):
    rate = jnp.float32(b) if traced else b
    path, averages = wandering(rate)
    assert worst_error(path, averages, rate) < 3e-7
    assert_same_bits(averages[0], path[0])


def test_without_the_correction_the_first_averages_are_near_zero():
    path, averages = wandering(0.9)
    assert worst_error(path, averages * (1 - 0.9 ** np.arange(1, 51))[:, None], 0.9) > 0.5


def test_float32_holds_a_slow_average():
    """To some units in the last place, where a sum of two products would drift off."""
    b, tx = 0.9999, average_params(0.9999)
    noise = 0.1 * np.random.default_rng(0).standard_normal(20_000)
    stream = jnp.asarray(1 + noise, jnp.float32)

    def advance(state, p):
        return tx.update(jnp.zeros_like(p), state, p)[1], None

    def product(carry, p):
        before, left, t = carry
        now = 1 - jnp.float32(b) ** t
        return ((b * left * before + (1 - b) * p) / now, now, t + 1), None

    truth = oracle(stream, b)
    found = jax.jit(lambda: jax.lax.scan(advance, tx.init(stream[0]), stream)[0])().average
    assert abs(found - truth) < 1e-6
    start = (jnp.float32(0), jnp.float32(0), jnp.float32(1))
    assert abs(jax.lax.scan(product, start, stream)[0][0] - truth) > 1e-4


def test_before_the_first_step_it_is_the_parameters():
    params = parameters(jnp.bfloat16)
    assert_same_bits(averaged_params(average_params(0.999).init(params), params), params)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_whose_square_would_overflow(dtype):
    params = jnp.asarray([1e38, -1e38, 3e-38, 0.0], dtype)
    still = jnp.zeros((2, 4), dtype)
    path, averages = walk(average_params(0.9), params, still)
    np.testing.assert_array_equal(averages, path)
    _, averages = walk(average_params(0.9), params, jnp.stack([-params, -params]))
    assert bool(jnp.all(jnp.isfinite(averages)))


# --- what lands is what is averaged --------------------------------------------------------------

LOW = [jnp.bfloat16, jnp.float16]


@pytest.mark.costly
@pytest.mark.parametrize("before", [[], [adam_jax.stochastic_rounding()]])
@pytest.mark.parametrize("dtype", LOW)
def test_parameters_in_low_precision_are_averaged_as_they_land(dtype, before):
    path, averages = wandering(0.9, dtype, optax.sgd, *before)
    assert path.dtype == dtype
    assert averages.dtype == jnp.float32
    assert worst_error(path, averages, 0.9) < 3e-7


@pytest.mark.parametrize("dtype", LOW)
def test_it_rounds_as_a_cast_does(dtype):
    """Also to float16 numbers below the normal ones, and where XLA would leave the cast out."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-8, 1, (2, 4000)) * rng.choice([-1, 1], (2, 4000))
    p, u = jnp.asarray(sizes, dtype)
    tx = average_params(0.0)
    state = jax.jit(lambda p, u: tx.update(u, tx.init(p), p)[1])(p, u)
    landed = optax.apply_updates(p, u)
    np.testing.assert_array_equal(averaged_params(state, p), landed)
    assert np.any(np.float32(p) + np.float32(u) != np.float32(landed))


def test_inside_master_weights_it_averages_the_masters():
    tx = adam_jax.master_weights(optax.chain(optax.scale(-1e-3), average_params(0.9)))
    params, step = jnp.ones(3, jnp.bfloat16), jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(2):
        updates, state = step(jnp.ones(3, jnp.bfloat16), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(averaged_params(state), 1 - 1e-3 * (0.9 + 2) / 1.9, rtol=1e-6)
    assert bool(jnp.all(params == 1 - 2**-8))


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.costly
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_average_within_its_precision(name):
    row = FORMATS[name]
    params = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, (6, 37)), jnp.float32)
    _, averages = walk(
        average_params(0.9, row.arguments.get("mu_dtype")), params, jnp.zeros((3, 6, 37))
    )
    # Chance may take either neighbour of a number, and its neighbour the next time.
    error = np.max(np.abs(averages[-1] - params) / params)
    assert error < row.precision * (1 if "nearest" in name else 2)


def settled(rounding):
    """An average of b = 0.999 of parameters that have moved from 1 to 2, beside one at 4."""
    tx = average_params(0.999, storage.eight_bit(rounding=rounding, min_size=0))
    before = jnp.ones(256).at[0].set(4)
    after = (2 * before).at[0].set(4)

    def advance(state, _):
        return tx.update(jnp.zeros(256), state, after)[1], None

    late = tx.init(before)._replace(count=jnp.int32(10**6))
    state, _ = jax.jit(lambda: jax.lax.scan(advance, late, None, 1000))()
    return float(jnp.mean(averaged_params(state)[1:]))


@pytest.mark.exhaustive
def test_a_slow_average_moves_in_eight_bits_if_rounded_by_chance():
    assert settled("stochastic") == pytest.approx(2 - np.exp(-1), abs=0.03)
    assert settled("nearest") == pytest.approx(1, abs=0.03)  # swamped


def test_its_random_bits_are_not_those_of_the_moments():
    x = jnp.full(4096, 1 + 2**-9, jnp.float32)
    tx = average_params(0.0, storage.bfloat16())
    moment = adam_jax.lion(1.0, b2=0.0, mu_dtype=storage.bfloat16())
    one = averaged_params(tx.update(jnp.zeros_like(x), tx.init(x), x)[1]) > 1
    other = moment.update(x, moment.init(x), x)[1][0].mu > 1
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1
