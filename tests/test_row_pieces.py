"""Rows in pieces, as many of them are stepped on: the same step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits
from family import mostly
from jax import export

import adam_jax
from adam_jax import Rows, rows, storage
from adam_jax.tables import touched

SIZES = {"first": (40, 4), "second": (9, 3)}


@pytest.fixture
def in_pieces(monkeypatch):
    """Of 3 rows of the first table, or 4 of the second."""
    monkeypatch.setattr(rows, "_PIECE", 3 * 4 * 4)


def params():
    rng = np.random.default_rng(0)
    tables = {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in SIZES.items()}
    return {"bias": jnp.ones(5), **tables}


def stream(steps):
    """Some rows of each table, a few of them twice, and padding."""
    rng = np.random.default_rng(1)
    for _ in range(steps):
        gradients = {"bias": jnp.asarray(rng.normal(size=5), jnp.float32)}
        for name, (size, width) in SIZES.items():
            indices = jnp.asarray(rng.integers(0, size + 1, 17), jnp.int32)
            values = jnp.asarray(rng.normal(size=(17, width)), jnp.float32)
            gradients[name] = Rows(indices, values, size)
        yield gradients


def descend(tx, steps=4):
    step = jax.jit(tx.update)
    p = params()
    state = tx.init(p)
    for gradients in stream(steps):
        updates, state = step(gradients, state, p)
        p = optax.apply_updates(p, updates)
    return p, state


def transformation(catch_up, weight_decay=0.1, **settings):
    return adam_jax.lazy_adam(0.1, weight_decay=weight_decay, catch_up=catch_up, **settings)


def is_table(path, leaf):
    del path
    return len(leaf.shape) == 2


@pytest.fixture(params=mostly(("none", "exact"), ["none", "decay", "exact"]))
def catch_up(request):
    return request.param


@pytest.fixture
def whole(catch_up):
    return descend(transformation(catch_up, tables=is_table))


@pytest.mark.costly
def test_a_step_in_pieces_is_the_step(whole, catch_up, in_pieces):
    """`whole` was computed before rows were cut, as fixtures are in the arguments' order."""
    del in_pieces
    assert len(next(stream(1))["first"].summed().pieces()) == 5
    found = descend(transformation(catch_up, tables=is_table))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
    # The twin: one step less.
    fewer, _ = descend(transformation(catch_up, tables=is_table), steps=3)
    assert any(np.abs(fewer[name] - found[0][name]).max() > 0.05 for name in SIZES)


def test_pieces_are_as_large_as_a_cache_likes():
    def count(touched, width):
        many = Rows(jnp.arange(touched), jnp.ones((touched, width)), touched, distinct=True)
        pieces = many.pieces()
        np.testing.assert_array_equal(np.concatenate([x.indices for x in pieces]), many.indices)
        assert len({len(x.indices) for x in pieces}) <= 2
        return len(pieces)

    assert [count(10, 64), count(3_001, 64), count(10_001, 64)] == [1, 2, 8]
    assert count(0, 4) == count(4, 0) == count(1, 2**20) == 1
    assert [count(32_768, 64), count(32_769, 64)] == [8, 1]  # of more than 1 MiB a piece


@pytest.mark.parametrize("name", ["eight_bit", "bfloat16", "float32"])
def test_only_wide_moments_are_taken_in_pieces(name, in_pieces):
    del in_pieces
    mu_dtype = {"eight_bit": storage.eight_bit(min_size=1)}.get(name, name)
    tx = transformation("decay", mu_dtype=mu_dtype, tables=is_table)
    counts = dict.fromkeys(("bias", "first", "second"), 1)
    if name == "float32":
        counts |= {"first": 5, "second": 4}

    def check(state, gradients, counts):
        moments = state.inner_state[0]
        part = touched(gradients, moments.mu, state.last)
        pieces = part.pieces(moments.mu, moments.nu)
        assert len(pieces) == max(counts.values())
        for key, count in counts.items():
            there = [part.treedef.unflatten(piece.gradients)[key] for piece in pieces]
            assert [x is not None for x in there] == [i < count for i in range(len(pieces))]

    state, gradients = tx.init(params()), next(stream(1))
    jax.eval_shape(partial(check, counts=counts), state, gradients)
    check(state, gradients, dict.fromkeys(counts, 1))  # nothing is traced here


def test_all_of_a_table_in_pieces_is_adam_to_the_bit(in_pieces):
    del in_pieces
    g = jnp.asarray(np.random.default_rng(2).normal(size=(40, 4)), jnp.float32)
    p = params()["first"]
    rows = Rows(jnp.arange(40), g, 40)
    lazy, dense = adam_jax.lazy_adam(0.1, tables=is_table), adam_jax.adam(0.1)
    found, _ = jax.jit(lambda g: lazy.update(g, lazy.init(p), p))(rows)
    expected, _ = jax.jit(lambda g: dense.update(g, dense.init(p), p))(g)
    assert_same_bits(found.values, expected)


def step_of(tx, size):
    def step(p, state, indices, values):
        updates, state = tx.update(Rows(indices, values, size), state, p)
        return optax.apply_updates(p, updates), state

    return step


@pytest.mark.parametrize(("weight_decay", "count"), [(0, 5), (0.1, 1)], ids=["none", "decay"])
def test_where_no_parameters_were_read_the_step_is_added_in_pieces(weight_decay, count, in_pieces):
    """Else at once, for XLA would copy the table."""
    del in_pieces
    tx, table = transformation("decay", weight_decay, tables=is_table), params()["first"]
    given = next(stream(1))["first"].summed()

    def step(p):
        updates, _ = tx.update(given, tx.init(p), p)
        return optax.apply_updates(p, updates)

    assert str(jax.make_jaxpr(step)(table)).count("scatter-add[") == count
    updates, _ = jax.jit(tx.update)(given, tx.init(table), table)
    expected = np.array(table)
    here = given.indices < len(table)
    expected[given.indices[here]] += updates.values[here]
    np.testing.assert_allclose(jax.jit(step)(table), expected, rtol=1e-6)
    # The twin: without the last of the pieces.
    expected[given.indices[here][-1]] -= updates.values[here][-1]
    assert np.abs(jax.jit(step)(table) - expected).max() > 0.05


@pytest.mark.costly
@pytest.mark.parametrize("optioned", [False, True], ids=["default", "options"])
@pytest.mark.parametrize(("weight_decay", "least"), [(0, 0.02), (0.1, 0.05)], ids=["none", "decay"])
@pytest.mark.parametrize("catch_up", mostly(("exact",), ["none", "decay", "exact"]))
def test_no_table_is_copied(catch_up, weight_decay, least, optioned):
    """A step on a twentieth of the rows, which decay too or do not."""
    if optioned and jax.__version_info__ < (0, 6):
        pytest.skip("JAX has not all of the compiler's options")
    size, touched_, width = 200_000, 10_000, 64
    tx = transformation(catch_up, weight_decay, tables=is_table)
    table = jax.ShapeDtypeStruct((size, width), jnp.float32)
    rows_ = [((touched_,), jnp.int32), ((touched_, width), jnp.float32)]
    arguments = table, jax.eval_shape(tx.init, table), *(jax.ShapeDtypeStruct(*x) for x in rows_)
    options = adam_jax.compiler_options() if optioned else None
    jitted = jax.jit(step_of(tx, size), donate_argnums=(0, 1), compiler_options=options)
    temporaries = jitted.lower(*arguments).compile().memory_analysis().temp_size_in_bytes
    assert least < temporaries / (4 * size * width) < 0.4


def test_how_many_rows_are_touched_may_be_left_open():
    tx, table = transformation("exact", tables=is_table), params()["second"]
    state = tx.init(table)
    (k,) = export.symbolic_shape("k")
    rows_ = jax.ShapeDtypeStruct((k,), jnp.int32), jax.ShapeDtypeStruct((k, 3), jnp.float32)
    step = jax.jit(step_of(tx, len(table)))
    exported = export.export(step)(table, state, *rows_)
    for indices in ([2], [5, 1, 5, 9], range(9)):
        arguments = table, state, jnp.array(indices, jnp.int32), jnp.ones((len(indices), 3))
        found, expected = exported.call(*arguments), step(*arguments)
        for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_it_is_the_sum_of_what_is_there_twice_that_is_added(compiled):
    add = (
        jax.jit(lambda table, rows: table + rows) if compiled else lambda table, rows: table + rows
    )
    small = Rows(jnp.zeros(3, jnp.int32), jnp.full((3, 1), 3.0), 2)
    np.testing.assert_array_equal(add(jnp.full((2, 1), 1e8), small), [[1e8 + 8], [1e8]])
    large = Rows(jnp.zeros(2, jnp.int32), jnp.array([[1e10], [-1e10]]), 2)
    np.testing.assert_array_equal(add(jnp.ones((2, 1)), large), jnp.ones((2, 1)))
