"""What the papers of the family say of its members: invariances, bounds and what defines each.

Beside each fact stands what lacks it, another member or another setting, so that the test can fail.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import optax.contrib
import pytest
from family import MEMBERS
from training import assert_close, gradients, moved, parameters

import adam_jax
from adam_jax.rules import adam_atan2
from adam_jax.rules.adam import Adam
from adam_jax.rules.ademamix import AdEMAMix
from adam_jax.rules.nadam import NAdam
from adam_jax.rules.radam import RAdam

Made = Callable[[], Any]


def along(tx: Any) -> Callable[[Any], Any]:
    """Jitted: of gradients, the updates of all steps and the states after each."""

    @jax.jit
    def run(g: Any) -> Any:
        params = jnp.ones_like(g[0])

        def advance(state: Any, g: Any) -> Any:
            u, state = tx.update(g, state, params)
            return state, (u, state)

        return jax.lax.scan(advance, tx.init(params), g)[1]

    return lambda g: jax.tree.map(np.asarray, run(jnp.asarray(g, jnp.float32)))


def updates(tx: Any, g: Any) -> Any:
    return along(tx)(g)[0]


def noise(steps: int, size: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((steps, size)).astype(np.float32)


# --- the gradient's scale ------------------------------------------------------------------------

INVARIANT: dict[str, Made] = {
    "adam": lambda: adam_jax.adam(1.0, eps=0.0),
    "adam-eps_hat": lambda: adam_jax.adam(1.0, eps=0.0, eps_hat=True),
    "amsgrad": lambda: adam_jax.amsgrad(1.0, eps=0.0),
    "amsgrad-after": lambda: adam_jax.amsgrad(1.0, eps=0.0, correct_after_max=True),
    "adamax": lambda: adam_jax.adamax(1.0, eps=0.0),
    "nadam": lambda: adam_jax.nadam(1.0, eps=0.0),
    "nadam-torch": lambda: adam_jax.nadam(1.0, eps=0.0, momentum_decay=4e-3),
    "adabelief": lambda: adam_jax.adabelief(1.0, eps=0.0, eps_root=0.0),
    "yogi-from-0": lambda: adam_jax.scale_by_yogi(eps=0.0, initial_accumulator_value=0.0),
    "laprop": lambda: adam_jax.laprop(1.0, eps=0.0),
    "adopt": lambda: adam_jax.adopt(1.0, eps=0.0),
    "adopt-unclipped": lambda: adam_jax.adopt(1.0, eps=0.0, use_clipping=False),
    "adan": lambda: adam_jax.adan(1.0, eps=0.0, eps_root=0.0),
    "ademamix": lambda: adam_jax.ademamix(1.0, eps=0.0),
    "adam_atan2": lambda: adam_jax.adam_atan2(1.0),
    "stable_adamw": lambda: adam_jax.stable_adamw(1.0, eps=0.0, weight_decay=0.0),
    "lamb": lambda: adam_jax.lamb(1.0, eps=0.0),
    "lion": lambda: adam_jax.lion(1.0, weight_decay=0.0),
    "cautious": lambda: adam_jax.cautious(adam_jax.adam(1.0, eps=0.0)),
    "grams": lambda: adam_jax.grams(adam_jax.adam(1.0, eps=0.0)),
}
VARIANT: dict[str, Made] = {
    "sgd": lambda: optax.sgd(1.0),
    "yogi": lambda: adam_jax.yogi(1.0, eps=0.0),  # starts at 1e-6
    "adabelief": lambda: adam_jax.adabelief(1.0, eps=0.0),  # has eps_root
    "mars": lambda: adam_jax.mars(1.0, eps=0.0),  # clips all at once
    "adam_mini": lambda: adam_jax.adam_mini(1.0, eps=0.0),  # one mean square for all
    "lion-smooth": lambda: adam_jax.scale_by_lion(mode="smooth"),
}
POWERS = np.exp2(np.arange(-20, 20, 2)).astype(np.float32)


def scaled_difference(tx: Any, scale: Any = POWERS) -> Any:
    """The largest change of an update, by step, where each coordinate's gradients are scaled."""
    run, g = along(tx), noise(50, 20)
    return np.abs(run(g * scale)[0] - run(g)[0]).max(axis=1)


@pytest.mark.costly
@pytest.mark.parametrize("make", INVARIANT.values(), ids=INVARIANT)
def test_steps_are_invariant_to_diagonal_rescaling(make: Made) -> None:
    """Kingma & Ba 2015, section 1, of Adam; by powers of two and without eps to the bit."""
    assert not np.any(scaled_difference(make()))


@pytest.mark.parametrize("make", VARIANT.values(), ids=VARIANT)
def test_steps_are_not_where_a_scale_is_built_in(make: Made) -> None:
    assert scaled_difference(make()).max() > 0.04


def test_radam_is_only_once_it_divides() -> None:
    """Liu et al. 2020, Algorithm 2: the first five steps, of b2 = 0.999, are plain momentum."""
    difference = scaled_difference(adam_jax.radam(1.0, eps=0.0))
    assert np.all(difference[:5] > 1e4)
    assert not np.any(difference[5:])


def test_adam_mini_is_by_whole_blocks() -> None:
    """Zhang et al. 2024, Algorithm 1."""
    tx = adam_jax.adam_mini(1.0, eps=0.0, blocks=lambda path, leaf: (4,))
    assert not np.any(scaled_difference(tx, np.repeat(POWERS[::5], 5)))
    assert np.any(scaled_difference(tx, np.roll(np.repeat(POWERS[::5], 5), 1)))


# --- the size of a step --------------------------------------------------------------------------


def wild() -> Any:
    """Silence, spikes, growth and decline over twelve decades, in 64 lanes."""
    rng = np.random.default_rng(0)
    g = rng.choice([-1, 1], (400, 64)) * 10.0 ** rng.uniform(-6, 6, (400, 64))
    g[:, ::2] *= rng.random((400, 32)) < 0.02
    g[:, 1], g[:, 3] = (b ** np.arange(400.0) for b in (0.999, 0.99))
    g[:, 5] = np.r_[np.zeros(300), 1.1 ** np.arange(100.0)]
    return g.astype(np.float32)


def test_adamaxs_step_grows_to_1_009() -> None:
    """Kingma & Ba 2015, section 7.1: "|step| <= a". Where gradients fade like b2**t it is more.

    The mean is then (1 - b1) / (1 - b1 / b2) times the largest, and no sequence comes to more.
    """
    supremum = 0.1 / (1 - 0.9 / 0.999)
    assert supremum == pytest.approx(1.009091, abs=5e-7)
    tx = adam_jax.scale_by_adamax(eps=0.0)
    fading = updates(tx, 0.999 ** np.arange(400.0)[:, None])[:, 0]
    t = np.arange(1, 401)
    expected = supremum * (1 - (0.9 / 0.999) ** t) / (1 - 0.9**t)
    np.testing.assert_allclose(fading, expected, rtol=1e-5)  # fl(b2) is not b2
    assert fading[-1] == pytest.approx(1.009091, abs=1e-5)
    assert np.abs(updates(tx, wild())).max() <= supremum * (1 + 1e-6)
    assert np.abs(updates(adam_jax.scale_by_adam(eps=0.0), wild())).max() > 2  # Adam's is not


def test_adam_atan2s_step_is_bounded_for_any_decay_rates() -> None:
    """Everett et al. 2024, section 4.2: by a * pi / 2, which it nears.

    Adam has a bound only where b1**2 < b2. With b1 = 0.99 and b2 = 0.5 the mean of fading gradients
    is many times their root mean square.
    """
    fading = 0.8 ** np.arange(100.0)[:, None]
    bound = 1.27 * math.pi / 2
    step = updates(adam_jax.adam_atan2(1.0, 0.99, 0.5), fading)[-1, 0]
    assert 0.99 * bound < -step <= bound
    assert updates(adam_jax.scale_by_adam(0.99, 0.5, eps=0.0), fading)[-1, 0] > 100
    for b1, b2 in ((0.9, 0.999), (0.99, 0.5), (0.999, 0.9)):
        steps = updates(adam_jax.adam_atan2(1.0, b1, b2), wild())
        assert np.abs(steps).max() <= bound * (1 + 1e-6)
    agreed = updates(adam_jax.adam_atan2(1.0), np.ones((10, 1)))
    np.testing.assert_allclose(agreed, -1.27 * math.pi / 4, rtol=1e-6)


def test_the_angle_is_right_to_two_units_in_the_last_place() -> None:
    """Of mean and root over 12 decades; twin: a coefficient that is 1e-5 off."""
    size = 10.0 ** np.random.default_rng(0).uniform(-6, 6, (2, 100_000))
    y, x = (size * np.random.default_rng(1).normal(size=size.shape)).astype(np.float32)
    x = np.abs(x)
    expected = np.arctan2(y.astype(float), x.astype(float))

    def units() -> float:
        found = np.asarray(adam_atan2._angle(y, x), float)
        return float(np.max(np.abs(found - expected) / np.spacing(np.abs(expected).astype("f"))))

    assert units() <= 2
    *others, last = adam_atan2._ATAN
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adam_atan2, "_ATAN", (*others, last * (1 + 1e-5)))
        assert units() > 2
    edges = [(0, 0), (-0.0, 0), (1, 0), (-1, 0), (1, math.inf), (2, 2)]
    for y, x in edges:
        assert adam_atan2._angle(jnp.float32(y), jnp.float32(x)) == np.float32(math.atan2(y, x))


def test_lions_step_is_one() -> None:
    """Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", Algorithm 2: a sign."""
    g = noise(20, 50)
    assert np.all(np.abs(updates(adam_jax.scale_by_lion(), g)) == 1)
    assert not np.any(updates(adam_jax.scale_by_lion(), 0 * g))
    assert np.all(np.abs(updates(adam_jax.scale_by_lion(mode="smooth"), g)) < 1)


def test_adopts_step_is_bounded_by_the_fourth_root_of_time() -> None:
    """Taniguchi et al. 2024, Algorithm 2: c_t = t**0.25, of the gradients after the first."""
    bound = np.arange(400.0)[:, None] ** 0.25
    steps = np.abs(updates(adam_jax.scale_by_adopt(), wild()))
    assert np.all(steps <= bound * (1 + 1e-6))
    assert np.any(steps > 0.9 * bound * (bound > 2))
    assert np.any(np.abs(updates(adam_jax.scale_by_adopt(use_clipping=False), wild())) > 1e4)


# --- coefficients in float32 ---------------------------------------------------------------------

STEPS = 10_000


def length(b2: float) -> Any:
    """Liu et al. 2020, Algorithm 2: rho at each step, by running product to forty digits."""
    with mpmath.workdps(40):
        b, power, rho = mpmath.mpf(b2), mpmath.mpf(1), []
        for t in range(1, STEPS + 1):
            power *= b
            rho.append(float(2 / (1 - b) - 1 - 2 * t * power / (1 - power)))
    return np.array(rho)


def rectifier(rho: Any, limit: float) -> Any:
    """The same paper's r, where rho >= 5, else NaN."""
    with np.errstate(invalid="ignore"):
        r = np.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
    return np.where(rho >= 5, r, np.nan)


def radams(b2: float) -> Any:
    """RAdam's own in float32; r by what it multiplies Adam's mean with."""
    t = jnp.arange(1, STEPS + 1, dtype=jnp.float32)
    rule, plain = RAdam(0.0, b2, 0.0), Adam(0.0, b2, 0.0)
    rho = jax.vmap(lambda t: rule.length(t)[0])(t)
    r = jax.vmap(lambda t: rule.coefficients(t)[0] / plain.coefficients(t)[0])(t)
    return np.asarray(rho), np.where(rho >= 5, r, np.nan)


@pytest.mark.exhaustive
@pytest.mark.parametrize("b2", [0.9, 0.99, 0.999, 0.9999])
def test_radams_rectifier_is_right_to_1e_6(b2: float) -> None:
    """Liu et al. 2020, Algorithm 2, at each of 10,000 steps; in float32 as written it is not."""
    rho, limit = length(b2), 2 / (1 - b2) - 1
    ours = radams(b2)
    np.testing.assert_allclose(ours[0], rho, rtol=1e-6)
    np.testing.assert_allclose(ours[1], rectifier(rho, limit), rtol=1e-6)

    t = np.arange(1, STEPS + 1, dtype=np.float32)
    power = np.float32(b2) ** t
    naive = np.float32(limit) - 2 * t * power / (1 - power)
    off = np.abs(naive / rho - 1).max()
    assert off > {0.9: 2e-6, 0.99: 1e-4, 0.999: 2e-2, 0.9999: 1}[b2]


def test_radams_rectifier_has_the_known_values() -> None:
    rho, r = radams(0.999)
    first = [1, 1.9995, 2.99867, 3.9975, 4.996, 5.99416]
    np.testing.assert_allclose(rho[:6], first, rtol=0, atol=1e-5)
    later = [0.025821, 0.048998, 0.215335, 0.645326]
    np.testing.assert_allclose(r[[5, 9, 99, 999]], later, rtol=0, atol=1e-6)


def product(b1: float, decay: float, steps: int) -> Any:
    """Dozat 2016, Algorithm 2, to thirty digits: what multiplies mu and g, by running product."""
    rows = []
    with mpmath.workdps(30):
        one = mpmath.mpf("0.96") ** mpmath.mpf(decay)
        power, so_far, now = one, mpmath.mpf(1), b1 * (1 - one / 2)
        for _ in range(steps):
            power *= one
            so_far, ahead = so_far * now, b1 * (1 - power / 2)
            rows.append((float(ahead / (1 - so_far * ahead)), float((1 - now) / (1 - so_far))))
            now = ahead
    return np.array(rows).T


@pytest.mark.exhaustive
@pytest.mark.parametrize("decay", [4e-3, 1.0])
@pytest.mark.parametrize("b1", [0.9, 0.99])
def test_nadams_product_needs_no_state(x64: None, b1: float, decay: float) -> None:
    """Dozat 2016: that of all momenta so far, from t alone; 4e-3 is PyTorch's and 1 Keras's."""
    expected = product(b1, decay, 1000)
    rule = NAdam(b1, 0.999, 1e-8, nesterov=True, momentum_decay=decay)
    for dtype, rtol in (("float32", 1e-6), ("float64", 1e-13)):
        factors = jax.vmap(rule.factors)(jnp.arange(1, 1001, dtype=dtype))
        assert factors[0].dtype == dtype
        np.testing.assert_allclose(factors, expected, rtol=rtol)
    constant = NAdam(b1, 0.999, 1e-8, nesterov=True).factors(jnp.float32(3))
    assert np.all(np.abs(np.array(constant) / expected[:, 2] - 1) > 0.2)


def test_ademamix_warms_up_linearly_in_half_lives() -> None:
    """Pagliardini et al. 2024: in f(b) = log(0.5) / log(b) - 1; and alpha linearly as it is."""

    def half_life(rate: Any) -> Any:
        return math.log(0.5) / np.log1p(-np.asarray(rate, float)) - 1

    f_b1, f_b3 = half_life(0.1), half_life(1e-4)
    assert (f_b1, f_b3) == (pytest.approx(5.579, abs=5e-4), pytest.approx(6930.1, abs=0.05))
    done = np.array([0.001, 0.1, 0.5, 0.9, 1, 2])
    t = jnp.asarray(10_000 * done, jnp.float32)

    def rates(**settings: Any) -> Any:
        return jax.vmap(AdEMAMix(0.9, 0.999, 1e-8, **settings).coefficients)(t)[-2:]

    rate, alpha = rates(warmup_steps=10_000)
    expected = f_b1 + np.minimum(done, 1) * (f_b3 - f_b1)
    np.testing.assert_allclose(half_life(rate), expected, rtol=2e-6)
    correction = np.sqrt(1 - 0.999 ** np.asarray(t, float))
    np.testing.assert_allclose(alpha / correction, 5 * np.minimum(done, 1), rtol=2e-6)

    linear = rates(b3=optax.linear_schedule(0.9, 0.9999, 10_000))[0]
    assert half_life(linear)[2] < 0.01 * expected[2]


# --- what defines a member -----------------------------------------------------------------------


def test_adabelief_strides_where_a_large_gradient_hardly_changes() -> None:
    """Zhuang et al. 2020, section 2.2 and figure 1, with case 3 where it differs from Adam.

    Cases: a small and steady gradient, a large one that turns, a large and steady one. With mean m
    and noise s the step is m / s, but for what the mean has seen of the noise; Adam's is 1.
    """
    z = noise(2000, 200, seed=1)
    turning = (-1.0) ** np.arange(2000)[:, None] * np.ones(200)
    cases = {1: 0.01 + 1e-4 * z, 2: 10 * turning + 0.1 * z, 3: 10 + 0.1 * z}

    def sizes(tx: Any) -> Any:
        run = along(tx)
        return {k: np.abs(run(g)[0][-500:]).mean() for k, g in cases.items()}

    believed = sizes(adam_jax.scale_by_belief(b2=0.99))
    adam, sgd = sizes(adam_jax.scale_by_adam(b2=0.99)), sizes(optax.sgd(1.0))
    expected = 100 / math.sqrt(2 * 0.9**2 / 1.9)
    assert believed[1] == pytest.approx(expected, rel=0.03)
    assert believed[3] == pytest.approx(expected, rel=0.03)
    assert believed[2] < 0.1
    assert adam[1] == pytest.approx(1, rel=1e-2)
    assert adam[3] == pytest.approx(1, rel=1e-2)
    assert adam[2] < 0.1
    assert sgd[1] < 0.1
    assert min(sgd[2], sgd[3]) > 9


def moment_changes(tx: Any, g: Any) -> Any:
    nu = along(tx)(g)[1].nu.astype(float)
    return np.abs(np.diff(nu, axis=0)), nu[1:]


def test_yogis_mean_square_moves_by_no_more_than_the_square() -> None:
    """Zaheer et al. 2018, Algorithm 2: so it forgets slowly what Adam's forgets at once."""
    g = noise(200, 50) * np.where(np.arange(200) % 50 == 0, 100, 0.1)[:, None].astype(np.float32)
    most = 1e-3 * g[1:].astype(float) ** 2
    change, nu = moment_changes(adam_jax.scale_by_yogi(), g)
    assert np.all(np.abs(change - most) <= 1e-6 * most + 2.0**-24 * nu)
    change, nu = moment_changes(adam_jax.scale_by_adam(), g)
    assert np.any(change > 100 * most)


def test_lambs_step_is_a_share_of_each_arrays_norm() -> None:
    """You et al. 2020, Algorithm 2: lr * |p| long, whatever the gradient, with decay or without."""
    params = {"large": 30 * jnp.ones(7), "small": jnp.full((2, 3), 1e-3), "new": jnp.zeros(4)}
    g = jax.tree.map(lambda p: jnp.arange(1.0, p.size + 1).reshape(p.shape) - 2.5, params)

    def step(tx: Any, g: Any = g) -> Any:
        return jax.jit(lambda g: tx.update(g, tx.init(params), params)[0])(g)

    for decay in (0.0, 0.1):
        u = step(adam_jax.lamb(0.01, weight_decay=decay))
        for name in ("large", "small"):
            share = jnp.linalg.norm(u[name]) / jnp.linalg.norm(params[name])
            assert float(share) == pytest.approx(0.01, rel=2e-6)
    u, adam = step(adam_jax.lamb(0.01)), step(adam_jax.adam(0.01, eps=1e-6))
    np.testing.assert_allclose(u["new"], adam["new"], rtol=1e-6)  # no norm, no share
    assert not np.any(step(adam_jax.lamb(0.01), jax.tree.map(jnp.zeros_like, g))["large"])
    assert jnp.linalg.norm(adam["large"]) < 0.1 * jnp.linalg.norm(u["large"])


def jumping() -> Any:
    """Gradients that turn round every ten steps."""
    side = np.where(np.arange(200) % 20 < 10, 1, -1)[:, None]
    return (side + 0.5 * noise(200, 50)).astype(np.float32)


def together(txs: dict[str, Any]) -> Any:
    """One transformation that gives the updates of each, by name: what is compiled once."""

    def update(g: Any, states: Any, params: Any = None) -> Any:
        found = {name: tx.update(g, states[name], params) for name, tx in txs.items()}
        return tuple({name: pair[i] for name, pair in found.items()} for i in (0, 1))

    def init(params: Any) -> Any:
        return {name: tx.init(params) for name, tx in txs.items()}

    return optax.GradientTransformation(init, update)


WRAPPERS = ("cautious", "grams")


def around_members(wrap: Callable[[Any], Any]) -> Any:
    """Gradients that jump, and the updates of each member with a wrapper and without."""
    rows = {m: row for m, row in MEMBERS.items() if not row.variant and m not in WRAPPERS}
    txs = {m: row.optimizer(1.0, **row.settings) for m, row in rows.items()}
    wrapped = {m: wrap(tx) for m, tx in txs.items()}
    g = jumping()
    found = updates(together({"wrapped": together(wrapped), "alone": together(txs)}), g)
    return g, {m: (found["wrapped"][m], found["alone"][m]) for m in txs}


def test_cautious_never_climbs() -> None:
    """Liang et al. 2024: <u, -g> >= 0, entry by entry."""
    g, found = around_members(adam_jax.cautious)
    for member, (u, inner) in found.items():
        assert np.all(u * -g >= 0), member
        assert np.mean(inner * -g < 0) > 0.05, member
        kept = inner * -g > 0
        np.testing.assert_array_equal(u != 0, kept, member)
        share = np.maximum(kept.mean(axis=1, keepdims=True), 1e-3)
        np.testing.assert_allclose(u, inner * kept / share, rtol=1e-6, err_msg=member)


def test_grams_takes_the_sign_of_the_gradient_and_the_size_of_the_step() -> None:
    """Cao et al. 2024, Algorithm 1."""
    g, found = around_members(adam_jax.grams)
    for member, (u, inner) in found.items():
        np.testing.assert_array_equal(np.sign(u), -np.sign(g) * (inner != 0), member)
        np.testing.assert_array_equal(np.abs(u), np.abs(inner), member)
        assert np.mean(np.sign(inner) != -np.sign(g)) > 0.05, member


def test_amsgrads_divisor_never_shrinks() -> None:
    """Reddi et al. 2018, section 4. Corrected after the maximum, as in PyTorch, it does."""
    g = jumping() * np.exp(-np.arange(200.0) / 20)[:, None].astype(np.float32)
    correction = 1 - 0.999 ** np.arange(1.0, 201)[:, None]

    def falls(divisor: Any) -> Any:
        return np.any(np.diff(divisor, axis=0) < -1e-6 * divisor[1:])

    for uncorrected in (False, True):
        tx = adam_jax.scale_by_amsgrad(bias_correction_nu=not uncorrected)
        assert not falls(along(tx)(g)[1].nu_max)
    after = along(adam_jax.scale_by_amsgrad(correct_after_max=True))(g)[1].nu_max
    assert not falls(after)
    assert falls(after / correction)
    assert falls(along(adam_jax.scale_by_adam())(g)[1].nu / correction)


def test_adopt_only_looks_at_first() -> None:
    """Taniguchi et al. 2024, Algorithm 1: v_0 is the first square, and no step is made of it."""
    u, state = along(adam_jax.scale_by_adopt())(noise(2, 5))
    assert not np.any(u[0])
    assert np.all(u[1] != 0)
    np.testing.assert_allclose(state.nu[0], noise(1, 5)[0] ** 2, rtol=1e-6)
    assert np.all(updates(adam_jax.scale_by_adam(), noise(2, 5))[0] != 0)


def test_adopts_divisor_does_not_know_the_gradient() -> None:
    """Taniguchi et al. 2024, Algorithm 1: so a step is linear in the gradient. Adam's is not."""

    def last(tx: Any, factor: float) -> Any:
        g = noise(20, 5)
        g[-1] *= factor
        return updates(tx, g)[-1]

    def slopes(tx: Any) -> Any:
        rest = last(tx, 0)
        return (last(tx, 1e3) - rest) / (last(tx, 1) - rest)

    np.testing.assert_allclose(slopes(adam_jax.scale_by_adopt(use_clipping=False)), 1e3, rtol=1e-4)
    assert np.all(slopes(adam_jax.scale_by_adam(b2=0.9999)) < 300)


def adan(g: Any, b1: float, kept: float, b3: float) -> Any:
    """Xie et al. 2022, Algorithm 1, corrected; ``kept`` is what multiplies differences."""
    g = np.asarray(g, float)
    m = v = n = before = 0.0
    out = []
    for t, now in enumerate(g, 1):
        d = now - before if t > 1 else 0 * now
        m = b1 * m + (1 - b1) * now
        v = 0.92 * v + 0.08 * d
        n = b3 * n + (1 - b3) * (now + kept * d) ** 2
        mean = m / (1 - b1**t) + kept * v / (1 - 0.92**t)
        out.append(mean / (np.sqrt(n / (1 - b3**t)) + 1e-8))
        before = now
    return np.array(out)


def test_adan_looks_ahead_by_what_is_kept() -> None:
    """Xie et al. 2022, Algorithm 1: (1 - beta2) = 0.92 of the differences, and not beta2.

    Optax 0.2.8 takes 0.08; whichever it takes by now, that explains it.
    """
    g = noise(30, 20)
    ours = updates(adam_jax.scale_by_adan(), g)
    paper, mistaken = adan(g, 0.98, 0.92, 0.99), adan(g, 0.98, 0.08, 0.99)
    np.testing.assert_allclose(ours, paper, rtol=1e-4, atol=1e-5)
    assert np.abs(ours - mistaken).max() > 0.5
    theirs = updates(optax.scale_by_adan(), g)
    assert min(np.abs(theirs - x).max() for x in (paper, mistaken)) < 1e-4


def test_mars_without_gamma_is_adam_while_norms_are_below_one() -> None:
    """Yuan et al. 2024, Algorithm 2: then neither correction nor clipping is left."""
    g = 0.01 * noise(50, 20)
    adam = updates(adam_jax.adam(0.1, 0.95, 0.99), g)
    np.testing.assert_array_equal(updates(adam_jax.mars(0.1, gamma=0.0), g), adam)
    assert np.abs(updates(adam_jax.mars(0.1), g) - adam).max() > 0.01
    clipped = updates(adam_jax.mars(0.1, gamma=0.0), 100 * g)
    assert np.abs(clipped - updates(adam_jax.adam(0.1, 0.95, 0.99), 100 * g)).max() > 0.01


def test_stable_adamw_is_adamw_while_gradients_are_no_surprise() -> None:
    """Wortsman et al. 2023, Algorithm 2: it clips where rms(g**2 / nu) is above 1."""
    g = noise(60, 500)
    g = g / np.sqrt(np.mean(g**2, axis=1, keepdims=True)) * 0.9 ** np.arange(60.0)[:, None]
    g[50] *= 1000
    stable, adamw = (
        along(make(0.1, weight_decay=0.1))(g) for make in (adam_jax.stable_adamw, adam_jax.adamw)
    )
    nu = adamw[1][0].nu / (1 - 0.999 ** np.arange(1.0, 61)[:, None])
    rms = np.sqrt(np.mean(g**2 / nu, axis=1))
    same = np.all(stable[0] == adamw[0], axis=1)
    assert np.all(same[rms < 1 - 1e-5])
    assert np.sum(rms < 1 - 1e-5) > 40
    assert not same[50]
    assert rms[50] > 3


def test_adam_mini_with_a_block_an_entry_is_adam() -> None:
    """Zhang et al. 2024, Algorithm 1: to the bit; with fewer blocks it is not."""
    g = noise(50, 20)
    adam = updates(adam_jax.adam(0.1), g)
    whole = adam_jax.adam_mini(0.1, blocks=lambda path, leaf: leaf.shape)
    np.testing.assert_array_equal(updates(whole, g), adam)
    assert np.abs(updates(adam_jax.adam_mini(0.1), g) - adam).max() > 0.1


def test_adam_mini_halves_the_state_of_a_transformer() -> None:
    """Zhang et al. 2024: half of Adam's state is the mean square, and blocks are few."""

    def shapes(tree: Any) -> Any:
        return jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
            tree,
            is_leaf=lambda x: isinstance(x, tuple),
        )

    attention = {"query": (256, 4, 64), "key": (256, 4, 64), "value": (256, 256), "o": (256, 256)}
    layer = {**attention, "up": (256, 1024), "down": (1024, 256), "norm": (256,)}
    params = shapes({"embed": (5000, 256), "layers": [layer] * 4, "lm_head": (256, 5000)})
    mini, adam = (
        adam_jax.memory(tx, params).bytes_per_parameter
        for tx in (adam_jax.adam_mini(1e-3), adam_jax.adam(1e-3))
    )
    assert adam == pytest.approx(8, rel=1e-4)
    assert 4 < mini < 4.02


# --- inside Optax's wrappers ---------------------------------------------------------------------

WRAPPED: dict[str, Callable[[Any, Any], Any]] = {
    "amsgrad": lambda m, contrib: m.amsgrad(1e-2),
    "adamax": lambda m, contrib: m.adamax(1e-2),
    "radam": lambda m, contrib: m.radam(1e-2),
    "adopt": lambda m, contrib: contrib.adopt(1e-2),
}


def around(wrap: Callable[[Any], Any], name: str, params: Any) -> Any:
    """Where a wrapper comes to around ours and around Optax's."""
    stream = gradients(12, parameters())
    make = WRAPPED[name]
    inner = (make(adam_jax, adam_jax), make(optax, optax.contrib))
    return [moved(wrap(tx), params, stream)[0] for tx in inner]


@pytest.mark.costly
@pytest.mark.parametrize("name", WRAPPED)
def test_schedule_free_gives_what_it_gives_around_optaxs(name: str) -> None:
    """Defazio et al. 2024, "The Road Less Scheduled"."""
    ours, theirs = around(lambda tx: optax.contrib.schedule_free(tx, 1e-2), name, parameters())
    assert_close(ours, theirs, atol=5e-6, rtol=3e-5)
    assert np.all(ours["dense"]["w"] != parameters()["dense"]["w"])


@pytest.mark.costly
@pytest.mark.parametrize("name", WRAPPED)
def test_lookahead_gives_what_it_gives_around_optaxs(name: str) -> None:
    """Zhang et al. 2019, "Lookahead Optimizer: k steps forward, 1 step back"."""
    start = optax.LookaheadParams.init_synced(parameters())
    ours, theirs = around(lambda tx: optax.lookahead(tx, 5, 0.5), name, start)
    assert_close(ours, theirs, atol=5e-6, rtol=3e-5)
    assert np.any(ours.fast["dense"]["w"] != ours.slow["dense"]["w"])
