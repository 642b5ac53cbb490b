"""Experiments from the literature on Adam whose outcome is a fact, and two sayings that are not.

Each is small enough to be run at every test; sources stand with the tests.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax


def run(tx: Any, g: Any, params: Any = None) -> Any:
    """The updates of all steps along given gradients."""
    state = tx.init(g[0])

    def advance(state: Any, g: Any) -> Any:
        u, state = tx.update(g, state, params)
        return state, u

    return np.asarray(jax.jit(lambda g: jax.lax.scan(advance, state, g)[1])(jnp.asarray(g)))


def descend(tx: Any, gradient: Any, params: Any, steps: int) -> Any:
    """Parameters after each step; the gradient takes parameters and the step, from 0."""

    def advance(carry: Any, t: Any) -> Any:
        params, state = carry
        updates, state = tx.update(gradient(params, t), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    start = (jnp.asarray(params), tx.init(jnp.asarray(params)))
    path = jax.jit(lambda: jax.lax.scan(advance, start, jnp.arange(steps))[1])()
    return np.asarray(path)


# --- Kingma & Ba 2015 ----------------------------------------------------------------------------


def scaled_difference(make: Any) -> float:
    """The largest change of an update where each coordinate's gradients are times a power of 2."""
    g = np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32)
    scale = np.exp2(np.arange(-20, 20, 2)).astype(np.float32)
    return float(np.abs(run(make(), g * scale) - run(make(), g)).max())


@pytest.mark.parametrize("settings", [{}, {"nesterov": True}, {"b1": 0.0}, {"b2": 0.0}])
def test_steps_are_invariant_to_diagonal_rescaling(settings: dict[str, Any]) -> None:
    """Section 1: "the magnitudes of parameter updates are invariant to rescaling"; to the bit."""
    assert scaled_difference(lambda: adam_jax.scale_by_adam(eps=0.0, **settings)) == 0


def test_steps_of_gradient_descent_are_not() -> None:
    assert scaled_difference(lambda: optax.sgd(1.0)) > 1e4


def test_one_spike_after_zeros_steps_by_what_the_paper_says() -> None:
    """Section 2.1: (1 - b1) / sqrt(1 - b2), in the most severe case of sparsity."""
    g = np.zeros((20_001, 1), np.float32)
    g[-1] = 1
    step = run(adam_jax.scale_by_adam(eps=0.0), g)[-1, 0]
    assert step == pytest.approx(0.1 / math.sqrt(0.001), rel=1e-6)
    assert step == pytest.approx(3.162278, abs=5e-6)


def test_but_that_is_not_the_most_severe_case() -> None:
    """A gradient that grows like (b2 / b1)**k after silence comes to 7.27.

    By the inequality of Cauchy and Schwarz no sequence exceeds
    (1 - b1) / sqrt((1 - b2) * (1 - b1**2 / b2)).
    """
    g = np.zeros((20_200, 1), np.float32)
    g[-200:, 0] = (0.999 / 0.9) ** np.arange(-200.0, 0)
    supremum = 0.1 / math.sqrt(0.001 * (1 - 0.81 / 0.999))
    assert supremum == pytest.approx(7.2703, abs=5e-5)
    step = run(adam_jax.scale_by_adam(eps=0.0), g)[-1, 0]
    assert step == pytest.approx(7.27029, abs=2e-5)
    assert step <= supremum * (1 + 1e-6)


def test_the_first_step_is_the_learning_rate_whatever_the_gradient() -> None:
    """Up to eps: a gradient of eps makes half a step."""
    g = np.array([[1e-8, 1e-4, 1.0, -1e15]], np.float32)
    np.testing.assert_allclose(run(adam_jax.adam(0.1), g)[0], [-0.05, -0.1, -0.1, 0.1], rtol=2e-4)


def test_bias_correction_is_what_keeps_the_first_steps_small() -> None:
    """Section 3: without it the first step is (1 - b1) / sqrt(1 - b2) times as large."""
    tx = adam_jax.scale_by_adam(eps=0.0)
    g = jnp.ones(1)
    started = tx.init(g)
    late = started._replace(count=jnp.asarray(10**8, jnp.int32))  # where all corrections are 1
    assert float(tx.update(g, started)[0][0]) == pytest.approx(1, rel=1e-6)
    assert float(tx.update(g, late)[0][0]) == pytest.approx(3.162278, rel=1e-5)


# --- Loshchilov & Hutter 2019 --------------------------------------------------------------------


def l2(rate: float, decay: float) -> Any:
    """Adam on the gradient of a loss with an L2 term, as before decoupling."""
    return optax.chain(optax.add_decayed_weights(decay), adam_jax.adam(rate))


def test_decoupled_decay_without_gradients_is_exponential() -> None:
    """AdamW shrinks by (1 - lr * decay) a step; with an L2 term Adam walks lr a step to zero."""

    def silent(params: Any, t: Any) -> Any:
        return jnp.zeros_like(params)

    adamw = adam_jax.adamw(0.01, weight_decay=0.1)
    assert descend(adamw, silent, 1.0, 100)[-1] == pytest.approx((1 - 0.001) ** 100, rel=1e-5)
    assert descend(l2(0.01, 0.1), silent, 1.0, 100)[-1] == pytest.approx(0.224, abs=0.002)


def test_decoupled_decay_does_not_depend_on_the_gradients_scale() -> None:
    """Noise of scales 0.01 and 100: AdamW decays both to about e**-2, the L2 term one of them."""
    scales = jnp.repeat(jnp.array([0.01, 100.0]), 64)

    def noise(params: Any, t: Any) -> Any:
        return scales * jax.random.normal(jax.random.fold_in(jax.random.key(0), t), scales.shape)

    def ends(tx: Any) -> Any:
        return descend(tx, noise, np.ones(128, np.float32), 20_000)[-1].reshape(2, 64).mean(axis=1)

    np.testing.assert_allclose(ends(adam_jax.adamw(1e-3, weight_decay=0.1)), np.exp(-2), atol=0.05)
    weak, strong = ends(l2(1e-3, 0.1))
    assert abs(weak) < 0.05
    assert strong > 0.9


# --- two sayings ---------------------------------------------------------------------------------


def test_far_from_the_optimum_steps_are_no_larger_than_near_it() -> None:
    """It is said that Adam strides where the gradient is large and tiptoes where it is small.

    A steady gradient of 1e4 and one of 1e-4 make the same steps. What makes them small is a low
    ratio of signal to noise (Kingma & Ba, section 2.1), at any distance.
    """
    steady = np.broadcast_to(np.array([1e4, 1e-4], np.float32), (200, 2))
    far, near = run(adam_jax.adam(0.01), steady).T
    np.testing.assert_allclose(far, -0.01, rtol=1e-4)
    np.testing.assert_allclose(near, far, rtol=2e-4)

    noise = np.random.default_rng(0).standard_normal((4000, 64)).astype(np.float32)
    signals = {ratio: run(adam_jax.adam(0.01), 1e4 * (noise + ratio)) for ratio in (0.1, 10.0)}
    size = {ratio: np.abs(u[-1000:].mean()) for ratio, u in signals.items()}
    assert size[0.1] < 0.0015  # though just as far
    assert size[10.0] > 0.0095


def test_a_step_that_did_not_help_changes_nothing() -> None:
    """It is said that Adam tries another direction where a step made the loss worse.

    It never sees the loss. Over the bottom of a valley it climbs on, each step a worse one; and
    told the loss, it makes of the same gradients the same steps to the bit.
    """
    path = descend(adam_jax.adam(0.1), lambda x, t: 2 * x, 1.0, 40)
    crossed = int(np.argmax(path < 0))
    climb = path[crossed : crossed + 4]
    assert np.all(np.diff(climb) < 0)
    assert np.all(np.diff(climb**2) > 0)

    tx, g = adam_jax.adam(0.1), jnp.array([0.3, -2.0])
    state = tx.init(g)
    steps = [tx.update(g, state, g, value=loss)[0] for loss in (0.0, 1e9, math.nan)]
    np.testing.assert_array_equal(steps[0], steps[1])
    np.testing.assert_array_equal(steps[0], steps[2])
