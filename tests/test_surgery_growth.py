"""A state goes on with larger parameters: old entries as they were, new ones as after a reset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_same_bits, assert_same_kind
from family import FORMATS, mostly
from surgery_cases import MAGNITUDES, MEMBERS, both_values, trained, tree, values

import adam_jax
from adam_jax import storage
from adam_jax.rule import Moment
from adam_jax.storage.at_rest import decoded
from adam_jax.surgery import grow


@pytest.mark.exhaustive
@pytest.mark.parametrize("member", mostly(("adam", "adam_mini"), MEMBERS))
def test_a_longer_vocabulary(member):
    """Old rows keep their bits, but where they share a block with new ones."""
    (tx, _), (_, state) = MEMBERS[member], trained(member)
    params = tree(member, shape=(8, 37))
    grown = grow(tx, state, params)
    assert_same_kind(grown, jax.eval_shape(tx.init, params))
    after = values(grown)
    for name, before in values(state).items():
        if before.ndim == 0 or name[2] == "out":
            np.testing.assert_array_equal(after[name], before)
            continue
        precision = max(FORMATS[name[1]].precision, 1e-5)
        exact = before.shape[1] > 1  # else blocks run along the rows
        np.testing.assert_allclose(after[name][:5], before, rtol=0 if exact else precision)
        wanted = before.mean() if name[0] in MAGNITUDES else 0
        np.testing.assert_allclose(after[name][5:], wanted, rtol=precision)
    _, new = jax.eval_shape(tx.update, params, grown, params)
    assert_same_kind(new, grown)


def test_old_rows_train_on_as_if_nothing_had_happened():
    # In these averages all products are exact, however XLA orders them.
    tx = adam_jax.adam(0.1, b1=0.5, b2=0.75)
    g = jnp.asarray(np.random.default_rng(0).integers(1, 9, (6, 8, 16)) / 8, jnp.float32)
    state, params = tx.init(g[0, :5]), jnp.zeros((8, 16))
    for t in range(3):
        _, state = tx.update(g[t, :5], state)
    larger, fresh = grow(tx, state, params), tx.init(params)
    for t in range(3, 6):
        without, state = tx.update(g[t, :5], state)
        updates, larger = tx.update(g[t], larger)
        anew, fresh = tx.update(g[t], fresh)
        assert_same_bits(updates[:5], without)
        assert np.any(anew[:5] != without)
        assert np.all(np.abs(updates[5:]) > 0.01)


# From a shape to a shape, in a format: each axis, across the last block, and from one element.
GROWTHS = [
    ((3, 45), (3, 100), "eight_bit"),
    ((3, 45), (4, 47), "four_bit"),
    ((4, 9, 1), (4, 45, 1), "float8"),
    ((4, 9, 1), (4, 9, 3), "eight_bit"),
    ((1, 1), (5, 1), "four_bit"),
    ((3, 45), (3, 100), "bfloat16"),
    ((0, 3), (2, 3), "default"),
    ((7,), (9,), "default"),
]


def at_rest(x, spec, moment):
    if spec is None:
        return x
    return jax.jit(lambda x: storage.format_of("dtype", spec).encode(x, moment, None))(x)


@pytest.mark.exhaustive
@pytest.mark.parametrize("growth", mostly(GROWTHS[::3], GROWTHS), ids=str)
def test_any_axis_can_grow(growth):
    before, after, name = growth
    row = FORMATS[name]
    tx, params = adam_jax.scale_by_adam(**row.arguments), jnp.zeros(after)
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, before), jnp.float32)
    mu = at_rest(x, row.arguments.get("mu_dtype"), Moment())
    nu = at_rest(x, row.arguments.get("nu_dtype"), Moment(signed=False))
    grown = grow(tx, tx.init(x)._replace(mu=mu, nu=nu), params)
    assert_same_kind(grown, jax.eval_shape(tx.init, params))
    corner = tuple(slice(n) for n in before)
    added = np.full(after, True)
    added[corner] = False
    start = np.mean(decoded(nu)) if x.size else 0
    for one, other, wanted in ((mu, grown.mu, 0), (nu, grown.nu, start)):
        old, new = np.asarray(decoded(one)), np.asarray(decoded(other))
        np.testing.assert_allclose(new[corner], old, rtol=row.precision)
        np.testing.assert_allclose(new[added], wanted, rtol=max(row.precision, 1e-5))
        if before == (3, 45):  # blocks that were full
            np.testing.assert_array_equal(new[:3, :44], old[:, :44])


@pytest.mark.exhaustive
def test_a_leaf_that_becomes_large_enough_takes_its_format():
    formats = {"mu_dtype": storage.eight_bit(), "nu_dtype": storage.four_bit()}
    tx = adam_jax.adam(0.1, **formats)
    small, large = jnp.ones((16, 128)), jnp.ones((40, 128))
    _, state = tx.update(small, tx.init(small))
    assert isinstance(state[0].mu, jax.Array)
    grown = grow(tx, state, large)
    assert isinstance(grown[0].mu, storage.Blocks)
    mu, nu = both_values(grown)
    np.testing.assert_allclose(mu[:16], 0.1, rtol=1e-5)
    np.testing.assert_array_equal(mu[16:], 0)
    np.testing.assert_allclose(nu, 1e-3, rtol=1e-5)
    assert_same_kind(jax.eval_shape(tx.update, large, grown)[1], grown)


def act(new):
    tx, params = adam_jax.adam(0.1), {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    return grow(tx, tx.init(params), new)


ERRORS = {
    "`tx` must be an Optax transformation, got 1": lambda: grow(1, 2, 3),
    "state[0].mu['w'] has shape (3, 4); for these parameters it is (2, 4); axes can only grow": (
        lambda: act({"w": jnp.ones((2, 4)), "b": jnp.ones(4)})
    ),
    "state[0].mu['w'] has shape (3, 4); for these parameters it is (4,); axes can only grow": (
        lambda: act({"w": jnp.ones(4), "b": jnp.ones(4)})
    ),
    "`state` must have the structure of tx.init(params): ": lambda: act({"w": jnp.ones((3, 4))}),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises((TypeError, ValueError)) as caught:
        ERRORS[message]()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
