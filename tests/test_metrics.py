"""The metrics of a step: against a float64 oracle, and that nothing else notices them."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits
from family import mostly
from training import descend, gradients, parameters, stepper

import adam_jax
from adam_jax import storage
from adam_jax.services.accumulate import accumulate
from adam_jax.services.with_metrics import read_metrics, with_metrics

ALWAYS = {
    *(f"{of}_{kind}" for of in ("grad", "update", "param") for kind in ("norm", "rms")),
    "update_to_param",
    "cosine_update_gradient",
}
OF_MOMENTS = {"eps_share", "signal_to_noise"} | {
    f"effective_learning_rate_{quantile}" for quantile in ("05", "50", "95")
}
EIGHT = storage.eight_bit(32, min_size=0)
MAKERS = {
    "optax.adam": lambda: optax.adam(1e-2),
    "adam": lambda: adam_jax.adam(1e-2),
    "adamw": lambda: adam_jax.adamw(1e-2, weight_decay=0.1),
    "eight_bit": lambda: adam_jax.adam(1e-2, mu_dtype=EIGHT, nu_dtype=EIGHT),
    "bfloat16": lambda: adam_jax.adam(1e-2, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16),
    "adam_mini": lambda: adam_jax.adam_mini(1e-2),
    "sgd": lambda: optax.sgd(1e-2),
}
LEAVES = ["dense/b", "dense/w", "scale"]  # in a tree's order


def wide(x):
    x = x.decode() if hasattr(x, "decode") else x
    return np.asarray(x).astype(np.complex128 if jnp.iscomplexobj(x) else np.float64)


def oracle(g, u, p, v, adam=None, b1=0.9, b2=0.999, eps=1e-8):
    """All metrics of lists of arrays, in float64."""
    g, u, p, v = (np.concatenate([wide(x).ravel() for x in xs]) for xs in (g, u, p, v))
    norms = {"grad": np.linalg.norm(g), "update": np.linalg.norm(u), "param": np.linalg.norm(p)}
    found = {f"{name}_norm": norm for name, norm in norms.items()}
    found |= {f"{name}_rms": norm / math.sqrt(g.size) for name, norm in norms.items()}
    found["update_to_param"] = norms["update"] / norms["param"]
    for name, x in {"update_gradient": g, "successive_updates": v}.items():
        size = norms["update"] * np.linalg.norm(x)
        found[f"cosine_{name}"] = np.vdot(u, x).real / size if size else 0.0
    if adam is None:
        return found
    mus, nus, t = adam
    nus = [np.broadcast_to(wide(n), m.shape) for m, n in zip(mus, nus, strict=True)]
    mu = np.abs(np.concatenate([wide(m).ravel() for m in mus])) / (1 - b1**t)
    size = np.sqrt(np.concatenate([n.ravel() for n in nus]) / (1 - b2**t))
    rates = np.sort(np.abs(u)[mu > 0] / mu[mu > 0])
    found["eps_share"] = np.mean(size < eps)
    found["signal_to_noise"] = np.mean(np.divide(mu, size, out=0 * mu, where=size > 0))
    for name, share in {"05": 0.05, "50": 0.5, "95": 0.95}.items():
        found[f"effective_learning_rate_{name}"] = (
            rates[int(share * rates.size)] if rates.size else 0
        )
    return found


def of_step(g, u, p, v, inner_state, **hyper):
    """What the oracle says of a whole step, and of its second leaf alone."""
    trees = [jax.tree.leaves(tree) for tree in (g, u, p, v)]
    adam = None
    if hasattr(inner_state[0], "nu"):
        stored = partial(jax.tree.leaves, is_leaf=lambda x: hasattr(x, "decode"))
        adam = stored(inner_state[0].mu), stored(inner_state[0].nu), int(inner_state[0].count)
    expected = oracle(*trees, adam, **hyper)
    own = adam and ([adam[0][1]], [adam[1][1]], adam[2])
    of_leaf = oracle(*([tree[1]] for tree in trees), own, **hyper)
    return expected | {f"{LEAVES[1]}/{name}": x for name, x in of_leaf.items()}


def assert_matches(metrics, expected, rtol=1e-4):
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        # The updates before are kept in bfloat16.
        atol = 0.01 if "successive" in name else 1e-7
        np.testing.assert_allclose(metrics[name], value, rtol, atol, err_msg=name)


def check_against_the_oracle(maker, **hyper):
    tx = with_metrics(maker(), paths="w", successive=True, **hyper)
    params = parameters()
    state, v = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(tx.update)
    for g in gradients(4, params):
        g["dense"]["w"] = g["dense"]["w"].at[0].set(0.0)  # never seen
        u, state = update(g, state, params)
        assert_matches(read_metrics(state), of_step(g, u, params, v, state.inner_state))
        params, v = optax.apply_updates(params, u), u


@pytest.mark.parametrize("name", mostly(("adam",), MAKERS))
def test_each_metric_is_the_oracles(name):
    check_against_the_oracle(MAKERS[name])


@pytest.mark.exhaustive
@pytest.mark.parametrize("wrong", [{"b1": 0.8}, {"b2": 0.99}, {"eps": 1.0}], ids=str)
def test_with_wrong_hyperparameters_it_is_not(wrong):
    with pytest.raises(AssertionError, match=r"eps_share|signal_to_noise|effective"):
        check_against_the_oracle(MAKERS["adam"], **wrong)


def names_of(tx):
    params = parameters()
    state = jax.eval_shape(tx.init, params)
    after = jax.eval_shape(tx.update, params, state, params)[1]
    assert after.metrics.names == state.metrics.names
    return set(after.metrics)


def test_the_names_are_these():
    adam = adam_jax.adam(1e-2)
    assert names_of(with_metrics(optax.sgd(0.1))) == ALWAYS
    assert names_of(with_metrics(adam)) == ALWAYS | OF_MOMENTS
    successive = with_metrics(optax.sgd(0.1), successive=True)
    assert names_of(successive) == ALWAYS | {"cosine_successive_updates"}
    assert names_of(with_metrics(optax.chain(adam, optax.adam(1.0)))) == ALWAYS
    biases = names_of(with_metrics(adam, paths="b$"))
    assert biases == ALWAYS | OF_MOMENTS | {f"dense/b/{name}" for name in ALWAYS | OF_MOMENTS}
    scalars = with_metrics(optax.sgd(0.1), paths=lambda path, leaf: leaf.shape == ())
    assert names_of(scalars) == ALWAYS | {f"scale/{name}" for name in ALWAYS}


def test_groups_with_an_optimizer_each_are_measured_together():
    labels = {"dense": {"w": "a", "b": "b"}, "scale": "none"}
    partition = getattr(optax, "partition", optax.multi_transform)
    groups = {"a": adam_jax.adam(1e-2), "b": optax.adam(1e-4), "none": optax.sgd(0.1)}
    tx = with_metrics(partition(groups, labels), paths="")
    params = parameters()
    _, state = tx.update(gradients(1, params)[0], tx.init(params), params)
    metrics = read_metrics(state)
    rates = {name: metrics[f"{name}/effective_learning_rate_50"] for name in LEAVES[:2]}
    assert rates["dense/w"] > 2 * rates["dense/b"]
    assert metrics["effective_learning_rate_95"] >= max(rates.values())
    assert metrics["effective_learning_rate_05"] <= min(rates.values())
    assert "scale/grad_norm" in metrics
    assert "scale/eps_share" not in metrics


def history(tx, stream, params):
    """The metrics after each step, out of a scan."""

    def step(carry, g):
        params, state = carry
        u, state = tx.update(g, state, params)
        return (optax.apply_updates(params, u), state), read_metrics(state)

    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *stream)
    return jax.jit(partial(jax.lax.scan, step))((params, tx.init(params)), stacked)


@pytest.mark.exhaustive
def test_it_measures_in_the_first_step_and_every_so_many():
    params = parameters()
    stream = gradients(8, params)
    _, each = history(with_metrics(adam_jax.adam(1e-2)), stream, params)
    _, some = history(with_metrics(adam_jax.adam(1e-2), every=3), stream, params)
    assert each.keys() == some.keys()
    for name, values in some.items():
        np.testing.assert_allclose(values, each[name][np.arange(8) // 3 * 3], 1e-5, err_msg=name)
        assert np.any(values != each[name]) or name == "eps_share"


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "every"), [("adamw", 1), ("adamw", 2), ("eight_bit", 1)])
def test_the_optimizer_stays_as_it_is(name, every):
    tx, stream = MAKERS[name](), gradients(3, parameters())
    (kept, inner), (params, state) = (
        descend(stepper(each), parameters(), each.init(parameters()), stream)
        for each in (tx, with_metrics(tx, every=every, successive=True))
    )
    assert_same_bits((params, state.inner_state), (kept, inner))
    nudged = optax.chain(tx, optax.scale(1 + 2**-20))
    with pytest.raises(AssertionError):
        assert_same_bits(descend(stepper(nudged), kept, nudged.init(kept), stream)[0], params)


def test_inside_of_accumulate_full_steps_are_measured_and_around_it_none_need_be():
    params = parameters()
    stream = gradients(8, params)
    means = [jax.tree.map(lambda *g: sum(g) / 2, *pair) for pair in batched(stream)]
    _, expected = history(with_metrics(adam_jax.adam(0.1), every=2), means, params)
    _, inside = history(accumulate(with_metrics(adam_jax.adam(0.1), every=2), 2), stream, params)
    _, around = history(with_metrics(accumulate(adam_jax.adam(0.1), 2), every=2), stream, params)
    np.testing.assert_allclose(inside["update_norm"][1::2], expected["update_norm"], 1e-5)
    np.testing.assert_allclose(inside["grad_norm"][1::2], expected["grad_norm"], 1e-5)
    assert np.all(expected["update_norm"] > 0)
    assert not np.any(around["update_norm"])


def batched(stream):
    return zip(stream[::2], stream[1::2], strict=True)


SIZES = [3e38, 1e30, 1e19, 1e7, 1.0, 1e-17, 1e-19, 1e-25, 1e-38, 1e-45]


@pytest.mark.exhaustive
@pytest.mark.parametrize("inner", [adam_jax.adam(1e-2), optax.sgd(1.0)], ids=["adam", "sgd"])
def test_of_finite_gradients_all_is_finite_and_norms_are_right(inner):
    tx = with_metrics(inner, paths="", successive=True)
    update = jax.jit(tx.update)
    for size in SIZES:
        g = {"a": jnp.array([size, -size / 3, 0.0], jnp.float32), "b": jnp.float32(size)}
        state = tx.init(g)
        for _ in range(2):
            _, state = update(g, state, g)
        metrics = read_metrics(state)
        assert all(map(math.isfinite, metrics.values())), size
        if 1e-18 < size < 1e38:
            norm = np.linalg.norm([*wide(g["a"]), wide(g["b"])])
            np.testing.assert_allclose(metrics["grad_norm"], norm, 1e-5)
            np.testing.assert_allclose(metrics["param_norm"], norm, 1e-5)
            assert metrics["cosine_update_gradient"] < -0.7
    # Without a unit the norm is lost.
    assert float(jnp.sqrt(jnp.sum(jnp.square(jnp.float32(1e30))))) == math.inf


def test_what_is_not_finite_is_seen_in_the_norms():
    tx = with_metrics(optax.sgd(1.0))
    g = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    for bad in (jnp.inf, jnp.nan):
        broken = {**g, "b": g["b"].at[0].set(bad)}
        metrics = read_metrics(tx.update(broken, tx.init(g), g)[1])
        np.testing.assert_equal(metrics["grad_norm"], float(bad))
        assert metrics["param_norm"] == pytest.approx(6**0.5)


def large(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(1500, 700), (2, 3, 600, 300), (1_100_000,), (400_000, 2)])
def test_large_leaves_are_summed_right(shape):
    # Of one sign, so that a sum that stops growing is found.
    p, g = jnp.asarray(1 + large(shape) / 10), jnp.asarray(1 + large(shape, 1) / 10)
    tx = with_metrics(optax.sgd(1e-3))
    u, state = jax.jit(tx.update)(g, tx.init(p), p)
    expected = oracle([g], [u], [p], [0 * u])
    for name in ALWAYS:
        np.testing.assert_allclose(read_metrics(state)[name], expected[name], 2e-4, err_msg=name)


@pytest.mark.exhaustive
def test_the_sample_is_of_the_whole_leaf():
    # The first half of the rows is never seen; of the others every second column is noise.
    g = [np.where(np.arange(512) % 2, large((1024, 512), seed), 1.0) for seed in range(2)]
    g = [np.where(np.arange(1024)[:, None] < 512, 0, x).astype(np.float32) for x in g]
    params = {"w": jnp.asarray(large(g[0].shape)), "b": jnp.ones(10)}
    tx = with_metrics(adam_jax.adam(1e-2), paths="w")
    state, update = tx.init(params), jax.jit(tx.update)
    for x in g:
        u, state = update({"w": x, "b": jnp.ones(10)}, state, params)
    step = g[1], u["w"], params["w"], u["w"]
    adam = state.inner_state[0].mu["w"], state.inner_state[0].nu["w"]
    expected = oracle(*([x] for x in step), ([adam[0]], [adam[1]], 2))
    metrics = read_metrics(state)
    for name in OF_MOMENTS:
        rtol = 0.4 if name.endswith("95") else 0.15  # which few entries decide
        np.testing.assert_allclose(metrics[f"w/{name}"], expected[name], rtol, err_msg=name)
    front = oracle(*([x[:8]] for x in step), ([adam[0][:8]], [adam[1][:8]], 2))
    assert front["eps_share"] == 1.0
    assert expected["eps_share"] == 0.5
