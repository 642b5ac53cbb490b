"""What is saved is restored with its bits, its dtypes and its places, or refused by its name."""

import functools
import json
import re
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("orbax.checkpoint", reason="Orbax wants a recent JAX; `test` brings it")

import orbax.checkpoint as ocp
from checks import assert_same_bits, assert_same_kind
from family import FORMATS
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from saved_states import abstract, filled, some_of_each, whole_family
from test_convert import Mine
from training import descend, gradients, parameters, stepper

import adam_jax
from adam_jax import checkpoint, storage

FIXTURES = Path(__file__).with_name("fixtures")
KINDS = [name for name in FORMATS if not FORMATS[name].variant]


def eight_bit(**settings):
    stored = storage.eight_bit(4, min_size=0)
    return adam_jax.adam(0.1, mu_dtype=stored, nu_dtype=stored, **settings)


@pytest.mark.costly
@pytest.mark.parametrize("form", KINDS)
def test_every_member_is_restored_with_every_bit_in_every_format(tmp_path, form):
    tx, params = whole_family(form), abstract()
    state = filled(tx, params)
    checkpoint.save(tmp_path / "state", state)
    restored = checkpoint.restore(tmp_path / "state", tx, params)
    assert_same_bits(restored, state)
    assert_same_kind(restored, jax.eval_shape(tx.init, params))


def test_what_is_left_out_of_trees_is_left_out_again(tmp_path):
    """Nothing, arrays of no entries, and complex ones."""
    shapes = {"none": (0, 3), "w": (2,), "whole": (4, 0)}
    params = {"a": abstract(shapes, "complex64"), "b": None, "c": abstract()}
    tx = adam_jax.amsgrad(0.1)
    state = filled(tx, params)
    checkpoint.save(tmp_path / "state", state)
    assert_same_bits(checkpoint.restore(tmp_path / "state", tx, params), state)


def test_parameters_whose_joined_names_are_one_stay_apart(tmp_path):
    """As those of `flatten_dict(sep=".")`, of PyTorch's modules, and of files and folders."""
    shapes = {"a.b": (2,), "a": (3,), "a/b": (2,), "": (2,), ".": (2,), "0": (2,), "a.b.codes": ()}
    params = abstract(shapes) | {"a": abstract({"b": (2,), "b.codes": ()}), "c": [abstract()]}
    tx = optax.chain(eight_bit(), adam_jax.lion(0.1))
    state = filled(tx, params)
    checkpoint.save(tmp_path / "state", state)
    assert_same_bits(checkpoint.restore(tmp_path / "state", tx, params), state)


def test_two_arrays_of_one_path_are_refused(tmp_path):
    @functools.total_ordering
    class Key:
        def __init__(self, number):
            self.number = number

        def __lt__(self, other):
            return self.number < other.number

        def __repr__(self):
            return "key"

    state = {Key(0): jnp.zeros(2), Key(1): jnp.ones(2)}
    with pytest.raises(ValueError, match=r"^two arrays of the state are called state\[key\]$"):
        checkpoint.save(tmp_path / "state", state)


def test_a_format_of_ones_own_is_restored(tmp_path):
    tx, params = adam_jax.adam(0.1, mu_dtype=Mine()), {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}
    state = filled(tx, params)
    checkpoint.save(tmp_path / "state", state)
    assert_same_bits(checkpoint.restore(tmp_path / "state", tx, params), state)
    message = (
        r"state\[0\]\.mu\['w'\] is Held\[2\] in the checkpoint, and float32\[2\] in the optimizer"
    )
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(tmp_path / "state", adam_jax.adam(0.1), params)


@pytest.mark.parametrize("tx", [optax.sgd(0.1), adam_jax.adam(0.1)], ids=["sgd", "adam"])
def test_a_state_without_parameters_is_restored(tmp_path, tx):
    checkpoint.save(tmp_path / "state", tx.init({}))
    assert_same_bits(checkpoint.restore(tmp_path / "state", tx, {}), tx.init({}))


def test_training_goes_on_to_the_bit_from_a_step_of_a_manager(tmp_path):
    params, tx = parameters(), eight_bit(seed=3)
    stream, step = gradients(8, params), stepper(eight_bit(seed=3))
    half = descend(step, params, tx.init(params), stream[:4])
    with ocp.CheckpointManager(tmp_path) as manager:
        saved = ocp.args.StandardSave(half[0])
        manager.save(4, args=ocp.args.Composite(params=saved, **checkpoint.items(half[1])))
        manager.wait_until_finished()
        wanted = ocp.args.Composite(params=ocp.args.StandardRestore(jax.eval_shape(lambda: params)))
        restored = manager.restore(4, args=wanted).params
        state = checkpoint.restore(manager.directory / "4", tx, restored)
    assert_same_bits(descend(step, restored, state, stream[4:]), descend(step, *half, stream[4:]))


def meshed(shape, names, count):
    return Mesh(np.asarray(jax.devices()[:count]).reshape(shape), names)


def sharded(mesh, spec, shape=(8, 16), dtype="float32"):
    return {"w": jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))}


@pytest.mark.parametrize("form", KINDS)
def test_a_sharded_state_is_restored_onto_another_mesh(tmp_path, form):
    tx = adam_jax.adam(0.1, **FORMATS[form].arguments)
    before = sharded(meshed(2, "x", 2), P("x"))
    after = sharded(meshed((4, 2), ("data", "model"), 8), P("model", "data"))
    state = filled(tx, before)
    there = jax.tree.map(
        lambda x: jax.device_put(x, before["w"].sharding if x.ndim else None), state
    )
    checkpoint.save(tmp_path / "state", there)
    restored = checkpoint.restore(tmp_path / "state", tx, after)
    assert_same_bits(restored, state)
    mesh = after["w"].sharding.mesh
    for x in jax.tree.leaves((restored[0].mu, restored[0].nu)):
        assert x.sharding.is_equivalent_to(after["w"].sharding, x.ndim)
        assert x.addressable_shards[0].data.size == x.size / 8
    assert restored[0].count.sharding.is_equivalent_to(NamedSharding(mesh, P()), 0)


def test_codes_that_cannot_be_divided_are_whole_and_other_shardings_can_be_asked_for(tmp_path):
    mesh = meshed(4, "x", 4)
    tx, params = eight_bit(), sharded(mesh, P(None, "x"), shape=(2, 8))
    state = filled(tx, params)
    checkpoint.save(tmp_path / "state", state)
    restored = checkpoint.restore(tmp_path / "state", tx, params)
    mu = restored[0].mu["w"]
    assert mu.codes.addressable_shards[0].data.shape == (2, 2)
    assert mu.scales.addressable_shards[0].data.shape == (2, 2)  # 2 blocks on 4 devices

    rows = jax.tree.map(
        lambda x: NamedSharding(meshed(2, "x", 2), P("x") if x.ndim else P()), state
    )
    other = checkpoint.restore(tmp_path / "state", tx, params, shardings=rows)
    assert_same_bits(other, state)
    assert other[0].mu["w"].scales.addressable_shards[0].data.shape == (1, 2)
    with pytest.raises(ValueError, match=r"^`shardings` must have the structure of tx\.init\(para"):
        checkpoint.restore(tmp_path / "state", tx, params, shardings=rows[0])


def test_no_state_is_made_to_be_restored_into(tmp_path):
    seen = []

    def init(params):
        seen.extend(jax.tree.leaves(params))
        return tx.init(params)

    tx, params = adam_jax.adam(0.1), parameters()
    checkpoint.save(tmp_path / "state", tx.init(params))
    spy = optax.GradientTransformation(init, tx.update)
    checkpoint.restore(tmp_path / "state", spy, params)
    assert len(seen) == 3
    assert all(isinstance(x, jax.core.Tracer) for x in seen)


def stored_states(folder, version):
    with zipfile.ZipFile(FIXTURES / f"states_{version}.zip") as packed:
        packed.extractall(folder)
    return folder


@pytest.mark.parametrize("version", range(1, checkpoint.VERSION + 1))
def test_what_an_earlier_release_has_saved_is_restored(tmp_path, version):
    """Made by `saved_states`; a new version of the layout adds its own."""
    stored = stored_states(tmp_path, version)
    made_by = json.loads((stored / "made_by.json").read_text())
    restored = checkpoint.restore(stored, some_of_each(), abstract())
    assert_same_bits(restored, filled(some_of_each(), abstract(), made_by["seed"]))
    with pytest.raises(AssertionError):
        assert_same_bits(restored, filled(some_of_each(), abstract(), made_by["seed"] + 1))


# --- what differs is named -----------------------------------------------------------------------

W = {"w": jax.ShapeDtypeStruct((2, 4), jnp.float32)}
B = {"b": jax.ShapeDtypeStruct((2, 4), jnp.float32)}
LONG = {"w": jax.ShapeDtypeStruct((2, 6), jnp.float32)}
BFLOAT16 = adam_jax.adam(0.1, nu_dtype=jnp.bfloat16)
BLOCKS = adam_jax.adam(0.1, nu_dtype=storage.eight_bit(4, min_size=0))
IN, AND = " in the checkpoint", " in the optimizer"
THEN = "; restore it as it is, and then take `convert_state`"

# What asks for the state of `adam` or of another, and what it is told.
DIFFERENT = {
    "member": (
        adam_jax.amsgrad(0.1),
        W,
        f"state[0] is ScaleByAdamState{IN}, ScaleByAmsgradState{AND}",
    ),
    "member with the same fields": (
        adam_jax.laprop(0.1),
        W,
        f"state[0] is ScaleByAdamState{IN}, ScaleByLapropState{AND}",
    ),
    "chain": (
        optax.chain(optax.clip(1.0), adam_jax.adam(0.1)),
        W,
        f"state[0].count, int32[]{IN}, is not{AND}'s state",
    ),
    "more": (
        optax.chain(*[optax.scale_by_adam()] * 2),
        W,
        f"state[1].count, int32[]{AND}'s state, is not{IN}",
    ),
    "leaf": (adam_jax.adam(0.1), B, f"state[0].mu['w'], float32[2, 4]{IN}, is not{AND}'s state"),
    "shape": (
        adam_jax.adam(0.1),
        LONG,
        f"state[0].mu['w'] is float32[2, 4]{IN}, and float32[2, 6]{AND}",
    ),
    "dtype": (
        BFLOAT16,
        W,
        f"state[0].nu['w'] is float32[2, 4]{IN}, and bfloat16[2, 4]{AND}{THEN}",
    ),
    "format": (
        BLOCKS,
        W,
        f"state[0].nu['w'] is float32[2, 4]{IN}, and eight_bit(block_size=4)[2, 4]{AND}{THEN}",
    ),
    "schedule": (
        adam_jax.adam(optax.constant_schedule(0.1)),
        W,
        f"state[1].count, int32[]{AND}'s state, is not{IN}",
    ),
}


# What has no arrays of its own, so that the same arrays lie in the same places as in `adam`.
SAME = {
    "adamw": (adam_jax.adamw(0.1), {}),
    "lamb": (adam_jax.lamb(0.1), {}),
    "a stage more": (
        optax.chain(*[adam_jax.scale_by_adam(), optax.scale(0.1)], optax.clip(1.0)),
        {},
    ),
    "a stage less": (optax.chain(adam_jax.scale_by_adam()), {}),
    "None": (adam_jax.adam(0.1), {"a": None, "z": None}),
}


@pytest.mark.parametrize("case", SAME)
def test_what_has_the_same_arrays_in_the_same_places_is_restored(saved, case):
    tx, more = SAME[case]
    restored = checkpoint.restore(saved, tx, W | more)
    assert_same_kind(restored, jax.eval_shape(tx.init, W | more))
    pairs = zip(*map(jax.tree.leaves, (restored, filled(adam_jax.adam(0.1), W))), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adam") / "state"
    checkpoint.save(folder, filled(adam_jax.adam(0.1), W))
    return folder


@pytest.mark.parametrize("case", DIFFERENT)
def test_another_state_is_refused_in_one_line_that_names_the_leaf(saved, case):
    tx, params, message = DIFFERENT[case]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        checkpoint.restore(saved, tx, params)
    assert str(caught.value) == f"the checkpoint at {saved} is another: {message}"


@pytest.mark.parametrize(
    ("one", "other"), [({"mu_dtype": storage.eight_bit(4, min_size=0)}, 8), ({}, 4)]
)
def test_another_block_size_is_refused(one, other):
    formed = storage.eight_bit(other, min_size=0)
    said = checkpoint.describe(jax.eval_shape(adam_jax.lion(0.1, **one).init, W))
    state = jax.eval_shape(adam_jax.lion(0.1, mu_dtype=formed).init, W)
    with pytest.raises(ValueError, match=r"^state\[0\]\.mu\['w'\] is .*eight_bit\(block_size=\d\)"):
        checkpoint.require_like(said, state)


def test_another_code_book_is_refused():
    state = jax.eval_shape(BLOCKS.init, W)
    said = json.loads(json.dumps(checkpoint.describe(state)))
    checkpoint.require_like(said, state)
    said["leaves"]["[0].nu['w']"]["book"] = "DynamicMap(decades=6, signed=False)"
    with pytest.raises(ValueError, match=r"^state\[0\]\.nu\['w'\] .*the arrays of the two differ$"):
        checkpoint.require_like(said, state)


def test_without_orbax_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    message = r"^checkpoints need Orbax: pip install 'adam_jax\[checkpoint\]'$"
    for call in (
        lambda: checkpoint.save(tmp_path / "a", ()),
        lambda: checkpoint.restore(tmp_path, adam_jax.adam(0.1), W),
        lambda: checkpoint.items(()),
    ):
        with pytest.raises(ImportError, match=message):
            call()
