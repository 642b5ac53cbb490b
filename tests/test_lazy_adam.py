"""`lazy_adam` beside dense Adam: several tables, masks, wrappers, surgery, export and meshes."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import mesh_of

import adam_jax
from adam_jax import Rows, interop, lazy_adam, lookup, skipped, storage
from adam_jax.rows import is_rows

SHAPES = {"bias": (6,), "first": (5, 3), "second": (3, 2)}
DECAYS = {"bias": True, "first": True, "second": False}
RATE, DECAY = 0.1, 0.5
OLD = jax.__version_info__ < (0, 10)  # of which rows of Explicit meshes cannot be taken


def is_table(path, leaf):
    return len(leaf.shape) == 2


def by_shape(params):
    """The same as `DECAYS`, of whole parameters; of two rows of them it is not."""
    return jax.tree.map(lambda p: p.shape[0] > 3, params)


def params(seed=0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in SHAPES.items()}


def stream(steps=6):
    """In each step two rows of each table."""
    rng = np.random.default_rng(1)
    for _ in range(steps):
        each = {"bias": jnp.asarray(rng.normal(size=SHAPES["bias"]), jnp.float32)}
        for name in ("first", "second"):
            size, width = SHAPES[name]
            indices = jnp.asarray(rng.choice(size, 2, replace=False), jnp.int32)
            values = jnp.asarray(rng.normal(size=(2, width)), jnp.float32)
            each[name] = Rows(indices, values, size)
        yield each


def whole(gradients):
    """Arrays in place of `Rows`."""
    return jax.tree.map(
        lambda g: jnp.zeros(g.shape) + g if isinstance(g, Rows) else g,
        gradients,
        is_leaf=lambda x: isinstance(x, Rows),
    )


def descend(tx, given):
    p = params()
    state, update = tx.init(p), jax.jit(tx.update)
    for gradients in given:
        steps, state = update(gradients, state, p)
        p = optax.apply_updates(p, steps)
    return p, state


@cache
def dense(mask=None):
    tx = adam_jax.adamw(RATE, weight_decay=DECAY, mask=mask and dict(mask))
    return jax.tree.map(np.asarray, descend(tx, map(whole, stream()))[0])


def lazy(catch_up="exact", **settings):
    return lazy_adam(RATE, weight_decay=DECAY, catch_up=catch_up, tables=is_table, **settings)


def assert_close(found, expected):
    for name in SHAPES:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("catch_up", ["none", "exact"])
def test_a_mask_that_is_a_function_is_asked_about_whole_parameters(catch_up):
    by_function, by_tree = (lazy(catch_up, mask=mask) for mask in (by_shape, DECAYS))
    (p, state), (q, _) = descend(by_function, stream()), descend(by_tree, stream())
    assert_close(p, q)
    if catch_up == "exact":
        p, _ = jax.jit(by_function.catch_up)(p, state)
        assert_close(p, dense(tuple(DECAYS.items())))
        swapped = dense(tuple((name, not decays) for name, decays in DECAYS.items()))
        for name in SHAPES:  # the twin: the other mask
            assert np.abs(p[name] - swapped[name]).max() > 1e-2


@pytest.mark.exhaustive
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "tree"])
def test_a_row_that_is_added_or_begins_again_has_skipped_no_step(wrapped):
    def tree(x):
        return {"t": x} if wrapped else x

    tx = lazy_adam(0.1, weight_decay=0.01, catch_up="exact", tables=is_table)
    small, large = tree(jnp.ones((1, 2))), tree(jnp.ones((2, 2)))

    def rows(index, size):
        return tree(Rows(jnp.array([index]), jnp.ones((1, 2)), size))

    def trained(p, size):
        state = tx.init(p)
        return jax.lax.fori_loop(0, 2000, lambda _, s: tx.update(rows(0, size), s, p)[1], state)

    longer = adam_jax.grow(tx, trained(small, 1), large)
    reset = partial(adam_jax.reset, tx, trained(large, 2), large)
    anew = reset(tree(jnp.array([[False], [True]])))
    assert_same_bits(anew, jax.jit(reset)(tree(jnp.array([[False], [True]]))))
    for state in (longer, anew):
        assert jax.tree.leaves(state.last)[0].tolist() == [2000, 2000]
        steps, _ = tx.update(rows(1, 2), state, large)
        found = jax.tree.leaves(steps, is_leaf=is_rows)[0].values
        # A tenth of a learning rate, and the decay of one step.
        np.testing.assert_allclose(found, np.full((1, 2), -0.1 * (0.1 + 0.01)), rtol=1e-4)
        assert_same_bits(tx.catch_up(large, state)[0], large)
    # What keeps some of its entries has its clock too.
    in_part = reset(tree(jnp.array([[False, False], [True, False]])))
    assert jax.tree.leaves(in_part.last)[0].tolist() == [2000, 0]


def to_torch(state, kind):
    groups = {
        "Adam": {"lr": 0.1, "betas": (0.9, 0.999), "amsgrad": False},
        "SparseAdam": {"lr": 0.1, "betas": (0.9, 0.999)},
    }
    like = {"state": {}, "param_groups": [{**groups[kind], "params": [0, 1, 2]}]}
    moved = interop.to_torch(state, params(), {"bias": 0, "first": 1, "second": 2}, like)
    return moved["state"][1]["exp_avg_sq"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("catch_up", ["none", "decay"])
def test_moments_are_exported_once_rows_have_caught_up(catch_up):
    tx = optax.chain(adam_jax.clip_by_global_norm(1e9), lazy(catch_up))
    given = list(stream(3))
    # Rows that were never there wait for nothing.
    assert np.sum(to_torch(descend(tx, given[:1])[1], "Adam").any(axis=1)) == 2
    p, state = descend(tx, given)
    message = r"row \d of params\['first'\] is as of step \d of 3: export what `tx.catch_up\("
    with pytest.raises(ValueError, match=message):
        to_torch(state, "Adam")
    waiting = to_torch(state, "SparseAdam")
    assert_same_bits(waiting, np.asarray(state[1].inner_state[0].nu["first"]))
    p, state = lazy(catch_up).catch_up(p, state)
    found = to_torch(state, "Adam")
    if catch_up == "none":
        assert_same_bits(found, waiting)
    else:
        nu = np.zeros(SHAPES["first"])
        for g in map(whole, given):
            nu = 0.999 * nu + 0.001 * np.square(np.asarray(g["first"], np.float64))
        np.testing.assert_allclose(found, nu, rtol=1e-5)
        assert np.any(np.abs(waiting - nu) > 1e-5 * nu)  # the twin


INDICES = {"bias": None, "first": jnp.array([[4, 0], [4, 1]]), "second": jnp.array([3, 2])}


def partitioned(tx):
    """In a chain; tables to it, and the rest to dense Adam."""
    rest = adam_jax.adamw(RATE, weight_decay=DECAY)
    labels = {"bias": "r", "first": "t", "second": "t"}
    return optax.chain(optax.identity(), optax.partition({"t": tx, "r": rest}, labels))


def alone(tx):
    return tx


@pytest.mark.exhaustive
@pytest.mark.parametrize("around", [alone, partitioned], ids=lambda f: f.__name__)
def test_rows_catch_up_out_of_other_transformations(around):
    expected, tx = dense(), lazy()
    p, state = jax.tree.map(np.asarray, descend(around(tx), stream()))
    catch_up = jax.jit(tx.catch_up)
    assert_close(catch_up(p, state)[0], expected)
    chosen, then = jax.tree.map(np.asarray, catch_up(p, state, INDICES))
    for name, rows in (("first", [0, 1, 4]), ("second", [2])):
        others = [i for i in range(len(p[name])) if i not in rows]
        np.testing.assert_allclose(chosen[name][rows], expected[name][rows], rtol=1e-5, atol=1e-6)
        assert_same_bits(chosen[name][others], p[name][others])
    # The twin: they were somewhere else before.
    assert np.abs(p["first"] - expected["first"]).max() > 1e-2
    assert_same_bits(chosen["bias"], p["bias"])
    assert_same_bits(catch_up(chosen, then, INDICES), (chosen, then))
    assert_close(catch_up(chosen, then)[0], expected)


def looked_up(p, tokens):
    return jnp.sum(jnp.square(lookup(p["embedding"], tokens) - 0.5))


def descend_on_mesh(tx, p, tokens):
    @jax.jit
    def step(p, state):
        _, gradients = adam_jax.value_and_row_grad(looked_up)(p, tokens)
        updates, state = tx.update(gradients, state, p)
        return optax.apply_updates(p, updates), state

    state = jax.jit(tx.init)(p)
    for _ in range(2):
        p, state = step(p, state)
    return p, state


KINDS = ["auto", pytest.param("explicit", marks=pytest.mark.skipif(OLD, reason="refused there"))]
AXES = {"rows": ("x", None), "columns": (None, "x"), "both": ("x", "y"), "whole": (None, None)}


@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_a_step_on_a_sharded_table_is_the_same(kind, axes):
    """Also of a batch of which each device has a part."""
    mesh = mesh_of((4, 2), kind)
    table = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)), jnp.float32)
    tokens = jnp.array([[9, 3], [9, 0], [15, 16], [3, 3]])
    tx = lazy_adam(0.1, weight_decay=0.1, catch_up="exact")
    expected = descend_on_mesh(tx, {"embedding": table}, tokens)
    assert np.abs(expected[0]["embedding"] - table).max() > 0.1
    p = jax.device_put(table, NamedSharding(mesh, P(*axes)))
    tokens = jax.device_put(tokens, NamedSharding(mesh, P("x")))
    found = descend_on_mesh(tx, {"embedding": p}, tokens)
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
    moments = found[1].inner_state[0]
    for each in (found[0]["embedding"], moments.mu["embedding"], moments.nu["embedding"]):
        assert each.sharding.is_equivalent_to(p.sharding, 2)
    last = found[1].last["embedding"]
    assert last.sharding.is_equivalent_to(NamedSharding(mesh, P(axes[0])), 1)


@pytest.mark.skipif(OLD, reason="refused there")
def test_a_token_is_looked_up_and_an_array_is_a_gradient_too_on_explicit_meshes():
    """An array of more than 1 MiB, in whose place rows would be taken in pieces."""
    p = jax.device_put(
        jnp.ones((4100, 64)), NamedSharding(mesh_of((4, 2), "explicit"), P("x", None))
    )
    np.testing.assert_array_equal(jax.jit(lookup)(p, jnp.int32(3)), jnp.ones(64))
    tx = lazy_adam(0.1, tables=is_table)
    updates, state = jax.jit(tx.update)(p, tx.init(p), p)
    np.testing.assert_allclose(updates, jnp.full(p.shape, -0.1), rtol=1e-6)
    assert state.inner_state[0].mu.sharding.is_equivalent_to(p.sharding, 2)


@pytest.mark.skipif(OLD, reason="refused there")
def test_formats_and_wrappers_take_rows_of_tables_on_explicit_meshes():
    """With the mesh set, so that what has no sharding of its own has the mesh in its type."""
    mesh = mesh_of((4, 2), "explicit")
    table = jnp.asarray(np.random.default_rng(0).normal(size=(16, 256)), jnp.float32)
    tokens = jnp.array([[9, 3], [9, 0], [15, 16], [3, 3]])
    eight, four = (
        make(min_size=1, block_size=64) for make in (storage.eight_bit, storage.four_bit)
    )
    inner = lazy_adam(0.1, catch_up="decay", mu_dtype=eight, nu_dtype=four)
    tx = adam_jax.with_metrics(
        adam_jax.skip_unstable(optax.chain(adam_jax.clip_by_global_norm(1.0), inner))
    )
    expected, _ = descend_on_mesh(tx, {"embedding": table}, tokens)
    with jax.set_mesh(mesh):
        p = jax.device_put(table, NamedSharding(mesh, P("x", "y")))
        tokens = jax.device_put(tokens, NamedSharding(mesh, P("x")))
        found, _ = descend_on_mesh(tx, {"embedding": p}, tokens)
        gradient = jax.jit(jax.grad(looked_up))(found, tokens)["embedding"]
    np.testing.assert_allclose(found["embedding"], expected["embedding"], rtol=1e-5, atol=1e-5)
    assert np.abs(expected["embedding"] - table).max() > 0.1
    assert gradient.sharding.is_equivalent_to(p.sharding, 2)


@pytest.mark.skipif(not OLD, reason="taken there")
@pytest.mark.parametrize("axes", [("x", None), (None, "x")], ids=["rows", "columns"])
def test_a_table_that_is_sharded_on_an_explicit_mesh_is_refused_by_name(axes):
    sharding = NamedSharding(mesh_of((8,), "explicit"), P(*axes))
    p = {"embedding": jax.device_put(jnp.ones((16, 8)), sharding)}
    message = "is sharded on an Explicit mesh, as .*; rows are taken of tables on"
    for init in (lazy_adam(0.1).init, jax.jit(lazy_adam(0.1).init)):
        with pytest.raises(ValueError, match=r"params\['embedding'\] " + message):
            init(p)
    if axes[0]:
        with pytest.raises(ValueError, match="lookup " + message):
            lookup(p["embedding"], jnp.array([1]))


def test_a_schedule_is_computed_once_a_step_for_all_rows(monkeypatch):
    monkeypatch.setattr(skipped, "_CHUNK", 8)
    counts = []

    def rate(count):
        jax.debug.callback(lambda x: counts.append(int(x)), count)
        return 0.1 / (1.0 + count)

    start = np.array([3, 20, 40, 7, 11], np.int32)
    steps = np.array([30, 15, 0, 33, 1], np.int32)
    rates = skipped.Rates(rate, 0.5)
    found = jax.jit(lambda *each: skipped._log_kept(rates, *each, jnp.float32))(start, steps)
    jax.effects_barrier()
    expected = [
        np.sum(np.log1p(-0.05 / (1 + np.arange(first, first + n))))
        for first, n in zip(start.astype(float), steps, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert set(range(3, 40)) <= set(counts)
    assert len(counts) <= 40 - 3 + 8


def test_all_else_refuses_rows_by_name():
    p, g = params(), next(stream(1))
    message = r"gradient for params\['first'\] is Rows, which only lazy_adam, clip_by_global_norm"
    around = (
        adam_jax.adamw(0.1),
        adam_jax.scale_by_adam(),
        adam_jax.accumulate(lazy(), 2),
        adam_jax.average_params(0.9),
        adam_jax.master_weights(lazy()),
        adam_jax.by_path({"bias": adam_jax.Scale(2.0)})(lazy()),
        adam_jax.kahan_summation(),
        adam_jax.stochastic_rounding(),
    )
    for tx in around:
        with pytest.raises(TypeError, match=message):
            tx.update(g, tx.init(p), p)


LARGER = {name: (size + 1, *row) for name, (size, *row) in SHAPES.items()}
WIDER = {name: (size, *(2 * n for n in row)) for name, (size, *row) in SHAPES.items()}


@pytest.mark.parametrize("catch_up", ["none", "exact"])
@pytest.mark.parametrize("shapes", [LARGER, WIDER], ids=["larger", "wider"])
def test_parameters_of_another_shape_are_refused_by_name(catch_up, shapes):
    """Rows that are not there would be taken for padding, without a word."""
    tx, g = lazy(catch_up), next(stream(1))
    state, others = tx.init(params()), {**params(), "first": jnp.ones(shapes["first"])}
    message = r"params\['first'\] has shape \(\d, \d\) in the parameters; the state was built for"
    for call in (tx.update, jax.jit(tx.update)):
        with pytest.raises(ValueError, match=message):
            call(g, state, others)
    with pytest.raises(ValueError, match=message):
        tx.catch_up(others, state)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"params": None}, ValueError, "`params` must have the parameters' structure: "),
        ({"indices": {}}, ValueError, "`indices` must have the parameters' structure: "),
        ({"first": 0.5}, TypeError, r"`indices`\['first'\] must be integers, got 0.5"),
        ({"first": "a"}, TypeError, r"`indices`\['first'\] must be integers, got 'a'"),
        ({"first": 6}, IndexError, r"`indices`\['first'\]: indices must be in \[0, 5\)"),
        ({"bias": 0}, ValueError, r"`indices`\['bias'\]: `tables` does not take that leaf"),
    ],
    ids=str,
)
def test_what_cannot_catch_up_is_refused_in_one_line(changes, error, message):
    tx, p = lazy(), params()
    indices = dict.fromkeys(SHAPES) | {k: v for k, v in changes.items() if k in SHAPES}
    with pytest.raises(error, match=rf"\A{message}[^\n]*\Z"):
        tx.catch_up(changes.get("params", p), tx.init(p), changes.get("indices", indices))
