"""The training step with the libraries and wrappers around it, on many devices, and its metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits, assert_same_kind, configured
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from test_train_step import X, Y, fresh, loss, train
from training import assert_close, gradients, parameters

import adam_jax
from adam_jax.clipping import clip_by_global_norm
from adam_jax.norms import global_norm
from adam_jax.services.skip_unstable import skip_unstable
from adam_jax.services.with_hyperparameters import with_hyperparameters
from adam_jax.services.with_metrics import read_metrics, with_metrics
from adam_jax.step import train_step


@pytest.mark.costly
@pytest.mark.parametrize("parts", [None, 4])
@pytest.mark.parametrize("name", ["stochastic_rounding", "master_weights", "adam"])
def test_bfloat16_parameters(name, parts):
    tx = adam_jax.adam(1e-3)
    if name == "stochastic_rounding":
        tx = optax.chain(tx, adam_jax.stochastic_rounding())
    elif name == "master_weights":
        tx = adam_jax.master_weights(tx)

    def pull(p, batch):
        return -jnp.sum(p.astype(jnp.float32)) * jnp.mean(batch)

    step, p = train_step(pull, tx, micro_batches=parts), jnp.ones(512, jnp.bfloat16)
    state = jax.jit(tx.init)(p)
    kind = jax.eval_shape(lambda: state)
    p, state, _ = train(step, p, state, jnp.ones((4, 2)), 100)
    assert_same_kind(jax.eval_shape(lambda: state), kind)
    moved = float(jnp.mean(p.astype(jnp.float32))) - 1
    assert moved == (0 if name == "adam" else pytest.approx(0.1, abs=0.01))


def test_what_its_parts_have_measured():
    tx = skip_unstable(optax.chain(clip_by_global_norm(1.0), adam_jax.adam(0.1)))
    step = train_step(loss, tx)
    bad = X.at[0, 0].set(jnp.nan), Y
    params, state, info = step(fresh(), tx.init(fresh()), bad)
    assert_same_bits(params, fresh())
    assert set(info) == {"loss", "grad_norm", "skipped_total", "skipped_in_row"}
    params, state, info = step(params, state, (X, Y))
    counts = [int(info[name]) for name in ("skipped_total", "skipped_in_row")]
    assert counts == [1, 0]
    gradient = jax.grad(loss)(fresh(), (X, Y))
    assert_close(info["grad_norm"], global_norm(gradient), rtol=1e-6)
    step(params, state, (X, Y))
    assert float(info["grad_norm"]) > 0  # it is no part of the state that is gone


def test_metrics():
    tx = with_metrics(adam_jax.adam(0.1))
    step = train_step(loss, tx)
    _, state, info = step(fresh(), tx.init(fresh()), (X, Y))
    metrics = read_metrics(state)
    assert len(metrics) > 3
    assert {name: info[name].item() for name in metrics} == metrics


def test_hyperparameters_are_told_by_their_names():
    rate = optax.linear_schedule(0.5, 0.0, 2)
    tx = skip_unstable(with_hyperparameters(adam_jax.adam, learning_rate=rate, b2=0.99))
    step = train_step(loss, tx)
    params, state, first = step(fresh(), tx.init(fresh()), (X, Y))
    _, _, second = step(params, state, (X, Y))
    names = {"loss", "skipped_total", "skipped_in_row", "learning_rate", "b2"}
    assert set(first) == set(second) == names
    assert [float(info["learning_rate"]) for info in (first, second)] == [0.5, 0.25]
    assert first["b2"] == second["b2"] == np.float32(0.99)


@pytest.mark.exhaustive
def test_the_modules_of_equinox():
    equinox = pytest.importorskip("equinox")
    model = equinox.nn.MLP(3, "scalar", 8, 1, jnp.tanh, key=jax.random.key(0))
    params, static = equinox.partition(model, equinox.is_inexact_array)

    def error(params, batch):
        model = equinox.combine(params, static)
        return jnp.mean((jax.vmap(model)(batch[0]) - batch[1]) ** 2)

    tx = adam_jax.adamw(0.05)
    first = float(error(params, (X, Y)))
    params, _, info = train(train_step(error, tx), params, tx.init(params), (X, Y), 50)
    assert float(info["loss"]) < 0.3 * first
    assert equinox.combine(params, static)(X[0]).shape == ()


def test_the_modules_of_flax():
    nnx = pytest.importorskip("flax.nnx")
    graph, params, rest = nnx.split(nnx.Linear(3, 1, rngs=nnx.Rngs(0)), nnx.Param, ...)

    def error(params, batch):
        model = nnx.merge(graph, params, rest)
        return jnp.mean((model(batch[0])[:, 0] - batch[1]) ** 2)

    tx = adam_jax.adamw(0.1)
    step = train_step(error, tx, micro_batches=4)
    parts = X.reshape(4, 2, 3), Y.reshape(4, 2)
    state = tx.init(params)
    first = float(error(params, (X, Y)))
    params, state, info = train(step, params, state, parts, 50)
    assert float(info["loss"]) < 0.5 * first
    assert nnx.merge(graph, params, rest)(X).shape == (8, 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("parts", [None, 4])
def test_parameters_over_devices_stay_there(parts):
    assert jax.device_count() == 8
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    params = {"w": jnp.ones((16, 8)), "v": jnp.ones(8)}
    batch = jnp.ones((4, 8, 16)), jnp.ones((4, 8))
    batch = batch if parts else jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    tx = adam_jax.adamw(0.01)
    step = train_step(loss, tx, micro_batches=parts)
    alone = train(step, jax.tree.map(jnp.copy, params), tx.init(params), batch)
    layout = {"w": NamedSharding(mesh, P("x", "y")), "v": NamedSharding(mesh, P("y"))}
    params = jax.device_put(params, layout)
    result = train(step, params, jax.jit(tx.init)(params), batch)
    for tree in (result[0], result[1][0].mu, result[1][0].nu):
        for name, leaf in tree.items():
            assert leaf.sharding.is_equivalent_to(layout[name], leaf.ndim)
    assert_close(result[::2], alone[::2], rtol=1e-5)


def test_strict_settings():
    settings = {
        "jax_numpy_dtype_promotion": "strict",
        "jax_numpy_rank_promotion": "raise",
        "jax_debug_nans": True,
        "jax_check_tracer_leaks": True,
    }
    with configured(settings):
        tx = adam_jax.adam(0.1)
        params = jnp.ones(3, jnp.bfloat16)
        step = train_step(lambda p, x: jnp.sum(p * x, dtype=jnp.float32), tx, micro_batches=2)
        params, _, info = step(params, tx.init(params), jnp.ones((2, 3), jnp.bfloat16))
    assert (params.dtype, info["loss"].dtype) == (jnp.bfloat16, jnp.float32)


def test_a_tree_of_another_shape():
    params = parameters()
    (target,) = gradients(1, params)

    def distance(params, target):
        gaps = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), params, target)
        return sum(jax.tree.leaves(gaps))

    tx = adam_jax.adam(0.1)
    _, _, info = train(train_step(distance, tx), params, tx.init(params), target, 300)
    assert float(info["loss"]) < 1e-2


def test_the_norm_is_that_before_clipping_also_beside_metrics():
    tx = optax.chain(clip_by_global_norm(0.01), with_metrics(adam_jax.adam(0.1)))
    _, state, info = train_step(loss, tx)(fresh(), tx.init(fresh()), (X, Y))
    assert info["grad_norm"] == pytest.approx(float(global_norm(jax.grad(loss)(fresh(), (X, Y)))))
    assert read_metrics(state)["grad_norm"] == pytest.approx(0.01)
