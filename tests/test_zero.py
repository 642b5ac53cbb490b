"""State divided over a data axis: the same numbers, a part on each device, one gather a step."""

import math
import re
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits
from family import mostly
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import (
    SHAPES,
    alone,
    arrays,
    collectives,
    descend,
    device_bytes,
    mesh_of,
    optimizer,
    shard_map,
    step,
)
from training import assert_close

import adam_jax
from adam_jax import sharding, storage

# The mesh, the axes to divide over, and how parameters lie.
WHOLE = dict.fromkeys(SHAPES, P())
BY_MODEL = {"w": P(None, "y"), "b": P("y"), "scale": P()}
CASES = {
    "data": ((8,), "auto", "x", WHOLE),
    "data-and-model": ((4, 2), "auto", "x", BY_MODEL),
    "both-axes": ((4, 2), "auto", ("x", "y"), WHOLE),
    "explicit": ((4, 2), "explicit", "x", BY_MODEL),
}
RUNS = [("data", "default"), ("data", "float8"), ("data-and-model", "default")]
RUNS += [("data-and-model", "four_bit"), ("both-axes", "bfloat16"), ("explicit", "eight_bit")]
DIVIDED = {"w", "b"}  # but not the scalar


class Run:
    """A case in a format: four steps from a fresh state, and their program."""

    def __init__(self, case, name):
        shape, kind, axis, specs = CASES[case]
        mesh = mesh_of(shape, kind)
        if kind == "explicit" and not hasattr(jax.sharding, "reshard"):
            pytest.skip("this JAX does not reshard arrays of Explicit meshes")
        self.size = math.prod(mesh.shape[a] for a in (axis if isinstance(axis, tuple) else (axis,)))
        specs = jax.tree.map(
            lambda spec, shape: P(*spec, *[None] * (len(shape) * (kind == "explicit") - len(spec))),
            *(specs, SHAPES),
            is_leaf=lambda x: isinstance(x, P),
        )
        self.lying = {leaf: NamedSharding(mesh, spec) for leaf, spec in specs.items()}
        self.tx = sharding.zero(
            optimizer(name), mesh, axis, specs=None if kind == "explicit" else specs
        )
        params, *stream = (jax.device_put(tree, self.lying) for tree in arrays(5, SHAPES))
        self.params = params
        self.start = jax.jit(self.tx.init)(params)
        # Compiled it refuses arguments of any other sharding.
        self.program = jax.jit(partial(step, self.tx)).lower(params, self.start, params).compile()
        self.result = descend(self.program, params, self.start, stream)


@cache
def run_of(case, name):
    return Run(case, name)


@pytest.fixture(scope="module", params=mostly(RUNS[3:], RUNS), ids="-".join)
def run(request):
    return run_of(*request.param)


@pytest.fixture
def name(request):
    return request.node.callspec.params["run"][1]


@pytest.mark.costly
def test_it_is_the_undivided_step(run, name):
    # The state to the bit, also what is rounded by chance.
    assert_same_bits(run.result[2], alone(name)[2])
    assert_close(run.result[:2], alone(name)[:2], rtol=1e-6, atol=1e-9)


@pytest.mark.costly
def test_every_device_holds_its_part_of_the_state(run):
    whole = sum(x.nbytes for leaf in DIVIDED for x in jax.tree.leaves(moments_of(run, leaf)))
    rest = sum(x.nbytes for x in jax.tree.leaves(run.result[2])) - whole
    # Divided by the model axis as well.
    shards = 8 if "y" in str(run.lying["w"].spec) else run.size
    expected = dict.fromkeys(jax.devices(), whole // shards + rest)
    assert device_bytes(run.start) == device_bytes(run.result[2]) == expected


def moments_of(run, leaf):
    return run.result[2][0].mu[leaf], run.result[2][0].nu[leaf]


@pytest.mark.costly
def test_updates_and_parameters_lie_as_parameters_did(run):
    for tree in run.result[:2]:
        for leaf, sharding_ in run.lying.items():
            assert tree[leaf].sharding.is_equivalent_to(sharding_, tree[leaf].ndim)


@pytest.mark.costly
def test_an_update_is_gathered_once_and_nothing_else_moves(run):
    assert collectives(run.program) == {"all-gather": len(DIVIDED)}


@pytest.mark.costly
@pytest.mark.parametrize("case", ["data-and-model", "explicit"])
def test_one_program_takes_every_step_and_donates(case):
    run = run_of(case, dict(reversed(RUNS))[case])
    stepped = jax.jit(partial(step, run.tx), donate_argnums=(0, 1))
    params, state = jax.tree.map(jnp.copy, (run.params, run.start))
    for _ in range(2):
        old = jax.tree.leaves((params, state))
        params, _, state = stepped(params, state, run.params)
        assert all(x.is_deleted() for x in old)
    assert stepped._cache_size() == 1


def test_what_is_not_divided_is_not_gathered():
    """So the count of collectives can fail."""
    mesh = mesh_of((8,))
    params = jax.device_put(arrays(1, SHAPES)[0], NamedSharding(mesh, P()))
    state = jax.jit(optimizer("default").init)(params)
    program = jax.jit(partial(step, optimizer("default"))).lower(params, state, params).compile()
    assert collectives(program) == {}
    assert set(device_bytes(state).values()) == {sum(x.nbytes for x in jax.tree.leaves(state))}


@pytest.mark.exhaustive
def test_an_eager_init_and_step_are_the_same():
    run = run_of("data-and-model", "default")
    state = run.tx.init(run.params)
    assert_same_bits(state, run.start)
    assert device_bytes(state) == device_bytes(run.start)
    gradient = jax.device_put(arrays(2, SHAPES)[1], run.lying)
    _, eager = run.tx.update(gradient, state, run.params)
    assert device_bytes(eager) == device_bytes(state)
    assert_close(eager, jax.jit(run.tx.update)(gradient, state, run.params)[1], rtol=1e-6)


def test_no_device_ever_has_the_whole_state():
    run = run_of("data", "default")
    used = jax.jit(run.tx.init).lower(run.params).compile().memory_analysis()
    whole = sum(x.nbytes for x in jax.tree.leaves(run.start))
    assert used.temp_size_in_bytes + used.output_size_in_bytes < whole / 4


# --- data-parallel gradients ---------------------------------------------------------------------


def loss(params, x):
    return jnp.mean((jnp.tanh(x @ params["w"]) + params["b"]) ** 2) * params["scale"]


def beginning():
    rng = np.random.default_rng(1)
    return {name: jnp.asarray(0.3 * rng.normal(size=s), jnp.float32) for name, s in SHAPES.items()}


def batches(count):
    rng = np.random.default_rng(2)
    return [rng.normal(size=(32, 16)).astype(np.float32) for _ in range(count)]


def trained(params, state, take):
    """Three steps of one program; with them, how often it communicates."""
    first, *stream = batches(4)
    lying = jax.tree.map(lambda x: x.sharding, (params, state))
    compiled = jax.jit(take, out_shardings=lying).lower(params, state, first).compile()
    for batch in stream:
        params, state = compiled(params, state, batch)
    return params, state, collectives(compiled)


def take_of(tx):
    def take(params, state, batch):
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    return take


@cache
def undivided(member):
    inner = member(1e-2, eps=1e-4)
    return trained(beginning(), inner.init(beginning()), take_of(inner))


@pytest.mark.costly
@pytest.mark.parametrize("member", [adam_jax.adamw, adam_jax.lamb])
def test_gradients_of_a_divided_batch(member):
    """Norms over whole arrays are of whole arrays."""
    mesh, start, expected = mesh_of((8,)), beginning(), undivided(member)
    tx = sharding.zero(member(1e-2, eps=1e-4), mesh, "x")
    params = jax.device_put(start, NamedSharding(mesh, P()))

    def take(params, state, batch):
        divided = jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, P("x")))
        return take_of(tx)(params, state, divided)

    found = trained(params, jax.jit(tx.init)(params), take)
    assert_close(found[:2], expected[:2], rtol=1e-5, atol=1e-6)
    if jax.config.jax_use_shardy_partitioner:  # the older one gathers once more
        assert found[2]["all-gather"] == len(DIVIDED)
    if member is adam_jax.adamw:
        assert set(found[2]) <= {"all-gather", "all-reduce", "reduce-scatter"}


def test_by_hand_inside_shard_map():
    mesh, inner = mesh_of((8,)), adam_jax.adamw(1e-2, eps=1e-4)
    tx = sharding.zero(inner, mesh, "x")
    params = jax.device_put(beginning(), NamedSharding(mesh, P()))
    state = jax.jit(tx.init)(params)
    parts = sharding.part_specs(inner, params, mesh, "x")
    assert parts == {"w": P("x"), "b": P("x"), "scale": P()}

    def one_device(params, state, batch):
        gradients = sharding.scatter_mean(jax.grad(loss)(params, batch), parts, "x")
        own = sharding.part_of(params, parts, "x")
        updates, state = inner.update(gradients, state, own)
        return optax.apply_updates(params, sharding.gather(updates, parts, "x")), state

    lying = jax.tree.map(lambda s: s.spec, sharding.state_shardings(tx, params))
    specs = {"in_specs": (P(), lying, P("x")), "out_specs": (P(), lying)}
    check = "check_vma" if hasattr(jax, "shard_map") else "check_rep"
    take = shard_map(one_device, mesh=mesh, **specs, **{check: False})
    found = trained(params, state, take)
    assert found[2] == {"reduce-scatter": 2, "all-reduce": 1, "all-gather": 2}
    assert device_bytes(found[1]) == device_bytes(state)
    assert_close(found[:2], undivided(adam_jax.adamw)[:2], rtol=1e-5, atol=1e-6)


# --- which axis is divided -----------------------------------------------------------------------


def parts_of(tx, shape, spec=None, mesh=((8,), ("data",)), axis="data"):
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    mesh = AbstractMesh(*mesh)
    given = None if spec is None else {"w": spec}
    return shortest(sharding.part_specs(tx, params, mesh, axis, given)["w"])


def shortest(spec):
    """Without what is whole at its end, which the spec of an Explicit mesh has too.

    Such are abstract meshes of recent JAX.
    """
    return P(*spec[: max((i + 1 for i, names in enumerate(spec) if names), default=0)])


BOTH = ((8, 2), ("data", "model"))


@pytest.mark.parametrize(
    ("shape", "arguments", "expected"),
    [
        ((16, 64), {}, P("data")),
        ((12, 64), {}, P(None, "data")),
        ((12, 20), {}, P()),
        ((0, 8), {}, P()),
        ((), {}, P()),
        ((16, 64), {"spec": P("model"), "mesh": BOTH}, P("model", "data")),
        ((16, 12), {"spec": P("model"), "mesh": BOTH}, P(("model", "data"))),
        ((8, 12), {"spec": P("model"), "mesh": BOTH}, P("model")),
        ((3, 32), {"mesh": BOTH, "axis": ("data", "model")}, P(None, ("data", "model"))),
        ((24, 6), {"mesh": BOTH, "axis": ("data", "model")}, P("data", "model")),
        ((24, 3), {"mesh": BOTH, "axis": ("data", "model")}, P("data")),
        ((16, 64), {"spec": P(None, "data")}, P(None, "data")),  # nothing to add
    ],
)
def test_the_first_axis_of_equal_parts_is_divided(shape, arguments, expected):
    assert parts_of(adam_jax.adam(1e-3), shape, **arguments) == expected


@pytest.mark.parametrize(
    ("shape", "block_size", "expected"),
    [
        ((3, 2048), 256, P(None, "data")),
        ((3, 2048), 512, P()),  # of a float32 moment it would be divided
        ((3, 2000), 250, P(None, "data")),
        ((3, 2000), 256, P()),
        ((8, 2048), 512, P("data")),
    ],
)
def test_no_block_is_cut(shape, block_size, expected):
    stored = storage.four_bit(block_size, min_size=0)
    tx = adam_jax.adam(1e-3, mu_dtype=stored, nu_dtype=stored)
    assert parts_of(tx, shape) == expected
    assert parts_of(adam_jax.adam(1e-3), shape) != P()


def test_the_axis_is_that_of_most_bytes():
    # One second moment a column: along columns both can be divided.
    assert parts_of(adam_jax.adam_mini(1e-3), (16, 64)) == P(None, "data")
    assert parts_of(adam_jax.adam_mini(1e-3), (64, 3)) == P("data")
    assert parts_of(adam_jax.adam(1e-3), (16, 64)) == P("data")


def test_parameters_without_state_are_left():
    params = {"w": jax.ShapeDtypeStruct((16, 64), jnp.float32), "frozen": jnp.ones((16, 8))}
    tx = adam_jax.by_path({"frozen": adam_jax.FREEZE})(adam_jax.adam(1e-3))
    parts = sharding.part_specs(tx, params, AbstractMesh((8,), ("data",)), "data")
    assert jax.tree.map(shortest, parts) == {"w": P("data"), "frozen": P()}


# --- its plan, and what is refused ---------------------------------------------------------------


def test_the_plan_says_what_each_device_holds():
    for case, name in [("data", "float8"), ("data-and-model", "default")]:
        run = run_of(case, name)
        found = sharding.plan(run.tx, run.params)
        assert found.bytes == sum(x.nbytes for x in jax.tree.leaves(run.start))
        assert {found.device_bytes} == set(device_bytes(run.start).values())
        assert found.whole == ("['scale']",)
        assert [row.path for row in found.rows] == ["['b']", "['scale']", "['w']"]
    assert found.rows[2].state_lies == ("x, y",)
    assert found.rows[0].state_lies == ("y+x",)
    lines = str(found).splitlines()
    assert lines[0].split() == [
        "parameter",
        "shape",
        "lies",
        "its",
        "state",
        "bytes",
        "a",
        "device",
    ]
    assert lines[1].split("  ")[0] == "['w']"
    assert lines[-1] == "whole on each device: 1 of 3 parameters' state, 8 B"


def test_the_plan_of_a_large_model_hides_small_parameters():
    params = {f"p{i}": jax.ShapeDtypeStruct((8, i + 1), jnp.float32) for i in range(30)}
    tx = sharding.zero(adam_jax.adam(1e-3), AbstractMesh((8,), ("data",)), "data")
    assert "and 10 more" in str(sharding.plan(tx, params))
    assert sharding.plan(tx, params).device_bytes == sum(8 * (i + 1) for i in range(30)) + 4


def test_where_nothing_can_be_divided_it_is_refused():
    tx = sharding.zero(adam_jax.adam(1e-3), mesh_of((8,)), "x")
    message = r"divides nothing over `x` \(8 devices\).*params\['w'\]"
    with pytest.raises(ValueError, match=message):
        tx.init({"w": jnp.ones((3, 5))})
    with pytest.raises(ValueError, match=message):
        sharding.plan(tx, {"w": jnp.ones((3, 5))})
    with pytest.raises(ValueError, match="divides nothing"):
        sharding.zero(optax.sgd(1e-3), mesh_of((8,)), "x").init({"w": jnp.ones((8, 8))})


@pytest.mark.parametrize(
    ("axis", "specs", "message"),
    [
        ("z", None, r"`axis` must be among the mesh's x \(8\), y \(1\), got 'z'"),
        ((), None, "`axis` must be among"),
        (("x", "x"), None, r"`axis` must be among .* got \('x', 'x'\)"),
        (([],), None, "`axis` must be among"),
        (3, None, "`axis` must be among"),
        ("x", {"w": P("z")}, r"the spec of params\['w'\] must name axes of x \(8\), y \(1\)"),
        ("x", {"w": P(None, None, "x")}, r"params\['w'\] has shape \(16, 4\), which"),
        ("x", {"w": P(None, "x")}, r"params\['w'\] has shape \(16, 4\), which"),
        ("x", {"v": P()}, "`specs` must be a prefix of the parameters"),
        ("x", {"w": P("x")}, r"params\['w'\] lies as .*; `specs` has .*'x'"),
    ],
)
def test_wrong_arguments(axis, specs, message):
    mesh = mesh_of((8, 1))
    params = jax.device_put({"w": jnp.ones((16, 4))}, NamedSharding(mesh, P()))
    with pytest.raises(ValueError, match=message):
        sharding.zero(adam_jax.adam(1e-3), mesh, axis, specs).init(params)


@pytest.mark.skipif(not hasattr(jax.sharding, "AxisType"), reason="this JAX has Auto axes only")
def test_meshes_of_two_kinds_are_refused():
    kinds = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit
    mesh = AbstractMesh((4, 2), ("x", "y"), axis_types=kinds)
    with pytest.raises(ValueError, match="`mesh` must have Auto axes only, or Explicit ones where"):
        sharding.zero(adam_jax.adam(1e-3), mesh, "x")


def test_wrong_kinds():
    mesh = mesh_of((8,))
    with pytest.raises(TypeError, match="`inner` must be an Optax transformation"):
        sharding.zero(1e-3, mesh, "x")
    with pytest.raises(TypeError, match="`specs` must be of PartitionSpecs, got str"):
        sharding.zero(adam_jax.adam(1e-3), mesh, "x", "x").init({"w": jnp.ones((16, 4))})
    with pytest.raises(TypeError, match=r"`mesh` must be a jax.sharding.Mesh, got None"):
        sharding.zero(adam_jax.adam(1e-3), None, "x")
    with pytest.raises(TypeError, match=r"\Aparams\['w'\] must be an array [^\n]*, got 'f'\Z"):
        sharding.zero(adam_jax.adam(1e-3), mesh, "x").init({"w": "f"})


PARTS = {"w": P("x"), "b": P()}
WHOLE = {"w": jnp.ones((16, 4)), "b": jnp.ones(3)}


@pytest.mark.parametrize("f", [sharding.scatter_mean, sharding.part_of, sharding.gather])
@pytest.mark.parametrize(
    ("tree", "parts", "axis", "error", "message"),
    [
        (WHOLE, {**PARTS, "b": "x"}, "x", TypeError, r"`parts`\['b'\] must be a PartitionSpec"),
        (WHOLE, None, "x", ValueError, "`parts` must have the structure of the tree: "),
        ({"w": WHOLE["w"]}, PARTS, "x", ValueError, "`parts` must have the structure of the tree"),
        (WHOLE, PARTS, ("x",), TypeError, "`axis` must be the name of one mesh axis, got"),
        ({**WHOLE, "w": jnp.float32(1)}, PARTS, "x", ValueError, r"params\['w'\] has shape \(\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_line(f, tree, parts, axis, error, message):
    specs = {"mesh": mesh_of((8,)), "in_specs": P(), "out_specs": P()}
    with pytest.raises(error) as found:
        shard_map(lambda x: f(x, parts, axis), **specs)(tree)
    assert re.fullmatch(rf"{message}[^\n]*", str(found.value))


@pytest.mark.parametrize("f", [sharding.scatter_mean, sharding.part_of])
def test_what_has_no_equal_parts_is_not_cut(f):
    """Each device would have a part of it, and the rest would be nobody's."""
    specs = {"mesh": mesh_of((8,)), "in_specs": P(), "out_specs": P()}
    message = r"params\['w'\] has shape \(12, 4\), which .* does not divide into 8"
    with pytest.raises(ValueError, match=message):
        shard_map(lambda x: f(x, PARTS, "x"), **specs)({**WHOLE, "w": jnp.ones((12, 4))})


def test_parameters_that_lie_otherwise_are_not_gathered_in_silence():
    mesh = mesh_of((4, 2))
    params = jax.device_put({"w": jnp.ones((16, 4))}, NamedSharding(mesh, P(None, "y")))
    with pytest.raises(ValueError, match=r"params\['w'\] lies as .*'y'.*`specs` has none for it"):
        sharding.zero(adam_jax.adam(1e-3), mesh, "x").init(params)
    tx = sharding.zero(adam_jax.adam(1e-3), mesh, "x", specs=params)
    assert tx.init(params)[0].mu["w"].sharding.spec == P("x", "y")


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="this JAX does not tell where it is")
def test_inside_shard_map_it_says_what_to_use():
    mesh = mesh_of((8,))
    tx = sharding.zero(adam_jax.adam(1e-3), mesh, "x")
    params = {"w": jnp.ones((16, 4))}
    specs = {"in_specs": (P(), P()), "out_specs": P()}
    with pytest.raises(ValueError, match=r"inside shard_map over `x` use .*scatter_mean"):
        shard_map(lambda p, s: tx.update(p, s)[0], mesh=mesh, **specs)(params, tx.init(params))


def test_in_a_training_step_with_services():
    mesh = mesh_of((8,))
    inner = optax.chain(adam_jax.clip_by_global_norm(1.0), adam_jax.adamw(1e-2, eps=1e-4))
    inner = adam_jax.skip_unstable(inner)
    tx = sharding.zero(inner, mesh, "x")

    def squares(params, x):
        return jnp.mean((x @ params["w"] + params["b"]) ** 2) + params["scale"] ** 2

    found = []
    for each, lying in [(inner, jax.devices()[0]), (tx, NamedSharding(mesh, P()))]:
        params = jax.device_put(beginning(), lying)
        stepped = adam_jax.train_step(squares, each)
        params, state, info = stepped(params, each.init(params), batches(1)[0])
        found.append((params, info["loss"], info["grad_norm"]))
    assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    moments = optax.tree_utils.tree_get(state, "nu")
    assert moments["w"].sharding.spec == P("x")


def test_inside_of_other_transformations():
    """What is computed abstractly is what lies there, wherever `zero` is."""
    mesh = mesh_of((8,))
    tx = optax.chain(
        optax.trace(0.9), sharding.zero(adam_jax.scale_by_adam(), mesh, "x"), optax.scale(-1.0)
    )
    params = jax.device_put({"w": jnp.ones((16, 4))}, NamedSharding(mesh, P()))
    abstract, state = sharding.abstract_state(tx, params), tx.init(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, state)
    for wanted, found in zip(*map(jax.tree.leaves, (abstract, state)), strict=True):
        assert found.sharding.is_equivalent_to(wanted.sharding, found.ndim)
    assert abstract[1].nu["w"].sharding.spec == P("x")
    assert abstract[0].trace["w"].sharding.spec == P()


def test_on_one_device_it_changes_nothing():
    mesh = mesh_of((8, 1))
    params = jax.device_put({"w": jnp.ones((3, 5))}, NamedSharding(mesh, P()))
    tx, inner = sharding.zero(adam_jax.adam(1e-3), mesh, "y"), adam_jax.adam(1e-3)
    updates, state = tx.update(params, tx.init(params))
    assert_same_bits((updates, state), inner.update(params, inner.init(params)))
    assert set(device_bytes(state).values()) == {sum(x.nbytes for x in jax.tree.leaves(state))}


def test_leaves_without_gradients_pass():
    mesh = mesh_of((8,))
    tx = sharding.zero(adam_jax.adam(1e-3), mesh, "x")
    params = {"w": jnp.ones((16, 4)), "none": None}
    updates, _ = tx.update(params, tx.init(params))
    assert updates["none"] is None
    np.testing.assert_allclose(np.asarray(updates["w"]), -1e-3, rtol=1e-5)
