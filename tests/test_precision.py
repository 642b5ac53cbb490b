"""Parameters of 16 bits: where steps land, what is kept of them, and that nothing else changes.

The oracles are lists of the dtype's numbers in float64; each has a twin that breaks the rule.
"""

from functools import cache, partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from checks import (
    assert_same_bits,
    assert_same_kind,
    assert_traced_once_and_donated,
    configured,
)
from family import mostly
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import kahan_summation, master_weights, precision, stochastic_rounding
from adam_jax.storage.random_bits import fold, random_bits

BF16, F16 = jnp.bfloat16, jnp.float16
LOW = pytest.mark.parametrize("dtype", [BF16, F16], ids=["bfloat16", "float16"])
MASTERS = pytest.mark.parametrize("remainder", [False, True], ids=["float32", "remainder"])
search = settings(deadline=None, derandomize=True, database=None, max_examples=300)

# Every one, as the last member of a chain, and as an optimizer.
MEMBERS = {
    "stochastic": stochastic_rounding,
    "kahan": kahan_summation,
    "master": lambda: master_weights(optax.identity()),
    "remainder": lambda: master_weights(optax.identity(), remainder=True),
}
OPTIMIZERS = {
    "stochastic": lambda: optax.chain(adam_jax.adamw(1e-2), stochastic_rounding()),
    "kahan": lambda: optax.chain(adam_jax.adamw(1e-2), kahan_summation()),
    "master": lambda: master_weights(adam_jax.adamw(1e-2)),
    "remainder": lambda: master_weights(adam_jax.adamw(1e-2), remainder=True),
}
in_each_dtype = pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in MEMBERS
        for dtype in (BF16, F16)
        if (name, dtype) != ("remainder", F16)
    ],
)
every_member = pytest.mark.parametrize("name", MEMBERS)
every = pytest.mark.parametrize("name", mostly(("stochastic", "remainder"), OPTIMIZERS))


def finite(dtype):
    """Every finite number of the dtype, as it is."""
    words = np.arange(1 << 16, dtype=np.uint16)
    exponent = 0x7F80 if dtype == BF16 else 0x7C00
    return words[words & exponent != exponent].view(np.dtype(dtype))


@cache
def grid(dtype):
    """The same in float64, in order, zero once."""
    return np.unique(finite(dtype).astype(np.float64))


def nearest(x, dtype):
    """The oracle: ``x`` at the nearest number, ties away from zero, held at the largest."""
    numbers = grid(dtype)
    x = np.asarray(x, np.float64)
    above = np.clip(np.searchsorted(numbers, x), 1, len(numbers) - 1)
    low, high = numbers[above - 1], numbers[above]
    up = (high - x < x - low) | ((high - x == x - low) & (x > 0))
    return np.where(up, high, low)


def to_even(x, dtype):
    """The twin: a cast."""
    return np.asarray(x, np.float32).astype(np.dtype(dtype)).astype(np.float64)


def between(x, dtype):
    """The numbers of the dtype at or around ``x``."""
    numbers = grid(dtype)
    x = np.clip(np.asarray(x, np.float64), numbers[0], numbers[-1])
    above = np.searchsorted(numbers, x)
    return np.where(numbers[above] == x, x, numbers[above - 1]), numbers[above]


def f64(tree):
    return jax.tree.map(lambda x: np.asarray(x).astype(np.float64), tree)


class Seen(NamedTuple):
    params: object


def watch():
    """Steps against nothing: what it is given as gradients; its state is the parameters it saw."""

    def copy(params):
        return jax.tree.map(lambda p: p + 0, params)

    return optax.GradientTransformation(
        lambda params: Seen(copy(params)), lambda u, _, params: (u, Seen(copy(params)))
    )


def step(tx, params, state, u):
    updates, state = tx.update(u, state, params)
    return optax.apply_updates(params, updates), state


def normal(dtype):
    """Every finite number of the dtype whose neighbours' distance no device flushes to zero."""
    wide = finite(dtype).astype(np.float32)
    return finite(dtype)[(np.abs(wide) >= 2.0**-100) | (wide == 0)]


# --- where a step lands --------------------------------------------------------------------------


def steps_from(p):
    """Float32 steps of every relative and absolute size, towards zero and beyond, for each p."""
    p = p.astype(np.float32)
    rng = np.random.default_rng(0)
    for size in (0.0, 2.0**-24, 2.0**-17, 1e-3, 2.0**-9, 2.0**-8, 0.3, 1.0, 2.0, 1e3, 1e6):
        with np.errstate(over="ignore"):
            u = p * np.float32(size) * rng.uniform(0.9, 1.1, p.shape).astype(np.float32)
        yield from (
            np.where(np.isfinite(u), sign * u, 1) for sign in (np.float32(1), np.float32(-1))
        )
    for exponent in (-100, -30, -12, 0, 12, 100):
        yield np.ldexp(rng.standard_normal(p.shape).astype(np.float32), exponent)
    yield from (-p, np.zeros_like(p), -np.zeros_like(p))


def landings(name, dtype, change=lambda u: u):
    """For every number and step, in float64: the number, the float32 sum, where it lands."""
    p = normal(dtype)
    tx = MEMBERS[name]()

    @jax.jit
    def land(p, u):
        updates, _ = tx.update(u, tx.init(p), p)
        return optax.apply_updates(p, jax.tree.map(change, updates))

    largest = float(jnp.finfo(jnp.float32).max)
    for u in steps_from(p):
        total = np.clip(p.astype(np.float64) + u, -largest, largest).astype(np.float32)
        flushed = (np.abs(total) < 2.0**-100) & (total != 0)
        landed = np.asarray(land(p, u))
        yield tuple(x[~flushed].astype(np.float64) for x in (p, total, landed))


@pytest.mark.costly
@in_each_dtype
def test_a_first_step_lands_on_the_sum_rounded(name, dtype):
    for p, total, landed in landings(name, dtype):
        wanted = between(total, dtype) if name == "stochastic" else (nearest(total, dtype),)
        off = np.min([np.abs(landed - x) for x in wanted], axis=0)
        # One float32 addition to p does not reach every number below 2**-16 of p, but nearly.
        assert np.all(off <= 2.0**-24 * np.abs(p))
        reached = np.abs(total) >= np.abs(p) * 2.0**-16
        assert np.any(reached | (total == 0))
        assert np.all(off[reached | (total == 0)] == 0)


@pytest.mark.costly
@in_each_dtype
def test_no_step_leaves_every_bit(name, dtype):
    p = jnp.asarray(normal(dtype))
    for zero in (jnp.zeros(p.shape), -jnp.zeros(p.shape)):
        tx = MEMBERS[name]()
        for run in (tx.update, jax.jit(tx.update)):
            updates, _ = run(zero, tx.init(p), p)
            assert_same_bits(optax.apply_updates(p, updates), p)
            assert_same_bits(jax.jit(optax.apply_updates)(p, updates), p)


def test_plain_differences_would_not_leave_every_bit():
    """The twin: -0 - -0 is 0, and -0 + 0 is 0."""
    p = jnp.array([-0.0], BF16)
    assert not np.signbit(np.float32(optax.apply_updates(p, jnp.float32(p) - jnp.float32(p))))
    updates, _ = kahan_summation().update(jnp.zeros(1), kahan_summation().init(p), p)
    assert np.signbit(np.float32(optax.apply_updates(p, updates)))


@LOW
def test_a_rescaled_step_misses(dtype):
    """The twin: what follows in a chain breaks the landing."""
    missed = 0
    for _, total, landed in landings("kahan", dtype, change=lambda u: u * 0.9):
        missed += np.sum(landed != nearest(total, dtype))
    assert missed > 100_000


@pytest.mark.exhaustive
@search
@given(
    p=st.integers(0, 2**16 - 1),
    u=st.floats(width=32, allow_nan=False, allow_infinity=False),
    half=st.booleans(),
)
def test_no_finite_step_makes_a_parameter_infinite(p, u, half):
    dtype = F16 if half else BF16
    p = np.uint16(p).view(np.dtype(dtype))
    if not np.isfinite(np.float32(p)):
        return
    for name in MEMBERS if dtype == BF16 else ["stochastic", "kahan", "master"]:
        tx = MEMBERS[name]()
        landed, state = step(tx, jnp.asarray(p), tx.init(jnp.asarray(p)), jnp.float32(u))
        assert landed.dtype == dtype
        largest = float(jnp.finfo(dtype).max)
        if abs(float(p) + u) > largest * 1.01:
            assert float(landed) == np.sign(u) * largest
        assert np.isfinite(np.float32(landed))
        landed, _ = step(tx, landed, state, jnp.float32(-0.0))
        assert np.isfinite(np.float32(landed))


@pytest.mark.costly
@every_member
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_passed_on(name, bad):
    tx = MEMBERS[name]()
    p = jnp.array([1.0, 1.0, bad], BF16)
    landed, state = step(tx, p, tx.init(p), jnp.array([0.5, bad, 0.5]))
    np.testing.assert_array_equal(np.float32(landed), [1.5, bad, bad])
    landed, state = step(tx, landed, state, jnp.array([0.5, 0.5, 0.5]))
    np.testing.assert_array_equal(np.float32(landed), [2.0, bad, bad])
    # It is not for ever: what one sets is taken up.
    landed, _ = step(tx, jnp.ones(3, BF16), state, jnp.full(3, 0.5))
    np.testing.assert_array_equal(np.float32(landed), 1.5)


@LOW
def test_the_share_that_is_rounded_up_is_the_share_of_the_way(dtype):
    """For normal numbers and subnormals, either sign; bits are the documented hash."""
    unit = 2.0**-24
    for start, way in [(1.0, 0.3), (-1.5, 0.3), (3 * unit, 0.6), (0.0, 0.25), (-5 * unit, 0.01)]:
        gap = float(jnp.finfo(dtype).eps) if abs(start) >= 1 else 2.0**-24
        if dtype == BF16 and abs(start) < 1:
            continue
        p = jnp.full(40_000, start, dtype)
        tx = stochastic_rounding(seed=3)
        landed, _ = step(tx, p, tx.init(p), jnp.full(40_000, way * gap))
        moved = (np.float64(landed) - start) / gap
        assert set(np.unique(moved)) == {0.0, 1.0}
        assert abs(moved.mean() - way) < 5 * np.sqrt(way * (1 - way) / 40_000)


def test_rounding_by_chance_is_that_of_the_storage_format():
    """One rule for moments and for parameters: from zero, a step is stored alike."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(4096), jnp.float32)
    p = jnp.zeros(4096, BF16)
    tx = stochastic_rounding(seed=5)
    landed, _ = step(tx, p, tx.init(p), x)
    bits = random_bits(fold(fold(5, precision._DOMAIN, 1), 0), x.shape)
    stored = adam_jax.storage.bfloat16().encode(x, adam_jax.Moment(), bits)
    assert_same_bits(landed, stored)
    other = random_bits(fold(fold(6, precision._DOMAIN, 1), 0), x.shape)
    assert np.any(
        np.asarray(landed != adam_jax.storage.bfloat16().encode(x, adam_jax.Moment(), other))
    )


# --- 1.0 and 1000 steps of 0.001 -----------------------------------------------------------------


def thousand_steps(tx, lanes):
    def advance(carry, _):
        return step(tx, *carry, jnp.full(lanes, 1e-3)), None

    p = jnp.ones(lanes, BF16)
    return jax.jit(lambda c: jax.lax.scan(advance, c, length=1000)[0])((p, tx.init(p)))


def test_nearest_does_not_move():
    p, _ = thousand_steps(optax.with_extra_args_support(optax.identity()), 1)
    assert float(p[0]) == 1


def test_by_chance_the_mean_moves():
    """The mean is 2; the variance that of as many draws."""
    p, state = thousand_steps(stochastic_rounding(), 20_000)
    p = f64(p)
    assert state.count == 1000
    assert abs(p.mean() - 2) < 5 * p.std() / np.sqrt(p.size)
    assert p.std() == pytest.approx(0.085, abs=0.003)
    # Each draw between numbers a gap apart has variance f(1 - f) gap**2, f the share of the way.
    gap = 2.0**-7
    assert p.std() == pytest.approx(np.sqrt(1000 * 1e-3 * (gap - 1e-3)), rel=0.05)


def kahan_oracle(steps):
    """In float64, which is exact here, but for the two numbers that are kept."""
    p, c = np.float64(1), np.float64(0)
    for u in steps:
        due = np.float64(u) + c
        q = nearest(p + due, BF16)
        p, c = q, to_even(due - (q - p), BF16)
    return p, c


def test_kahan_moves():
    expected, kept = kahan_oracle(np.full(1000, np.float32(1e-3)))
    p, state = thousand_steps(kahan_summation(), 1)
    assert float(p[0]) == expected == 2
    assert float(p[0]) + float(state.compensation[0]) == pytest.approx(2.003, abs=5e-4)
    assert float(state.compensation[0]) == pytest.approx(kept, abs=2e-5)
    # The twin: nothing is kept.
    lost = optax.stateless_with_tree_map(
        lambda u, p: kahan_summation().update(u, kahan_summation().init(p), p)[0]
    )
    assert float(thousand_steps(optax.with_extra_args_support(lost), 1)[0][0]) == 1


@MASTERS
def test_master_weights_move_as_float32(remainder):
    p, state = thousand_steps(master_weights(watch(), remainder=remainder), 1)
    total = np.float32(1)
    for _ in range(999):
        total += np.float32(1e-3)
    assert np.float32(state.inner_state.params[0]) == total
    assert float(p[0]) == nearest(total + np.float32(1e-3), BF16) == 2
    assert state.changed == 0


# --- what the master is --------------------------------------------------------------------------

CLOSE_TO_TIES = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)


def patterns():
    """Every upper half with lower halves near ties, and every lower half with many upper ones."""
    every = np.arange(1 << 16, dtype=np.uint32)
    uppers = np.r_[0, 1, 0x7F, 0x80, 0x3F80, 0x5A5B, 0x7F7F]
    uppers = np.r_[uppers, uppers + 0x8000].astype(np.uint32)
    yield (every[:, None] << 16 | CLOSE_TO_TIES).ravel()
    yield (uppers[:, None] << 16 | every).ravel()


def masters_after(remainder, m, twin=False):
    """Masters set to ``m`` by a first step from 0; then the parameters, and the masters again."""
    tx = master_weights(watch(), remainder=remainder)
    zero = jnp.zeros(m.shape, BF16)

    @jax.jit
    def run(m):
        p, state = step(tx, zero, tx.init(zero), m)
        if twin:
            state = state._replace(master=jnp.zeros_like(state.master))
        _, again = step(tx, p, state, jnp.zeros(m.shape))
        return p, again.inner_state.params, again.changed

    return jax.tree.map(np.asarray, run(jnp.asarray(m)))


@pytest.mark.exhaustive
@MASTERS
def test_the_master_is_rebuilt_exactly(remainder):
    for words in patterns():
        m = words.view(np.float32)
        sizes = words & 0x7FFFFFFF
        normal = (sizes == 0) | ((sizes >= 0x00800000) & (sizes <= 0x7F7F0000))
        p, seen, changed = masters_after(remainder, m)
        assert changed == 0
        np.testing.assert_array_equal(np.float64(p)[normal], nearest(m[normal], BF16))
        assert np.any(np.float64(p)[normal] != to_even(m[normal], BF16))
        signed = normal & (sizes != 0)  # 0 - 0 is 0: no step goes from 0 to -0
        np.testing.assert_array_equal(seen.view(np.uint32)[signed], words[signed])
        assert np.all(seen[normal & ~signed] == 0)
        # Beyond the largest it is held; a subnormal may be flushed; neither becomes another thing.
        beyond = (sizes > 0x7F7F0000) & (sizes < 0x7F800000)
        np.testing.assert_array_equal(seen[beyond], np.sign(m[beyond]) * float(jnp.finfo(BF16).max))
        small = (sizes < 0x00800000) & (sizes > 0)
        assert np.all(np.abs(seen[small]) <= np.abs(m[small]))
        assert np.all(np.abs(np.float32(p[small])) < 2.0**-125)
        # What is not finite is passed on.
        np.testing.assert_array_equal(np.isnan(seen), np.isnan(m))
        np.testing.assert_array_equal(seen[np.isinf(m)], m[np.isinf(m)])


@pytest.mark.exhaustive
def test_without_its_remainder_it_would_not_be():
    words = next(iter(patterns()))
    _, seen, _ = masters_after(True, words.view(np.float32), twin=True)
    assert np.mean(seen.view(np.uint32) == words) < 0.2


def test_the_code_of_the_remainder_is_exact_for_subnormals_too():
    """Which most devices flush before they reach it."""
    from adam_jax.precision import _rebuild
    from adam_jax.storage.rounding import round_to

    @jax.jit
    def split_and_rebuild(words):
        m = jax.lax.bitcast_convert_type(words, jnp.float32)
        low = jax.lax.bitcast_convert_type(words.astype(jnp.uint16), jnp.int16)
        q = round_to(m, BF16)
        return [jax.lax.bitcast_convert_type(x, jnp.uint32) for x in (q, _rebuild(q, low))]

    for words in patterns():
        q, rebuilt = map(np.asarray, split_and_rebuild(jnp.asarray(words)))
        sizes = words & 0x7FFFFFFF
        coded = (sizes < 0x7F7F8000) | (sizes == 0x7F800000)
        np.testing.assert_array_equal(rebuilt[coded], words[coded])
        expected = (words + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
        np.testing.assert_array_equal(q[coded], expected[coded])
        assert np.all(np.isnan(rebuilt.view(np.float32)[sizes > 0x7F800000]))


def test_no_code_of_16_bits_could_round_to_even():
    """65,537 float32 numbers round to an even bfloat16, 65,535 to an odd one, 65,536 ties away."""
    around = np.arange(0x3F7F0000, 0x3F830000, dtype=np.uint32).view(np.float32)

    def counts(rounded):
        return {np.sum(rounded == x) for x in (1.0, 1 + 2.0**-7)}

    assert counts(to_even(around, BF16)) == {65537, 65535}
    assert counts(nearest(around, BF16)) == {65536}


# --- parameters that somebody changes ------------------------------------------------------------


def after_steps(tx, p, count=5):
    state = tx.init(p)
    for i in range(count):
        g = jnp.asarray(np.random.default_rng(i).standard_normal(p.shape), jnp.float32)
        p, state = step(tx, p, state, 1e-3 * g)
    return p, state


@MASTERS
def test_a_change_is_seen_and_taken_up(remainder):
    tx = master_weights(watch(), remainder=remainder)
    p, state = after_steps(tx, jnp.linspace(-2, 2, 64).astype(BF16))
    assert state.changed == 0
    changed = p.at[7].set(30.0).at[9].set(0.0)
    new, state = jax.jit(partial(step, tx))(changed, state, jnp.zeros(64))
    assert state.changed == 1
    seen = np.asarray(state.inner_state.params)
    np.testing.assert_array_equal(np.float64(new), f64(changed))
    np.testing.assert_array_equal(nearest(seen, BF16), f64(changed))
    if not remainder:
        assert seen[7] == 30
    assert seen[9] == 0 or abs(seen[9]) < 2.0**-126
    # Once: the next step finds what this one left.
    _, state = step(tx, new, state, jnp.zeros(64))
    assert state.changed == 1


@MASTERS
@pytest.mark.parametrize("index", [0, 63])
@pytest.mark.parametrize("up", [True, False])
def test_the_smallest_change_of_one_element_is_seen(remainder, index, up):
    tx = master_weights(watch(), remainder=remainder)
    p, state = after_steps(tx, jnp.linspace(1, 2, 64).astype(BF16))
    words = np.asarray(p).view(np.uint16).copy()
    words[index] = words[index] + 1 if up else words[index] - 1
    _, state = step(tx, jnp.asarray(words.view(ml_dtypes.bfloat16)), state, jnp.zeros(64))
    assert state.changed == 1


@MASTERS
def test_parameters_exchanged_or_from_elsewhere_are_seen(remainder):
    tx = master_weights(watch(), remainder=remainder)
    p = {"a": jnp.linspace(1, 2, 8).astype(BF16), "b": jnp.linspace(2, 3, 8).astype(BF16)}
    u = jax.tree.map(lambda x: jnp.full(x.shape, 1e-3), p)
    p, state = step(tx, p, tx.init(p), u)
    for other in (
        {"a": p["b"], "b": p["a"]},
        {"a": p["a"][::-1], "b": p["b"]},
        {"a": 2 * p["a"], "b": p["b"]},
    ):
        assert step(tx, other, state, u)[1].changed == 1
    assert step(tx, p, state, u)[1].changed == 0
    off = master_weights(watch(), remainder=remainder, detect_changes=False)
    assert step(off, {"a": p["b"], "b": p["a"]}, off.init(p), u)[1].changed == 0


@MASTERS
def test_what_is_no_change_is_not_counted(remainder):
    """A zero of the other sign; and a number that one addition cannot reach: 1 - (1 + 2**-24)."""
    tx = master_weights(watch(), remainder=remainder)
    p, zero = jnp.array([-0.0, 1.0], BF16), jnp.zeros(2)
    _, state = step(tx, -p, tx.init(p), zero)
    assert state.changed == 1
    p, state = step(tx, p, tx.init(p), jnp.array([0.0, -(2.0**-24)]))
    assert float(p[1]) == 1
    p, state = step(tx, jnp.abs(p), state, jnp.array([0.0, -1.0]))
    assert float(state.inner_state.params[1]) == 1 - 2.0**-24
    np.testing.assert_array_equal(np.float32(p), 0)
    p, state = step(tx, p, state, zero)
    np.testing.assert_array_equal(state.inner_state.params, 0)
    assert state.changed == 0


def test_steps_that_are_rescaled_are_seen():
    tx = optax.chain(master_weights(optax.identity()), optax.scale(0.5))
    _, state = after_steps(tx, jnp.linspace(1, 2, 4096).astype(BF16), count=6)
    assert state[0].changed == 5


def test_wrappers_that_skip_steps_go_inside():
    tx = master_weights(optax.apply_if_finite(adam_jax.adam(1e-3), 3))
    p = jnp.ones(4, BF16)
    state = tx.init(p)
    for g in (1.0, np.nan, 1.0):
        p, state = step(tx, p, state, jnp.full(4, g, BF16))
    assert np.all(np.isfinite(np.float32(p)))
    assert state.changed == 0
    assert state.inner_state.total_notfinite == 1
    np.testing.assert_allclose(state.master, 1 - 2e-3, rtol=1e-5)


# --- training ------------------------------------------------------------------------------------

WIDTH, VOCABULARY, LENGTH = 16, 13, 12


def transformer_init(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "embedding": (VOCABULARY, WIDTH),
        "position": (LENGTH, WIDTH),
        "qkv": (WIDTH, 3 * WIDTH),
        "out": (WIDTH, WIDTH),
        "up": (WIDTH, 4 * WIDTH),
        "down": (4 * WIDTH, WIDTH),
        "head": (WIDTH, VOCABULARY),
    }
    return {
        name: jnp.asarray(rng.normal(size=shape) * shape[0] ** -0.5, BF16)
        for name, shape in shapes.items()
    }


def transformer_loss(p, tokens):
    """One block of attention and one MLP; to predict the token before the last."""
    x = p["embedding"][tokens] + p["position"]
    q, k, v = jnp.split(x @ p["qkv"], 3, axis=-1)
    scores = jnp.where(jnp.tri(LENGTH, dtype=bool), q @ k.mT / WIDTH**0.5, -1e4)
    x = x + jax.nn.softmax(scores, axis=-1) @ v @ p["out"]
    x = x + jax.nn.relu(x @ p["up"]) @ p["down"]
    logits = (x @ p["head"]).astype(jnp.float32)
    targets = jnp.roll(tokens, 1, axis=-1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return losses[:, 1:].mean()


TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, (150, 8, LENGTH))
gradient = jax.jit(jax.value_and_grad(transformer_loss))


def train(tx, params):
    state, losses = tx.init(params), []
    for tokens in TOKENS:
        loss, g = gradient(params, tokens)
        # Not jitted as one, where XLA may contract the product with the learning rate and the sum.
        params, state = step(tx, params, state, g)
        losses.append(float(loss))
    return params, state, losses


@pytest.fixture(scope="module")
def float32_training():
    """The reference: float32 parameters, rounded by the oracle for each gradient."""
    tx = adam_jax.adamw(2e-3, weight_decay=0.01)
    master = jax.tree.map(lambda p: p.astype(jnp.float32), transformer_init())
    state, losses = tx.init(master), []

    def model(master):
        return jax.tree.map(lambda m: jnp.asarray(nearest(m, BF16), BF16), master)

    for tokens in TOKENS:
        loss, g = gradient(model(master), tokens)
        g = jax.tree.map(lambda x: x.astype(jnp.float32), g)
        master, state = step(tx, master, state, g)
        losses.append(float(loss))
    return model(master), master, state, losses


@pytest.mark.exhaustive
@MASTERS
def test_a_transformer_trains_bit_for_bit_as_in_float32(remainder, float32_training):
    tx = master_weights(adam_jax.adamw(2e-3, weight_decay=0.01), remainder=remainder)
    params, state, losses = train(tx, transformer_init())
    expected, master, inner_state, expected_losses = float32_training
    assert losses == expected_losses
    assert_same_bits(params, expected)
    assert_same_bits(state.inner_state, inner_state)
    if remainder:
        low = jax.tree.map(lambda m: np.asarray(m).view(np.uint32).astype(np.uint16), master)
        assert_same_bits(jax.tree.map(lambda r: np.asarray(r).view(np.uint16), state.master), low)
    else:
        assert_same_bits(state.master, master)
    assert state.changed == 0
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


@pytest.mark.exhaustive
def test_compiled_training_is_the_same_with_either_master():
    """The whole run in one program, where XLA may fuse as it likes."""

    def advance(tx, carry, tokens):
        loss, g = jax.value_and_grad(transformer_loss)(carry[0], tokens)
        return step(tx, *carry, g), loss

    params, runs = transformer_init(), []
    for remainder in (False, True):
        tx = master_weights(adam_jax.adamw(2e-3), remainder=remainder)
        scan = jax.jit(lambda c, tx=tx: jax.lax.scan(partial(advance, tx), c, TOKENS))
        (trained, state), losses = scan((params, tx.init(params)))
        runs.append((trained, state.inner_state, losses))
        assert state.changed == 0
    assert_same_bits(*runs)
    assert np.any(np.asarray(runs[0][0]["up"] != params["up"]))


@pytest.mark.exhaustive
def test_a_transformer_in_plain_bfloat16_trains_otherwise(float32_training):
    """The twin."""
    _, _, losses = train(adam_jax.adamw(2e-3, weight_decay=0.01), transformer_init())
    assert losses != float32_training[3]


def small_steps(tx):
    """Least squares from 1 to 2, 3000 steps of Adam at 5e-4; the mean squared distance left."""
    goal = jnp.linspace(1.9, 2.1, 256)

    def advance(carry, _):
        p, _ = carry
        g = jax.grad(lambda p: jnp.mean((p.astype(jnp.float32) - goal) ** 2))(p)
        return step(tx, *carry, g), None

    p = jnp.ones(256, BF16)
    (p, _), _ = jax.jit(lambda c: jax.lax.scan(advance, c, length=3000))((p, tx.init(p)))
    return float(np.mean((f64(p) - np.asarray(goal)) ** 2))


def test_small_steps_stall_in_plain_bfloat16_only():
    adam = adam_jax.adam(5e-4)
    assert small_steps(adam) > 0.9
    assert small_steps(optax.chain(adam, stochastic_rounding())) < 0.02
    assert small_steps(optax.chain(adam, kahan_summation())) < 0.02
    assert small_steps(master_weights(adam)) < 0.02


# --- the contract --------------------------------------------------------------------------------


def tree(dtype=BF16, seed=0):
    rng = np.random.default_rng(seed)

    def array(*shape, dtype=dtype):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    return {
        "dense": {"w": array(7, 5), "b": array(5)},
        "scalar": array(),
        "empty": array(0, 3),
        "frozen": None,
        "list": [array(2, 1, 3, dtype=jnp.float32), ()],
    }


def run(tx, params, gradients, state=None):
    state = tx.init(params) if state is None else state
    for g in gradients:
        params, state = step(tx, params, state, g)
    return params, state


@pytest.mark.costly
@every
@pytest.mark.parametrize("gradient_dtype", [BF16, F16, jnp.float32])
def test_updates_are_float32_and_state_keeps_its_kind(name, gradient_dtype):
    tx, params, g = OPTIMIZERS[name](), tree(), tree(gradient_dtype, 1)
    state = tx.init(params)
    updates, new = tx.update(g, state, params)
    assert_same_kind(new, state)
    chex.assert_trees_all_equal_structs(updates, params)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
    assert_same_kind(optax.apply_updates(params, updates), params)
    scanned, _ = jax.lax.scan(lambda c, _: (step(tx, *c, g), None), (params, state), length=3)
    assert_same_kind(scanned, (params, state))


@every
def test_a_jitted_step_is_traced_once_and_donates(name):
    assert_traced_once_and_donated(OPTIMIZERS[name](), tree(), tree(seed=1))


@every
def test_init_works_abstractly_and_shares_no_memory(name):
    tx, params = OPTIMIZERS[name](), tree()
    assert_same_kind(jax.eval_shape(tx.init, params), tx.init(params))
    for init in (tx.init, jax.jit(tx.init)):
        arrays = [x for x in jax.tree.leaves((params, init(params))) if x.size]
        pointers = [x.unsafe_buffer_pointer() for x in arrays]
        assert len(set(pointers)) == len(pointers)


@MASTERS
def test_the_master_is_not_shared_with_what_inner_keeps(remainder):
    keeps = optax.GradientTransformation(Seen, lambda u, _, params: (u, Seen(params)))
    tx = master_weights(keeps, remainder=remainder)
    params = {"w": jnp.ones((3, 3), BF16)}
    for init in (tx.init, jax.jit(tx.init)):
        arrays = jax.tree.leaves((params, init(params)))
        assert len({x.unsafe_buffer_pointer() for x in arrays}) == len(arrays)
    jitted = jax.jit(partial(step, tx), donate_argnums=(0, 1))
    state = tx.init(params)
    for _ in range(2):
        params, state = jitted(params, state, {"w": jnp.ones((3, 3), BF16)})
    assert float(params["w"][0, 0]) == 3


@pytest.mark.exhaustive
@every
def test_eager_jitted_and_vmapped_steps_agree_bit_for_bit(name):
    tx, params, gradients = MEMBERS[name](), tree(), [tree(jnp.float32, s) for s in (1, 2, 3)]
    gradients = jax.tree.map(lambda g: 1e-3 * g, gradients)
    eager = run(tx, params, gradients)
    assert_same_bits(eager, run(tx, params, gradients))
    jitted = optax.GradientTransformation(tx.init, jax.jit(tx.update))
    assert_same_bits(eager, run(jitted, params, gradients))
    whole = jax.jit(partial(run, tx))(params, gradients)
    assert_same_bits(eager, whole)
    vmapped = optax.GradientTransformation(jax.vmap(tx.init), jax.jit(jax.vmap(tx.update)))
    two = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), (params, gradients))
    assert_same_bits(eager, jax.tree.map(lambda x: x[0], run(vmapped, *two)))


@every
@pytest.mark.parametrize("empty", [{}, [], {"a": None}, optax.MaskedNode()])
def test_empty_trees_pass_through(name, empty):
    tx = OPTIMIZERS[name]()
    updates, state = tx.update(empty, tx.init(empty), empty)
    assert updates == empty
    assert_same_kind(state, tx.init(empty))


@every
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64, jnp.float64], ids=str)
def test_wide_parameters_are_updated_as_without_it(name, dtype, x64):
    params = {"w": jnp.asarray(np.random.default_rng(0).standard_normal(5), dtype)}
    tx, plain = OPTIMIZERS[name](), adam_jax.adamw(1e-2)
    state = tx.init(params)
    kept = {"kahan": lambda s: s[1], "stochastic": lambda s: s[1].count}
    kept = kept.get(name, lambda s: s.master)(state)
    assert all(x.shape == () for x in jax.tree.leaves(kept))
    assert_same_bits(run(tx, params, [params] * 3)[0], run(plain, params, [params] * 3)[0])


@every
def test_frozen_parameters_stay(name):
    tx = OPTIMIZERS[name]()
    params = {"w": jnp.ones(3, BF16), "frozen": jnp.ones(2, BF16)}
    g = {"w": jnp.ones(3, BF16), "frozen": None}
    updates, new = MEMBERS[name]().update(g, MEMBERS[name]().init(params), params)
    assert updates["frozen"] is None
    assert_same_kind(new, MEMBERS[name]().init(params))
    if hasattr(new, "changed"):
        landed = {**params, "w": optax.apply_updates(params["w"], updates["w"])}
        assert MEMBERS[name]().update(g, new, landed)[1].changed == 0
    masked = optax.masked(tx, {"w": True, "frozen": False})
    updates, _ = masked.update(params, masked.init(params), params)
    assert updates["w"].dtype == jnp.float32
    assert_same_bits(updates["frozen"], params["frozen"])


SETTINGS = {
    "strict": {"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise"},
    "x64": {"jax_enable_x64": True},
    "strict-x64": {"jax_numpy_dtype_promotion": "strict", "jax_enable_x64": True},
    "nans": {"jax_debug_nans": True},
    "leaks": {"jax_check_tracer_leaks": True},
}


@pytest.mark.costly
@every
@pytest.mark.parametrize("setting", SETTINGS)
def test_works_under_jaxs_strictest_settings(name, setting):
    params, g = tree(), tree(seed=1)
    g["dense"]["w"] = g["dense"]["w"].at[0].set(0)

    def update(g, params):
        tx = OPTIMIZERS[name]()
        return tx.update(g, tx.init(params), params)

    expected = update(g, params)
    with configured(SETTINGS[setting]):
        assert_same_bits(update(g, params), expected)
        assert_same_kind(jax.jit(update)(g, params), expected)


@pytest.mark.exhaustive
@every
def test_the_state_lies_where_its_parameters_do(name):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    place = NamedSharding(mesh, P("x", "y"))
    params = jax.device_put(jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), BF16), place)
    tx = OPTIMIZERS[name]()
    alone = run(tx, jnp.asarray(np.asarray(params)), [np.asarray(params)] * 2)
    for init in (tx.init, jax.jit(tx.init)):
        state = init(params)
        new, after = jax.jit(partial(step, tx))(params, state, params)
        for kept in (state, after, new):
            for leaf in jax.tree.leaves(kept):
                assert leaf.ndim == 0 or leaf.sharding.is_equivalent_to(place, leaf.ndim)
    chex.assert_trees_all_close(f64(run(tx, params, [params] * 2)), f64(alone), rtol=1e-6)


@pytest.mark.exhaustive
@MASTERS
def test_only_the_checksum_needs_other_devices(remainder):
    mesh = Mesh(np.array(jax.devices()), ("x",))
    params = jax.device_put(jnp.ones((8, 6), BF16), NamedSharding(mesh, P("x")))

    def program(detect_changes):
        tx = master_weights(
            adam_jax.adamw(1e-2), remainder=remainder, detect_changes=detect_changes
        )
        state = jax.jit(tx.init)(params)
        return jax.jit(partial(step, tx)).lower(params, state, params).compile().as_text()

    collectives = ["all-gather", "all-reduce", "all-to-all", "collective-permute"]
    assert not [c for c in collectives if c in program(False)]
    assert [c for c in collectives if c in program(True)] == ["all-reduce"]


@MASTERS
def test_each_device_updates_its_shard_inside_shard_map(remainder):
    shard_map = getattr(jax, "shard_map", None)
    if shard_map is None:  # its older place
        from jax.experimental.shard_map import shard_map
    mesh, spec = Mesh(np.array(jax.devices()), ("x",)), P("x")
    p = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), BF16)
    tx = master_weights(watch(), remainder=remainder, detect_changes=False)
    alone = step(tx, p, tx.init(p), 0.1 * p)
    specs = jax.tree.map(lambda x: spec if x.ndim else P(), alone)
    sharded = shard_map(
        lambda p: step(tx, p, tx.init(p), 0.1 * p), mesh=mesh, in_specs=(spec,), out_specs=specs
    )
    assert_same_bits(jax.jit(sharded)(p), alone)


@every
def test_steps_can_be_differentiated(name):
    """As of a cast: a step of u moves the parameter by u."""
    tx = MEMBERS[name]()
    p = jnp.ones(3, BF16)

    def moved(u):
        params, state = p, tx.init(p)
        for _ in range(2):
            updates, state = tx.update(jnp.full(3, u), state, params)
            params = optax.apply_updates(params, updates)
        return params.astype(jnp.float32).sum()

    assert float(jax.grad(moved)(0.01)) == 6
    assert float(jax.grad(moved)(1e-5)) == 6  # which lands where it was


def test_extra_arguments_reach_inner():
    tx = master_weights(optax.scale_by_polyak())
    p = jnp.full(2, 2.0, BF16)
    updates, _ = tx.update(p, tx.init(p), p, value=4.0)
    assert np.all(np.float32(updates) != 0)
    for name in ("stochastic", "kahan"):
        tx = MEMBERS[name]()
        assert tx.update(jnp.ones(2), tx.init(p), p, value=4.0)[0].dtype == jnp.float32


def test_inner_sees_float32():
    tx = master_weights(watch())
    params, g = tree(), tree(seed=1)
    state = tx.init(params)
    assert {x.dtype for x in jax.tree.leaves(state.inner_state)} == {jnp.dtype(jnp.float32)}
    updates, _ = tx.update(g, state, params)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}


# --- what is refused -----------------------------------------------------------------------------


def assert_refused(error, message, call, *args):
    with pytest.raises(error) as caught:
        call(*args)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@every_member
def test_bad_trees_are_refused_by_the_leafs_path(name):
    tx, params = MEMBERS[name](), {"dense": {"w": jnp.ones((4, 3), BF16)}}
    state = tx.init(params)

    def update(w, p=params, state=state):
        tx.update({"dense": {"w": w}}, state, p)

    g = jnp.ones((4, 3))
    leaf = "params['dense']['w']"
    assert_refused(ValueError, " needs `params`: update(updates, state, params)", update, g, None)
    assert_refused(ValueError, f"gradient for {leaf} has shape (3, 4)", update, jnp.ones((3, 4)))
    assert_refused(
        TypeError, f"gradient for {leaf} must be floating or", update, jnp.ones((4, 3), int)
    )
    assert_refused(TypeError, f"gradient for {leaf} is complex64; ", update, g + 0j)
    assert_refused(
        ValueError, "gradients have other containers", lambda: tx.update(g, state, params)
    )
    assert_refused(TypeError, "state must be ", update, g, params, (0, 1))
    low = {"dense": {"w": jnp.ones((4, 3), jnp.float8_e4m3fn)}}
    assert_refused(TypeError, f"{leaf} is float8_e4m3fn; ", tx.init, low)


@pytest.mark.parametrize("name", ["kahan", "master", "remainder"])
def test_a_state_of_other_parameters_is_refused(name):
    tx = MEMBERS[name]()
    g = {"w": jnp.ones(3)}
    states = {d: tx.init({"w": jnp.ones(3, d)}) for d in (BF16, jnp.float32)}
    field = "compensation" if name == "kahan" else "master"
    dtype = {"kahan": "bfloat16", "master": "float32", "remainder": "int16"}[name]

    def update(state, params):
        tx.update(g, states[state], {"w": params})

    assert_refused(ValueError, f"state.{field}['w'] must be {dtype}[3], got MaskedNode",
            update, jnp.float32, jnp.ones(3, BF16))  # fmt: skip
    assert_refused(ValueError, f"state.{field}['w'] must be MaskedNode, got {dtype}[3]",
            update, BF16, jnp.ones(3))  # fmt: skip
    other = tx.init({"v": jnp.ones(3, BF16)})
    assert_refused(ValueError, f"state.{field} has another structure",
            lambda: tx.update(g, other, {"w": jnp.ones(3, BF16)}))  # fmt: skip


def test_the_other_kind_of_master_is_refused():
    p = jnp.ones(3, BF16)
    state = MEMBERS["master"]().init(p)
    assert_refused(ValueError, "state.master must be int16[3], got float32[3]",
            lambda: MEMBERS["remainder"]().update(jnp.ones(3), state, p))  # fmt: skip


def test_bad_arguments_are_refused():
    assert_refused(
        ValueError, "`seed` must be an integer in [0, 2**32), got -1", stochastic_rounding, -1
    )
    assert_refused(TypeError, "`inner` must be an Optax transformation, got 1", master_weights, 1)
    for name in ("remainder", "detect_changes"):
        assert_refused(TypeError, f"`{name}` must be True or False, got 1",
                lambda name=name: master_weights(optax.identity(), **{name: 1}))  # fmt: skip
    p = {"w": jnp.ones(2, F16)}
    assert_refused(TypeError, "params['w'] is float16; `remainder` is for bfloat16",
            MEMBERS["remainder"]().init, p)  # fmt: skip


def test_parameters_draw_other_bits_than_moments_of_the_same_seed():
    """Else the errors of a parameter and of its mean would be one."""
    ones = jnp.ones(4096, BF16)
    between = jnp.full(4096, 1 + 2.0**-8)  # half-way to the next number
    moments = adam_jax.scale_by_adam(0.0, mu_dtype=BF16)
    mu = moments.update(between, moments.init(between))[1].mu
    tx = adam_jax.stochastic_rounding()
    updates, _ = tx.update(between - 1, tx.init(ones), ones)
    moved = optax.apply_updates(ones, updates)
    assert 0.4 < np.mean(np.asarray(mu == moved)) < 0.6
