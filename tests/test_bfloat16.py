"""Moments in bfloat16: rounded by chance, right on average, and moving where nearest stands still.

The twin of each is rounding to nearest, which must fail.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adam_jax
from adam_jax.rule import Moment
from adam_jax.storage import Format
from adam_jax.storage.bfloat16 import BFloat16

MAGNITUDE = Moment(signed=False)
LARGEST = float(jnp.finfo(jnp.bfloat16).max)
search = settings(deadline=None, derandomize=True, database=None, max_examples=200)


@dataclass(frozen=True)
class Nearest(Format):
    """The twin: bfloat16 as it is often stored."""

    stochastic: ClassVar[bool] = False

    def encode(self, x: Any, moment: Moment, bits: Any) -> Any:
        return x.astype(jnp.bfloat16)

    def decode(self, stored: Any) -> Any:
        return stored

    def holds(self, stored: Any) -> bool:
        return bool(stored.dtype == jnp.bfloat16)


@jax.jit
def rounded(x: Any, bits: Any) -> Any:
    return BFloat16().encode(x, MAGNITUDE, bits)


def encode(x: Any, bits: Any) -> Any:
    """In float64, which holds all of them."""
    x, bits = np.broadcast_arrays(np.asarray(x, np.float32), np.asarray(bits, np.uint32))
    return np.asarray(rounded(jnp.asarray(x), jnp.asarray(bits))).astype(np.float64)


def neighbours(x: Any) -> tuple[Any, Any]:
    """The bfloat16 numbers around float32 ``x``, towards zero and away from it."""
    pattern = np.asarray(x, np.float32).view(np.uint32)
    towards = pattern & np.uint32(0xFFFF0000)
    away = np.where(pattern == towards, towards, towards + np.uint32(0x10000)).astype(np.uint32)
    return towards.view(np.float32), away.view(np.float32)


EVERY = np.arange(1 << 16, dtype=np.uint32) << 16
NUMBERS = [1.0, 1.00390625, 1.001, -1.001, 3.14159, 1e-8, -2.5e-30, 7.7e20, 1.99999, 0.1]


@pytest.mark.parametrize("x", NUMBERS)
def test_the_mean_over_all_bits_is_the_number(x: float) -> None:
    """Exactly: of 65,536 draws as many go up as the number's share of the way says."""
    x = float(np.float32(x))
    drawn = encode(x, EVERY)
    assert set(np.unique(drawn)) <= {float(y) for y in neighbours(x)}
    assert drawn.mean() == x
    # The lower half of the word is not looked at.
    np.testing.assert_array_equal(encode(x, EVERY | np.uint32(0xABCD)), drawn)


def test_the_mean_over_nearest_is_not() -> None:
    x = jnp.float32(1.001)
    assert float(Nearest().encode(x, MAGNITUDE, None)) == 1.0


@search
@given(
    pattern=st.integers(0, 2**32 - 1).filter(lambda p: p & 0x7F800000 != 0x7F800000),
    bits=st.integers(0, 2**32 - 1),
)
def test_every_finite_number_becomes_one_of_its_neighbours(pattern: int, bits: int) -> None:
    """Or the largest finite one, never infinity; subnormals too; and no sign is lost."""
    x = np.uint32(pattern).view(np.float32)
    drawn = encode(x, bits)
    allowed = [min(abs(float(y)), LARGEST) for y in neighbours(x)]
    if not 0 < abs(float(x)) < 2.0**-126:
        assert abs(float(drawn)) in allowed
    else:  # some devices flush subnormals to zero
        assert abs(float(drawn)) in [0.0, *allowed]
    assert np.signbit(drawn) == np.signbit(x)


def test_bfloat16_numbers_stay_as_they_are() -> None:
    every = EVERY.astype(np.uint16).view(ml_dtypes.bfloat16)
    finite = every[np.isfinite(every.astype(np.float32))].astype(np.float32)
    normal = finite[(np.abs(finite) >= 2.0**-126) | (finite == 0)]
    for bits in (0, 1, 1 << 16, 1 << 31, 0xFFFF0000, 0xFFFFFFFF):
        drawn = encode(normal, bits)
        np.testing.assert_array_equal(drawn, normal)
        np.testing.assert_array_equal(np.signbit(drawn), np.signbit(normal))


def test_the_largest_numbers_never_become_infinite() -> None:
    x = np.array([np.finfo(np.float32).max, LARGEST, np.nextafter(np.float32(LARGEST), np.inf)])
    for bits in (0, 1 << 16, 0xFFFF0000):
        np.testing.assert_array_equal(encode(x, bits), LARGEST)
        np.testing.assert_array_equal(encode(-x, bits), -LARGEST)
    nearest = Nearest().encode(jnp.float32(np.finfo(np.float32).max), MAGNITUDE, None)
    assert np.isinf(np.asarray(nearest, np.float32))


@pytest.mark.parametrize("bits", [0, 1 << 16, 0xFFFF0000, 0xFFFFFFFF])
def test_what_is_not_finite_passes(bits: int) -> None:
    """Also a NaN whose payload lies in the dropped half: the carry must not make it a number."""
    payload = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32)
    assert np.all(np.isnan(encode(payload.view(np.float32), bits)))
    np.testing.assert_array_equal(encode([np.inf, -np.inf], bits), [np.inf, -np.inf])


def test_the_first_value_is_rounded_to_nearest() -> None:
    """Before the first step there are no bits."""
    x = jnp.array([0.0, 1.001, 1.003], jnp.float32)
    np.testing.assert_array_equal(BFloat16().encode(x, MAGNITUDE, None), x.astype(jnp.bfloat16))


# --- averages that move --------------------------------------------------------------------------


def average(storage: Any, g: Any, lanes: int = 1024, **rates: float) -> Any:
    """The stored mean square of each lane after the gradients, one a step for all lanes."""
    tx = adam_jax.scale_by_adam(mu_dtype=storage, nu_dtype=storage, **rates)
    zero = jnp.zeros(lanes)

    def advance(state: Any, x: Any) -> Any:
        return tx.update(zero + x, state)[1], None

    state = jax.jit(lambda g: jax.lax.scan(advance, tx.init(zero), g)[0])(jnp.asarray(g))
    return jax.tree.map(lambda x: np.asarray(x, np.float64), state)


def test_one_large_gradient_decays() -> None:
    """Over 1000 zero steps the mean square falls to .999**1000 = .3677 of itself, on average."""
    g = np.zeros(1001, np.float32)
    g[0] = 100
    truth = 0.001 * 100**2 * 0.999**1000
    nu = average(jnp.bfloat16, g).nu
    assert nu.mean() == pytest.approx(truth, rel=0.01)
    assert nu.std() < 0.15 * truth
    # To nearest it does not move at all.
    assert np.all(average(Nearest(), g, lanes=2).nu == np.float32(10).astype(ml_dtypes.bfloat16))


def test_constant_gradients_fill_the_average() -> None:
    """Under g = 1 the mean square goes to 1; to nearest it sticks where a step is half a unit."""
    g = np.ones(8000, np.float32)
    nu = average(jnp.bfloat16, g).nu
    assert nu.mean() == pytest.approx(1, abs=0.005)
    assert np.all(average(Nearest(), g, lanes=2).nu <= 0.5)


def test_slow_averages_are_not_swamped() -> None:
    """Noisy numbers of mean one half, b = .999, 20,000 steps: both moments find it."""
    draws = np.random.default_rng(0).random(20_000).astype(np.float32)
    weights = 0.001 * 0.999 ** np.arange(19_999.0, -1, -1)
    state = average(jnp.bfloat16, draws, b1=0.999)
    assert state.mu.mean() == pytest.approx(weights @ draws, abs=0.004)
    assert state.nu.mean() == pytest.approx(weights @ draws.astype(np.float64) ** 2, abs=0.004)
    assert state.mu.mean() == pytest.approx(0.5, abs=0.02)
    nearest = average(Nearest(), draws, lanes=2, b1=0.999)
    assert np.all(np.abs(nearest.mu - weights @ draws) > 0.04)


def test_lanes_round_independently() -> None:
    """So errors average out over an array: 1024 lanes have a spread, and a mean without one."""
    g = np.ones(2000, np.float32)
    truth = 1 - 0.999**2000
    nu = average(jnp.bfloat16, g).nu
    spread = nu.std()
    assert 0.005 < spread < 0.1
    assert abs(nu.mean() - truth) < 5 * spread / np.sqrt(nu.size)


def test_what_is_stored_is_a_neighbour_of_what_was_computed() -> None:
    """And the step is made of what was computed, not of what is stored."""
    g = jnp.asarray(np.random.default_rng(0).uniform(1, 2, 4096), jnp.float32)
    tx = adam_jax.scale_by_adam(mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16)
    exact = adam_jax.scale_by_adam()
    update, state = tx.update(g, tx.init(g))
    true_update, truth = exact.update(g, exact.init(g))
    np.testing.assert_array_equal(update, true_update)
    for moment, computed in ((state.mu, truth.mu), (state.nu, truth.nu)):
        below, above = neighbours(np.asarray(computed))
        stored = np.asarray(moment, np.float32)
        assert np.all((stored == below) | (stored == above))
        # Up as often as the way there says: 4096 draws are off by under 5 standard deviations.
        between = above > below
        way = ((np.asarray(computed) - below)[between] / (above - below)[between]).mean()
        assert abs(np.mean((stored == above)[between]) - way) < 5 * 0.5 / np.sqrt(4096)
    assert not np.array_equal(state.mu, truth.mu.astype(jnp.bfloat16))


def test_to_nearest_a_finite_mean_square_stays_finite() -> None:
    """The square of the largest gradient that is let through is over the largest bfloat16."""
    tx = adam_jax.scale_by_adam(b2=0.0, nu_dtype=adam_jax.storage.bfloat16("nearest"))
    g = jnp.array([1e30])
    state = tx.init(g)
    for _ in range(2):
        updates, state = tx.update(g, state)
        assert np.isfinite(updates).all()
        assert np.isfinite(state.nu.astype(jnp.float32)).all()
