"""Moments that rest in the host's memory: the same steps, and nothing stays behind."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
from checks import assert_same_bits
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import SHAPES, alone, arrays, descend, mesh_of, optimizer, step

import adam_jax
from adam_jax import sharding

modern = pytest.mark.skipif(
    not hasattr(jax, "memory"), reason="this JAX cannot name the host's memory inside of a program"
)
KIND = "pinned_host"


def kinds(tree):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


def donating(tx, params):
    """A step that says where all of its results lie, or JAX matches donated memory of any kind."""
    lying = jax.tree.map(lambda x: x.sharding, params)
    results = lying, lying, sharding.state_shardings(tx, params)
    return jax.jit(partial(step, tx), donate_argnums=(0, 1), out_shardings=results)


@pytest.mark.exhaustive
@modern
@pytest.mark.parametrize("name", ["default", "four_bit"])
def test_it_is_the_same_step(name):
    tx = sharding.offload(optimizer(name), "w")
    params, *stream = jax.device_put(arrays(5, SHAPES), jax.devices()[0])
    stepped = donating(tx, params)
    result = descend(stepped, params, jax.jit(tx.init)(params), stream)
    assert_same_bits(result, alone(name))
    for moments in result[2][0][1:]:
        assert kinds(moments["w"]) == {KIND}
        assert kinds(moments["b"]) == kinds(moments["scale"]) == {"device"}
    assert kinds((result[0], result[1], result[2][0].count)) == {"device"}
    assert stepped._cache_size() == 1


@modern
def test_a_divided_state_on_the_host():
    mesh = mesh_of((8,))
    tx = sharding.offload(sharding.zero(optimizer("default"), mesh, "x"), lambda _, x: x.ndim > 0)
    params, *stream = (jax.device_put(t, NamedSharding(mesh, P())) for t in arrays(5, SHAPES))
    wanted = sharding.state_shardings(tx, params)
    state = jax.jit(tx.init, out_shardings=wanted)(params)
    assert jax.tree.map(lambda x: x.sharding, state) == wanted
    assert jax.tree.map(lambda x: x.sharding, tx.init(params)) == wanted
    assert wanted[0].nu["w"] == NamedSharding(mesh, P("x"), memory_kind=KIND)
    assert "x (pinned_host)" in str(sharding.plan(tx, params))
    stepped = donating(tx, params)
    result = descend(stepped, params, state, stream)
    assert jax.tree.map(lambda x: x.sharding, result[2]) == wanted
    assert_same_bits(result[2], alone("default")[2])


@modern
def test_a_step_outside_of_jit():
    tx = sharding.offload(adam_jax.adam(1e-3))
    params = {"w": jnp.ones((4, 8))}
    updates, state = tx.update(params, tx.init(params), params)
    assert kinds(updates) == {"device"}
    assert kinds(state[0].mu) == kinds(state[0].nu) == {KIND}


@modern
@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        ("embed", ValueError, "`rule` 'embed' takes no parameter that has state"),
        ("(", ValueError, r"rule '\(' is no regular expression"),
        (3, TypeError, "`rule` must be a regular expression or a function"),
        (lambda *_: 1, TypeError, r"<lambda>\(path, leaf\)"),
    ],
)
def test_wrong_rules(rule, error, message):
    with pytest.raises(error, match=message):
        sharding.offload(adam_jax.adam(1e-3), rule).init({"w": jnp.ones(3)})


def test_a_backend_without_such_memory_is_told_so(monkeypatch):
    class Memory:
        kind = "device"

    class Device:
        def addressable_memories(self):
            return [Memory()]

    tx = sharding.offload(optax.adam(1e-3))
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    with pytest.raises(
        ValueError, match="needs memory of kind `pinned_host`; this backend has device"
    ):
        tx.init({"w": jnp.ones(3)})
