"""An average keeps its state's kind, is found wherever it is, and says what it cannot take."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import (
    assert_same_bits,
    assert_same_kind,
    assert_traced_once_and_donated,
    configured,
)
from training import parameters

import adam_jax
from adam_jax.averaging import average_params, averaged_params


def test_updates_pass_as_they_are():
    params = parameters()
    tx = average_params(0.9)
    updates, _ = tx.update(params, tx.init(params), params, value=1.0)
    assert all(u is p for u, p in zip(*map(jax.tree.leaves, (updates, params)), strict=True))


def test_the_state_keeps_its_kind():
    params = {"none": None, "empty": jnp.zeros((0, 3)), "complex": jnp.asarray([1 + 2j, -3j])}
    params["low"] = jnp.ones(3, jnp.bfloat16)
    tx = average_params(0.9)
    state = tx.init(params)
    assert_same_kind(jax.eval_shape(tx.init, params), state)
    _, after = jax.jit(tx.update)(params, state, params)
    assert_same_kind(after, state)
    np.testing.assert_allclose(averaged_params(after)["complex"], 2 * params["complex"])
    assert_traced_once_and_donated(optax.chain(optax.sgd(0.1), tx), parameters(), parameters())


def test_without_gradients_parameters_may_be_anything():
    tx = average_params(0.9)
    params = {"w": jnp.ones(2), "f": jnp.tanh}
    state = tx.init({"w": params["w"], "f": None})
    _, state = tx.update({"w": jnp.ones(2), "f": None}, state, params)
    assert averaged_params(state)["f"] is None
    assert averaged_params(state, params)["f"] is jnp.tanh


def test_an_ensemble_each_with_its_own_decay():
    @jax.jit
    def run(b):
        tx = average_params(b)
        params, state = jnp.arange(3.0), tx.init(jnp.zeros(3))
        for size in (1.0, -3.0):
            _, state = tx.update(jnp.full(3, size), state, params)
        return averaged_params(state)

    rates = jnp.asarray([0.5, 0.99])
    np.testing.assert_allclose(jax.vmap(run)(rates), [run(b) for b in rates], rtol=1e-6)


SETTINGS = {
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_debug_nans": True,
    "jax_check_tracer_leaks": True,
    "jax_enable_x64": True,
}


@pytest.mark.costly
@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name):
    with configured({name: SETTINGS[name]}):
        params = {"low": jnp.ones((2, 3), jnp.bfloat16), "wide": jnp.ones(3, jnp.float32)}
        if name == "jax_enable_x64":
            params["double"] = jnp.ones(3, jnp.float64)
        tx = average_params(0.9)
        _, state = jax.jit(tx.update)(params, tx.init(params), params)
        doubled = jax.tree.map(lambda p: p + p, params)
        assert_same_bits(averaged_params(state, params), doubled)


def test_it_is_found_wherever_it_is():
    params = {"a": jnp.ones(2), "b": jnp.zeros(3, jnp.bfloat16)}
    groups = {"mean": average_params(0.9), "plain": optax.sgd(0.1)}
    tx = optax.apply_if_finite(optax.multi_transform(groups, {"a": "mean", "b": "plain"}), 3)
    state = tx.init(params)
    assert isinstance(averaged_params(state)["b"], optax.MaskedNode)
    assert_same_bits(averaged_params(state, params), params)
    bad = {"a": jnp.asarray([jnp.nan, 0]), "b": params["b"]}
    _, after = tx.update(bad, state, params)
    assert_same_bits(averaged_params(after), averaged_params(state))


def bad_step(g, params):
    tx = average_params(0.9)
    return tx.update({"w": g}, tx.init({"w": jnp.ones(2)}), params)


ERRORS = {
    "`b` must be in [0, 1), got 1.0": lambda: average_params(1.0),
    "`b` must be in [0, 1), got 'slow'": lambda: average_params("slow"),
    "`dtype` must be float32, float64, bfloat16 or a storage format, got float16": (
        lambda: average_params(0.9, jnp.float16)
    ),
    "`seed` must be an integer in [0, 2**32), got -1": lambda: average_params(0.9, seed=-1),
    "params['n'] must be floating or complex, got int32": (
        lambda: average_params(0.9).init({"n": jnp.ones(2, int)})
    ),
    "average_params needs `params`: update(updates, state, params)": (
        lambda: bad_step(jnp.ones(2), None)
    ),
    "gradient for params['w'] has shape (3,); the parameter has (2,)": (
        lambda: bad_step(jnp.ones(3), {"w": jnp.ones(2)})
    ),
    "`state` must have one state of average_params, got 0": (
        lambda: averaged_params(adam_jax.adam(0.1).init(jnp.ones(2)))
    ),
    "`state` must have one state of average_params, got 2": (
        lambda: averaged_params([average_params(b).init(jnp.ones(2)) for b in (0.9, 0.99)])
    ),
    "`like` must be a tree like the parameters: ": (
        lambda: averaged_params(average_params(0.9).init({"w": jnp.ones(2)}), [jnp.ones(2)])
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises((TypeError, ValueError)) as caught:
        ERRORS[message]()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
