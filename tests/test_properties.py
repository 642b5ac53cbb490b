"""What is true of Adam for every gradient: found by search (Hypothesis), not by example.

Each property has a twin nearby, something that lacks it, so that the search can find a fault.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import adam_jax

enable_x64 = getattr(jax, "enable_x64", None)
if enable_x64 is None:  # JAX before 0.8
    from jax.experimental import enable_x64

STEPS, LANES = 6, 8
search = settings(deadline=None, derandomize=True, database=None, max_examples=60)

DTYPES = {"float32": np.uint32, "bfloat16": np.uint16, "float16": np.uint16}


def finite(dtype: str) -> st.SearchStrategy[Any]:
    """Sequences of gradients of any finite bit pattern."""
    bits = arrays(DTYPES[dtype], (STEPS, LANES))

    def as_finite(pattern: Any) -> Any:
        x = np.asarray(pattern).view(jnp.dtype(dtype))
        return np.where(np.isfinite(x), x, np.sign(x) * jnp.finfo(dtype).max).astype(x.dtype)

    return bits.map(as_finite).map(lambda x: np.where(np.isnan(x), jnp.zeros((), x.dtype), x))


def moderate() -> st.SearchStrategy[Any]:
    """Sequences whose squares, and products with powers of two up to 2**20, are normal."""
    numbers = st.floats(2.0**-20, 2.0**20, width=32)
    return arrays(np.float32, (STEPS, LANES), elements=numbers | numbers.map(lambda x: -x))


def along(make: Callable[[], Any]) -> Callable[[Any], Any]:
    """Jitted: the updates of all steps, and the last state."""

    @jax.jit
    def run(g: Any) -> Any:
        tx = make()
        state, updates = jax.lax.scan(lambda s, x: tx.update(x, s)[::-1], tx.init(g[0]), g)
        return updates, state

    return run


@cache
def ours(**settings: Any) -> Callable[[Any], Any]:
    return along(lambda: adam_jax.scale_by_adam(**settings))


@cache
def optax_adam(**settings: Any) -> Callable[[Any], Any]:
    return along(lambda: optax.scale_by_adam(**settings))


def updates(run: Callable[[Any], Any], g: Any) -> Any:
    return np.asarray(run(jnp.asarray(g))[0])


# --- symmetries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [False, True])
@search
@given(g=moderate(), powers=arrays(np.int32, LANES, elements=st.integers(-20, 20)))
def test_diagonal_rescaling_changes_no_bit(nesterov: bool, g: Any, powers: Any) -> None:
    run = ours(eps=0.0, nesterov=nesterov)
    scaled = g * np.exp2(powers).astype(np.float32)
    np.testing.assert_array_equal(updates(run, scaled), updates(run, g))


def test_diagonal_rescaling_changes_what_eps_or_sgd_do() -> None:
    g = np.full((STEPS, LANES), 1e-6, np.float32)
    for run in (ours(eps=1e-8), along(lambda: optax.sgd(1.0))):
        assert not np.array_equal(updates(run, 4 * g), updates(run, g))


@search
@given(g=finite("float32"))
def test_sign_symmetry(g: Any) -> None:
    (plus, state), (minus, mirrored) = ours()(g), ours()(-g)
    np.testing.assert_array_equal(plus, -minus)
    np.testing.assert_array_equal(state.mu, -mirrored.mu)
    np.testing.assert_array_equal(state.nu, mirrored.nu)


@search
@given(g=moderate(), order=st.permutations(range(LANES)))
def test_permutation_equivariance(g: Any, order: list[int]) -> None:
    np.testing.assert_array_equal(updates(ours(), g[:, order]), updates(ours(), g)[:, order])


@cache
def one_by_one() -> Callable[[Any], Any]:
    return jax.jit(jax.vmap(ours(), in_axes=1, out_axes=(1, 0)))


@search
@given(g=moderate())
def test_vmap_over_lanes_is_the_array(g: Any) -> None:
    (together, state), (apart, states) = ours()(g), one_by_one()(g)
    np.testing.assert_array_equal(together, apart)
    np.testing.assert_array_equal(state.mu, states.mu)
    np.testing.assert_array_equal(state.nu, states.nu)


def as_complex(g: Any) -> Any:
    return (g[:, ::2] + 1j * g[:, 1::2]).astype(np.complex64)


@search
@given(g=moderate().map(as_complex), angle=st.floats(-math.pi, math.pi))
def test_complex_numbers_turn_with_the_gradient(g: Any, angle: float) -> None:
    """By half a turn to the bit; by any other angle but for rounding."""
    u, state = ours()(g)
    assert state.nu.dtype == np.float32
    np.testing.assert_array_equal(updates(ours(), -g), -u)
    for turn in (1j, np.exp(1j * angle)):
        turned, turned_state = ours()((turn * g).astype(np.complex64))
        np.testing.assert_allclose(turned, turn * np.asarray(u), rtol=0, atol=5e-6)
        np.testing.assert_allclose(turned_state.nu, state.nu, rtol=2e-6)


@search
@given(g=finite("float32"), eps=st.sampled_from([1e-8, 0.0]))
def test_a_complex_gradient_on_the_real_axis_is_a_real_one(g: Any, eps: float) -> None:
    """At every magnitude: half of the limit at which squares are saturated is left to each part."""
    g = np.clip(g, -9e18, 9e18)
    real, turned = updates(ours(eps=eps), g), updates(ours(eps=eps), (1j * g).astype(np.complex64))
    # Beside eps, means below 1e-33 are rounding's.
    np.testing.assert_allclose(turned.imag, real, rtol=1e-6, atol=1e-25)
    assert not np.any(turned.real)


def test_parts_taken_for_real_numbers_do_not_turn() -> None:
    """The twin: Adam on real and imaginary parts apart makes every first step diagonal."""
    g = np.array([[1.0, 0.0]], np.float32)
    turned = np.array([[math.cos(0.7), math.sin(0.7)]], np.float32)
    length = [np.linalg.norm(updates(ours(), x)[0]) for x in (g, turned)]
    assert length[1] > 1.4 * length[0]


# --- the size of a step --------------------------------------------------------------------------


def bound(b1: float, b2: float, t: Any) -> Any:
    """The largest step t, in learning rates, over all sequences of gradients (Cauchy-Schwarz).

    It is 1 at t = 1 and rises to (1 - b1) / sqrt((1 - b2) * (1 - b1**2 / b2)), if b1**2 < b2.
    """
    r = b1**2 / b2
    supremum = (1 - b1) / math.sqrt((1 - b2) * (1 - r))
    return supremum * np.sqrt((1 - b2**t) * (1 - r**t)) / (1 - b1**t)


T = np.arange(1, STEPS + 1)[:, None]
RATES = [(0.9, 0.999), (0.9, 0.95), (0.5, 0.9), (0.0, 0.99)]


@pytest.mark.parametrize(("b1", "b2"), RATES)
@search
@given(g=finite("float32"))
def test_no_sequence_steps_beyond_the_bound(b1: float, b2: float, g: Any) -> None:
    """Of any magnitude, also where squares are saturated; eps can only shorten a step."""
    assert np.all(np.abs(updates(ours(b1=b1, b2=b2), g)) <= bound(b1, b2, T) * (1 + 1e-6))


@pytest.mark.parametrize(("b1", "b2"), RATES)
@search
@given(g=moderate())
def test_no_sequence_steps_beyond_the_bound_without_eps(b1: float, b2: float, g: Any) -> None:
    run = ours(b1=b1, b2=b2, eps=0.0)
    assert np.all(np.abs(updates(run, g)) <= bound(b1, b2, T) * (1 + 1e-6))


@pytest.mark.parametrize(("b1", "b2"), RATES[:3])
def test_the_worst_sequence_reaches_the_bound(b1: float, b2: float) -> None:
    """Growing like (b2 / b1)**k, whatever t; so no smaller bound is true."""
    g = ((b2 / b1) ** np.arange(1.0, 31))[:, None].astype(np.float32)
    for t in (1, 2, 5, 30):
        # What reaches the bound at t does not depend on where it ends.
        assert updates(ours(b1=b1, b2=b2), g)[t - 1, 0] == pytest.approx(bound(b1, b2, t), rel=2e-6)


def test_the_papers_bound_is_none() -> None:
    """Kingma & Ba, section 2.1: max(1, (1 - b1) / sqrt(1 - b2)) = 3.16."""
    growing = ((0.999 / 0.9) ** np.arange(1.0, 61))[:, None].astype(np.float32)
    assert updates(ours(), growing)[-1, 0] < 3.17 < bound(0.9, 0.999, 400)
    g = np.concatenate([np.zeros((2000, 1), np.float32), growing])
    assert updates(ours(), g)[-1, 0] > 6.5


@search
@given(magnitude=st.floats(1.0, float(np.finfo(np.float32).max), width=32), sign=st.booleans())
def test_a_constant_gradient_steps_by_one(magnitude: float, sign: bool) -> None:
    """At every magnitude at which eps is negligible, also where squares are saturated."""
    g = np.full((STEPS, LANES), magnitude if sign else -magnitude, np.float32)
    np.testing.assert_allclose(updates(ours(), g), np.sign(g), rtol=5e-7)


@search
@given(magnitude=st.floats(2.0**-50, 1.0, width=32))
def test_a_constant_gradient_steps_by_one_without_eps(magnitude: float) -> None:
    g = np.full((STEPS, LANES), magnitude, np.float32)
    np.testing.assert_allclose(updates(ours(eps=0.0), g), 1.0, rtol=5e-7)


@search
@given(magnitude=st.floats(2.0**-116, 1.0, width=32))
def test_the_first_step_is_shortened_by_eps(magnitude: float) -> None:
    """To 1 / (1 + eps / |g|): a gradient of eps makes half a step."""
    g = np.full((1, 1), magnitude, np.float32)
    expected = 1 / (1 + 1e-8 / float(g[0, 0]))
    # Below 1e-17 squares vanish, but beside eps they never mattered.
    np.testing.assert_allclose(updates(ours(), g)[0, 0], expected, rtol=1e-6)


# --- finite, zero, loud --------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "eps 0": {"eps": 0.0},
    "nesterov": {"nesterov": True},
    "eps_root": {"eps": 0.0, "eps_root": 1e-30},
    "bfloat16 state": {"mu_dtype": jnp.bfloat16, "nu_dtype": jnp.bfloat16},
}


@pytest.mark.costly
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SETTINGS)
def test_finite_gradients_give_finite_updates(kind: str, dtype: str) -> None:
    run = ours(**SETTINGS[kind])

    @settings(search, max_examples=20)
    @given(g=finite(dtype))
    def check(g: Any) -> None:
        u, state = run(g)
        assert u.dtype == g.dtype
        for x in (u, state.mu, state.nu):
            assert np.all(np.isfinite(np.asarray(x, np.float32)))

    check()


@pytest.mark.costly
@pytest.mark.parametrize("dtype", [*DTYPES, "complex64"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_alternating_extremes_stay_finite(kind: str, dtype: str) -> None:
    if dtype == "complex64" and kind == "bfloat16 state":
        return  # refused, by name, in the contract's tests
    info = jnp.finfo(dtype)
    largest, smallest = float(info.max), float(info.smallest_subnormal)
    sequence = [largest, -largest, largest, 0, smallest, -largest, -smallest, largest, 0, 0]
    g = np.array(sequence * 3, np.float64)[:, None]
    if dtype == "complex64":
        g = np.concatenate([g + 0j, 1j * g, g + 1j * g, g - 1j * g], axis=1)
    u, state = ours(**SETTINGS[kind])(g.astype(jnp.dtype(dtype)))
    for x in (u, state.mu, state.nu):
        assert np.all(np.isfinite(np.asarray(x).astype(np.complex64)))


def test_optax_does_not_stay_finite() -> None:
    """The twin: one large gradient, and the mean square is infinite for ever."""
    g = np.array([[1e20], [1.0]], np.float32)
    assert np.isinf(optax_adam()(g)[1].nu).all()
    assert np.isfinite(ours()(g)[1].nu).all()


@pytest.mark.costly
@pytest.mark.parametrize("dtype", [*DTYPES, "complex64"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_zero_gives_zero(kind: str, dtype: str) -> None:
    if dtype == "complex64" and kind == "bfloat16 state":
        return
    u, state = ours(**SETTINGS[kind])(np.zeros((STEPS, LANES), jnp.dtype(dtype)))
    assert not np.any(u)
    assert not np.any(state.mu)
    assert not np.any(state.nu)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_loud_and_local(dtype: str, bad: float) -> None:
    """It shows in the update at its own place, then and later, and nowhere else."""
    g = np.ones((STEPS, LANES), jnp.dtype(dtype))
    expected = updates(ours(), g)
    g[2, 3] = bad
    u = updates(ours(), g)
    wrong = ~np.isfinite(u.astype(np.float32))
    assert wrong[2:, 3].all()
    assert wrong.sum() == STEPS - 2
    np.testing.assert_array_equal(u[~wrong], expected[~wrong])


def test_optax_is_silent_about_infinity() -> None:
    """The twin: in the steps after it, a mean square that is infinite makes a step of nothing."""
    g = np.array([[1.0], [1e30], [1.0]], np.float32)
    assert updates(optax_adam(), g)[2, 0] == 0
    assert updates(ours(), g)[2, 0] != 0


# --- identities ----------------------------------------------------------------------------------


@search
@given(g=moderate())
def test_without_a_mean_it_is_rmsprop_with_bias_correction(g: Any) -> None:
    nu, x = np.zeros(LANES), g.astype(np.float64)
    u = updates(ours(b1=0.0), g)
    for t in range(1, STEPS + 1):
        nu = 0.999 * nu + 0.001 * x[t - 1] ** 2
        root_mean_square = np.sqrt(nu / (1 - 0.999**t))
        np.testing.assert_allclose(u[t - 1], x[t - 1] / (root_mean_square + 1e-8), rtol=1e-6)


def test_with_a_mean_it_is_not_rmsprop() -> None:
    g = gaussian(STEPS).astype(np.float32)
    assert np.abs(updates(ours(b1=0.5), g) - updates(ours(b1=0.0), g)).max() > 0.1


def gaussian(steps: int) -> Any:
    return np.random.default_rng(0).standard_normal((steps, LANES))


def debiased_momentum(g: Any, b: float) -> Any:
    mu, out = np.zeros(g.shape[1]), []
    for t, x in enumerate(g, start=1):
        mu = b * mu + (1 - b) * x
        out.append(mu / (1 - b**t))
    return np.stack(out)


def test_with_a_huge_eps_it_is_momentum() -> None:
    """adam(lr * E, eps=E) with E = 1e8, against SGD along the debiased mean."""
    g, huge = gaussian(200), 1e8
    with enable_x64(True):
        u = updates(along(lambda: adam_jax.adam(0.1 * huge, eps=huge)), g)
        small = updates(along(lambda: adam_jax.adam(0.1 * 1e3, eps=1e3)), g)
    expected = -0.1 * debiased_momentum(g, 0.9)
    assert np.abs(u / expected - 1).max() < 1e-7
    assert np.abs(small / expected - 1).max() > 1e-4
    single = updates(along(lambda: adam_jax.adam(0.1 * huge, eps=huge)), g.astype(np.float32))
    np.testing.assert_allclose(single, expected, rtol=0, atol=1e-7)


def test_with_an_average_of_everything_it_is_adagrad() -> None:
    """b1 = 0, b2 = 1 - 1e-9 and the learning rate over sqrt(t)."""
    g = gaussian(50)

    def run(b2: float) -> Any:
        def rate(count: Any) -> Any:
            return 0.1 / jnp.sqrt(count + 1.0)

        return updates(along(lambda: adam_jax.adam(rate, b1=0.0, b2=b2, eps=0.0)), g)

    with enable_x64(True):
        adagrad, rms = run(1 - 1e-9), run(0.999)
    expected = -0.1 * g / np.sqrt(np.cumsum(g**2, axis=0))
    np.testing.assert_allclose(adagrad, expected, rtol=0, atol=1e-9)
    assert np.abs(rms - expected).max() > 1e-5
