"""The oracles against facts that they do not share: papers' figures, hand computation and Optax.

An oracle and the package may be wrong together; these may not.
"""

import inspect
import math
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import oracle
import oracle_descent
import pytest

RNG = np.random.default_rng(0)
GRADIENTS = RNG.standard_normal((20, 3, 4)) * np.exp2(RNG.integers(-6, 6, (3, 4)))
GRADIENTS[:, 0, 0] = 0.0
GRADIENTS[3:9, 1, 1] = 0.0
COMPLEX = GRADIENTS + 1j * RNG.standard_normal((20, 3, 4))
COMPLEX[:, 0, 0] = 0.0


def directions(rule: Any, gradients: Any, **settings: Any) -> Any:
    return rule(gradients, **settings)[0]


# --- Optax, in float64 ---------------------------------------------------------------------------

AS_OPTAX = {
    "adam": (optax.scale_by_adam, oracle.adam, {}),
    "adam-nesterov": (optax.scale_by_adam, oracle.adam, {"nesterov": True, "eps_root": 1e-4}),
    "nadam": (optax.scale_by_adam, oracle.nadam, {"nesterov": True, "b1": 0.8}),
    "amsgrad": (optax.scale_by_amsgrad, oracle.amsgrad, {"b2": 0.5, "eps_root": 1e-4}),
    "amsgrad-paper": (
        optax.scale_by_amsgrad,
        oracle.amsgrad,
        {"bias_correction_mu": False, "bias_correction_nu": False},
    ),
    "adamax": (optax.scale_by_adamax, oracle.adamax, {"b2": 0.7, "eps": 1e-3}),
    "radam": (optax.scale_by_radam, oracle.radam, {"b2": 0.99}),
    "radam-nesterov": (
        optax.scale_by_radam,
        oracle.radam,
        {"b2": 0.9, "nesterov": True, "threshold": 4.5, "eps_root": 1e-4},
    ),
    "adabelief": (optax.scale_by_belief, oracle.adabelief, {}),
    "adabelief-nesterov": (
        optax.scale_by_belief,
        oracle.adabelief,
        {"nesterov": True, "eps": 1e-3, "eps_root": 1e-3},
    ),
    "yogi": (optax.scale_by_yogi, oracle.yogi, {}),
    "yogi-started": (
        optax.scale_by_yogi,
        oracle.yogi,
        {"b2": 0.9, "initial_accumulator_value": 0.1, "eps_root": 1e-2},
    ),
    "adopt": (optax.contrib.scale_by_adopt, oracle.adopt, {}),
    "adopt-nesterov": (
        optax.contrib.scale_by_adopt,
        oracle.adopt,
        {"nesterov": True, "b2": 0.9, "clip_value_fn": lambda count: 0.5 + 0.01 * count},
    ),
    "adopt-unclipped": (optax.contrib.scale_by_adopt, oracle.adopt, {"use_clipping": False}),
    "ademamix": (optax.contrib.scale_by_ademamix, oracle.ademamix, {"alpha": 3.0}),
    "ademamix-schedules": (
        optax.contrib.scale_by_ademamix,
        oracle.ademamix,
        {"b3": lambda count: 1 - 1.0 / (count + 2), "alpha": lambda count: 0.1 * count},
    ),
    # Optax weighs the difference by 1 - b2, which is the paper's b2 only at a half.
    "adan": (optax.scale_by_adan, oracle.adan, {"b2": 0.5, "eps_root": 1e-4}),
    "lion": (optax.scale_by_lion, oracle.lion, {}),
    "lion-smooth": (optax.scale_by_lion, oracle.lion, {"mode": "smooth", "smooth_beta": 2.0}),
    "lion-refined": (optax.scale_by_lion, oracle.lion, {"mode": "refined", "b1": 0.5}),
}
# Optax clips only real numbers, and its other modes of Lion act on the complex number itself.
REAL_ONLY = {"adopt", "adopt-nesterov", "lion-smooth", "lion-refined"}


def optax_directions(tx: Any, gradients: Any) -> tuple[Any, Any]:
    g = jnp.asarray(gradients)
    state = tx.init(jnp.zeros_like(g[0]))
    out = []
    for x in g:
        u, state = tx.update(x, state)
        out.append(u)
    return np.stack(out), state


@pytest.mark.costly
@pytest.mark.parametrize("gradients", [GRADIENTS, COMPLEX], ids=["real", "complex"])
@pytest.mark.parametrize("name", AS_OPTAX)
def test_oracle_is_as_optax(name: str, gradients: Any, x64: None) -> None:
    make, rule, settings = AS_OPTAX[name]
    if missing := set(settings) - set(inspect.signature(make).parameters):
        pytest.skip(f"this Optax has no {missing}")
    if np.iscomplexobj(gradients) and name in REAL_ONLY:
        pytest.skip("Optax does not take complex gradients here")
    defaults = {
        key: argument.default
        for key, argument in inspect.signature(rule).parameters.items()
        if key in inspect.signature(make).parameters and argument.default is not argument.empty
    }
    want, state = optax_directions(make(**{**defaults, **settings}), gradients)
    got, moments = rule(gradients, **settings)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    for field, moment in moments.items():
        np.testing.assert_allclose(moment, getattr(state, field), rtol=1e-12, atol=1e-300)


PARAMS = RNG.standard_normal((3, 4))


def optax_path(tx: Any, gradients: Any) -> Any:
    p = jnp.asarray(PARAMS)
    state, path = tx.init(p), []
    for x in jnp.asarray(gradients):
        u, state = tx.update(x, state, p)
        p = optax.apply_updates(p, u)
        path.append(p)
    return np.stack(path)


def linear(count: Any) -> Any:
    return 0.1 / (1 + count)


@pytest.mark.parametrize("learning_rate", [0.1, linear], ids=["constant", "schedule"])
def test_descents_are_as_optax(learning_rate: Any, x64: None) -> None:
    settings = {"learning_rate": learning_rate, "weight_decay": 0.2}
    path = optax_path(optax.adamw(**settings), GRADIENTS)
    got = oracle_descent.descend(oracle.adam, GRADIENTS, PARAMS, **settings)
    np.testing.assert_allclose(got, path, rtol=1e-10)

    path = optax_path(
        optax.chain(optax.add_decayed_weights(0.2), optax.adam(learning_rate)), GRADIENTS
    )
    got = oracle_descent.descend(oracle.adam, GRADIENTS, PARAMS, form="l2", **settings)
    np.testing.assert_allclose(got, path, rtol=1e-10)

    path = optax_path(optax.lamb(**settings), GRADIENTS)
    got = oracle_descent.lamb(GRADIENTS, PARAMS, **settings)
    np.testing.assert_allclose(got, path, rtol=1e-10)


# --- Kingma & Ba 2015 ----------------------------------------------------------------------------


def test_first_step_of_adam_is_the_sign_up_to_eps() -> None:
    g = np.array([[3.0, -1e-8, 0.0, 1e-30]])
    want = [1 / (1 + 1e-8 / 3), -0.5, 0.0, 1e-22 / (1 + 1e-22)]
    np.testing.assert_allclose(directions(oracle.adam, g)[0], want, rtol=1e-14)


def test_eps_hat_weighs_the_more_at_first() -> None:
    """Section 2: at t = 1 the root of 1/(1 - b2) times as much, 31.6; without eps, not at all."""
    g = np.array([[2.0]])
    slow = directions(oracle.adam, g, eps=0.1, eps_hat=True)
    larger = directions(oracle.adam, g, eps=0.1 * 31.6227766016838)
    np.testing.assert_allclose(slow, larger, rtol=1e-12)
    slow = directions(oracle.adam, g, b2=0.75, eps=0.1, eps_root=3.0, eps_hat=True)
    np.testing.assert_allclose(slow, [[0.5 * 2 / (math.sqrt(1 + 3) + 0.1)]], rtol=1e-12)
    for rule in (oracle.adam, oracle.nadam, oracle.radam, oracle.amsgrad):
        pair = [directions(rule, GRADIENTS, eps=0.0, eps_hat=x) for x in (False, True)]
        np.testing.assert_allclose(*pair, rtol=1e-13)
        pair = [directions(rule, GRADIENTS, eps=0.1, eps_hat=x) for x in (False, True)]
        assert np.abs(pair[0] - pair[1]).max() > 0.01


def test_adam_without_corrections_by_hand() -> None:
    g = np.array([1.0, 2.0])
    got = directions(
        oracle.adam, g, b1=0.5, b2=0.75, eps=0, bias_correction_mu=False, bias_correction_nu=False
    )
    np.testing.assert_allclose(got, [0.5 / math.sqrt(0.25), 1.25 / math.sqrt(1.1875)])
    mu_only = directions(oracle.adam, g, b1=0.5, b2=0.75, eps=0, bias_correction_nu=False)
    np.testing.assert_allclose(mu_only, [1 / math.sqrt(0.25), (5 / 3) / math.sqrt(1.1875)])
    nu_only = directions(oracle.adam, g, b1=0.5, b2=0.75, eps=0, bias_correction_mu=False)
    np.testing.assert_allclose(nu_only, [0.5, 1.25 / math.sqrt(1.1875 / (1 - 0.75**2))])


def test_largest_steps_of_adam() -> None:
    """Section 2.1's sparse case, (1 - b1)/sqrt(1 - b2), and the supremum over all sequences."""
    spike = np.zeros(20_001)
    spike[-1] = 1.0
    np.testing.assert_allclose(directions(oracle.adam, spike, eps=0.0)[-1], 3.16227766, rtol=1e-7)
    growing = (0.999 / 0.9) ** np.arange(-200.0, 0.0)
    uncorrected = directions(
        oracle.adam, growing, eps=0, bias_correction_mu=False, bias_correction_nu=False
    )
    supremum = 0.1 / math.sqrt(0.001 * (1 - 0.81 / 0.999))
    np.testing.assert_allclose(uncorrected[-1], supremum, rtol=1e-6)
    assert supremum == pytest.approx(7.2703, abs=1e-4)


def test_largest_step_of_adamax() -> None:
    """(1 - b1)/(1 - b1/b2), of the decaying gradients that the infinity norm just keeps."""
    g = 0.999 ** np.arange(1.0, 301.0)
    got = directions(oracle.adamax, g, eps=0.0)
    assert got[-1] == pytest.approx(1.0090909, rel=1e-7)
    assert directions(oracle.adamax, GRADIENTS).max() < 1.0090910


def test_eps_of_adamax_inside_and_outside() -> None:
    g = np.array([1.0, 0.0, 0.0])
    inside, moments = oracle.adamax(g, b1=0.0, b2=0.5, eps=0.3)
    np.testing.assert_allclose(inside, [1 / 1.3, 0.0, 0.0])
    assert moments["nu"] == pytest.approx(max(1.3 / 4, 0.3))
    outside, moments = oracle.adamax(g, b1=0.5, b2=0.5, eps=0.3, eps_inside=False)
    np.testing.assert_allclose(outside, [1 / 1.3, 0.25 / 0.75 / 0.8, 0.125 / 0.875 / 0.55])
    assert moments["nu"] == 0.25


# --- Dozat 2016 ----------------------------------------------------------------------------------


def test_nadam_of_constant_momentum_and_of_none() -> None:
    """With mu_t = b1 the products are powers, and the numerator is Adam's with nesterov."""
    want = directions(oracle.adam, GRADIENTS, nesterov=True)
    np.testing.assert_allclose(directions(oracle.nadam, GRADIENTS), want, rtol=1e-12)
    # .96 to a large power is 0: mu_t = b1 again, by the other branch.
    np.testing.assert_allclose(
        directions(oracle.nadam, GRADIENTS, momentum_decay=1e6), want, rtol=1e-12
    )
    want = directions(oracle.adam, GRADIENTS)
    got = directions(oracle.nadam, GRADIENTS, nesterov=False)
    np.testing.assert_array_equal(got, want)


def test_nadam_with_momentum_decay_by_hand() -> None:
    """Two steps at b1 = .9, psi = 1: mu_1 = .468, mu_2 = .485280, mu_3 = .5018688."""
    m1, m2, m3 = (0.9 * (1 - 0.5 * 0.96**t) for t in (1, 2, 3))
    assert (m1, m2, m3) == pytest.approx((0.468, 0.48528, 0.5018688))
    g = np.array([1.0, -2.0])
    first = m2 * 0.1 / (1 - m1 * m2) + (1 - m1) * 1 / (1 - m1)
    second = m3 * (0.09 - 0.2) / (1 - m1 * m2 * m3) + (1 - m2) * -2 / (1 - m1 * m2)
    nu_hat = (0.999 * 0.001 + 0.004) / (1 - 0.999**2)
    got = directions(oracle.nadam, g, momentum_decay=1.0, eps=0.0)
    np.testing.assert_allclose(got, [first, second / math.sqrt(nu_hat)], rtol=1e-12)


# --- Reddi et al. 2018 ---------------------------------------------------------------------------


def test_forms_of_amsgrad_by_hand() -> None:
    """b1 = 0, b2 = .5, g = 2, 1, 4: nu = 2, 1.5, 8.75; corrected 4, 2, 10."""
    g = np.array([2.0, 1.0, 4.0])
    settings = {"b1": 0.0, "b2": 0.5, "eps": 0.0}
    paper = {"bias_correction_mu": False, "bias_correction_nu": False}
    got, moments = oracle.amsgrad(g, **settings, **paper)
    np.testing.assert_allclose(got, g / np.sqrt([2.0, 2.0, 8.75]))
    assert (moments["nu"], moments["nu_max"]) == (8.75, 8.75)
    got, moments = oracle.amsgrad(g, **settings)
    np.testing.assert_allclose(got, g / np.sqrt([4.0, 4.0, 10.0]))
    assert moments["nu_max"] == 10.0
    got, moments = oracle.amsgrad(g, **settings, correct_after_max=True)
    np.testing.assert_allclose(got, g / np.sqrt([4.0, 2 / 0.75, 10.0]))
    assert moments["nu_max"] == 8.75
    got = directions(oracle.amsgrad, g, **{**settings, "eps": 1.0}, eps_hat=True)
    root = np.sqrt([0.5, 0.75, 0.875])
    np.testing.assert_allclose(got, g * root / (np.sqrt([4.0, 4.0, 10.0]) * root + 1))


def test_adam_goes_astray_where_amsgrad_does_not() -> None:
    """Section 3, Theorem 1: gradients 3, -1, -1 on [-1, 1], where the best point is -1."""
    t = np.arange(1, 30_001)
    g = np.where(t % 3 == 1, 3.0, -1.0)
    steps = 0.5 * math.sqrt(0.9) / np.sqrt(t)
    settings = {"b1": 0.0, "b2": 0.1, "bias_correction_mu": False, "bias_correction_nu": False}
    ends = []
    for rule in (oracle.adam, oracle.amsgrad):
        x = 0.0
        for step, u in zip(steps, directions(rule, g, **settings), strict=True):
            x = min(max(x - step * u, -1.0), 1.0)
        ends.append(x)
    assert ends[0] > 0.99
    assert ends[1] < -0.99


# --- Liu et al. 2020 -----------------------------------------------------------------------------


def test_rho_and_r_of_radam() -> None:
    """At b2 = .999; rho_t is also the mean age's, 1 + 2 * sum of i b2^i over the sum of b2^i."""
    rho = [oracle.rectification(0.999, t)[0] for t in range(1, 7)]
    figures = [1, 1.9995, 2.99867, 3.9975, 4.996, 5.99416]
    np.testing.assert_allclose(rho, figures, rtol=3e-6)
    r = [oracle.rectification(0.999, t)[1] for t in (5, 6, 10, 100, 1000)]
    np.testing.assert_allclose(r, [0.017312, 0.025821, 0.048998, 0.215335, 0.645326], atol=6e-7)
    for b2, t in ((0.999, 6), (0.9, 4), (1 - 1e-9, 7)):
        powers = [Fraction(b2) ** i for i in range(t)]
        age = sum(i * power for i, power in enumerate(powers)) / sum(powers)
        assert oracle.rectification(b2, t)[0] == pytest.approx(float(1 + 2 * age), rel=1e-14)
    assert oracle.rectification(0.0, 3)[0] == 1.0


def test_radam_is_not_adaptive_below_its_threshold() -> None:
    """rho_5 = 4.996 and rho_6 = 5.994: five steps of momentum, then Adam's times r."""
    g = GRADIENTS[:8]
    got = directions(oracle.radam, g)
    momentum = directions(oracle.adam, 1e-8 * g, eps=1.0)
    np.testing.assert_allclose(got[:5], 1e8 * momentum[:5], rtol=1e-6)
    np.testing.assert_allclose(got[5], 0.025821 * directions(oracle.adam, g)[5], rtol=2e-5)
    earlier = directions(oracle.radam, g, threshold=4.9)
    np.testing.assert_allclose(earlier[4], 0.017312 * directions(oracle.adam, g)[4], rtol=3e-5)


# --- Second moments of other kinds ---------------------------------------------------------------


def test_adabelief_trusts_a_constant_gradient() -> None:
    """Zhuang et al. 2020: after many equal gradients the deviation is of eps only."""
    g = np.full((2000, 1), 1e-3)
    steady = directions(oracle.adabelief, g, eps=1e-8, eps_root=0.0)[-1]
    assert steady > 10 * directions(oracle.adam, g)[-1]
    got, moments = oracle.adabelief(np.array([1.0, 3.0]), b1=0.5, b2=0.5, eps=0.0, eps_root=0.5)
    nu = [0.5 * 0.25 + 0.5, 0.5 * 0.625 + 0.5 * (3 - 1.75) ** 2 + 0.5]
    np.testing.assert_allclose(
        got, [1 / math.sqrt(2 * nu[0]), 1.75 / 0.75 / math.sqrt(nu[1] / 0.75)]
    )
    assert moments["nu"] == nu[1]


def test_yogi_changes_nu_by_the_square_alone() -> None:
    """Zaheer et al. 2018: by (1 - b2) g^2 just, up or down."""
    rng = np.random.default_rng(2)
    g = rng.standard_normal(200) * np.exp(3 * rng.standard_normal(200))
    nu = [
        0.25,
        *(oracle.yogi(g[:t], initial_accumulator_value=0.25)[1]["nu"] for t in range(1, 200)),
    ]
    np.testing.assert_allclose(np.abs(np.diff(nu)), 0.001 * g[:199] ** 2, rtol=1e-9, atol=1e-12)
    assert np.all(np.sign(np.diff(nu)) == np.sign(g[:199] ** 2 - nu[:-1]))
    start, moments = oracle.yogi(np.zeros((1, 2)), b1=0.5, b2=0.75, eps=0.0)
    np.testing.assert_allclose(start[0], 0.5e-6 / 0.5 / math.sqrt(1e-6 / 0.25))
    assert (moments["mu"] == 0.5e-6).all()


def test_laprop_divides_before_it_averages() -> None:
    """Ziyin et al. 2020: without momentum it is Adam; each of the averaged is bounded."""
    want = directions(oracle.adam, GRADIENTS, b1=0.0, eps=1e-3)
    got = directions(oracle.laprop, GRADIENTS, b1=0.0, eps=1e-3)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    got, moments = oracle.laprop(np.array([1.0, 7.0]), b1=0.5, b2=0.5, eps=0.0)
    second = 7 / math.sqrt((0.25 + 24.5) / 0.75)
    np.testing.assert_allclose(got, [1.0, (0.25 + 0.5 * second) / 0.75])
    assert moments["mu"] == pytest.approx(0.25 + 0.5 * second)


def test_adopt_by_hand() -> None:
    """Taniguchi et al. 2024: no step at first, then the gradient over the root of the nu before."""
    g = np.array([2.0, 1.0, 12.0])
    settings = {"b1": 0.5, "b2": 0.5}
    nu = [4.0, 2.5, 73.25]
    plain, moments = oracle.adopt(g, **settings, use_clipping=False)
    second = 0.5 * 1 / math.sqrt(nu[0])
    np.testing.assert_allclose(plain, [0.0, second, 0.5 * second + 0.5 * 12 / math.sqrt(nu[1])])
    assert moments["nu"] == nu[2]
    clipped = directions(oracle.adopt, g, **settings)
    np.testing.assert_allclose(clipped, [0.0, second, 0.5 * second + 0.5 * 2**0.25])
    phase = np.exp(0.7j)
    np.testing.assert_allclose(directions(oracle.adopt, g * phase, **settings), clipped * phase)
    started = directions(oracle.adopt, np.array([0.0, 3.0]), b1=0.0)
    np.testing.assert_allclose(started, [0.0, 1.0])


# --- More than one mean --------------------------------------------------------------------------


def test_warm_ups_of_ademamix() -> None:
    """Pagliardini et al. 2024: beta_3 is linear in the half-life f from b1 to b3."""

    def f(beta: float) -> float:
        return math.log(0.5) / math.log(beta) - 1

    assert f(0.9) == pytest.approx(5.579, abs=5e-4)
    assert f(0.9999) == pytest.approx(6930.1, abs=0.05)
    betas = [oracle.slow_decay(0.9, 0.9999, i / 10) for i in range(11)]
    np.testing.assert_allclose([f(x) for x in betas], np.linspace(f(0.9), f(0.9999), 11), rtol=1e-8)
    assert max(betas) <= 0.9999
    assert f(oracle.slow_decay(0.0, 0.9999, 0.25)) == pytest.approx(0.25 * 6931.1 - 1, rel=1e-4)

    settings = {"b1": 0.5, "b3": 0.99, "alpha": 2.0}
    g = GRADIENTS[:6]
    warm = directions(oracle.ademamix, g, **settings, warmup_steps=1)
    np.testing.assert_allclose(warm, directions(oracle.ademamix, g, **settings), rtol=1e-12)
    share = [0.25, 0.5, 0.75, 1, 1, 1]
    by_schedule = {
        "b1": 0.5,
        "b3": lambda count: oracle.slow_decay(0.5, 0.99, share[count]),
        "alpha": lambda count: 2.0 * share[count],
    }
    np.testing.assert_allclose(
        directions(oracle.ademamix, g, **settings, warmup_steps=4),
        directions(oracle.ademamix, g, **by_schedule),
        rtol=1e-12,
    )


def test_ademamix_of_one_mean_is_adam() -> None:
    want = directions(oracle.adam, GRADIENTS)
    got = directions(oracle.ademamix, GRADIENTS, alpha=0.0)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    # The slow mean is not corrected: with b3 = b1 it is short by 1 - b1^t.
    got = directions(oracle.ademamix, GRADIENTS, b3=0.9, alpha=4.0)[1]
    np.testing.assert_allclose(got, (1 + 4 * (1 - 0.9**2)) * want[1], rtol=1e-12)


def test_adan_by_hand() -> None:
    """Xie et al. 2022, Algorithm 1: at b = (.5, .8, .75), g = 1, 3, so d = 0, 2."""
    got, moments = oracle.adan(np.array([1.0, 3.0]), b1=0.5, b2=0.8, b3=0.75, eps=0.0)
    m, v, n = 0.25 + 1.5, 0.2 * 2, 0.75 * 0.25 + 0.25 * (3 + 0.8 * 2) ** 2
    second = (m / 0.75 + 0.8 * v / 0.36) / math.sqrt(n / 0.4375)
    np.testing.assert_allclose(got, [1.0, second], rtol=1e-12)
    assert moments == pytest.approx({"m": m, "v": v, "n": n, "g": 3.0})


# --- Bounded steps -------------------------------------------------------------------------------


def test_atan2_bounds_the_step() -> None:
    """Everett et al. 2024: at most a pi/2, and for small arguments a/b times Adam's quotient."""
    spike = np.array([*np.zeros(3000), -1.0])
    got = directions(oracle.adam_atan2, spike, a=2.0, b=0.001)[-1]
    assert -math.pi < got < -0.999 * math.pi
    got = directions(oracle.adam_atan2, GRADIENTS, a=300.0, b=100.0)
    np.testing.assert_allclose(got, 3 * directions(oracle.adam, GRADIENTS, eps=0.0), rtol=1e-3)
    first = directions(oracle.adam_atan2, np.array([[5.0, -1e-30, 0.0]]))[0]
    np.testing.assert_allclose(first, 1.27 * math.pi / 4 * np.array([1, -1, 0]))


def test_stable_adam_clips_by_its_rms() -> None:
    """Wortsman et al. 2023, Algorithm 2: Adam where the rms is at most 1; else Adam over it."""
    falling = np.outer(0.9 ** np.arange(30), [1.0, -2.0])
    want = directions(oracle.adam, falling)
    np.testing.assert_allclose(directions(oracle.stable_adam, falling), want, rtol=1e-12)
    g = np.array([[1.0, 0.0], [7.0, 1.0]])
    nu_hat = np.array([25.0, 0.5]) / 0.75
    b = {"b1": 0.5, "b2": 0.5}
    rms = math.sqrt((49 / (24.75 / 0.75) + 1 / nu_hat[1]) / 2)
    got, want = directions(oracle.stable_adam, g, **b), directions(oracle.adam, g, **b)
    np.testing.assert_allclose(got[1], want[1] / rms, rtol=1e-12)
    np.testing.assert_array_equal(got[0], want[0])
    rms = math.sqrt((49 / (24.75 / 0.75) + 1 / 0.9**2) / 2)
    got = directions(oracle.stable_adam, g, **b, eps=0.9)
    np.testing.assert_allclose(
        got[1], directions(oracle.adam, g, **b, eps=0.9)[1] / rms, rtol=1e-12
    )


def test_stable_adam_holds_where_nu_is_stale() -> None:
    """Its reason: after 2000 steps of gradients a thousandth as large, the first large one."""
    scale = np.array([1e-3] * 2000 + [1.0])[:, None]
    g = scale * np.random.default_rng(1).standard_normal((2001, 1000))
    sizes = [
        np.sqrt(np.mean(directions(rule, g)[-1] ** 2)) for rule in (oracle.adam, oracle.stable_adam)
    ]
    assert 2.7 < sizes[0] < 3.1
    assert 0.08 < sizes[1] < 0.12


def test_mars_by_hand() -> None:
    """Yuan et al. 2024: c_1 = g_1; c over its norm where that is more than 1."""
    want = directions(oracle.adam, 1e-5 * GRADIENTS, b1=0.95, b2=0.99)
    got, moments = oracle.mars(1e-5 * GRADIENTS, gamma=0.0)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(moments["g"], 1e-5 * GRADIENTS[-1])
    g = np.array([[0.3, 0.4], [0.3, 0.0], [3.0, 4.0]])
    c = [g[0], [0.3, -0.4 * 0.2], [3 + 2.7 * 0.2, 4 + 4 * 0.2]]
    c[2] = np.array(c[2]) / math.hypot(*c[2])
    got, moments = oracle.mars(g, b1=0.5, b2=0.5, gamma=0.2)
    want, adams = oracle.adam(np.stack(c), b1=0.5, b2=0.5)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_allclose(moments["nu"], adams["nu"], rtol=1e-12)
    np.testing.assert_array_equal(moments["g"], [3.0, 4.0])


def test_blocks_of_adam_mini() -> None:
    """Zhang et al. 2024: one entry of nu a block, the mean of the squares there."""
    want, adams = oracle.adam(GRADIENTS)
    got, moments = oracle.adam_mini(GRADIENTS, blocks=(3, 4))
    np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_allclose(moments["nu"], adams["nu"], rtol=1e-12)
    g = np.array([[[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 6.0, 8.0]]])
    for blocks, squares in {
        (1, 1): [[130 / 8]],
        (2, 1): [[7.5], [25.0]],
        (1, 2): [[1.25, 31.25]],
        (2, 2): [[2.5, 12.5], [0.0, 50.0]],
        (1, 4): [[0.5, 2.0, 22.5, 40.0]],
    }.items():
        got, moments = oracle.adam_mini(g, blocks=blocks, eps=0.0)
        np.testing.assert_allclose(moments["nu"], 0.001 * np.array(squares), rtol=1e-12)
        wide = np.kron(squares, np.ones((2 // blocks[0], 4 // blocks[1])))
        wide[g[0] == 0] = 1.0
        np.testing.assert_allclose(got[0], g[0] / np.sqrt(wide), rtol=1e-12)


# --- Signs ---------------------------------------------------------------------------------------


def test_lion_is_a_sign() -> None:
    """Chen et al. 2023, Algorithm 2: the sign looks ahead by b1, the mean is kept by b2."""
    g = np.array([1.0, -0.5, 0.0, 8.0])
    got, moments = oracle.lion(g, b1=0.5, b2=0.75)
    np.testing.assert_array_equal(got, [1.0, -1.0, 1.0, 1.0])
    mu = [0.25, 0.0625, 0.046875]
    assert moments["mu"] == 0.75 * mu[2] + 2
    c = np.array([0.5, -0.125, 0.03125, mu[2] / 2 + 4])
    got = directions(oracle.lion, g, b1=0.5, b2=0.75, mode="refined")
    np.testing.assert_allclose(got, [*c[:3], 1.0])
    got = directions(oracle.lion, g, b1=0.5, b2=0.75, mode="smooth", smooth_beta=3.0)
    np.testing.assert_allclose(got, np.tanh(3 * c))


def test_cautious_and_grams_by_hand() -> None:
    u = np.array([[1.0, -2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    g = np.array([[5.0, 1.0, -1.0, 0.0], [-1.0, -1.0, 0.0, -1.0]])
    np.testing.assert_array_equal(oracle_descent.cautious(u, g), [[4.0, 0, 0, 0], [0.0] * 4])
    np.testing.assert_array_equal(oracle_descent.grams(u, g), [[1, 2, -3, 0], [-1, -2, 0, -4.0]])
    many = np.ones((1, 4000))
    opposite = -many
    opposite[0, 0] = 1.0  # a share of 1/4000, below the floor
    assert oracle_descent.cautious(many, opposite).sum() == 1000.0
    phases = np.exp(1j * np.array([[0.1, 1.5, 3.1, -1.0]]))
    np.testing.assert_allclose(
        oracle_descent.cautious(phases, np.ones((1, 4))), phases * [[4 / 3, 4 / 3, 0, 4 / 3]]
    )
    np.testing.assert_allclose(oracle_descent.grams(np.full((1, 4), -2.0), 3 * phases), 2 * phases)


# --- What holds of many --------------------------------------------------------------------------

SCALE_FREE = {
    "adam": (oracle.adam, {"eps": 0.0}),
    "nadam": (oracle.nadam, {"eps": 0.0, "momentum_decay": 4e-3}),
    "amsgrad": (oracle.amsgrad, {"eps": 0.0}),
    "amsgrad-after": (oracle.amsgrad, {"eps": 0.0, "correct_after_max": True}),
    "adamax": (oracle.adamax, {"eps": 0.0}),
    "adabelief": (oracle.adabelief, {"eps": 0.0, "eps_root": 0.0}),
    "laprop": (oracle.laprop, {"eps": 0.0}),
    "adopt": (oracle.adopt, {"eps": 0.0}),
    "ademamix": (oracle.ademamix, {"eps": 0.0, "warmup_steps": 5}),
    "adan": (oracle.adan, {"eps": 0.0}),
    "adam_atan2": (oracle.adam_atan2, {}),
    "stable_adam": (oracle.stable_adam, {"eps": 0.0}),
    "lion": (oracle.lion, {}),
}


@pytest.mark.parametrize("name", SCALE_FREE)
def test_steps_are_invariant_to_the_scale(name: str) -> None:
    """Of each coordinate by a power of 2, to the bit; 0/0 is 0."""
    rule, settings = SCALE_FREE[name]
    g = np.where(GRADIENTS == 0, 0.0, GRADIENTS)
    g[:, 1, 1] += 1.0  # ADOPT's quotient would be infinite after the zeros
    g[:, 0, 0] = 0.0
    want = directions(rule, g, **settings)
    scale = np.exp2(np.arange(-6.0, 6.0)).reshape(3, 4)
    np.testing.assert_array_equal(directions(rule, g * scale, **settings), want)
    assert np.isfinite(want).all()
    assert (want[:, 0, 0] == 0).all()


@pytest.mark.parametrize("name", [*SCALE_FREE, "radam", "cautious", "grams"])
def test_complex_steps_turn_with_the_gradient(name: str) -> None:
    """A gradient along one direction of the plane is a real one, turned."""
    rule, settings = SCALE_FREE.get(name, (oracle.radam, {"b2": 0.9}))
    phase = np.exp(2.3j)
    g = GRADIENTS + np.where(np.arange(12).reshape(3, 4) == 0, 0.0, 0.5)
    real, turned = directions(rule, g, **settings), directions(rule, g * phase, **settings)
    if name in ("cautious", "grams"):
        mask = getattr(oracle_descent, name)
        real, turned = mask(real, g), mask(turned, g * phase)
    np.testing.assert_allclose(turned, real * phase, rtol=1e-7, atol=1e-9)


# --- Decay ---------------------------------------------------------------------------------------


def test_forms_of_decay_by_hand() -> None:
    """One step of 1 at rate .1 from 3, decay .2; a schedule of 5 at first."""
    g = np.array([1.0, 1.0])
    settings = {"learning_rate": 0.1, "weight_decay": 0.2, "eps": 0.0}
    for form, want in {
        "by_learning_rate": 3 - 0.1 - 0.1 * 0.2 * 3,
        "after": (3 - 0.1) * 0.98,
        "by_schedule": 3 - 0.1 - 5 * 0.2 * 3,
        "independent": 3 - 0.1 - 0.2 * 3,
        "proximal": (3 - 0.1) / 1.02,
        "l2": 3 - 0.1,
    }.items():
        path = oracle_descent.descend(
            oracle.adam, g, 3.0, form=form, schedule=lambda count: 5.0 - count, **settings
        )
        assert path[0] == pytest.approx(want, rel=1e-12), form
    assert path[1] < 2.8 + 1e-4  # with L2 the second gradient is 1.58, after 1.6

    g = np.array([[1.0, 4.0]])
    first = oracle_descent.descend(
        oracle.lion,
        g,
        [-9.0, -9.0],
        form="l2",
        learning_rate=0.1,
        weight_decay=0.2,
    )
    np.testing.assert_allclose(first, [[-8.9, -9.1]])


def test_decay_without_a_gradient() -> None:
    """100 steps at rate .01 and decay .1: (1 - .001)^100, and with L2 Adam's hundred steps."""
    settings = {"learning_rate": 0.01, "weight_decay": 0.1}
    zeros = np.zeros(100)
    decoupled = oracle_descent.descend(oracle.adam, zeros, 1.0, **settings)
    assert decoupled[-1] == pytest.approx(0.9047921, abs=1e-7)
    l2 = oracle_descent.descend(oracle.adam, zeros, 1.0, form="l2", **settings)
    assert l2[-1] == pytest.approx(0.224, abs=1e-3)


def test_descent_by_a_function_of_the_parameters() -> None:
    """Of x^2/2, by gradients that are looked up on the way, as by those that were."""
    settings = {"learning_rate": 0.1, "b1": 0.5}
    path = oracle_descent.descend(oracle.adam, lambda p: p, [2.0, -3.0], steps=30, **settings)
    seen = np.stack([[2.0, -3.0], *path[:-1]])
    again = oracle_descent.descend(oracle.adam, seen, [2.0, -3.0], **settings)
    np.testing.assert_array_equal(again, path)
    assert np.abs(path[-1]).max() < 1.0


def test_lamb_steps_by_the_norm_of_the_parameters() -> None:
    """You et al. 2020: without decay each step is as long as the rate's share of |p|."""
    p = np.array([3.0, 4.0])
    path = oracle_descent.lamb(np.array([[1.0, -2.0]] * 3), p, learning_rate=0.1)
    lengths = np.linalg.norm(np.diff([p, *path], axis=0), axis=1)
    np.testing.assert_allclose(lengths, 0.1 * np.linalg.norm([p, *path[:2]], axis=1), rtol=1e-12)
    from_zero = oracle_descent.lamb(np.ones((1, 2)), np.zeros(2), learning_rate=0.1)
    np.testing.assert_allclose(from_zero, [[-0.1, -0.1]], rtol=1e-5)
    at_rest = oracle_descent.lamb(np.zeros((1, 2)), p, learning_rate=0.1)
    np.testing.assert_array_equal(at_rest, [p])
