"""Metrics in any program: their state, JAX's settings, many devices, and what they refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits, assert_same_kind, assert_traced_once_and_donated, configured
from family import mostly
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from training import gradients, parameters

import adam_jax
from adam_jax.services.with_metrics import MetricsState, read_metrics, with_metrics

shard_map = getattr(jax, "shard_map", None)
if shard_map is None:  # its older place
    from jax.experimental.shard_map import shard_map


def assert_alike(metrics, expected, rtol=1e-5):
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol, 1e-7, err_msg=name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("every", [1, 2])
def test_the_state_is_stable_and_donated(every):
    tx = with_metrics(adam_jax.adam(1e-2), every=every, paths="b$", successive=True)
    params = parameters()
    g = gradients(1, params)[0]
    state = tx.init(params)
    assert_same_kind(tx.update(g, state, params)[1], state)
    assert_same_kind(jax.eval_shape(tx.init, params), jax.eval_shape(lambda: state))
    assert {x.dtype.name for x in jax.tree.leaves(state.previous)} == {"bfloat16"}
    assert_traced_once_and_donated(tx, parameters(), g)


@pytest.mark.exhaustive
@pytest.mark.parametrize("every", [1, 2])
def test_lanes_are_measured_apart(every):
    tx = with_metrics(adam_jax.adam(1e-2), every=every)
    lanes = gradients(2, parameters())
    params, g = (jax.tree.map(lambda *xs: jnp.stack(xs), *trees) for trees in (lanes[::-1], lanes))
    _, state = jax.vmap(tx.update)(g, jax.vmap(tx.init)(params), params)
    together, update = read_metrics(state), jax.jit(tx.update)
    for i, lane in enumerate(lanes):
        own = lanes[1 - i]
        alone = read_metrics(update(lane, tx.init(own), own)[1])
        assert_alike({name: values[i] for name, values in together.items()}, alone)
    assert np.isnan(read_metrics(jax.vmap(tx.init)(params))["grad_norm"]).tolist() == [True, True]


SETTINGS = {
    "no promotion": {"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise"},
    "64 bits": {"jax_enable_x64": True},
    "checks": {"jax_debug_nans": True, "jax_check_tracer_leaks": True},
}
ODD = {
    "none": None,
    "empty": jnp.zeros((0, 3)),
    "low": jnp.ones(3, jnp.bfloat16),
    "complex": jnp.asarray([3 + 4j, 0], jnp.complex64),
    "zero": jnp.zeros(()),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", mostly(("no promotion",), SETTINGS))
def test_any_leaves_under_any_settings(name):
    with configured(SETTINGS[name]):
        paths, eager = "complex|zero|empty", "jax_debug_nans" in SETTINGS[name]
        tx = with_metrics(adam_jax.adam(1e-2), every=2, paths=paths, successive=True)
        state = tx.init(ODD)
        for update in [jax.jit(tx.update)] + [tx.update] * eager:
            _, new = update(ODD, state, ODD)
            assert_same_kind(new, state)
            metrics = read_metrics(new)
            assert metrics["complex/grad_norm"] == pytest.approx(5)
            assert metrics["grad_norm"] == pytest.approx(28**0.5)
            assert metrics["complex/cosine_update_gradient"] == pytest.approx(-1, abs=1e-3)
            assert metrics["zero/eps_share"] == 1.0
            assert "empty/grad_norm" in metrics
            assert "empty/eps_share" not in metrics


def test_an_empty_tree_and_float64_leaves(x64):
    tx = with_metrics(adam_jax.adam(1e-2))
    _, state = jax.jit(tx.update)({}, tx.init({}), {})
    assert set(read_metrics(state).values()) == {0.0}
    p = jnp.asarray([1e200, -3.0])
    _, state = jax.jit(tx.update)(p, tx.init(p), p)
    assert state.metrics.vector.dtype == jnp.float32
    assert 1e38 < read_metrics(state)["grad_norm"] < np.inf


def test_leaves_that_lose_their_gradients_count_no_more():
    tx, params = with_metrics(optax.sgd(0.1), paths="."), {"a": jnp.ones(2), "b": jnp.ones(2)}
    state = tx.update(params, tx.init(params), params)[1]
    assert read_metrics(state)["grad_norm"] == 2
    with_none = {"a": jnp.ones(2), "b": None}
    metrics = read_metrics(tx.update(with_none, state, {"a": jnp.ones(2), "b": jnp.tanh})[1])
    assert metrics["grad_norm"] == pytest.approx(2**0.5) == metrics["a/grad_norm"]
    assert metrics["b/grad_norm"] == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "case", mostly((("auto", 2),), [("auto", 1), ("auto", 2), ("explicit", 1)]), ids=str
)
def test_sharded_as_on_one_device(case):
    kind, every = case
    axes = {}
    if kind == "explicit":
        if not hasattr(jax, "set_mesh"):
            pytest.skip("this JAX has explicit axes as an experiment, if at all")
        axes = {"axis_types": (jax.sharding.AxisType.Explicit,) * 2}
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"), **axes)
    rng = np.random.default_rng(0)
    trees = [
        {"w": rng.normal(size=(64, 128)), "b": rng.normal(size=64), "scale": rng.normal()}
        for _ in range(2)
    ]
    params, g = jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), trees)
    specs = {"w": P("x", "y"), "b": P("y"), "scale": P()}
    layout = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    tx = with_metrics(adam_jax.adam(1e-2), every=every, paths="w", successive=True)
    _, alone = jax.jit(tx.update)(g, tx.init(params), params)
    params, g = (jax.device_put(tree, layout) for tree in (params, g))
    state = jax.jit(tx.init)(params)
    assert state.previous["w"].sharding.is_equivalent_to(layout["w"], 2)
    program = jax.jit(tx.update).lower(g, state, params).compile()
    _, sharded = program(g, state, params)
    assert_alike(read_metrics(sharded), read_metrics(alone))
    # No leaf is gathered as a whole.
    assert "f32[64,128]" not in program.as_text()


# That an optimizer's shard is its own is not for JAX to prove, nor, of old, anything of a branch.
UNCHECKED = {"check_vma": False} if hasattr(jax, "shard_map") else {"check_rep": False}
CHECKED = {} if hasattr(jax, "shard_map") else UNCHECKED


def test_inside_of_shard_map_replicas_measure_alike_and_shards_their_own():
    mesh = Mesh(np.array(jax.devices()), ("x",))
    tx = with_metrics(adam_jax.adam(1e-2), every=2)
    p = jnp.arange(1.0, 17.0)
    _, alone = jax.jit(tx.update)(p, tx.init(p), p)
    specs = {"in_specs": (P(), P(), P()), "out_specs": P()}
    replicated = shard_map(tx.update, mesh=mesh, **specs, **CHECKED)
    assert_alike(read_metrics(jax.jit(replicated)(p, tx.init(p), p)[1]), read_metrics(alone))

    def norms(p):
        return read_metrics(tx.update(p, tx.init(p), p)[1])["grad_norm"][None]

    own = shard_map(norms, mesh=mesh, in_specs=P("x"), out_specs=P("x"), **UNCHECKED)
    np.testing.assert_allclose(jax.jit(own)(p), np.linalg.norm(p.reshape(8, 2), axis=1), 1e-6)


@pytest.mark.exhaustive
def test_derivatives_pass_by():
    def loss(rate, tx):
        p, state = jnp.array([1.0, 2.0]), tx.init(jnp.zeros(2))
        for _ in range(2):
            u, state = tx.update(jnp.sin(p), state, p)
            p = p + rate * u
        return jnp.sum(p**2)

    plain, watched = adam_jax.adam(1.0), with_metrics(adam_jax.adam(1.0), every=2)
    np.testing.assert_allclose(jax.grad(loss)(0.1, watched), jax.grad(loss)(0.1, plain), 1e-6)


def test_extra_arguments_pass_on():
    seen = {}

    def update(g, state, params=None, **extra):
        seen.update(extra)
        return g, state

    tx = with_metrics(optax.GradientTransformationExtraArgs(optax.identity().init, update))
    p = jnp.ones(2)
    tx.update(p, tx.init(p), p, value=1.0, foreign=2)
    assert seen == {"value": 1.0, "foreign": 2}


def test_a_skipped_first_step_is_measured_too():
    tx = with_metrics(optax.apply_if_finite(adam_jax.adam(1e-2), 5))
    p = jnp.ones(3)
    state = tx.init(p)
    for g in (p * jnp.nan, p):
        _, state = jax.jit(tx.update)(g, state, p)
        assert read_metrics(state)["effective_learning_rate_50"] in (0, pytest.approx(0.01, 1e-3))
    assert np.isfinite(list(read_metrics(state).values())).all()


def test_they_are_read_wherever_they_are():
    tx = optax.chain(optax.clip_by_global_norm(1.0), with_metrics(adam_jax.adam(1e-2)))
    p = jnp.ones(4)
    state = tx.init(p)
    assert all(np.isnan(list(read_metrics(state).values())))
    _, state = tx.update(p, state, p)
    metrics = read_metrics(state)
    assert {type(value) for value in metrics.values()} == {float}
    assert metrics["grad_norm"] == pytest.approx(1)
    assert dict(state[1].metrics) == metrics
    traced = jax.jit(read_metrics)(state)
    assert {name: value.item() for name, value in traced.items()} == metrics
    twice = optax.chain(with_metrics(optax.sgd(0.1)), with_metrics(optax.identity()))
    with pytest.raises(ValueError, match="must have one state of with_metrics, got 2"):
        read_metrics(twice.init(p))
    with pytest.raises(ValueError, match="must have one state of with_metrics, got 0"):
        read_metrics(adam_jax.adam(1.0).init(p))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every": 0}, ValueError, "`every` must be a positive integer, got 0"),
        ({"every": 2.0}, TypeError, "`every` must be a positive integer, got 2.0"),
        ({"paths": "("}, ValueError, r"`paths` must be a regular expression, got '\(': .*"),
        ({"paths": 3}, TypeError, "`paths` must be None, a regular expression or a function .*"),
        ({"b2": 1.5}, ValueError, r"`b2` must be in \[0, 1\), got 1.5"),
        ({"eps": -1.0}, ValueError, "`eps` must be a finite number >= 0, got -1.0"),
        ({"successive": 1}, TypeError, "`successive` must be True or False, got 1"),
        ({"inner": 1}, TypeError, "`inner` must be an Optax transformation, got 1"),
    ],
    ids=str,
)
def test_arguments_that_are_wrong(arguments, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        with_metrics(**{"inner": optax.sgd(0.1), **arguments})


def test_uses_that_are_wrong():
    p = {"a": jnp.ones(2), "b": jnp.ones(3)}
    plain, some = with_metrics(optax.sgd(0.1)), with_metrics(optax.sgd(0.1), paths="a")
    both = with_metrics(optax.sgd(0.1), successive=True)
    with pytest.raises(ValueError, match=r"^with_metrics needs `params`: update\("):
        plain.update(p, plain.init(p))
    for tx, state in [(plain, some.init(p)), (some, plain.init(p))]:
        with pytest.raises(ValueError, match=r"made with other `paths` or leaves, such as 'a'$"):
            tx.update(p, state, p)
    for tx, state in [(plain, both.init(p)), (both, plain.init(p))]:
        with pytest.raises(ValueError, match=r"^`state` was made with another `successive`$"):
            tx.update(p, state, p)
    with pytest.raises(ValueError, match=r"gradient for params\['b'\] has shape \(2,\)"):
        plain.update({**p, "b": jnp.ones(2)}, plain.init(p), p)
    twins = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    with pytest.raises(ValueError, match="two leaves have the path 'a/b'"):
        with_metrics(optax.sgd(0.1), paths="b").init(twins)
    assert isinstance(plain.init(twins), MetricsState)


def test_metrics_are_a_mapping():
    p = jnp.ones(4)
    tx = with_metrics(optax.sgd(0.1))
    metrics = tx.update(p, tx.init(p), p)[1].metrics
    assert len(metrics) == len(list(metrics)) == metrics.vector.size
    assert float(metrics["param_norm"]) == 2
    with pytest.raises(KeyError):
        metrics["nothing"]
    doubled = jax.tree.map(lambda x: 2 * x, metrics)
    assert_same_bits(doubled.vector, 2 * metrics.vector)
