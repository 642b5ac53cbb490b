"""Many gradients make one step: of their mean, in float32, at the price of adding them up."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits, assert_same_kind
from training import assert_close, descend, gradients, moved, parameters, stepper

import adam_jax
from adam_jax.services.accumulate import accumulate
from adam_jax.services.skip_unstable import skip_unstable

LARGEST = float(jnp.finfo(jnp.float32).max)


def decaying():
    """A rate that differs in every step, as the count that it is of does."""
    return optax.exponential_decay(0.1, 1, 0.5)


INNER = {
    "adam_jax.adamw": lambda: adam_jax.adamw(decaying()),
    "optax.adam": lambda: optax.adam(0.1),
    "optax.sgd, momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "a chain": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_schedule(decaying())
    ),
}


def ways(tx, steps):
    """The kinds of updates by which a stream of ``steps`` gradients a full step is taken."""
    told = partial(jax.jit, static_argnames="full_step")

    def static(update, index, *args, **kwargs):
        return told(update)(*args, **kwargs, full_step=(index + 1) % steps == 0)

    def traced(update, index, *args, **kwargs):
        return jax.jit(update)(*args, **kwargs, full_step=jnp.bool_((index + 1) % steps == 0))

    def counted(update, _, *args, **kwargs):
        return jax.jit(update)(*args, **kwargs)

    return {"static": static, "traced": traced, "counted": counted}


def train(tx, params, stream, way, weights=None):
    state = tx.init(params)
    for index, gradient in enumerate(stream):
        weight = {} if weights is None else {"weight": weights[index]}
        updates, state = way(tx.update, index, gradient, state, params, **weight)
        params = optax.apply_updates(params, updates)
    return params, state


def mean(stream, weights=None):
    """In float64, as float32."""
    return jax.tree.map(
        lambda *g: jnp.asarray(np.average(np.float64(g), axis=0, weights=weights), jnp.float32),
        *stream,
    )


# --- one step, of the mean -----------------------------------------------------------------------


@pytest.mark.costly
@pytest.mark.parametrize("way", ["static", "traced", "counted"])
@pytest.mark.parametrize("name", INNER)
def test_it_is_a_step_by_the_mean(name, way):
    params, inner = parameters(), INNER[name]()
    stream, weights = gradients(8, params), [3, 1.5, 0.25, 7.0]
    tx = accumulate(inner, 4)
    result, state = train(tx, params, stream, ways(tx, 4)[way], weights * 2)
    expected = moved(inner, params, [mean(part, weights) for part in (stream[:4], stream[4:])])
    assert_close((result, state.inner_state), expected, rtol=2e-5, atol=2e-6)
    assert (int(state.micro_step), int(state.full_steps), float(state.weight)) == (0, 2, 0)
    if way == "counted":  # the twin: weights matter
        equal, _ = moved(tx, params, stream)
        with pytest.raises(AssertionError):
            assert_close(equal, expected[0], rtol=2e-5, atol=2e-6)


def test_schedules_inside_count_full_steps():
    tx = accumulate(optax.sgd(lambda count: 10.0 ** -count.astype(jnp.float32)), 3)
    params, _ = moved(tx, jnp.zeros(()), [jnp.ones(())] * 9)
    assert f"{params:.4f}" == "-1.1100"


@pytest.mark.parametrize("growing", [lambda done: done + 1, lambda done: jnp.exp2(done * 1.0)])
def test_a_schedule_of_steps(growing):
    """Batches of 1, 2, 3 gradients, or 1, 2, 4."""
    tx = accumulate(optax.sgd(1.0), growing)
    params, step = jnp.zeros(()), stepper(tx)
    state, done = tx.init(params), []
    for index in range(1, 8):
        params, state = step(params, state, jnp.ones(()))
        done += [index] if int(state.micro_step) == 0 else []
    assert done == ([1, 3, 6] if growing(2) == 3 else [1, 3, 7])


def test_the_ragged_end_of_an_epoch():
    params = parameters()
    tx, stream = accumulate(optax.sgd(1.0), 4), gradients(3, params)
    state = tx.init(params)
    for gradient, full in zip(stream, (None, None, True), strict=True):
        updates, state = tx.update(gradient, state, params, full_step=full)
    assert_close(updates, jax.tree.map(lambda g: -g, mean(stream)), rtol=1e-6, atol=1e-6)
    assert (int(state.micro_step), int(state.full_steps)) == (0, 1)
    assert not any(jnp.any(x) for x in jax.tree.leaves((state.weight, state.accumulator)))


@pytest.mark.parametrize("full", [False, jnp.bool_(False), None], ids=["static", "traced", "None"])
def test_between_steps_nothing_moves(full):
    tx = accumulate(adam_jax.adamw(0.1, weight_decay=0.1), 2)
    params = {"w": jnp.array([-0.0, 1.0, -2.0])}

    @jax.jit
    def step(gradient, state, params):
        updates, state = tx.update(gradient, state, params, full_step=full)
        return optax.apply_updates(params, updates), state

    before = tx.init(params)
    after, state = step({"w": jnp.ones(3)}, before, params)
    assert_same_bits((after, state.inner_state), (params, before.inner_state))
    assert int(state.micro_step) == 1


# --- the mean itself -----------------------------------------------------------------------------


def accumulated(stream, weights=None, **options):
    """The accumulator after a scan over gradients, one along the first axis."""
    tx = accumulate(optax.sgd(1.0), 10**6, **options)
    weights = jnp.ones(len(stream)) if weights is None else weights

    def body(state, x):
        return tx.update(x[0], state, weight=x[1])[1], None

    return jax.lax.scan(body, tx.init(stream[0]), (stream, weights))[0]


def noise(steps, size=64):
    rng = np.random.default_rng(0)
    return rng.normal(size=(steps, size)) + 0.3, rng.uniform(0.1, 9, steps)


def test_a_thousand_micro_steps():
    stream, weights = noise(1000)
    given = jnp.asarray(stream, jnp.float32), jnp.asarray(weights, jnp.float32)
    expected = np.average(np.float64(given[0]), axis=0, weights=np.float64(given[1]))
    state = accumulated(*given)
    np.testing.assert_allclose(state.accumulator, expected, atol=1e-6)
    np.testing.assert_allclose(state.weight, weights.sum(), rtol=1e-5)
    assert int(state.micro_step) == 1000


def test_bfloat16_gradients_lose_nothing_in_float32_and_much_in_bfloat16():
    stream = jnp.asarray(noise(1000)[0], jnp.bfloat16)
    expected = np.mean(np.float64(stream), axis=0)
    state = accumulated(stream)
    assert state.accumulator.dtype == jnp.float32
    np.testing.assert_allclose(state.accumulator, expected, atol=1e-6)
    low = accumulated(stream, accumulator_dtype=jnp.bfloat16)
    assert low.accumulator.dtype == jnp.bfloat16
    assert np.abs(np.float64(low.accumulator) - expected).max() > 0.01


def test_float64_stays_float64(x64):
    stream, weights = noise(50)
    state = accumulated(jnp.asarray(stream), jnp.asarray(weights))
    assert state.accumulator.dtype == state.weight.dtype == jnp.float64
    np.testing.assert_allclose(state.accumulator, np.average(stream, 0, weights), atol=1e-14)


@pytest.mark.parametrize("steps", [1, 3, 7, 100])
def test_equal_gradients_are_their_mean_to_the_bit(steps):
    g = jnp.asarray(noise(1, 512)[0][0], jnp.float32)
    state = accumulated(jnp.broadcast_to(g, (steps, 512)))
    assert_same_bits(state.accumulator, g)
    total = jnp.zeros_like(g)  # the twin: a sum
    for _ in range(steps):
        total = total + g
    assert (steps == 1) == bool(jnp.all(total / steps == g))


def test_one_gradient_a_step_is_no_accumulation():
    params = parameters()
    stream, inner = gradients(3, params), adam_jax.adamw(0.1)
    tx = accumulate(inner, 1)
    program = jax.jit(tx.update).lower(stream[0], tx.init(params), params).compile().as_text()
    assert "conditional" not in program
    assert_same_bits(moved(tx, params, stream)[0], moved(inner, params, stream)[0])


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 9, 1, 80), (9, 1, 3e38, 3e38)], ids=str)
@pytest.mark.parametrize("signs", [(1, 1, 1, 1), (1, -1, 1, -1), (-1, 1, 1, 1)], ids=str)
def test_finite_gradients_have_a_finite_mean(weights, signs):
    stream = LARGEST * jnp.asarray(signs, jnp.float32)[:, None]
    for dtype in (None, jnp.bfloat16):
        state = accumulated(stream, jnp.asarray(weights, jnp.float32), accumulator_dtype=dtype)
        assert bool(jnp.all(jnp.isfinite(state.accumulator)))
    # The twins: a sum overflows, and so does the difference of which Optax takes a share.
    assert not np.isfinite(jnp.sum(stream[:2])) or not np.isfinite(stream[0, 0] - stream[1, 0])


@pytest.mark.parametrize("full", ["static", "traced"])
def test_nan_is_loud_until_the_step_and_then_gone(full):
    tx, params = accumulate(optax.sgd(1.0), 2), jnp.zeros(2)
    stream = [jnp.array(x) for x in ([1.0, jnp.nan], [1.0, 1.0], [1.0, 2.0], [3.0, 4.0])]
    state, way = tx.init(params), ways(tx, 2)[full]
    seen = []
    for index, gradient in enumerate(stream):
        updates, state = way(tx.update, index, gradient, state, params)
        seen.append([float(u) for u in updates])
    np.testing.assert_array_equal(seen, [[0, 0], [-1, np.nan], [0, 0], [-2, -3]])
    # The twin: Optax empties its accumulator by a product.
    multi = optax.MultiSteps(optax.sgd(1.0), 2)
    _, state = descend(stepper(multi), params, multi.init(params), stream[:2])
    assert np.isnan(state.acc_grads[1])


def test_what_has_no_weight_does_not_count():
    tx, params = accumulate(optax.sgd(1.0), 3), jnp.zeros(())
    nothing = jnp.array(jnp.nan), 0.0
    for before, after in [([nothing], []), ([], [nothing])]:
        state = tx.init(params)
        for g, weight in [*before, (jnp.array(2.0), 1.0), *after, (jnp.array(5.0), 2)]:
            updates, state = tx.update(g, state, weight=weight)
        assert float(updates) == -4
    for _ in range(3):
        updates, state = tx.update(*(nothing[0], state), weight=jnp.float32(0))
    assert float(updates) == 0
    assert int(state.full_steps) == 2


# --- what the optimizer is given, and gives ------------------------------------------------------


def test_the_optimizer_is_given_float32_and_keeps_its_dtypes():
    given = []

    def spy(updates, state, params=None, **extra_args):
        given.append((jax.tree.map(jnp.result_type, updates), extra_args))
        return updates, state

    params = parameters(jnp.bfloat16)
    (gradient,) = gradients(1, params)
    tx = accumulate(optax.GradientTransformationExtraArgs(lambda _: (), spy), 1)
    # The norm is the gradient's, and not the mean's.
    updates, _ = tx.update(gradient, tx.init(params), params, value=1.0, grad_norm=2.0)
    wide, extra_args = given[-1]
    assert set(jax.tree.leaves(wide)) == {jnp.dtype(jnp.float32)}
    assert extra_args == {"value": 1.0}
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.exhaustive
@pytest.mark.parametrize("full", [True, False, None])
@pytest.mark.parametrize("accumulator_dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("name", ["adam_jax.adamw", "optax.adam", "master_weights"])
def test_dtypes_are_those_without_it(name, accumulator_dtype, full):
    masters = adam_jax.master_weights(adam_jax.adam(0.1))
    inner = masters if name == "master_weights" else INNER[name]()
    tx = accumulate(inner, 2, accumulator_dtype=accumulator_dtype)
    params = parameters(jnp.bfloat16)
    (gradient,) = gradients(1, params)
    expected, _ = inner.update(gradient, inner.init(params), params)
    state = tx.init(params)
    updates, new = tx.update(gradient, state, params, full_step=full)
    assert_same_kind(new, state)
    assert_same_kind(updates, expected)
    if full:
        assert_close(updates, expected, rtol=2e-2)


def test_master_weights_move_by_what_bfloat16_would_lose():
    params = jnp.ones(16, jnp.bfloat16)
    stream = [jnp.full(16, -1, jnp.bfloat16)] * 400
    tx = accumulate(adam_jax.master_weights(adam_jax.adam(1e-3)), 4)
    assert_close(moved(tx, params, stream)[0], jnp.full(16, 1.1, jnp.bfloat16))
    bare = accumulate(adam_jax.adam(1e-3), 4)
    assert_same_bits(moved(bare, params, stream)[0], params)


def test_an_unstable_mean_is_skipped_inside_and_an_unstable_gradient_outside():
    params, bad = jnp.zeros(2), jnp.array([1.0, jnp.inf])
    stream = [jnp.array([1.0, 2.0]), bad, jnp.array([3.0, 6.0])]
    inside = accumulate(skip_unstable(optax.sgd(1.0)), 2)
    result, state = moved(inside, params, stream)
    assert_same_bits(result, params)
    assert (int(state.inner_state.skipped_total), int(state.micro_step)) == (1, 1)
    outside = skip_unstable(accumulate(optax.sgd(1.0), 2))
    result, state = moved(outside, params, stream)
    assert_close(result, jnp.array([-2.0, -4.0]))
    assert int(state.skipped_total) == 1
