"""Where a state will lie is known before there is one, for any Optax transformation."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from checks import assert_same_bits
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import SHAPES, arrays, mesh_of, optimizer

import adam_jax
from adam_jax import sharding, storage

SPECS = {"w": P("x", "y"), "b": P("y"), "scale": P()}
EIGHT = storage.eight_bit(4, min_size=0)


def shapes_on(mesh, specs=None, shapes=None):
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for (name, shape), spec in zip(
            (shapes or SHAPES).items(), (specs or SPECS).values(), strict=True
        )
    }


@pytest.mark.parametrize(
    ("kind", "name"), [("auto", "default"), ("auto", "four_bit"), ("explicit", "default")]
)
def test_init_lands_where_it_is_told(kind, name):
    shapes = shapes_on(mesh_of((4, 2), kind))
    tx = optimizer(name)
    wanted = sharding.state_shardings(tx, shapes)
    params = jax.device_put(arrays(1, SHAPES)[0], jax.tree.map(lambda x: x.sharding, shapes))
    state = jax.jit(tx.init, out_shardings=wanted)(params)
    assert_same_bits(state, tx.init(jax.tree.map(jnp.asarray, arrays(1, SHAPES)[0])))
    for found, expected in zip(*map(jax.tree.leaves, (state, wanted)), strict=True):
        assert found.sharding.is_equivalent_to(expected, found.ndim)
    for leaf in SHAPES:
        for x in jax.tree.leaves((state[0].mu[leaf], state[0].nu[leaf])):
            assert x.sharding.is_equivalent_to(shapes[leaf].sharding, x.ndim)
    # Of arrays the same is known as of shapes; and it is where a plain init puts it.
    assert sharding.state_shardings(tx, params) == wanted
    plain = jax.jit(tx.init)(params)
    for found, expected in zip(*map(jax.tree.leaves, (plain, wanted)), strict=True):
        assert found.sharding.is_equivalent_to(expected, found.ndim)


ANY = {
    "clip": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
    "partition": optax.partition(
        {"a": optax.adam(1e-3), "b": adam_jax.adamw(1e-3, nu_dtype=EIGHT)},
        {"w": "a", "b": "b", "scale": "a"},
    ),
    "multi-steps": optax.MultiSteps(optax.adam(1e-3), 2),
    "accumulate": adam_jax.accumulate(adam_jax.adan(1e-3), 2),
    "skip": adam_jax.skip_unstable(adam_jax.with_metrics(adam_jax.lamb(1e-3)), threshold=6.0),
    "hyperparameters": optax.inject_hyperparams(optax.adam)(1e-3),
    "lbfgs-like": optax.chain(optax.trace(0.9), optax.ema(0.9)),
}


@pytest.mark.parametrize("tx", ANY.values(), ids=ANY)
def test_any_transformation(tx):
    shapes = shapes_on(mesh_of((4, 2)))
    abstract = sharding.abstract_state(tx, shapes)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, jax.eval_shape(tx.init, shapes))
    of_w = [x for x in jax.tree.leaves(abstract) if x.shape == SHAPES["w"]]
    assert of_w
    assert {x.sharding.spec for x in of_w} == {P("x", "y")}
    scalars = [x for x in jax.tree.leaves(abstract) if not x.shape]
    assert all(x.sharding.is_fully_replicated for x in scalars)


def nu_specs(tx, shape, spec):
    shapes = shapes_on(mesh_of((4, 2)), {"w": spec}, {"w": shape})
    state = sharding.state_shardings(tx, shapes)
    return [s.spec for s in jax.tree.leaves(optax.tree_utils.tree_get(state, "nu"))]


@pytest.mark.parametrize(
    ("tx", "shape", "spec", "expected"),
    [
        (adam_jax.adam(1e-3, nu_dtype=EIGHT), (4, 32), P(None, "x"), [P(None, "x")] * 2),
        # 5 blocks in 20 codes, on 4 devices: the scales are on each.
        (adam_jax.adam(1e-3, nu_dtype=EIGHT), (4, 20), P("y", "x"), [P("y", "x"), P("y")]),
        # One entry a column.
        (adam_jax.adam_mini(1e-3), (8, 64), P("x", "y"), [P(None, "y")]),
    ],
)
def test_what_does_not_divide_as_its_parameter_is_whole_there(tx, shape, spec, expected):
    assert nu_specs(tx, shape, spec) == expected


def test_arrays_of_other_axes_are_whole():
    shapes = shapes_on(mesh_of((4, 2)), {"w": P("x")}, {"w": (8, 64)})
    state = sharding.state_shardings(optax.scale_by_factored_rms(min_dim_size_to_factor=2), shapes)
    assert [state.v_row["w"].spec, state.v_col["w"].spec] == [P(), P()]


def test_parameters_on_one_device():
    params = {"w": jnp.ones((4, 8))}
    found = sharding.state_shardings(adam_jax.adam(1e-3), params)
    assert set(jax.tree.leaves(found)) == {params["w"].sharding}


def test_without_a_sharding_it_is_refused():
    params = {"w": {"kernel": jax.ShapeDtypeStruct((4, 8), jnp.float32)}}
    with pytest.raises(
        ValueError, match=r"params\['w'\]\['kernel'\] must have a NamedSharding, got none"
    ):
        sharding.abstract_state(adam_jax.adam(1e-3), params)
    with pytest.raises(TypeError, match="`tx` must be an Optax transformation"):
        sharding.abstract_state(1e-3, params)
    with pytest.raises(TypeError, match=r"params\['w'\] must be an array"):
        sharding.abstract_state(adam_jax.adam(1e-3), {"w": "text"})
