"""The training step that everybody writes: the same bits, one program, and nothing forgotten."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits, assert_same_kind
from training import assert_close

import adam_jax
from adam_jax.services.accumulate import accumulate
from adam_jax.step import train_step

X = jnp.linspace(-1, 1, 24).reshape(8, 3)
Y = jnp.sin(3 * X).sum(1)


def fresh(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {"w": jnp.asarray(rng.normal(size=(3, 4)), dtype), "v": jnp.ones(4, dtype)}


def loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


def with_aux(params, batch):
    return loss(params, batch), {"mean": jnp.mean(batch[0])}


def train(step, params, state, batch, steps=5):
    for _ in range(steps):
        params, state, info = step(params, state, batch)
    return params, state, info


OPTIMIZERS = {
    "adamw": lambda: adam_jax.adamw(optax.exponential_decay(0.1, 1, 0.9)),
    "optax.sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "a chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "by the loss": lambda: optax.chain(
        optax.adam(0.1), optax.contrib.reduce_on_plateau(patience=1, rtol=0.9)
    ),
    "schedule_free": lambda: optax.contrib.schedule_free(adam_jax.adam(0.1, b1=0.0), 0.1),
}


# --- what it does --------------------------------------------------------------------------------


@pytest.mark.costly
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_step_written_by_hand(name):
    tx = optax.with_extra_args_support(OPTIMIZERS[name]())

    def by_hand(params, state, batch):
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(gradient, state, params, value=value)
        return optax.apply_updates(params, updates), state, {"loss": value}

    options = adam_jax.compiler_options()
    by_hand = jax.jit(by_hand, donate_argnums=(0, 1), compiler_options=options)
    results = [
        train(step, fresh(), tx.init(fresh()), (X, Y)) for step in (train_step(loss, tx), by_hand)
    ]
    assert_same_bits(*results)
    assert results[0][2]["loss"] < loss(fresh(), (X, Y))


@pytest.mark.parametrize("donate", [True, False])
def test_it_is_traced_once_and_takes_the_place_of_what_it_replaces(donate):
    traces = []

    def counted(params, batch):
        traces.append(1)
        return loss(params, batch)

    tx = adam_jax.adam(0.1)
    step = train_step(counted, tx, donate=donate)
    params, state = fresh(), tx.init(fresh())
    for _ in range(3):
        old = jax.tree.leaves((params, state))
        params, state, info = step(params, state, (X, Y))
        assert all(x.is_deleted() == donate for x in old)
    assert len(traces) == 1
    assert set(info) == {"loss"}


def test_its_program_can_be_seen_and_its_function_used():
    tx = adam_jax.adam(0.1)
    step = train_step(loss, tx)
    assert isinstance(step, type(jax.jit(lambda: 0)))
    text = step.lower(fresh(), tx.init(fresh()), (X, Y)).compile().as_text()
    assert "input_output_alias" in text

    def body(carry, _):
        params, state, info = step.__wrapped__(*carry, (X, Y))
        return (params, state), info

    (params, _), infos = jax.lax.scan(body, (fresh(), tx.init(fresh())), length=5)
    assert infos["loss"].shape == (5,)
    assert_close(params, train(step, fresh(), tx.init(fresh()), (X, Y))[0], rtol=1e-5, atol=1e-6)


def test_complex_parameters_descend():
    target = jnp.array([1 + 2j, -1 - 1j])

    def distance(z, batch):
        return jnp.sum(jnp.abs(z - batch) ** 2)

    tx = optax.sgd(0.1)
    step, z = train_step(distance, tx), jnp.zeros(2, complex)
    z, _, _ = train(step, z, tx.init(z), target, 100)
    assert_close(z, target, atol=1e-5)
    # The twin: what JAX calls the gradient leads away from it.
    z = jnp.zeros(2, complex)
    for _ in range(10):
        z = z - 0.1 * jax.grad(distance)(z, target)
    assert float(distance(z, target)) > float(distance(jnp.zeros(2), target))


def test_extra_arguments_pass_with_the_loss():
    seen = []

    def spy(updates, state, params=None, **extra_args):
        seen.append({name: jnp.shape(x) for name, x in extra_args.items()})
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda _: (), spy)
    train_step(loss, tx)(fresh(), (), (X, Y), weight=2.0, scale=jnp.ones(3))
    assert seen == [{"value": (), "weight": (), "scale": (3,)}]


def test_full_steps_of_accumulation_are_static():
    tx = accumulate(adam_jax.adam(0.1), 100)
    step = train_step(loss, tx)
    arguments = fresh(), tx.init(fresh()), (X, Y)
    texts = [step.lower(*arguments, full_step=full).as_text() for full in (False, True)]
    assert ["sqrt" in text for text in texts] == [False, True]
    params, state, _ = step(*arguments, full_step=False)
    assert_same_bits(params, fresh())
    params, state, _ = step(params, state, (X, Y), full_step=True)
    expected, _, _ = train(
        train_step(loss, adam_jax.adam(0.1)), fresh(), tx.init(fresh())[-1], (X, Y), 1
    )
    assert_close(params, expected, rtol=1e-6)


# --- micro-batches -------------------------------------------------------------------------------


@pytest.mark.costly
@pytest.mark.parametrize("name", ["adamw", "optax.sgd", "a chain", "schedule_free"])
def test_micro_batches_are_the_whole_batch(name):
    tx = OPTIMIZERS[name]()
    whole = train(train_step(loss, tx), fresh(), tx.init(fresh()), (X, Y))
    step, parts = train_step(loss, tx, micro_batches=4), (X.reshape(4, 2, 3), Y.reshape(4, 2))
    state = tx.init(fresh())
    result = train(step, fresh(), tx.init(fresh()), parts)
    assert_same_kind(result[1], state)
    assert_close(result, whole, rtol=1e-4, atol=1e-5)


def test_auxiliary_results_are_those_of_each_part():
    tx = adam_jax.adam(0.1)
    step = train_step(with_aux, tx, has_aux=True)
    _, _, info = step(fresh(), tx.init(fresh()), (X, Y))
    assert_close(info["aux"], {"mean": jnp.mean(X)})
    step = train_step(with_aux, tx, has_aux=True, micro_batches=4)
    parts = X.reshape(4, 2, 3), Y.reshape(4, 2)
    _, _, info = step(fresh(), tx.init(fresh()), parts)
    assert_close(info["aux"], {"mean": jnp.mean(parts[0], (1, 2))}, rtol=1e-6)
    assert_close(info["loss"], loss(fresh(), (X, Y)), rtol=1e-6)


def test_bfloat16_gradients_are_averaged_in_float32():
    stream = jnp.asarray(np.random.default_rng(0).normal(size=(500, 8)) + 1, jnp.bfloat16)
    given = []

    def spy(updates, state, params=None):
        given.append(updates)
        return updates, updates.astype(jnp.float32)

    def linear(p, x):
        return jnp.sum(p * x)

    tx = optax.GradientTransformation(lambda p: jnp.zeros(p.shape), spy)
    step = train_step(linear, tx, micro_batches=500)
    p, mean, _ = step(jnp.zeros(8, jnp.bfloat16), jnp.zeros(8), stream)
    assert (given[0].dtype, p.dtype) == (jnp.float32, jnp.bfloat16)
    expected = np.float64(stream).mean(0)
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    low = jnp.zeros(8, jnp.bfloat16)  # the twin: a sum in bfloat16
    for x in stream:
        low = low + x
    assert np.abs(np.float64(low) / 500 - expected).max() > 0.01


def test_float64_gradients_are_averaged_in_float64(x64):
    x = np.random.default_rng(0).normal(size=(7, 4))
    step = train_step(lambda p, x: jnp.sum(p * x), optax.sgd(1.0), micro_batches=7)
    p, _, info = step(jnp.zeros(4), optax.sgd(1.0).init(jnp.zeros(4)), jnp.asarray(x))
    np.testing.assert_allclose(p, -x.mean(0), atol=1e-15)
    assert info["loss"].dtype == jnp.float64


def test_parts_of_another_number_are_refused_by_name():
    step = train_step(loss, adam_jax.adam(0.1), micro_batches=4)
    state = adam_jax.adam(0.1).init(fresh())
    message = "batch[1] must have 4 micro-batches, got shape (8,)"
    with pytest.raises(ValueError, match=re.escape(message)):
        step(fresh(), state, (X.reshape(4, 2, 3), Y))


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "options", "message"),
    [
        (lambda p, b: p["w"], {}, "`loss` must return a real scalar, got float32[3, 4]"),
        (with_aux, {}, "`loss` must return a real scalar, got ("),
        (lambda p, b: p["v"].sum() * 1j, {}, "`loss` must return a real scalar, got complex64[]"),
        (loss, {"has_aux": True}, "`loss` must return a loss and an aux, got float32[]"),
        (lambda p, b: None, {}, "`loss` must return a real scalar, got None"),
    ],
)
def test_what_is_no_loss(bad, options, message):
    tx = adam_jax.adam(0.1)
    with pytest.raises(TypeError, match=re.escape(message)) as caught:
        train_step(bad, tx, **options)(fresh(), tx.init(fresh()), (X, Y))
    assert len(str(caught.value).splitlines()) == 1


def test_integers_are_no_parameters():
    step = train_step(lambda p, b: p["w"].sum(), optax.sgd(0.1))
    params = {"w": jnp.ones(3), "n": jnp.array(3)}
    with pytest.raises(TypeError, match=r"params\['n'\] must be floating or complex, got int32"):
        step(params, optax.sgd(0.1).init(params), None)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((1, optax.sgd(1.0)), {}, "`loss` must be a function, got 1"),
        ((loss, 1), {}, "`tx` must be an Optax transformation, got 1"),
        (
            (loss, optax.sgd(1.0)),
            {"micro_batches": 0},
            "`micro_batches` must be None or a positive",
        ),
        ((loss, optax.sgd(1.0)), {"donate": 1}, "`donate` must be True or False, got 1"),
    ],
)
def test_bad_arguments(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        train_step(*arguments, **options)


def test_an_array_twice():
    """JAX says so where it would be donated twice; a batch is not donated."""
    step = train_step(lambda p, b: jnp.sum((p - b) ** 2), optax.trace(0.9))
    p = jnp.ones(3)
    with pytest.raises(Exception, match="donate the same buffer twice"):
        step(p, optax.TraceState(p), jnp.zeros(3))
    with pytest.raises(Exception, match="previously donated"):
        step(p, optax.TraceState(jnp.zeros(3)), p)
    both = train_step(lambda p, b: jnp.sum((p - b[0]) ** 2 + b[1]), optax.trace(0.9))
    x = jnp.zeros(3)
    both(p, optax.TraceState(jnp.zeros(3)), (x, x))
    alone = train_step(lambda p, b: jnp.sum((p - b) ** 2), optax.trace(0.9), donate=False)
    alone(x, optax.TraceState(x), x)
