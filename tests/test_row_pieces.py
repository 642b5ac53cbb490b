"""Rows in pieces, as many of them are stepped on: the same step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits
from family import mostly

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


def transformation(catch_up, **settings):
    return adam_jax.lazy_adam(0.1, weight_decay=0.1, catch_up=catch_up, **settings)


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


@pytest.mark.parametrize("given", ["summed", "not summed"])
def test_rows_are_added_in_pieces(given, in_pieces):
    del in_pieces
    table, added = params()["first"], next(stream(1))["first"]
    expected = np.asarray(table, np.float64).copy()
    for index, value in zip(*map(np.asarray, (added.indices, added.values)), strict=True):
        if index < len(expected):
            expected[index] += value
    found = table + (added.summed() if given == "summed" else added)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_pieces_are_as_large_as_a_cache_likes():
    def count(touched, width):
        many = Rows(jnp.arange(touched), jnp.ones((touched, width)), touched, distinct=True)
        pieces = many.pieces()
        np.testing.assert_array_equal(np.concatenate([x.indices for x in pieces]), many.indices)
        assert len({len(x.indices) for x in pieces}) <= 2
        return len(pieces)

    assert [count(10, 64), count(3_001, 64), count(10_001, 64)] == [1, 2, 8]
    assert count(0, 4) == count(4, 0) == 1
    assert count(1, 2**20) == 1


@pytest.mark.parametrize("name", ["eight_bit", "bfloat16", "float32"])
def test_only_wide_moments_are_taken_in_pieces(name, in_pieces):
    del in_pieces
    mu_dtype = {"eight_bit": storage.eight_bit(min_size=1)}.get(name, name)
    tx = transformation("decay", mu_dtype=mu_dtype, tables=is_table)
    state, gradients = tx.init(params()), next(stream(1))
    part = touched(gradients, state.inner_state[0].mu, state.last)
    pieces = part.pieces(state.inner_state[0].mu, state.inner_state[0].nu)
    counts = (
        {"bias": 1, "first": 5, "second": 4} if name == "float32" else dict.fromkeys(gradients, 1)
    )
    for key, count in counts.items():
        there = [part.treedef.unflatten(piece.gradients)[key] for piece in pieces]
        assert [x is not None for x in there] == [i < count for i in range(len(pieces))]
    assert len(pieces) == max(counts.values())


def test_all_of_a_table_in_pieces_is_adam_to_the_bit(in_pieces):
    del in_pieces
    g = jnp.asarray(np.random.default_rng(2).normal(size=(40, 4)), jnp.float32)
    p = params()["first"]
    found, expected = (
        jax.jit(lambda g, p, tx=tx: tx.update(g, tx.init(p), p))(g, p)
        for tx in (adam_jax.lazy_adam(0.1, tables=is_table), adam_jax.adam(0.1))
    )
    assert_same_bits(found[0], expected[0])
