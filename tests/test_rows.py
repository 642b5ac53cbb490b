"""Rows: gradients and updates of a few rows of a table, and the optimizer that steps on them."""

import chex
import family
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits, assert_same_kind, assert_traced_once_and_donated
from family import mostly

import adam_jax
from adam_jax import Rows, lazy_adam, lookup, value_and_row_grad
from adam_jax.norms import global_norm
from adam_jax.rows import map_values

SIZE, WIDTH = 13, 4
FORMATS = [name for name, each in family.FORMATS.items() if not each.variant]


def everything(path, leaf):
    return True


def rows(indices, size=SIZE, seed=0, scale=1.0):
    values = np.random.default_rng(seed).normal(size=(len(indices), WIDTH)) * scale
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    return Rows(jnp.array(indices, jnp.int32), jnp.asarray(values, dtype), size)


def dense(given):
    """The table that rows stand for, by NumPy."""
    table = np.zeros(given.shape)
    for index, value in zip(np.asarray(given.indices), np.asarray(given.values), strict=True):
        if 0 <= index < given.size:
            table[index] += value
    return table


def params():
    table = np.random.default_rng(9).normal(size=(SIZE, WIDTH))
    return {"embedding": jnp.asarray(table, jnp.float32), "w": jnp.ones(3), "none": None}


def gradients(indices=(3, 1, 3, SIZE)):
    return {"embedding": rows(indices), "w": jnp.array([1.0, -2.0, 0.5]), "none": None}


@pytest.mark.parametrize("kind", [jnp.asarray, np.asarray], ids=["jax", "numpy"])
def test_rows_are_added_and_padding_is_dropped(kind):
    given, table = rows([3, 1, 3, SIZE, 0]), np.ones((SIZE, WIDTH), np.float32)
    new = optax.apply_updates({"t": kind(table)}, {"t": given})["t"]
    np.testing.assert_allclose(new, table + dense(given), rtol=1e-6)


@pytest.mark.parametrize("indices", [[], [2, 2, 2], [5, 4, 13, 0]], ids=["none", "one", "mixed"])
def test_duplicates_are_summed(indices):
    given = rows(indices)
    found = jax.jit(Rows.summed)(given)
    assert_same_bits(found, given.summed())
    kept = np.asarray(found.indices)[np.asarray(found.indices) < SIZE]
    assert kept.tolist() == sorted(set(indices) - {SIZE})
    np.testing.assert_allclose(dense(found), dense(given), rtol=1e-6)


def test_indices_out_of_range_are_errors_where_known_and_dropped_where_traced():
    with pytest.raises(IndexError, match=r"in \[0, 13\), or 13 for padding, got -1 at position 1"):
        rows([0, -1])
    traced = jax.jit(lambda i: jnp.zeros((3, 1)) + Rows(i, jnp.ones((3, 1)), 3))
    assert traced(jnp.array([-1, 4, 1])).ravel().tolist() == [0, 1, 0]
    with pytest.raises(TypeError, match="indices must be integers, got float32"):
        Rows(jnp.zeros(2), jnp.zeros((2, 1)), 3)
    with pytest.raises(ValueError, match="must be as many"):
        Rows(jnp.array([1]), jnp.zeros((2, 1)), 3)


@pytest.mark.costly
@pytest.mark.parametrize("catch_up", ["none", "decay", "exact"])
def test_all_rows_present_is_adam_to_the_bit(catch_up):
    tx = lazy_adam(0.1, tables=everything, weight_decay=0.1, catch_up=catch_up)
    adam = adam_jax.adamw(0.1, weight_decay=0.1)
    p = q = params()["embedding"]
    state, other = tx.init(p), adam.init(q)
    for seed in range(3):
        given = rows(list(range(SIZE)), seed=seed)
        steps, state = tx.update(given, state, p)
        expected, other = adam.update(given.values, other, q)
        p, q = optax.apply_updates(p, steps), optax.apply_updates(q, expected)
        assert_same_bits((p, state.inner_state), (q, other))


def adam_by_numpy(p, stream, rate, decay, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba's Algorithm 1, with decoupled decay, over whole tables in float64."""
    mu, nu = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(stream, 1):
        mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g**2
        size = np.sqrt(nu / (1 - b2**t)) + eps
        p = p - rate(t - 1) * (mu / (1 - b1**t) / size + decay * p)
    return p


def descend(tx, start, stream):
    def step(carry, given):
        p, state = carry
        steps, state = tx.update(Rows(*given, SIZE), state, p)
        return (optax.apply_updates(p, steps), state), None

    run = jax.jit(lambda p, stream: jax.lax.scan(step, (p, tx.init(p)), stream)[0])
    p, state = run(start, stream)
    return tx.catch_up(p, state)[0]


def sparse_stream(steps=500):
    """Bursts and long gaps, so that terms of the series are left out; magnitudes near eps too."""
    rng = np.random.default_rng(3)
    indices = np.stack([rng.integers(0, SIZE if t % 250 < 9 else 2, 3) for t in range(steps)])
    size = 10.0 ** rng.uniform(-9, 1, (steps, 3, 1))
    return indices, size * rng.normal(size=(steps, 3, WIDTH))


@pytest.mark.costly
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
def test_exact_is_dense_adam_in_float64(x64, decay, scheduled):
    def rate(count):
        return 0.01 * 0.995**count if scheduled else 0.01

    stream = sparse_stream()
    start = np.random.default_rng(1).normal(size=(SIZE, WIDTH))
    whole = np.zeros((len(stream[0]), SIZE, WIDTH))
    for table, indices, values in zip(whole, *stream, strict=True):
        np.add.at(table, indices, values)
    expected = adam_by_numpy(start, whole, rate, decay)

    def run(catch_up):
        learning_rate = rate if scheduled else 0.01
        tx = lazy_adam(learning_rate, weight_decay=decay, catch_up=catch_up, tables=everything)
        return np.abs(descend(tx, jnp.asarray(start), stream) - expected).max()

    assert run("exact") < 1e-12
    assert run("decay") > 1e-4  # the twin: rows that do not drift


@pytest.mark.costly
@pytest.mark.parametrize("name", mostly(("default", "eight_bit"), FORMATS))
@pytest.mark.parametrize("catch_up", ["none", "decay", "exact"])
def test_the_contract_over_rows_and_formats(name, catch_up):
    tx = lazy_adam(0.1, catch_up=catch_up, weight_decay=0.01, **family.FORMATS[name].arguments)
    p, g = params(), gradients()
    state = tx.init(p)
    steps, new = tx.update(g, state, p)
    assert_same_kind(new, state)
    assert jax.eval_shape(tx.init, p) == jax.eval_shape(lambda: state)
    assert jax.tree.structure(steps) == jax.tree.structure(g)
    assert_same_bits(jax.jit(tx.update)(g, state, p), (steps, new))
    assert_traced_once_and_donated(tx, jax.tree.map(jnp.copy, p), g)
    moved = optax.apply_updates(p, steps)["embedding"]
    others = np.array([i for i in range(SIZE) if i not in (1, 3)])
    assert_same_bits(moved[others], p["embedding"][others])
    assert not np.any(np.asarray(moved == p["embedding"])[[1, 3]])
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        if before.shape[:1] == (SIZE,):
            assert_same_bits(after[others], before[others])


@pytest.mark.parametrize("scale", [0.0, 1e-44, 3e38])
def test_any_finite_gradient_gives_a_finite_step(scale):
    tx = lazy_adam(0.1, catch_up="exact")
    p, g = params(), gradients([1, 2])
    values = jnp.full((2, WIDTH), scale, jnp.float32)
    g = {**g, "embedding": Rows(jnp.array([1, 2]), values, SIZE)}
    state = tx.init(p)
    for _ in range(2):
        steps, state = tx.update(g, state, p)
        assert np.isfinite(steps["embedding"].values).all()
    assert scale or not steps["embedding"].values.any()


def test_no_rows_change_nothing():
    tx, p = lazy_adam(0.1, catch_up="exact"), params()
    steps, state = tx.update(gradients([]), tx.init(p), p)
    assert_same_bits(optax.apply_updates(p, steps)["embedding"], p["embedding"])
    assert int(state.inner_state[0].count) == 1


def test_rows_for_what_is_no_table_are_refused_by_name():
    tx, p = lazy_adam(0.1, tables=lambda path, leaf: False), params()
    with pytest.raises(ValueError, match=r"params\['embedding'\] is Rows; `tables`"):
        tx.update(gradients(), tx.init(p), p)


def loss(params, indices):
    looked_up = lookup(params["embedding"], indices) * lookup(params["embedding"], indices + 1)
    return jnp.sum(jnp.sin(looked_up @ params["v"]))


def test_gradients_are_those_of_whole_tables():
    p = {"embedding": params()["embedding"], "v": jnp.array([1.0, 2.0, -1.0, 0.5])}
    indices = jnp.array([[1, 2], [2, 7]])
    value, found = jax.jit(value_and_row_grad(loss))(p, indices)
    expected, whole = jax.value_and_grad(loss)(p, indices)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(dense(found["embedding"]), whole["embedding"], atol=1e-6)
    np.testing.assert_allclose(found["v"], whole["v"], atol=1e-6)


@pytest.mark.costly
@pytest.mark.skipif(
    jax.__version_info__ < (0, 6), reason="JAX has not all of the compiler's options"
)
@pytest.mark.parametrize(
    "around", [lambda tx: tx, adam_jax.skip_unstable], ids=["alone", "guarded"]
)
def test_a_step_has_no_temporary_of_the_tables_size(around):
    """Nor of another leaf's, which is beside the table and has a gradient of all entries."""
    size, tx = 20_000, around(lazy_adam(0.1, catch_up="exact"))
    p = {"embedding": jnp.zeros((size, WIDTH)), "v": jnp.ones(WIDTH), "large": jnp.ones(size)}

    def temporaries(value_and_grad):
        def step(p, state, indices, large):
            value, found = value_and_grad(loss)(p, indices)
            steps, state = tx.update({**found, "large": large}, state, p)
            return optax.apply_updates(p, steps), state, value

        arguments = p, tx.init(p), jnp.arange(8), jnp.ones(size)
        options = adam_jax.compiler_options()
        jitted = jax.jit(step, donate_argnums=(0, 1), compiler_options=options)
        compiled = jitted.lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(value_and_row_grad) < size  # bytes: not a number for each row
    assert temporaries(jax.value_and_grad) > size * WIDTH  # the twin: gradients of all rows


def test_flax_embeddings_are_looked_up():
    nnx = pytest.importorskip("flax.nnx")
    graph, p = nnx.split(nnx.Embed(SIZE, WIDTH, rngs=nnx.Rngs(0)))

    def loss(p, indices):
        return jnp.sum(lookup(nnx.merge(graph, p), indices) ** 2)

    _, found = value_and_row_grad(loss)(p, jnp.array([2, 2]))
    new = optax.apply_updates(p, found)
    expected = jax.grad(loss)(p, jnp.array([2, 2]))
    np.testing.assert_allclose(
        new["embedding"][...] - p["embedding"][...], expected["embedding"][...], atol=1e-6
    )


def test_a_table_used_as_a_whole_is_refused_by_name():
    with pytest.raises(
        TypeError, match=r"params\['embedding'\] is a table, of which only `lookup`"
    ):
        value_and_row_grad(lambda p: jnp.sum(p["embedding"] @ jnp.ones(WIDTH)))(params())


def test_norms_clip_and_skip_sum_duplicates_first():
    g = gradients()
    true = np.sqrt(np.sum(dense(g["embedding"]) ** 2) + np.sum(np.square(g["w"])))
    np.testing.assert_allclose(global_norm(g), true, rtol=1e-6)
    tx = optax.chain(adam_jax.clip_by_global_norm(0.5), lazy_adam(0.1))
    p = params()
    clipped, _ = adam_jax.clip_by_global_norm(0.5).update(g, tx.init(p)[0])
    np.testing.assert_allclose(
        dense(clipped["embedding"]), dense(g["embedding"]) * 0.5 / true, atol=1e-7
    )
    guarded = adam_jax.with_metrics(adam_jax.skip_unstable(tx))
    steps, state = guarded.update(g, guarded.init(p), p)
    np.testing.assert_allclose(adam_jax.read_metrics(state)["grad_norm"], true, rtol=1e-6)
    bad = {**g, "embedding": jax.tree.map(lambda x: x * jnp.nan, g["embedding"].values)}
    bad["embedding"] = Rows(g["embedding"].indices, bad["embedding"], SIZE)
    steps, after = guarded.update(bad, state, p)
    assert_same_bits(optax.apply_updates(p, steps), p)
    assert int(after.inner_state.skipped_total) == 1


@pytest.mark.costly
@pytest.mark.parametrize("catch_up", ["none", "decay", "exact"])
def test_skipped_steps_are_as_if_they_had_not_been(catch_up):
    lazy, p, g = lazy_adam(0.1, weight_decay=0.1, catch_up=catch_up), params(), gradients()
    if catch_up == "decay":  # distinct rows, whose padding must be 0
        g["embedding"] = g["embedding"].summed()

    def run(tx, factors):
        @jax.jit
        def scanned(p, state):
            def step(carry, factor):
                p, state = carry
                scaled = map_values(lambda x: x * factor, g)
                updates, state = tx.update(scaled, state, p)
                return (optax.apply_updates(p, updates), state), None

            return jax.lax.scan(step, (p, state), factors)[0]

        return scanned(p, tx.init(p))

    guarded = adam_jax.skip_unstable(lazy)
    moved, state = run(guarded, jnp.array([1, jnp.nan, 2, jnp.inf, 0.5]))
    assert int(state.skipped_total) == 2
    taken = jnp.array([1, 2, 0.5])
    alone, unskipped = run(guarded, taken)
    assert_same_bits((moved, state.inner_state), (alone, unskipped.inner_state))
    # Another program, which may be rounded elsewhere.
    chex.assert_trees_all_close((alone, unskipped.inner_state), run(lazy, taken), rtol=1e-5)


def test_partition_gives_each_group_its_own():
    labels = {"embedding": "table", "w": "rest", "none": None}
    groups = {"table": lazy_adam(0.1), "rest": optax.sgd(1.0)}
    p = {k: v for k, v in params().items() if v is not None}
    g = {k: v for k, v in gradients().items() if v is not None}
    tx = optax.partition(groups, {k: v for k, v in labels.items() if v})
    steps, _ = tx.update(g, tx.init(p), p)
    alone, _ = groups["table"].update(
        g["embedding"], lazy_adam(0.1, tables=everything).init(p["embedding"])
    )
    assert_same_bits(steps["embedding"].values, alone.values)
    assert_same_bits(steps["w"], -g["w"])
