"""Parameters laid out over 8 devices: the state lies where they do, and a step moves no data."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from training import assert_close

import adam_jax
from adam_jax import storage

SPECS = {"w": P("x", "y"), "b": P("y"), "scale": P()}
SHAPES = {"w": (8, 6), "b": (6,), "scale": ()}
COLLECTIVES = ["all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"]
AXES = {"auto": {}}
if hasattr(jax.sharding, "AxisType"):  # older JAX has automatic axes only
    AXES["explicit"] = {"axis_types": (jax.sharding.AxisType.Explicit,) * 2}
FORMATS = {"float32": None, "bfloat16": storage.bfloat16()}

if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:  # its older place
    from jax.experimental.shard_map import shard_map


@pytest.fixture(scope="module", params=AXES)
def mesh(request):
    assert jax.device_count() == 8
    return Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"), **AXES[request.param])


@pytest.fixture(scope="module", params=FORMATS)
def tx(request):
    dtype = FORMATS[request.param]
    return adam_jax.adamw(1e-2, mu_dtype=dtype, nu_dtype=dtype, nesterov=True)


def trees(count, place):
    rng = np.random.default_rng(0)
    return [
        {name: place(name, rng.normal(size=shape)) for name, shape in SHAPES.items()}
        for _ in range(count)
    ]


def sharded(count, mesh):
    def place(name, x):
        return jax.device_put(x.astype(np.float32), NamedSharding(mesh, SPECS[name]))

    return trees(count, place)


def step(tx, params, state, gradient):
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), updates, state


@pytest.fixture(scope="module")
def programs(tx, mesh):
    """Compiled ``init`` and `step`, which refuse arguments of any other sharding."""
    params, gradient = sharded(2, mesh)
    init = jax.jit(tx.init).lower(params).compile()
    stepped = jax.jit(partial(step, tx)).lower(params, init(params), gradient).compile()
    return init, stepped


def assert_lies_like(tree, params):
    for name, leaf in tree.items():
        assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim), name


def test_state_and_updates_lie_with_their_parameters(tx, mesh, programs):
    init, stepped = programs
    params, *stream = sharded(3, mesh)
    for fresh in (tx.init(params), init(params)):
        assert_lies_like(fresh[0].mu, params)
        assert_lies_like(fresh[0].nu, params)
    state = init(params)
    for gradient in stream:
        params, updates, state = stepped(params, state, gradient)
        for tree in (params, updates, state[0].mu, state[0].nu):
            assert_lies_like(tree, gradient)
        assert state[0].count.sharding.is_fully_replicated


def test_a_step_needs_no_collective(programs):
    for program in programs:
        text = program.as_text()
        assert "num_partitions=8" in text
        assert not [name for name in COLLECTIVES if name in text]


def test_shards_are_the_unsharded_step(tx, mesh, programs):
    def run(init, stepped, params, *stream):
        state = init(params)
        for gradient in stream:
            params, updates, state = stepped(params, state, gradient)
        return params, updates, state

    alone = trees(5, lambda _, x: jnp.asarray(x, jnp.float32))
    expected = run(tx.init, jax.jit(partial(step, tx)), *alone)
    assert len(expected[0]["w"].devices()) == 1
    result = run(*programs, *sharded(5, mesh))
    # The state to the bit, whatever is rounded by chance. In the direction XLA may contract a
    # product and a sum in the loop over a small array and not in that over its shard.
    assert_close(result[2], expected[2])
    assert_close(result[:2], expected[:2], rtol=1e-6, atol=1e-8)


def test_each_device_updates_its_shard_inside_shard_map(tx, mesh, programs):
    init, stepped = programs
    params, *stream = sharded(4, mesh)
    state = init(params)
    specs = (optax.ScaleByAdamState(P(), SPECS, SPECS), *jax.tree.map(lambda _: P(), state[1:]))
    everything = (SPECS, SPECS, specs)
    init_shards = shard_map(tx.init, mesh=mesh, in_specs=(SPECS,), out_specs=specs)
    step_shards = jax.jit(
        shard_map(
            partial(step, tx), mesh=mesh, in_specs=(SPECS, specs, SPECS), out_specs=everything
        )
    )
    kept, shards = params, jax.jit(init_shards)(params)
    for gradient in stream:
        kept, _, shards = step_shards(kept, shards, gradient)
        params, _, state = stepped(params, state, gradient)
    assert_lies_like(shards[0].nu, params)
    # Each shard counts its elements from 0, and so a format that rounds by chance does otherwise.
    exact = state[0].nu["w"].dtype == jnp.float32
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if exact else {"rtol": 2**-6, "atol": 2**-9}
    assert_close((kept, shards), (params, state), **tolerance)


def test_replicas_stay_equal_inside_shard_map(tx, mesh):
    def gradient(w, x):
        return jax.grad(lambda w: jnp.mean((w * x - jnp.sin(x)) ** 2))(w)

    def data_parallel(w, state, x):
        own = w + 0 * x[0]  # differs by device for all that JAX knows, so no sum over devices
        return step(tx, w, state, jax.lax.pmean(gradient(own, x), ("x", "y")))

    # shard_map proves that what it returns under P() is the same on every device.
    specs = {"in_specs": (P(), P(), P(("x", "y"))), "out_specs": P()}
    replicas = jax.jit(shard_map(data_parallel, mesh=mesh, **specs))
    alone = jax.jit(lambda w, state, x: step(tx, w, state, gradient(w, x)))
    x, w = jnp.linspace(-1, 1, 32), jnp.array(0.5)
    expected = w, None, tx.init(w)
    result = jax.device_put(expected, NamedSharding(mesh, P()))
    shards = jax.device_put(x, NamedSharding(mesh, P(("x", "y"))))
    for _ in range(4):
        result = replicas(result[0], result[2], shards)
        expected = alone(expected[0], expected[2], x)
    # A scalar is rounded alike on each of the devices and alone.
    assert_close(result, expected, rtol=1e-5)
