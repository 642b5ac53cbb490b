"""Parts of states: found wherever they are, kept in their dtypes, changed where they belong."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax

PARAMS = {"a": jnp.ones(2), "b": jnp.ones(2)}


class Counted(NamedTuple):
    count: Any


def test_one_state_inside_another_of_its_kind_is_two():
    inner = optax.chain(adam_jax.skip_unstable(adam_jax.adam(0.1)), optax.scale(1.0))
    state = adam_jax.skip_unstable(inner).init(PARAMS)
    with pytest.raises(ValueError, match="must have one state of skip_unstable, got 2"):
        adam_jax.check_stable(state)


def test_an_inner_state_may_hold_python_numbers():
    inner = optax.GradientTransformation(
        lambda _: Counted(0), lambda g, state, _=None: (g, Counted(state.count + 1))
    )
    tx = adam_jax.skip_unstable(inner)
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert state.inner_state.count == 1


def test_what_is_not_laid_out_like_the_parameters_is_not_changed_by_guess():
    tx = optax.flatten(optax.adam(0.1))
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="belongs to no parameter"):
        adam_jax.reset(tx, state, PARAMS, True)
    with pytest.raises(ValueError, match="belongs to no parameter"):
        adam_jax.grow(tx, state, {"a": jnp.ones(3), "b": jnp.ones(2)})


def test_a_windows_state_is_of_no_parameter_and_stays():
    tx = adam_jax.skip_unstable(optax.sgd(0.1), threshold=6.0)
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    reset = adam_jax.reset(tx, state, PARAMS, True)
    np.testing.assert_array_equal(reset.norms, state.norms)


@pytest.mark.parametrize("params", [jnp.float32(1.0), {"learning_rate": jnp.float32(1.0)}])
def test_hyperparameters_are_no_moments_of_a_scalar(params):
    tx = adam_jax.with_hyperparameters(adam_jax.adam, learning_rate=0.1)
    _, state = tx.update(params, tx.init(params), params)
    state = adam_jax.set_hyperparameters(state, learning_rate=0.2)
    reset = adam_jax.reset(tx, state, params, True)
    assert float(reset.hyperparams["learning_rate"]) == np.float32(0.2)
    assert all(not np.any(x) for x in jax.tree.leaves(reset.inner_state[0].mu))


@pytest.mark.exhaustive
def test_metrics_of_a_bare_array_and_of_an_ensemble():
    tx, w = adam_jax.with_metrics(adam_jax.adam(0.1), paths=""), jnp.ones(3)
    updates, state = tx.update(w, tx.init(w), w)
    assert updates.shape == (3,)
    step = adam_jax.train_step(lambda w, x: jnp.sum((w - x) ** 2), tx).__wrapped__
    *_, info = jax.vmap(step, in_axes=(None, None, 0))(w, state, jnp.ones((4, 3)))
    assert info["grad_norm"].shape == (4,)


def test_states_with_metrics_compare_by_what_a_tree_of_them_holds():
    state = adam_jax.with_metrics(adam_jax.adam(0.1)).init(PARAMS)
    kinds = [jax.tree.map(lambda x: x.dtype, state) for _ in range(2)]
    assert kinds[0] == kinds[1]
    assert kinds[0] != jax.tree.map(lambda x: jnp.bfloat16, state)
