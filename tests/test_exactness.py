"""Float32 Adam against the true one: no bias, and no more error than rounding leaves.

The truth is Kingma & Ba 2015, Algorithm 1, with the averages as the sums that equation (1) of the
paper unrolls to, in float64. Bounds are in units of rounding, ``U``; `benchmarks/exactness.py`
derives them and prints what is measured. Gradients are one-signed where nothing else is said: a
mean that cancels has no relative error to speak of.

The twins are Adam as it is often written: ``b * x + (1 - b) * new`` for the averages, ``1 - b**t``
for their correction, in float32. Each must fail the checks that ours passes.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax.rule import debias
from adam_jax.rules.adam import Adam

U = 2.0**-24
EPS = 1e-8
LANES = 256
B1 = (0.0, 0.9, 0.99)
B2 = (0.9, 0.99, 0.999, 0.9999, 0.99999, 1 - 1e-6)
GRID = tuple(product(B1, B2))
# Every b2, and every b1: the mean does not know b2, nor the mean square b1.
PAIRS = (*((0.9, b2) for b2 in B2), (0.0, 0.999), (0.99, 0.9999))
HUNDRED = tuple(range(1, 101))

enable_x64 = getattr(jax, "enable_x64", None)
if enable_x64 is None:  # JAX before 0.8
    from jax.experimental import enable_x64


class Step(NamedTuple):
    """The update and the moments at some steps, each of shape (steps, lanes)."""

    update: Any
    mu: Any
    nu: Any


def average(b: float, x: np.ndarray, power: int, steps: Sequence[int]) -> np.ndarray:
    """``(1 - b) * sum_k b**(t - k) * x_k**power`` at each t of ``steps``."""
    block = 10_000
    t, total = np.asarray(steps)[:, None], np.zeros((len(steps), x.shape[1]))
    for start in range(0, steps[-1], block):
        age = t - np.arange(start + 1, min(start + block, len(x)) + 1)
        weights = np.where(age >= 0, (1 - b) * np.float64(b) ** np.maximum(age, 0), 0)
        if weights.max() > 1e-30:  # else all that it weighs has decayed away
            total += weights @ x[start : start + block].astype(np.float64) ** power
    return total


def oracle(g: np.ndarray, b1: float, b2: float, steps: Sequence[int] = HUNDRED) -> Step:
    t = np.asarray(steps, np.float64)[:, None]
    mu, nu = average(b1, g, 1, steps), average(b2, g, 2, steps)
    return Step(mu / (1 - b1**t) / (np.sqrt(nu / (1 - b2**t)) + EPS), mu, nu)


def product_form(b: float, average: Any, new: Any) -> Any:
    return b * average + (1 - b) * new


def incremental(b: float, average: Any, new: Any) -> Any:
    return average + (1 - b) * (new - average)


def power_form(b: float, t: Any) -> Any:
    return 1 - jnp.asarray(b, t.dtype) ** t


def broken_adam(ema: Callable[..., Any], debias: Callable[..., Any]) -> Callable[..., Any]:
    """Adam with another average or another correction."""

    def scale_by_adam(b1: float, b2: float) -> optax.GradientTransformation:
        def init(params: Any) -> Any:
            zero = jnp.zeros_like(params)
            return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zero, zero)

        def update(g: Any, state: Any, params: Any = None) -> Any:
            count = state.count + 1
            t = count.astype(g.dtype)
            mu, nu = ema(b1, state.mu, g), ema(b2, state.nu, g * g)
            mean, size = mu / debias(b1, t), jnp.sqrt(nu / debias(b2, t)) + EPS
            return mean / size, optax.ScaleByAdamState(count, mu, nu)

        return optax.GradientTransformation(init, update)

    return scale_by_adam


OURS = adam_jax.scale_by_adam
PRODUCT = broken_adam(product_form, debias)
POWER = broken_adam(incremental, power_form)


def every_step(transforms: Sequence[Any], g: Any) -> list[Step]:
    """All of them along the same gradients, in one compilation."""

    def advance(states: Any, g: Any) -> Any:
        new = [tx.update(g, state) for tx, state in zip(transforms, states, strict=True)]
        return [state for _, state in new], [Step(u, state.mu, state.nu) for u, state in new]

    run = jax.jit(lambda g: jax.lax.scan(advance, [tx.init(g[0]) for tx in transforms], g)[1])
    return jax.device_get(run(jnp.asarray(g)))


def some_steps(transforms: Sequence[Any], g: Any, steps: Sequence[int]) -> list[Step]:
    """The same at ``steps`` only."""

    def advance(carry: Any, g: Any) -> Any:
        new = [tx.update(g, state) for tx, (_, state) in zip(transforms, carry, strict=True)]
        return new, None

    @jax.jit
    def run(g: Any) -> Any:
        carry, seen = [(g[0], tx.init(g[0])) for tx in transforms], []
        for start, stop in zip((0, *steps), steps, strict=False):
            carry, _ = jax.lax.scan(advance, carry, g[start:stop])
            seen.append([Step(u, state.mu, state.nu) for u, state in carry])
        return [jax.tree.map(lambda *x: jnp.stack(x), *pair) for pair in zip(*seen, strict=True)]

    return jax.device_get(run(jnp.asarray(g)))


def relative(got: Step, want: Step) -> Step:
    return jax.tree.map(lambda x, y: x / y - 1, got, want)


def largest(error: Any) -> float:
    return float(np.abs(error).max())


def magnitudes(rng: np.random.Generator) -> Any:
    return 10 ** rng.uniform(-15, 15, LANES)


def steady(seed: int, steps: int = 100) -> Any:
    """In each lane a magnitude from 30 decades, times a factor from [0.5, 1.5) at every step."""
    rng = np.random.default_rng(seed)
    factors = rng.random((steps, LANES), dtype=np.float32) + np.float32(0.5)
    return magnitudes(rng).astype(np.float32) * factors


def spiky(seed: int) -> Any:
    """A magnitude from 30 decades at every step."""
    rng = np.random.default_rng(seed)
    return (10 ** rng.uniform(-15, 15, (100, LANES))).astype(np.float32)


def short_errors(make: Callable[..., Any], g: Any, grid: Sequence[Any] = GRID) -> dict[Any, Step]:
    """The largest errors over t = 1 to 100, for each pair of the grid."""
    got = every_step([make(b1, b2) for b1, b2 in grid], g)
    errors = (relative(x, oracle(g, *pair)) for pair, x in zip(grid, got, strict=True))
    return {pair: jax.tree.map(largest, error) for pair, error in zip(grid, errors, strict=True)}


def worst(errors: Iterable[Step]) -> Step:
    return jax.tree.map(lambda *x: max(x), *errors)


# --- the first hundred steps ---------------------------------------------------------------------

# 48 seeds gave at most 9.4e-7, 6.4e-7 and 7.9e-7, with jax 0.5.0, 0.10.2 and 0.12.0 on a CPU.
SHORT_BOUND = Step(update=1e-6, mu=8e-7, nu=9e-7)


def test_first_hundred_steps_are_exact_to_1e_6() -> None:
    errors = worst(short_errors(OURS, steady(0)).values())
    assert all(x < bound for x, bound in zip(errors, SHORT_BOUND, strict=True)), errors


def test_power_form_is_wrong_in_the_first_hundred_steps() -> None:
    grid = [(0.9, b2) for b2 in B2[2:]]
    update = [error.update for error in short_errors(POWER, steady(0), grid).values()]
    assert np.all(np.array(update) > np.array([5e-6, 5e-5, 5e-4, 5e-3])), update


def test_product_form_is_wrong_in_the_first_hundred_steps() -> None:
    errors = short_errors(PRODUCT, steady(0), [(0.9, b2) for b2 in B2[2:]])
    assert all(error.nu > SHORT_BOUND.nu for error in errors.values()), errors


def test_nesterov_and_eps_root_are_as_exact() -> None:
    b1, b2, g = 0.9, 0.999, steady(0)
    g = g[:, np.abs(np.log10(g[0])) < 6]  # where eps_root is neither all nor nothing
    make = (lambda: OURS(b1, b2, nesterov=True), lambda: OURS(b1, b2, eps_root=1e-3))
    got = every_step([tx() for tx in make], g)
    t = np.asarray(HUNDRED, np.float64)[:, None]
    truth = oracle(g, b1, b2)
    size, mean = np.sqrt(truth.nu / (1 - b2**t)) + EPS, truth.mu / (1 - b1**t)
    ahead = b1 * truth.mu / (1 - b1 ** (t + 1)) + (1 - b1) * g.astype(np.float64) / (1 - b1**t)
    assert largest(got[0].update / (ahead / size) - 1) < 1e-6
    assert largest(got[0].update / (mean / size) - 1) > 1e-3  # without Nesterov it is another one
    under = np.sqrt(truth.nu / (1 - b2**t) + 1e-3) + EPS
    assert largest(got[1].update / (mean / under) - 1) < 1e-6


def test_signed_gradients_are_exact_relative_to_what_was_averaged() -> None:
    """A mean that cancels keeps the error of its terms: it is compared with the mean of |g|."""
    rng = np.random.default_rng(0)
    g = (magnitudes(rng) * 10 * rng.standard_normal((100, LANES))).astype(np.float32)
    transforms = [make(b1, b2) for make in (OURS, PRODUCT) for b1, b2 in PAIRS]
    got = every_step(transforms, g)
    for (b1, b2), ours, twin in zip(PAIRS, got, got[len(PAIRS) :], strict=False):
        truth, scale = oracle(g, b1, b2), oracle(abs(g), b1, b2)
        assert largest((ours.mu - truth.mu) / scale.mu) < 3e-7
        assert largest((ours.update - truth.update) / scale.update) < 1e-6
        if b1 > 0:  # of two products one is rounded more
            error = largest((twin.mu - truth.mu) / scale.mu)
            assert error > largest((ours.mu - truth.mu) / scale.mu)


def test_gradients_that_span_30_decades_stay_within_a_rounding_a_step() -> None:
    """After a spike all increments are alike, and with b2 near 1 they all round the same way."""
    errors = short_errors(OURS, spiky(0))
    ordinary = worst(error for (_, b2), error in errors.items() if b2 <= 0.9999)
    assert all(x < 1.5e-6 for x in ordinary), ordinary
    within = worst(errors.values())
    assert within.nu < U * 100, within
    assert within.update < U * 100 / 2 + 1e-6, within
    # This is what a float32 average cannot avoid; should it be avoided one day, say so in README.
    assert within.nu > 1e-6, within


# --- thousands of steps --------------------------------------------------------------------------

LONG = (1_000, 10_000, 100_000)


def walk(b: float, t: int) -> float:
    """The standard deviation that independent roundings give to an average of steady numbers.

    A rounding has 0.42 U: U / sqrt(3) / m, in the mean over mantissas m.
    """
    k = np.arange(1, t + 1)
    filled = np.expm1(k * np.log(b)) / np.expm1(t * np.log(b)) if b > 0 else np.zeros(t)
    return float(0.42 * U * np.sqrt(np.sum((np.float64(b) ** (t - k) * filled) ** 2)))


def bounds(b1: float, b2: float, t: int) -> Step:
    """Six standard deviations of the walk, and what a single step rounds."""
    mu, nu = walk(b1, t), walk(b2, t)
    return Step(update=6 * np.hypot(mu, nu / 2) + 8 * U, mu=6 * mu + 3 * U, nu=6 * nu + 3 * U)


@pytest.fixture(scope="module")
def long_errors() -> dict[str, dict[Any, Step]]:
    """Signed errors at each of `LONG`, of ours and of the twins, by pair."""
    g = steady(1, LONG[-1])
    runs = [("ours", OURS, pair) for pair in PAIRS]
    runs += [("product", PRODUCT, pair) for pair in PAIRS[1:6]]
    runs += [("power", POWER, PAIRS[5])]
    got = some_steps([make(*pair) for _, make, pair in runs], g, LONG)
    truth = {pair: oracle(g, *pair, LONG) for pair in PAIRS}
    errors: dict[str, dict[Any, Step]] = {}
    for (name, _, pair), x in zip(runs, got, strict=True):
        errors.setdefault(name, {})[pair] = relative(x, truth[pair])
    return errors


@pytest.mark.exhaustive
def test_no_bias_at_any_step(long_errors: dict[str, dict[Any, Step]]) -> None:
    """The mean over lanes is below 3e-7, up to what a walk of 256 lanes leaves to chance."""
    for (b1, b2), error in long_errors["ours"].items():
        for index, t in enumerate(LONG):
            mu, nu = walk(b1, t), walk(b2, t)
            chance = Step(np.hypot(mu, nu / 2), mu, nu)
            for name, x, sigma in zip(Step._fields, error, chance, strict=True):
                allowed = max(3e-7, 4 * sigma / np.sqrt(LANES))
                assert abs(x[index].mean()) < allowed, (name, b1, b2, t, x[index].mean())


@pytest.mark.exhaustive
def test_error_grows_as_a_random_walk(long_errors: dict[str, dict[Any, Step]]) -> None:
    for (b1, b2), error in long_errors["ours"].items():
        for index, t in enumerate(LONG):
            for name, x, bound in zip(Step._fields, error, bounds(b1, b2, t), strict=True):
                assert largest(x[index]) < bound, (name, b1, b2, t, largest(x[index]), bound)


def test_the_walk_is_as_long_as_it_is_said_to_be() -> None:
    """The bounds above in figures; they are not so wide that they hold nothing."""
    assert bounds(0.9, 0.999, 100_000).nu < 3.7e-6
    assert bounds(0.9, 0.9999, 100_000).nu < 1.1e-5
    assert bounds(0.9, 0.99999, 10_000).nu < 9e-6
    assert bounds(0.9, 0.99999, 100_000).nu < 2.5e-5
    assert bounds(0.9, 0.999, 100_000).update < 2.4e-6


@pytest.mark.exhaustive
def test_product_form_is_biased(long_errors: dict[str, dict[Any, Step]]) -> None:
    """It settles on (1 - b) / (1 - fl(b)) times the truth."""
    for (b1, b2), error in long_errors["product"].items():
        assert np.all(abs(error.nu.mean(axis=-1)) > 6e-7), b2
        if b2 >= 0.999:
            assert largest(error.nu[-1]) > bounds(b1, b2, LONG[-1]).nu, b2


@pytest.mark.exhaustive
def test_power_form_is_biased(long_errors: dict[str, dict[Any, Step]]) -> None:
    """With b2 = 1 - 1e-6, whose correction still matters after 100,000 steps."""
    for error in long_errors["power"].values():
        assert np.all(abs(error.update.mean(axis=-1)) > 1e-4)


def test_constant_gradients_stop_a_rounding_short() -> None:
    """Their increments round alike: nu stops where an increment is half a unit, never farther."""
    t = 20_000
    pairs = [(b, b) for b in (0.9, 0.99, 0.999)]
    magnitude = np.random.default_rng(0).uniform(1, 2, LANES).astype(np.float32)
    g = np.broadcast_to(magnitude, (t, LANES))
    got = some_steps([make(*pair) for make in (OURS, PRODUCT) for pair in pairs], g, [t])
    for (_, b2), ours, product_ in zip(pairs, got, got[len(pairs) :], strict=False):
        error, twin = (x.nu[0] / magnitude.astype(np.float64) ** 2 - 1 for x in (ours, product_))
        bound = U * (1 / (1 - b2) + 4)
        assert largest(error) < bound, b2
        assert error.max() < 4 * U, b2  # short, never beyond
        if b2 < 0.999:
            continue
        assert largest(twin) > 0.3 * bound
        # As long as it is so, README must not say that float32 has no error here.
        assert largest(error) > 1e-5


# --- coefficients --------------------------------------------------------------------------------


def coefficient_error(rule: Any, b1: float, b2: float, debias: Callable[..., Any] | None) -> float:
    t = np.arange(1, 100_001)

    @jax.jit
    def factor(t: Any) -> Any:
        if debias is None:
            return rule.coefficients(t)[0]
        return jnp.sqrt(debias(b2, t)) / debias(b1, t)

    got = np.asarray(factor(jnp.asarray(t, jnp.float32)), np.float64)
    true1, true2 = (-np.expm1(t * np.log(b)) if b > 0 else 1.0 for b in (b1, b2))
    return largest(got / (np.sqrt(true2) / true1) - 1)


@pytest.mark.parametrize("kind", [float, jnp.float32], ids=["static", "dynamic"])
def test_coefficients_are_exact_at_every_step(kind: Callable[[float], Any]) -> None:
    """Eight roundings at most, against the truth of the decay rates that float32 holds."""
    for b1, b2 in GRID:
        rule = Adam(kind(b1), kind(b2), EPS, 0.0, False)
        assert coefficient_error(rule, float(kind(b1)), float(kind(b2)), None) < 8 * U, (b1, b2)


def test_power_form_of_the_coefficients_is_wrong() -> None:
    for b2, error in zip(B2[1:], (5e-7, 5e-6, 5e-5, 5e-4, 3e-3), strict=True):
        assert coefficient_error(None, 0.0, b2, power_form) > error, b2


# --- dynamic decay rates -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dynamic() -> tuple[Any, list[Step]]:
    """The grid with traced decay rates, in one compilation."""
    g = steady(2)

    def run(b1: Any, b2: Any) -> Step:
        return every_step_traced(OURS(b1, b2), g)

    b1, b2 = (jnp.asarray(x, jnp.float32) for x in zip(*GRID, strict=True))
    got = jax.device_get(jax.jit(jax.vmap(run))(b1, b2))
    return g, [jax.tree.map(lambda x, i=i: x[i], got) for i in range(len(GRID))]


def every_step_traced(tx: Any, g: Any) -> Step:
    def advance(state: Any, g: Any) -> Any:
        u, state = tx.update(g, state)
        return state, Step(u, state.mu, state.nu)

    return jax.lax.scan(advance, tx.init(jnp.asarray(g[0])), jnp.asarray(g))[1]


def test_dynamic_decay_rates_are_exact_for_what_float32_holds(
    dynamic: tuple[Any, list[Step]],
) -> None:
    """A traced b is fl(b); for that b the errors are those of a static one."""
    g, got = dynamic
    held = [tuple(float(np.float32(b)) for b in pair) for pair in GRID]
    for pair, x in zip(held, got, strict=True):
        error = jax.tree.map(largest, relative(x, oracle(g, *pair)))
        assert all(e < bound for e, bound in zip(error, SHORT_BOUND, strict=True)), (pair, error)


def test_dynamic_decay_rates_cost_the_moments_what_float32_lost_and_the_update_nothing(
    dynamic: tuple[Any, list[Step]],
) -> None:
    """fl(b) is off by up to U / 2, and 1 - b with it; the correction is off by as much."""
    g, got = dynamic
    for (b1, b2), x in zip(GRID, got, strict=True):
        error = jax.tree.map(largest, relative(x, oracle(g, b1, b2)))
        assert error.update < 1e-6, (b1, b2)
        assert error.mu < U / 2 / (1 - b1) + SHORT_BOUND.mu, (b1, b2)
        assert error.nu < U / 2 / (1 - b2) + SHORT_BOUND.nu, (b1, b2)
        if b2 >= 0.999:  # so static decay rates are worth having
            assert error.nu > 5e-6, (b1, b2)


# --- float64 -------------------------------------------------------------------------------------


def truth_by_mpmath(g: Sequence[float], b1: float, b2: float, eps: float) -> list[Step]:
    """Algorithm 1 as it is printed, with 50 digits."""
    steps = []
    with mpmath.workdps(50):
        b1, b2, eps, mu, nu = (mpmath.mpf(x) for x in (b1, b2, eps, 0, 0))
        for t, x in enumerate(map(mpmath.mpf, g), start=1):
            mu, nu = b1 * mu + (1 - b1) * x, b2 * nu + (1 - b2) * x**2
            update = mu / (1 - b1**t) / (mpmath.sqrt(nu / (1 - b2**t)) + eps)
            steps.append(Step(update, mu, nu))
    return steps


def test_float64_agrees_with_fifty_digits() -> None:
    """And float64 does not excuse the power form, where eps does not hide what it does."""
    rng = np.random.default_rng(0)
    g = 10.0 ** np.array([-15, -5, 5, 15]) * rng.uniform(0.5, 1.5, (100, 4))
    with enable_x64(True):
        got = every_step([OURS(*pair) for pair in PAIRS], g)
        twins = every_step([POWER(*pair) for pair in PAIRS], g)
    for (b1, b2), ours, twin in zip(PAIRS, got, twins, strict=True):
        wrong = 0.0
        for lane in range(g.shape[1]):
            truth = truth_by_mpmath(g[:, lane].tolist(), b1, b2, EPS)
            for name in Step._fields:
                error = farthest(getattr(ours, name)[:, lane], [getattr(x, name) for x in truth])
                assert error < 4e-15, (name, b1, b2, error)
            wrong = max(wrong, farthest(twin.update[:, lane], [x.update for x in truth]))
        if b2 >= 0.9999:
            assert wrong > 1e-14, b2


def farthest(got: Any, want: Sequence[Any]) -> float:
    return float(max(abs(x / y - 1) for x, y in zip(got.tolist(), want, strict=True)))


def test_the_float64_oracle_agrees_with_fifty_digits() -> None:
    g = steady(3)[:, :2]
    for b1, b2 in PAIRS:
        sums, truth = oracle(g, b1, b2), truth_by_mpmath(g[:, 0].tolist(), b1, b2, EPS)
        for name in Step._fields:
            error = farthest(getattr(sums, name)[:, 0], [getattr(x, name) for x in truth])
            # In float64 1 - b**t itself is wrong by half a unit over 1 - b.
            assert error < 1e-13 + 2**-53 / (1 - b2), (name, b1, b2, error)
