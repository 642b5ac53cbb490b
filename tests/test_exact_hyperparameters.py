"""Hyperparameters that may change are as exact as static ones, for every member.

Differences are in units in the last place of the largest value that an entry takes in a run.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import configured
from family import MEMBERS

import adam_jax
from adam_jax import like_keras
from adam_jax.hyperparameters import Exact, decay_rate, known
from adam_jax.services.with_hyperparameters import with_hyperparameters

# What `with_hyperparameters` states. Measured on CPUs with jax 0.5.3, 0.10.2 and 0.12.0: at most 6,
# in updates of RAdam, and 5 in AMSGrad's maximum. All means of gradients have the same bits.
MOST = 6
ADAMW = {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
START = jnp.ones((7, 9))


def follow(tx, change=lambda state: state, dtype="float32"):
    """The updates and the moments of 200 steps, from a start with a changed state."""
    rng = np.random.default_rng(0)
    sizes = 10 ** rng.uniform(-3, 1, START.shape)
    gradients = jnp.asarray(rng.standard_normal((200, *START.shape)) * sizes, dtype)

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        kept = getattr(state, "inner_state", state)
        return (optax.apply_updates(params, updates), state), (updates, kept)

    @jax.jit
    def run(params):
        return jax.lax.scan(step, (params, change(tx.init(params))), gradients)[1]

    return run(START.astype(dtype))


def units(actual, desired):
    """How far off the arrays are at most."""
    off = [0.0]
    for a, d in zip(*map(jax.tree.leaves, (actual, desired)), strict=True):
        if jnp.issubdtype(d.dtype, jnp.floating):
            one = np.spacing(np.max(np.abs(d), axis=0, keepdims=True))
            off.append(float(np.max(np.abs(np.float64(a) - np.float64(d)) / one)))
    return max(off)


def of_member(name):
    """The optimizer as a function of the numbers that may change, and these."""
    row = MEMBERS[name]
    numbers = {k: row.settings[k] for k in row.tunable} | {"learning_rate": 1e-2}
    fixed = {k: v for k, v in row.settings.items() if k not in numbers}
    if row.decay:
        numbers["weight_decay"] = row.decay

    def make(learning_rate, **numbers):
        return row.optimizer(learning_rate, **fixed, **numbers)

    return make, numbers


# A variant by its decay has the direction of another row.
@pytest.mark.costly
@pytest.mark.parametrize("member", [m for m, row in MEMBERS.items() if not row.by_decay])
def test_numbers_that_may_change_give_what_static_ones_give(member):
    make, numbers = of_member(member)
    assert units(follow(with_hyperparameters(make, **numbers)), follow(make(**numbers))) <= MOST


# In float64 a factor b1 that may change has a float32's digits; Nadam's means have such factors.
KERAS = [(name, "float32") for name in ("Adam", "Adamax", "Lamb", "Nadam")]
KERAS += [(name, "float64") for name in ("Adam", "Adamax", "Lamb")]


@pytest.mark.parametrize(("name", "dtype"), KERAS)
def test_rates_that_are_rounded_as_keras_does_may_change_too(name, dtype):
    make = partial(getattr(like_keras, name), learning_rate=0.01)
    rates = {"beta_1": 0.9, "beta_2": 0.999}
    with configured({"jax_enable_x64": dtype == "float64"}):
        (static, _), (moving, _) = (
            follow(tx, dtype=dtype) for tx in (make(), with_hyperparameters(make, **rates))
        )
        high = {key: float(np.float32(b)) for key, b in rates.items()}
        other, _ = follow(make(**high), dtype=dtype)
    bound = MOST if dtype == "float32" else 1e3
    assert units(moving, static) <= bound
    # Twins: of rates that are rounded everywhere, which in float32 is what Nadam's are.
    assert (units(other, static) > bound) == (dtype == "float64" or name in ("Adam", "Lamb"))


def without_remainders(state):
    return state._replace(remainders=jax.tree.map(jnp.zeros_like, state.remainders))


def injected(make, numbers):
    # Optax wants a signature.
    def by_name(b1, b2, eps, learning_rate, weight_decay):
        return make(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)

    return optax.inject_hyperparams(by_name, hyperparam_dtype=jnp.float32)(**numbers)


@pytest.mark.exhaustive
@pytest.mark.parametrize("make", [adam_jax.adamw, adam_jax.radamw])
def test_a_float32_gives_what_the_number_that_it_is_gives(make):
    static = follow(make(**ADAMW))
    rounded = follow(make(**{name: float(np.float32(x)) for name, x in ADAMW.items()}))
    tx = with_hyperparameters(make, **ADAMW)
    assert units(follow(tx), static) <= MOST
    assert units(follow(injected(make, ADAMW)), rounded) <= 3
    # Without what float32 rounds off, ours is as Optax's, and the test above would fail.
    lost = follow(tx, without_remainders)
    assert units(lost, rounded) <= 3
    assert units(lost, static) > 150


def test_an_exact_number_is_all_of_it_where_it_is_taken_from_another():
    for x in (0.0, 0.4, 0.9, 0.999, 1 - 1e-6):
        exact = Exact.of(x)
        assert np.float32(1 - exact) == np.float32(1 - x)
        assert exact.high == np.float32(x)
        assert abs(float(exact.low)) <= np.spacing(np.float32(x)) / 2
    assert abs(float(1 - exact.high) / 1e-6 - 1) > 1e-3  # so it has to be


def test_an_exact_number_is_an_array_to_operators():
    x, (a, b) = Exact.of(0.75), (jnp.float32(2), 2)
    for y in (a, b, Exact.of(2)):
        results = [x + y, y + x, x - y, y - x, x * y, y * x, x / y, y / x, x**y, y**x]
        assert [float(r) for r in results] == [
            *(2.75, 2.75, -1.25, 1.25, 1.5, 1.5),
            *(0.375, pytest.approx(8 / 3), 0.5625, pytest.approx(2**0.75)),
        ]
        assert [bool(r) for r in (x < y, x <= y, x > y, x >= y)] == [True, True, False, False]
    assert float(-x) == -0.75
    assert jnp.asarray(x, jnp.float32) is x.high


def test_only_a_check_meanwhile_knows_of_an_exact_number():
    x, y = Exact.of(0.9), Exact.of(0.9)
    with known([x]):
        assert decay_rate("b", x.high) is x
        assert decay_rate("b", y.high) is y.high
    assert decay_rate("b", x.high) is x.high
    assert decay_rate("b", x) is x


def test_nested_ones_lose_nothing():
    def make(b2):
        return with_hyperparameters(lambda **rate: adam_jax.adam(**rate, b2=b2), learning_rate=0.1)

    _, (state, *_) = follow(adam_jax.adam(0.1, b2=0.999))
    _, nested = follow(with_hyperparameters(make, b2=0.999))
    assert units(nested.inner_state[0].nu, state.nu) == 0
    _, rounded = follow(with_hyperparameters(lambda b2: make(b2 * 1.0), b2=0.999))
    assert units(rounded.inner_state[0].nu, state.nu) > 50  # as the docstring says
