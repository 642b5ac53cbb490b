"""Parameters laid out over 8 devices: the state lies where they do, and a step moves no data."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits
from family import FORMATS, MEMBERS, mostly
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import (
    COLLECTIVES,
    SHAPES,
    alone,
    arrays,
    descend,
    mesh_of,
    optimizer,
    shard_map,
    step,
)
from training import assert_close

import adam_jax
from adam_jax import storage

NEAREST = [name for name in FORMATS if name.endswith("-nearest")]
STOCHASTIC = [name.removesuffix("-nearest") for name in NEAREST]
MESHES = {  # on each shard lie whole blocks
    "8": ((8,), {"w": P("x"), "b": P("x"), "scale": P()}),
    "4x2": ((4, 2), {"w": P("x", "y"), "b": P("y"), "scale": P()}),
    "2x4": ((2, 4), {"w": P(None, ("x", "y")), "b": P(), "scale": P()}),
}
LAYOUTS = ("8-auto", "4x2-auto", "2x4-auto", "4x2-explicit")


@pytest.fixture(scope="module", params=mostly(("4x2-auto", "4x2-explicit"), LAYOUTS))
def layout(request):
    """Where each leaf lies."""
    name, kind = request.param.split("-")
    shape, specs = MESHES[name]
    mesh = mesh_of(shape, kind)
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


def sharded(count, layout):
    return [jax.device_put(tree, layout) for tree in arrays(count, SHAPES)]


@pytest.fixture(scope="module", params=mostly(("default", "eight_bit"), ["default", *STOCHASTIC]))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def programs(name, layout):
    """Compiled ``init`` and `step`, which refuse arguments of any other sharding."""
    tx = optimizer(name)
    params, gradient = sharded(2, layout)
    init = jax.jit(tx.init).lower(params).compile()
    stepped = jax.jit(partial(step, tx)).lower(params, init(params), gradient).compile()
    return init, stepped


def assert_lies_like(tree, params):
    """Each array of ``tree``, codes and scales too, is split as its parameter is."""
    for name, param in params.items():
        for leaf in jax.tree.leaves(tree[name]):
            assert leaf.sharding.is_equivalent_to(param.sharding, leaf.ndim), name
            parts = param.size // param.addressable_shards[0].data.size
            assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // parts}


@pytest.mark.costly
def test_state_and_updates_lie_with_their_parameters(name, layout, programs):
    init, stepped = programs
    params, *stream = sharded(3, layout)
    state = init(params)
    assert_lies_like(state[0].mu, params)
    assert_lies_like(state[0].nu, params)
    for gradient in stream:
        params, updates, state = stepped(params, state, gradient)
        for tree in (params, updates, state[0].mu, state[0].nu):
            assert_lies_like(tree, gradient)
        assert state[0].count.sharding.is_fully_replicated


@pytest.mark.parametrize("name", ["default", "bfloat16", "four_bit"])
def test_state_of_an_eager_init_lies_with_its_parameters(name):
    mesh, specs = mesh_of((4, 2)), MESHES["4x2"][1]
    (params,) = sharded(1, {leaf: NamedSharding(mesh, spec) for leaf, spec in specs.items()})
    state = optimizer(name).init(params)[0]
    assert_lies_like(state.mu, params)
    assert_lies_like(state.nu, params)


@pytest.mark.costly
def test_a_step_needs_no_collective(programs):
    for program in programs:
        text = program.as_text()
        assert "num_partitions=8" in text
        assert not [name for name in COLLECTIVES if name in text]


@pytest.mark.costly
def test_shards_are_the_unsharded_step(name, layout, programs):
    init, stepped = programs
    params, *stream = sharded(5, layout)
    result = descend(stepped, params, init(params), stream)
    # The state to the bit, also what is rounded by chance.
    assert_same_bits(result[2], alone(name)[2])
    assert_close(result[:2], alone(name)[:2], rtol=1e-5, atol=1e-8)


# --- inside of shard_map -------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", mostly(("auto",), ["auto", "explicit"]))
@pytest.mark.parametrize("name", mostly(("default", "four_bit-nearest"), ["default", *NEAREST]))
def test_each_device_updates_its_shard_inside_shard_map(name, kind):
    if kind == "explicit" and name not in ("default", "four_bit-nearest"):
        pytest.skip("inside of shard_map both kinds of axes are the same")
    shape, specs = MESHES["4x2"]
    mesh, tx = mesh_of(shape, kind), optimizer(name)
    params, *stream = sharded(5, {name: NamedSharding(mesh, spec) for name, spec in specs.items()})
    expected = alone(name)
    chain = (*jax.tree.map(lambda _: P(), expected[2][1:]),)
    state = optax.ScaleByAdamState(P(), specs, specs), *chain
    init = shard_map(tx.init, mesh=mesh, in_specs=(specs,), out_specs=state)
    stepped = shard_map(
        partial(step, tx),
        mesh=mesh,
        in_specs=(specs, state, specs),
        out_specs=(specs, specs, state),
    )
    result = descend(jax.jit(stepped), params, jax.jit(init)(params), stream)
    assert_lies_like(result[2][0].nu, params)
    # To nearest; by chance it is otherwise, for each shard counts its elements from 0.
    assert_same_bits(result[2], expected[2])
    assert_close(result[:2], expected[:2], rtol=1e-5, atol=1e-8)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["eight_bit-nearest", "four_bit-nearest"])
def test_state_passes_in_and_out_of_shard_map(name):
    mesh, tx, specs = mesh_of((8,)), optimizer(name), {"w": P(None, "x")}
    unsharded = jax.tree.map(jnp.asarray, arrays(2, {"w": (8, 32)}))
    params, gradient = jax.device_put(unsharded, NamedSharding(mesh, specs["w"]))
    state = jax.jit(tx.init)(params)
    moments = optax.ScaleByAdamState(P(), specs, specs), *jax.tree.map(lambda _: P(), state[1:])
    stepped = shard_map(
        partial(step, tx),
        mesh=mesh,
        in_specs=(specs, moments, specs),
        out_specs=(specs, specs, moments),
    )
    inside = jax.jit(stepped)(params, state, gradient)
    assert jax.tree.structure(inside[2]) == jax.tree.structure(state)
    outside = jax.jit(partial(step, tx))
    result = outside(*inside[::2], gradient)
    params, gradient = unsharded
    expected = descend(outside, params, tx.init(params), [gradient, gradient])
    assert_same_bits(result[2], expected[2])


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["default", "bfloat16", "four_bit"])
def test_replicas_stay_equal_inside_shard_map(name):
    mesh = mesh_of((4, 2))

    def gradient(w, x):
        def loss(w):
            return jnp.mean((w["a"] * x - jnp.sin(x)) ** 2) + jnp.sum(w["b"] ** 2)

        return jax.grad(loss)(w)

    def data_parallel(w, state, x):
        # Differs by device for all that JAX knows, so no sum over devices.
        own = jax.tree.map(lambda w: w + 0 * x[0], w)
        return step(tx, w, state, jax.lax.pmean(gradient(own, x), ("x", "y")))

    # shard_map proves that what it returns under P() is the same on every device.
    tx = optimizer(name)
    specs = {"in_specs": (P(), P(), P(("x", "y"))), "out_specs": P()}
    replicas = jax.jit(shard_map(data_parallel, mesh=mesh, **specs))
    x, w = jnp.linspace(-1, 1, 32), {"a": jnp.array(0.5), "b": jnp.linspace(-1, 1, 6)}
    result = jax.device_put((w, None, tx.init(w)), NamedSharding(mesh, P()))
    shards = jax.device_put(x, NamedSharding(mesh, P(("x", "y"))))
    by_hand = jax.jit(lambda w, state, x: step(tx, w, state, gradient(w, x)))
    expected = w, None, tx.init(w)
    for _ in range(4):
        result = replicas(result[0], result[2], shards)
        expected = by_hand(expected[0], expected[2], x)
    # Rounded alike on each of the devices and alone.
    assert_close(result[:2], expected[:2], rtol=1e-5)
    for leaf in jax.tree.leaves(result[2]):
        copies = {np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards}
        assert len(copies) == 1


# --- blocks that shards cut ----------------------------------------------------------------------


@pytest.mark.costly
@pytest.mark.parametrize("name", [name for name in STOCHASTIC if name != "bfloat16"])
def test_blocks_across_shards_are_right(name):
    # 5 elements a shard: of 4 bits even bytes are cut.
    tx, shapes = optimizer(name), {"w": (2, 8 * 5)}
    sharding = NamedSharding(mesh_of((8,)), P(None, "x"))
    params, *stream = arrays(4, shapes)
    stepped = jax.jit(partial(step, tx))
    expected = descend(stepped, params, tx.init(params), stream)
    params, *stream = jax.device_put([params, *stream], sharding)
    result = descend(stepped, params, jax.jit(tx.init)(params), stream)
    # At the price of communication.
    text = stepped.lower(params, result[2], params).compile().as_text()
    assert [name for name in COLLECTIVES if name in text]
    assert_same_bits(result[2], expected[2])


def test_blocks_across_shards_are_refused_where_axes_are_explicit():
    sharding = NamedSharding(mesh_of((8,), "explicit"), P(None, "x"))
    params = jax.device_put(jnp.zeros((2, 8 * 5)), sharding)
    if not any(getattr(params.aval.sharding, "spec", ())):
        pytest.skip("this JAX does not know shardings as types")
    with pytest.raises(ValueError, match=r"whole blocks of eight_bit.* along axis 1 .* 5 elements"):
        optimizer("eight_bit").init(params)


@pytest.mark.costly
@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="this JAX sets no mesh")
@pytest.mark.parametrize("member", [name for name, m in MEMBERS.items() if not m.variant])
def test_a_step_is_the_same_with_an_explicit_mesh_set(member):
    """There what is made anew has the mesh in its type, and no axes of it."""
    blocks = storage.four_bit(min_size=1, block_size=32)
    settings = MEMBERS[member].settings | {"nu_dtype": blocks}
    try:
        tx = MEMBERS[member].optimizer(0.1, **settings)
    except TypeError:  # it has no second moment
        tx = MEMBERS[member].optimizer(0.1, **MEMBERS[member].settings, mu_dtype=blocks)
    p, g = arrays(2, SHAPES)

    def two_steps(p, g):
        state = tx.init(p)
        for _ in range(2):
            updates, state = tx.update(g, state, p)
            p = optax.apply_updates(p, updates)
        return p

    expected = jax.jit(two_steps)(p, g)
    mesh = mesh_of((4, 2), "explicit")
    layout = {name: NamedSharding(mesh, spec) for name, spec in MESHES["4x2"][1].items()}
    with jax.set_mesh(mesh):
        found = jax.jit(two_steps)(*(jax.device_put(tree, layout) for tree in (p, g)))
    for name, leaf in found.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-5)
        assert leaf.sharding.is_equivalent_to(layout[name], leaf.ndim)


def test_the_whole_parameter_decides_whether_it_is_quantised():
    sharding = NamedSharding(mesh_of((8,)), P("x"))
    make = partial(storage.eight_bit, 4)
    params = jax.device_put(jnp.zeros((8, 64)), sharding)
    for min_size, dtypes in [(512, ["uint8", "float32"]), (513, ["float32"])]:
        tx = adam_jax.scale_by_adam(mu_dtype=make(min_size=min_size))
        state = jax.jit(tx.init)(params)
        for each in (tx.init(params), state, jax.jit(tx.update)(params, state)[1]):
            assert [leaf.dtype for leaf in jax.tree.leaves(each.mu)] == dtypes


def test_it_stays_so_inside_shard_map():
    """Where shards are smaller than `min_size`: the state is as the whole parameter was."""
    mesh = mesh_of((8,))
    tx = adam_jax.scale_by_adam(nu_dtype=storage.eight_bit())
    params = jax.device_put(jnp.ones((8, 1024)), NamedSharding(mesh, P("x")))
    state = jax.jit(tx.init)(params)
    specs = jax.tree.map(lambda x: P("x") if x.ndim else P(), state)
    step = shard_map(tx.update, mesh=mesh, in_specs=(P("x"), specs), out_specs=(P("x"), specs))
    _, new = jax.jit(step)(params, state)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert new.nu.codes.dtype == jnp.uint8
