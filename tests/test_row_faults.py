"""`Rows`, `lookup` and `value_and_row_grad`, wrongly used: errors of one line that name what is."""

import re
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adam_jax import Rows, adam, lazy_adam, lookup, value_and_row_grad

TABLE = jnp.ones((3, 2))
PARAMS = {"embedding": TABLE, "w": jnp.ones(2)}
INDICES = jnp.array([0, 1])


@contextmanager
def refused(error, message):
    with pytest.raises(error) as found:
        yield
    assert re.fullmatch(rf"{message}[^\n]*", str(found.value))  # without the notes that JAX adds


@pytest.mark.parametrize("size", [None, 3.0, True, "3", jnp.array(3), -1, 2**31], ids=str)
def test_sizes(size):
    with refused((TypeError, ValueError), "`size` must be how many rows the table has"):
        Rows(INDICES, TABLE[:2], size)


@pytest.mark.parametrize(
    ("indices", "values", "message"),
    [
        ([0, 1], TABLE[:2], r"indices must be an array, got \[0, 1\]"),
        (INDICES, None, "values must be an array, got None"),
    ],
)
def test_what_is_no_array(indices, values, message):
    """A tree may have it there, on its way; nothing can be computed with it."""
    rows, tx = Rows(indices, values, 3), lazy_adam(0.1)
    with refused(TypeError, f"Rows: {message}"):
        TABLE + rows
    with refused(TypeError, rf"gradient for params\['embedding'\]: {message}"):
        tx.update({**PARAMS, "embedding": rows}, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("table", "indices", "error", "message"),
    [
        (None, INDICES, TypeError, "`table` must be an array, or a module with an `embedding`"),
        ("a", INDICES, TypeError, "`table` must be an array, or a module with an `embedding`"),
        (jnp.float32(1), INDICES, ValueError, r"`table` must have rows, got float32\[\]"),
        (TABLE, None, TypeError, "`indices` must be integers, got None"),
        (TABLE, "a", TypeError, "`indices` must be integers, got 'a'"),
    ],
)
def test_what_cannot_be_looked_up(table, indices, error, message):
    with refused(error, message):
        lookup(table, indices)


def test_a_table_without_rows_has_padding_alone():
    empty, padding = jnp.zeros((0, 2)), jnp.zeros(3, jnp.int32)
    np.testing.assert_array_equal(lookup(empty, padding), np.zeros((3, 2)))
    assert (empty + Rows(padding, jnp.ones((3, 2)), 0)).shape == (0, 2)


LOSSES = {
    "jit": lambda p: jax.jit(lambda i: jnp.sum(lookup(p["embedding"], i)))(INDICES),
    "checkpoint": lambda p: jax.checkpoint(lambda i: lookup(p["embedding"], i).sum())(INDICES),
    "vmap": lambda p: jax.vmap(lambda i: lookup(p["embedding"], i).sum())(INDICES).sum(),
    "scan": lambda p: jax.lax.scan(
        lambda total, i: (total + lookup(p["embedding"], i).sum(), None), 0.0, INDICES
    )[0],
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_lookup_inside_of_another_transformation(name):
    with refused(ValueError, r"`loss` looks up inside of a transformation that it calls \(jit"):
        value_and_row_grad(LOSSES[name])(PARAMS)


WHOLE = {
    "function": jnp.sum,
    "argument": jax.jit(lambda table: jnp.sum(lookup(table, INDICES))),
    "head": lambda table: jnp.sum(jnp.ones(2) @ table.T),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_table_used_as_a_whole(name):
    message = r"params\['embedding'\] is a table, of which only `lookup` takes rows; leave it out"
    with refused((TypeError, AttributeError), message):
        value_and_row_grad(lambda p: WHOLE[name](p["embedding"]))(PARAMS)


def test_a_loss_without_what_has_aux_promises():
    loss = value_and_row_grad(lambda p: jnp.sum(lookup(p["embedding"], INDICES)), has_aux=True)
    with refused(TypeError, r"`loss` must return \(value, aux\) with `has_aux`, got float32\[\]"):
        loss(PARAMS)


@pytest.mark.parametrize(
    ("leaf", "message"), [(jnp.ones(2, int), "floating or complex"), ("f", "an array, got 'f'")]
)
def test_leaves_that_have_no_gradient(leaf, message):
    """A string is no array, though JAX takes it for the name of a dtype."""
    params = {**PARAMS, "b": leaf}
    with refused(TypeError, rf"params\['b'\] must be {message}"):
        value_and_row_grad(lambda p: jnp.sum(lookup(p["embedding"], INDICES)))(params)
    with refused(TypeError, rf"params\['b'\] must be {message}"):
        adam(1e-3).init(params)


@pytest.mark.costly
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("distinct", [True, False], ids=["distinct", "not"])
def test_indices_of_few_bits_are_as_good_as_others(dtype, distinct):
    """300 rows: beside an index of eight bits their number would be 44."""
    table = jnp.full((300, 2), 10, dtype)
    rows = Rows(jnp.array([1, 100], jnp.uint8), jnp.ones((2, 2), dtype), 300, distinct)
    for sum_ in (optax.apply_updates(table, rows), jax.jit(optax.apply_updates)(table, rows)):
        np.testing.assert_array_equal(np.flatnonzero(sum_[:, 0] == 11), [1, 100])
        assert np.sum(np.asarray(sum_) == 10) == 2 * 298
    np.testing.assert_array_equal(lookup(table, jnp.array([1, 100], jnp.uint8)), table[:2])


@pytest.mark.costly
@pytest.mark.parametrize("distinct", [True, False], ids=["distinct", "not"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("catch_up", ["none", "decay", "exact"])
def test_a_traced_index_below_0_is_dropped(dtype, distinct, catch_up):
    tx = lazy_adam(0.1, catch_up=catch_up, tables=lambda path, leaf: True)

    @jax.jit
    def step(table, state, indices):
        rows = Rows(indices, jnp.ones((2, 2), dtype).at[1].set(0), 4, distinct)
        steps, state = tx.update(rows, state, table)
        return optax.apply_updates(table, steps), table + rows, state

    table = jnp.full((4, 2), 10, dtype)
    _, whole = tx.update(jnp.ones((4, 2), dtype), tx.init(table), table)
    stepped, added, state = step(table, whole, jnp.array([1, -1]))
    np.testing.assert_array_equal(added[:, 0], [10, 11, 10, 10])
    assert np.flatnonzero(stepped[:, 0] != 10).tolist() == [1]
    for new, old in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        if new.ndim:
            np.testing.assert_array_equal(np.delete(new, 1, 0), np.delete(old, 1, 0))
