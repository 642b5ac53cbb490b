"""Small problems, made by the papers of the family, that end as the papers say.

In each something else ends otherwise: another member, or the same one with another memory.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import decay

Gradient = Callable[[Any, Any], Any]


def path(tx: Any, gradient: Gradient, start: Any, steps: Any, within: Any = None) -> Any:
    """Parameters after each step, held within bounds if there are any; to be traced.

    The gradient takes parameters and, of ``steps``, what belongs to the step.
    """

    def advance(carry: Any, step: Any) -> Any:
        params, state = carry
        updates, state = tx.update(gradient(params, step), state, params)
        params = optax.apply_updates(params, updates)
        params = params if within is None else jnp.clip(params, *within)
        return (params, state), params

    start = jnp.asarray(start)
    return jax.lax.scan(advance, (start, tx.init(start)), steps)[1]


def descend(*arguments: Any, **settings: Any) -> Any:
    *problem, steps = arguments
    return np.asarray(jax.jit(partial(path, *problem, **settings))(steps))


# --- Reddi, Kale & Kumar 2018 --------------------------------------------------------------------

UNCORRECTED = {"bias_correction_mu": False, "bias_correction_nu": False}


def online(make: Any, b1: float, b2: float, rate: float, costs: Any, start: float = 0.0) -> Any:
    """Steps rate / sqrt(t) along linear costs of an online problem on [-1, 1]; its best is -1."""
    tx = make(lambda count: rate / jnp.sqrt(count + 1.0), b1, b2, **UNCORRECTED)
    return descend(tx, lambda x, cost: cost, start, costs, within=(-1, 1))


@pytest.mark.parametrize("start", [0.0, -1.0])
def test_adam_with_a_short_memory_ends_at_the_worst_point(start: float) -> None:
    """Theorem 1: costs 3x, -x, -x, again and again; b1 = 0, b2 = 1 / (1 + 3**2). AMSGrad doesn't.

    Adam leaves even the best point. With b2 = 0.9 it does not.
    """
    costs = jnp.where(jnp.arange(30_000) % 3 == 0, 3.0, -1.0)
    ends = {
        (make, b2): online(make, 0.0, b2, 0.5 * math.sqrt(1 - b2), costs, start)[-300:]
        for make, b2 in ((adam_jax.adam, 0.1), (adam_jax.adam, 0.9), (adam_jax.amsgrad, 0.1))
    }
    assert np.all(ends[adam_jax.adam, 0.1] > 0.99)
    assert np.all(ends[adam_jax.adam, 0.9] < -0.99)
    assert np.all(ends[adam_jax.amsgrad, 0.1] < -0.99)


def test_adam_with_its_usual_memory_too_where_large_gradients_are_rarer() -> None:
    """Section 5, the synthetic experiment: 1010x once in 101 steps, else -10x; AMSGrad is slow."""
    costs = jnp.where(jnp.arange(200_000) % 101 == 0, 1010.0, -10.0)
    assert online(adam_jax.adam, 0.9, 0.99, 0.5, costs[:20_000])[-101:].min() > 0.95
    amsgrad = online(adam_jax.amsgrad, 0.9, 0.99, 0.5, costs)
    assert -0.9 < amsgrad[10_000] < -0.7
    assert amsgrad[-101:].max() < -0.98


# --- Taniguchi et al. 2024 -----------------------------------------------------------------------

MEMORIES = [0.1, 0.5, 0.9, 0.99, 0.999]


def stochastic(make: Any, rare: Any) -> Any:
    """The median end over chains, by b2, of E[g] = 1 on [-1, 1] where g = 100 is rare, else -10."""

    def ends(b2: Any, rare: Any) -> Any:
        tx = make(lambda count: 0.01 / jnp.sqrt(1 + 0.01 * count), 0.9, b2)
        start = jnp.zeros(rare.shape[1])
        return path(tx, lambda x, rare: jnp.where(rare, 100.0, -10.0), start, rare, within=(-1, 1))[
            -1
        ]

    by_memory = jax.jit(jax.vmap(ends, in_axes=(0, None)))
    return np.median(by_memory(jnp.array(MEMORIES), rare), axis=1)


def test_adopt_converges_with_any_b2() -> None:
    """Section 5, the toy problem: g = k**2 with probability 1 / k, else -k; k = 10; the best is -1.

    Without clipping, as there. Adam needs b2 close to 1, and with less AMSGrad, uncorrected as in
    its paper, gets there slowly.
    """
    rare = jnp.asarray(np.random.default_rng(0).random((60_000, 200), np.float32) < 0.1)
    adam, amsgrad, adopt = (
        stochastic(make, rare)
        for make in (
            adam_jax.adam,
            partial(adam_jax.amsgrad, **UNCORRECTED),
            partial(adam_jax.adopt, use_clipping=False),
        )
    )
    assert np.all(adopt < -0.97)
    assert np.all(adam[:3] > 0.97)
    assert -0.9 < adam[3] < -0.6
    assert adam[4] < -0.97
    assert np.all((amsgrad[:3] > -0.8) & (amsgrad[:3] < -0.3))
    assert np.all(amsgrad[3:] < -0.97)


# --- Loshchilov & Hutter 2019 --------------------------------------------------------------------

DECAYED: dict[str, Any] = {
    "adamw": adam_jax.adamw,
    "amsgradw": adam_jax.amsgradw,
    "adamaxw": adam_jax.adamaxw,
    "nadamw": adam_jax.nadamw,
    "radamw": adam_jax.radamw,
    "laprop": adam_jax.laprop,
    "adoptw": adam_jax.adoptw,
    "ademamix": adam_jax.ademamix,
    "adan": adam_jax.adan,
    "adam_atan2": adam_jax.adam_atan2,
    "stable_adamw": adam_jax.stable_adamw,
    "mars": adam_jax.mars,
    "adam_mini": adam_jax.adam_mini,
    "lion": adam_jax.lion,
}


def silent(make: Any, weight_decay: Any, rate: Any = 0.01) -> float:
    """Where 1 comes to in 100 steps without gradients."""
    tx = make(rate, weight_decay=weight_decay)
    return float(descend(tx, lambda x, _: 0 * x, [1.0], jnp.arange(100))[-1, 0])


@pytest.mark.costly
@pytest.mark.parametrize("make", DECAYED.values(), ids=DECAYED)
def test_decoupled_decay_is_exponential_in_each_member(make: Any) -> None:
    assert silent(make, 0.1) == pytest.approx(0.9047921, abs=1e-6)


def test_other_decays_are_not() -> None:
    """An L2 term is walked down by the learning rate a step, and LAMB's share is of the norm."""
    assert silent(adam_jax.adamw, decay.l2(0.1)) == pytest.approx(0.224, abs=0.002)
    assert silent(adam_jax.lamb, 0.1) == pytest.approx(0.99**100, abs=1e-6)


def test_the_papers_decay_does_not_know_the_base_learning_rate() -> None:
    """Algorithm 2: only the schedule multiplies it, so that the two can be tuned apart."""
    falling = optax.linear_schedule(1.0, 0.0, 100)
    expected = np.prod(1 - 1e-3 * (1 - np.arange(100) / 100))
    for base in (1e-4, 1.0):
        rate = optax.linear_schedule(base, 0.0, 100)
        by_schedule = silent(adam_jax.adamw, decay.by_schedule(1e-3, falling), rate)
        assert by_schedule == pytest.approx(expected, abs=1e-6)
        assert silent(adam_jax.adamw, decay.independent(1e-3), base) == pytest.approx(0.9047921)
    assert silent(adam_jax.adamw, 1e-3, 1e-4) > 0.9999


@pytest.mark.costly
@pytest.mark.parametrize("make", [adam_jax.amsgradw, adam_jax.adamaxw, adam_jax.nadamw])
def test_only_decoupled_decay_is_the_same_for_weak_and_strong_gradients(make: Any) -> None:
    """Section 2: noise of scales 0.01 and 100. AdamW was shown; its relatives divide likewise."""
    z = np.random.default_rng(0).standard_normal((20_000, 2, 64)).astype(np.float32)
    noise = jnp.asarray(z * np.array([[0.01], [100]], np.float32))

    def ends(weight_decay: Any) -> Any:
        tx = make(1e-3, weight_decay=weight_decay)
        return descend(tx, lambda x, g: g, np.ones((2, 64), np.float32), noise)[-1].mean(axis=1)

    np.testing.assert_allclose(ends(0.1), math.exp(-2), atol=0.05)
    weak, strong = ends(decay.l2(0.1))
    assert abs(weak) < 0.05
    assert strong > 0.9


# --- Cohen et al. 2022; Wortsman et al. 2023 -----------------------------------------------------


@pytest.mark.parametrize(("b1", "edge"), [(0.0, 2), (0.5, 6), (0.9, 38), (0.95, 78)])
def test_steps_are_stable_up_to_the_edge(b1: float, edge: float) -> None:
    """Cohen et al. 2022, "Adaptive Gradient Methods at the Edge of Stability": 38 / eta.

    With its divisor held, here by an eps beside which the root is nothing, Adam descends a parabola
    while its curvature times the step is below 2 * (1 + b1) / (1 - b1).
    """
    tx = adam_jax.adam(1e8, b1, eps=1e8, bias_correction_mu=False)
    curvature = jnp.array([0.98, 1.02]) * edge
    start = np.full(2, 1e-3, np.float32)
    below, beyond = np.abs(descend(tx, lambda x, _: curvature * x, start, jnp.arange(2000))).T
    assert below[-100:].max() < 1e-8
    assert beyond[-100:].max() > 0.1


def test_a_stale_mean_square_makes_adam_leap_and_stable_adamw_not() -> None:
    """Wortsman et al. 2023: loss spikes follow where the mean square is out of date; Algorithm 2.

    Here after 2000 gradients of size 1e-3, at the first of size 1.
    """
    g = np.random.default_rng(0).standard_normal((2010, 1000)).astype(np.float32)
    g[:2000] *= 1e-3
    stable = adam_jax.stable_adamw(1.0, weight_decay=0.0)
    sizes = []
    for tx in (adam_jax.adam(1.0), stable):
        steps = np.diff(descend(tx, lambda x, g: g, np.zeros(1000), jnp.asarray(g)), axis=0)
        sizes.append(np.sqrt(np.mean(steps**2, axis=1)))
    for size in sizes:
        assert size[1000:1999].mean() == pytest.approx(0.229, abs=0.005)
    adam, stable = sizes
    assert adam[1999] == pytest.approx(2.89, abs=0.04)
    assert stable[1999] == pytest.approx(0.100, abs=0.002)
    assert stable[1999:].max() < 0.3


# --- Pagliardini et al. 2024; Zhang et al. 2024 --------------------------------------------------


def test_ademamix_needs_fewer_steps_down_a_banana(x64: None) -> None:
    """Pagliardini et al. 2024, their example: Rosenbrock's function, here from (-3, 5).

    Adam with a longer memory needs more steps. Two means, one of them short, do not.
    """

    def gradient(p: Any, _: Any) -> Any:
        return jax.grad(lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2)(p)

    def steps(tx: Any) -> int:
        walked = descend(tx, gradient, [-3.0, 5.0], jnp.arange(8000))
        near = np.linalg.norm(walked - 1, axis=1) < 1e-2
        assert near.any()
        return int(np.argmax(near)) + 1

    adam = [steps(adam_jax.adam(1.0, b1)) for b1 in (0.9, 0.99, 0.999)]
    mix = [steps(adam_jax.ademamix(0.1, b3=b3, alpha=9.0)) for b3 in (0.99, 0.999, 0.9999)]
    np.testing.assert_allclose(adam, [1306, 2138, 7265], rtol=0.01)
    np.testing.assert_allclose(mix, [593, 853, 1728], rtol=0.01)


def three_blocks(rng: Any, dense: bool) -> Any:
    """A matrix of three blocks of 30 whose condition is 5000, and that of each at most 3."""
    blocks = np.zeros((3, 30, 3, 30))
    for i, eigenvalues in enumerate([(1, 2, 3), (99, 100, 101), (4998, 4999, 5000)]):
        q = np.linalg.qr(rng.standard_normal((30, 30)))[0] if dense else np.eye(30)
        blocks[i, :, i, :] = q @ np.diag(np.resize(eigenvalues, 30)) @ q.T
    return blocks.reshape(90, 90)


FIRST_SQUARES = [
    jax.jit(lambda g, tx=tx: tx.update(g, tx.init(g), g)[1][0].nu)
    for tx in (adam_jax.adam(1.0), adam_jax.adam_mini(1.0, blocks=lambda path, leaf: (3,)))
]


def conditions(dense: bool, seed: int) -> list[float]:
    """Of such a parabola: its own, by Adam's first divisor, and by that of Adam-mini."""
    rng = np.random.default_rng(seed)
    h = three_blocks(rng, dense)
    start = rng.standard_normal(90)
    gradient = h @ (start if dense else np.sign(start))
    found = [np.linalg.cond(h)]
    for first_square in FIRST_SQUARES:
        nu = np.asarray(first_square(jnp.asarray(gradient)), float)
        d = np.repeat(nu**-0.25, 90 // nu.size)
        found.append(np.linalg.cond(d[:, None] * h * d))
    return found


def test_adam_mini_conditions_dense_blocks_where_adam_does_not() -> None:
    """Zhang et al. 2024, their quadratic problem: three dense blocks, from normal starts.

    From a start of +-1 where blocks are diagonal, a gradient's entries are the eigenvalues, and
    Adam's divisor is perfect.
    """
    whole, adam, mini = np.median([conditions(dense=True, seed=seed) for seed in range(40)], axis=0)
    assert whole == pytest.approx(5000)
    assert mini == pytest.approx(3, abs=0.01)  # that of the worst block
    assert adam / mini > 50
    plain, adam, mini = conditions(dense=False, seed=0)
    assert plain == pytest.approx(5000)
    assert adam == pytest.approx(1, rel=1e-5)
    assert mini == pytest.approx(3, abs=0.01)
