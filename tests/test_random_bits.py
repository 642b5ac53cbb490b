"""The hash behind stochastic rounding: its bits look random, and are the same wherever they fall.

The figures of merit are standard: over n uniform bits a mean or a correlation is off by about
1 / sqrt(n), and a chi-square of k cells is about k, give or take sqrt(2 k). Bounds are five of
these; the bits are fixed, so that a test passes always or never. The twin is a hash that only
multiplies, as linear generators do: it must fail.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax.storage.random_bits import fold, mix, random_bits

N = 1 << 16


def stream(seed: int = 0, count: int = 1, leaf: int = 0, slot: int = 0, n: int = N) -> Any:
    """Bits as a step draws them."""
    return np.asarray(random_bits(fold(fold(fold(seed, count), leaf), slot), (n,)))


def weak(seed: int = 0, count: int = 1, leaf: int = 0, slot: int = 0, n: int = N) -> Any:
    """The twin: Knuth's multiplicative hash of the position, with the words added."""
    key = np.uint32((seed + count + leaf + slot) % 2**32)
    return (np.arange(n, dtype=np.uint32) + key) * np.uint32(2654435761)


def uniform(bits: Any) -> Any:
    """In (-1, 1), of variance 1 / 3."""
    return (bits.astype(np.float64) + 0.5) / 2.0**31 - 1


def low(bits: Any) -> Any:
    """The same of the lower 16 bits, those that bfloat16 rounds by."""
    return ((bits & 0xFFFF).astype(np.float64) + 0.5) / 2.0**15 - 1


def worst_moment(bits: Any) -> float:
    """How many standard errors the mean and the variance are off, in high and in low bits."""
    found = []
    for x in (uniform(bits), low(bits)):
        found += [x.mean() / np.sqrt(1 / 3), (np.var(x) - 1 / 3) / np.sqrt(4 / 45)]
    return float(np.max(np.abs(found)) * np.sqrt(bits.size))


def worst_bit(bits: Any) -> float:
    """How many standard errors the most unbalanced bit is off one half."""
    share = np.array([((bits >> k) & 1).mean() for k in range(32)])
    return float(np.max(np.abs(share - 0.5)) * 2 * np.sqrt(bits.size))


def chi_square(bits: Any, others: Any) -> float:
    """Of pairs, each in 16 x 16 cells, by four high and four of the lower 16 bits: in sigmas."""
    found = []
    for a, b in itertools.product((28, 12), repeat=2):
        cells = ((bits >> a) & 15) * 16 + ((others >> b) & 15)
        expected = bits.size / 256
        found.append(np.sum((np.bincount(cells, minlength=256) - expected) ** 2 / expected))
    return float(np.max((np.array(found) - 255) / np.sqrt(2 * 255)))


def correlation(bits: Any, others: Any) -> float:
    """In standard errors, the largest of high and low bits against high and low bits."""
    pairs = itertools.product((uniform(bits), low(bits)), (uniform(others), low(others)))
    return float(max(abs(np.corrcoef(x, y)[0, 1]) for x, y in pairs) * np.sqrt(bits.size))


KEYS = [
    {},
    {"seed": 1},
    {"seed": np.uint32(2**31)},
    {"count": 2},
    {"count": 10**6},
    {"leaf": 7},
    {"slot": 1},
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_bits_are_uniform(key: dict[str, int]) -> None:
    bits = stream(**key)
    assert worst_moment(bits) < 5
    assert worst_bit(bits) < 5
    assert chi_square(bits, bits[::-1]) < 5


# One word of the key changed, and places in the array: all that two draws can differ in.
APART = [{"count": 2}, {"count": 257}, {"leaf": 1}, {"slot": 1}, {"seed": 1}, {"seed": 2**16}]


@pytest.mark.parametrize("key", APART, ids=str)
def test_streams_are_independent(key: dict[str, int]) -> None:
    """Neither the same element's bits, nor those of elements a little apart, tell each other."""
    bits, others = stream(), stream(**key)
    for shift in (0, 1, 2, 16, 256):
        assert correlation(bits, np.roll(others, shift)) < 5, shift
        assert chi_square(bits, np.roll(others, shift)) < 5, shift
    assert np.mean(bits == others) < 5 / N


@pytest.mark.parametrize("lag", [1, 2, 3, 8, 64, 100, 256, 1024, 4096])
def test_elements_are_independent(lag: int) -> None:
    bits = stream()
    assert correlation(bits[:-lag], bits[lag:]) < 5
    assert chi_square(bits[:-lag], bits[lag:]) < 5


def test_an_elements_bits_are_independent_over_steps() -> None:
    """What a slow average of one element lives on: one draw a step, for many steps."""
    draws = np.asarray(
        jax.jit(jax.vmap(lambda t: random_bits(fold(fold(fold(0, t), 0), 1), (4,))))(
            jnp.arange(1, N + 1)
        )
    )
    for element in range(4):
        bits = draws[:, element]
        assert worst_moment(bits) < 5
        assert worst_bit(bits) < 5
        for lag in (1, 2, 7, 256):
            assert correlation(bits[:-lag], bits[lag:]) < 5
            assert chi_square(bits[:-lag], bits[lag:]) < 5


@pytest.mark.costly
@pytest.mark.parametrize("word", ["seed", "count", "leaf", "slot"])
def test_each_word_of_the_key_matters(word: str) -> None:
    """Its first bits also: no two of 256 values give the same bits anywhere in one draw."""
    draws = np.stack([stream(**{word: value}, n=16) for value in range(256)])
    first = draws[:, 0]
    assert np.unique(first).size == 256
    assert worst_bit(draws.ravel()) < 5
    flipped = np.unpackbits((draws[:-1] ^ draws[1:]).reshape(-1).view(np.uint8)).mean()
    assert abs(flipped - 0.5) < 5 / (2 * np.sqrt(draws[1:].size * 32))


def test_mix_is_one_to_one_and_avalanches() -> None:
    x = np.unique(np.random.default_rng(0).integers(1 << 32, size=N, dtype=np.uint32))
    mixed = np.asarray(mix(jnp.asarray(x)))
    assert np.unique(mixed).size == x.size
    for bit in range(32):
        flipped = np.asarray(mix(jnp.asarray(x ^ np.uint32(1 << bit)))) ^ mixed
        shares = np.array([((flipped >> k) & 1).mean() for k in range(32)])
        assert np.max(np.abs(shares - 0.5)) < 0.02, bit


def test_a_weak_hash_fails() -> None:
    bits = weak()
    assert correlation(bits[:-2], bits[2:]) > 5
    assert chi_square(bits[:-1], bits[1:]) > 5
    assert chi_square(bits, weak(count=2)) > 5
    assert np.array_equal(weak(count=2), weak(leaf=1))


# --- the same bits everywhere --------------------------------------------------------------------


def test_eager_jit_and_vmap_give_the_same_bits() -> None:
    def draw(seed: Any, count: Any) -> Any:
        return random_bits(fold(seed, count, 3), (5, 7))

    seeds, counts = jnp.arange(4), jnp.arange(4) + 10
    eager = np.stack([draw(int(s), c) for s, c in zip(seeds, counts, strict=True)])
    jitted = np.stack([jax.jit(draw)(s, c) for s, c in zip(seeds, counts, strict=True)])
    np.testing.assert_array_equal(jitted, eager)
    np.testing.assert_array_equal(jax.vmap(draw)(seeds, counts), eager)


@pytest.mark.exhaustive
def test_an_element_is_hashed_by_its_place_in_the_raveled_array() -> None:
    key = fold(1, 2, 3)
    flat = np.asarray(random_bits(key, (24,)))
    for shape in [(4, 6), (2, 3, 4), (24, 1), (1, 24)]:
        np.testing.assert_array_equal(np.asarray(random_bits(key, shape)).ravel(), flat)
    assert random_bits(key, ()).shape == ()
    assert random_bits(key, (0, 3)).shape == (0, 3)
    assert random_bits(key, ()).dtype == random_bits(key, (2,)).dtype == jnp.uint32


def test_seeds_of_any_integer_type_are_taken_as_uint32() -> None:
    seeds = (5, np.int64(5), np.uint8(5), jnp.asarray(5, jnp.int16), jnp.asarray(5, jnp.uint32))
    assert len({int(fold(seed, 1)) for seed in seeds}) == 1
    assert int(fold(jnp.asarray(-1, jnp.int32), 1)) == int(fold(np.uint32(2**32 - 1), 1))


def step(seed: int, make: Callable[..., Any] = adam_jax.scale_by_adam, **leaves: Any) -> Any:
    """The state after two steps with both moments in bfloat16."""
    tx = make(mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16, seed=seed)
    state = tx.init(leaves)
    for _ in range(2):
        _, state = tx.update(leaves, state)
    return state


def test_a_step_draws_anew_for_each_leaf_moment_step_and_seed() -> None:
    """Equal gradients in two leaves, whose moments would be equal if their bits were."""
    g = jnp.asarray(np.random.default_rng(0).uniform(1, 2, 4096), jnp.float32)
    state, other = step(0, a=g, b=g), step(1, a=g, b=g)
    for moment, other_moment in ((state.mu, other.mu), (state.nu, other.nu)):
        assert 0.3 < np.mean(moment["a"] != moment["b"]) < 0.9
        assert 0.3 < np.mean(moment["a"] != other_moment["a"]) < 0.9
    again = step(0, a=g, b=g)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_two_moments_of_a_leaf_draw_apart() -> None:
    """With b1 = b2 and gradients of 0 and 1 both moments are one number, rounded twice."""
    tx = adam_jax.scale_by_adam(0.999, 0.999, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16)
    g = jnp.ones(4096)
    state = tx.init(g)
    for x in (g, 0 * g, g, g, g, g):
        _, state = tx.update(x, state)
    assert np.mean(state.mu != state.nu) > 0.2
