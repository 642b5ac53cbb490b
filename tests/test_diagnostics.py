"""What a state costs is what its arrays weigh, and each of them is counted where it belongs."""

from math import isnan
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import FORMATS

import adam_jax

PARAMS = {"w": jnp.ones((3, 4)), "b": jnp.ones(4, jnp.bfloat16), "deep": [{"s": jnp.ones(())}]}


def labelled(labels):
    groups = {"adam": adam_jax.adam(1e-3), "sgd": optax.sgd(1e-3, momentum=0.9)}
    return optax.multi_transform(groups, labels)


def is_matrix(params):
    return jax.tree.map(lambda p: p.ndim == 2, params)


def held(tx, params=PARAMS):
    return {row.path: dict(row.bytes) for row in adam_jax.memory(tx, params).parameters}


TRANSFORMATIONS = {
    "adafactor": optax.adafactor(1e-3),
    "chain": optax.chain(optax.trace(0.9), optax.trace(0.8), optax.scale(2.0)),
    "flatten": optax.flatten(optax.adam(1e-3)),
    "hyperparameters": optax.inject_hyperparams(optax.adam)(1e-3),
    "lbfgs": optax.lbfgs(memory_size=2),
    "masked": optax.masked(optax.adam(1e-3), is_matrix),
    "multi_steps": optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation(),
    "multi_transform": labelled(
        lambda p: jax.tree.map(lambda m: "adam" if m else "sgd", is_matrix(p))
    ),
    "noise": optax.add_noise(0.1, 0.1, 0),
    "prodigy": optax.contrib.prodigy(),
    "schedule": optax.adamw(optax.constant_schedule(1e-3)),
    "stateless": optax.sgd(1e-3),
} | {name: adam_jax.adamw(1e-3, **row.arguments) for name, row in FORMATS.items()}

TREES = {
    "tree": PARAMS,
    "tuple": (jnp.ones((2, 3)), jnp.ones(3)),
    "one array": jnp.ones((256, 130)),
    "scalar": jnp.ones(()),
    "None": {"w": jnp.ones(2), "b": None},
    "zero-size": [jnp.ones((0, 3)), jnp.ones(1)],
    "NumPy": [np.ones((2, 2), np.float32)],
}


def weight(x):
    return (
        jax.random.key_data(x).nbytes if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.nbytes
    )


@pytest.mark.costly
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_total_is_what_the_arrays_weigh(name, tree):
    tx, params = TRANSFORMATIONS[name], TREES[tree]
    report = adam_jax.memory(tx, params)
    state = jax.tree.leaves(tx.init(params))
    assert report.total_bytes == sum(weight(x) for x in state)
    assert report.size == sum(np.size(p) for p in jax.tree.leaves(params))
    assert report.bytes_per_parameter == report.total_bytes / report.size
    assert {name for row in report.parameters for name in row.bytes} == set(report.moments)


@pytest.mark.parametrize("tree", TREES)
def test_adams_moments_belong_to_their_parameters(tree):
    report = adam_jax.memory(adam_jax.adam(1e-3), TREES[tree])
    leaves = jax.tree_util.tree_leaves_with_path(TREES[tree])
    assert report.moments == ("mu", "nu")
    assert list(report.other.values()) == [4]  # the count
    assert [row.path for row in report.parameters] == [
        jax.tree_util.keystr(path) for path, _ in leaves
    ]
    for row, (_, p) in zip(report.parameters, leaves, strict=True):
        assert row.shape == p.shape
        assert row.bytes == {"mu": 4 * p.size, "nu": 4 * p.size}
        assert row.total_bytes == 8 * row.size


@pytest.mark.parametrize(
    ("stored", "size"),
    [
        (adam_jax.storage.bfloat16(), 2 * 64 * 512),
        (adam_jax.storage.eight_bit(), 64 * 512 + 4 * 64 * 2),
        (adam_jax.storage.float8(), 64 * 512 + 4 * 64 * 4),
        (adam_jax.storage.four_bit(), 64 * 512 // 2 + 4 * 64 * 4),
    ],
)
def test_a_stored_moment_counts_with_all_its_arrays(stored, size):
    tx = adam_jax.adam(1e-3, mu_dtype=stored)
    for params, path in (({"w": jnp.ones((64, 512))}, "['w']"), (jnp.ones((64, 512)), "")):
        assert held(tx, params) == {path: {"mu": size, "nu": 4 * 64 * 512}}


def test_what_belongs_to_no_parameter_is_named():
    tx = optax.inject_hyperparams(adam_jax.adam, static_args=("seed",))(1e-3)
    other = adam_jax.memory(tx, {"w": jnp.ones((3, 4))}).other
    assert other[".inner_state[0].count"] == 4
    assert other[".hyperparams['learning_rate']"] == 4


# A mask may end above the leaves: one `MaskedNode` then stands for a part of the tree.
@pytest.mark.parametrize("deep", [False, [{"s": False}]])
def test_masked_parameters_have_no_state(deep):
    mask = {"w": True, "b": False, "deep": deep}
    assert held(optax.masked(adam_jax.adam(1e-3), mask)) == {
        "['b']": {},
        "['deep'][0]['s']": {},
        "['w']": {"mu": 48, "nu": 48},
    }


def test_groups_share_a_column():
    tx = labelled({"w": "adam", "b": "sgd", "deep": "adam"})
    assert held(tx) == {
        "['b']": {"trace": 8},
        "['deep'][0]['s']": {"mu": 4, "nu": 4},
        "['w']": {"mu": 48, "nu": 48},
    }
    both = optax.multi_transform(
        {"fast": adam_jax.adam(1e-2), "slow": adam_jax.adam(1e-3)},
        {"w": "fast", "b": "slow", "deep": "slow"},
    )
    assert adam_jax.memory(both, PARAMS).moments == ("mu", "nu")


def test_groups_that_are_called_as_their_parameters_are():
    params = {"adam": jnp.ones(2), "sgd": jnp.ones(3)}
    tx = labelled({"adam": "adam", "sgd": "sgd"})
    assert held(tx, params) == {"['adam']": {"mu": 8, "nu": 8}, "['sgd']": {"trace": 12}}


def test_one_name_twice_is_told_apart_by_its_place():
    report = adam_jax.memory(optax.chain(optax.trace(0.9), optax.trace(0.8)), PARAMS)
    assert report.moments == ("[0].trace", "[1].trace")
    assert report.parameters[-1].bytes == {"[0].trace": 48, "[1].trace": 48}


def test_a_chain_of_as_many_parts_as_there_are_parameters():
    params = (jnp.ones(2), jnp.ones(3))
    tx = optax.chain(optax.trace(0.9), optax.scale_by_schedule(lambda count: count))
    assert held(tx, params) == {"[0]": {"trace": 8}, "[1]": {"trace": 12}}


def test_moments_of_another_shape():
    found = held(optax.adafactor(1e-3), {"w": jnp.ones((256, 130))})
    assert sorted(found["['w']"].items()) == [("v", 4), ("v_col", 4 * 256), ("v_row", 4 * 130)]
    found = held(optax.lbfgs(memory_size=5), {"w": jnp.ones(3)})
    assert found["['w']"]["diff_params_memory"] == 4 * 5 * 3


class Bag(NamedTuple):
    averages: Any
    steps: Any


@pytest.mark.parametrize(
    ("state", "moments"),
    [
        (lambda p: p, ("state",)),
        (lambda p: (p, ()), ("[0]",)),
        (lambda p: Bag([p, p], 0), ("averages[0]", "averages[1]")),
        (lambda p: Bag({"ema": p}, jnp.zeros(())), ("ema",)),
        (lambda p: Bag({1: p}, ()), ("averages[1]",)),
    ],
)
def test_moments_are_named_by_their_last_field(state, moments):
    tx = optax.GradientTransformation(state, lambda g, s, p=None: (g, s))
    assert adam_jax.memory(tx, PARAMS).moments == moments


def test_nothing_is_allocated():
    params = {"w": jax.ShapeDtypeStruct((10**6, 10**6), jnp.bfloat16), "b": jnp.ones(2)}
    before = len(jax.live_arrays())
    report = adam_jax.memory(adam_jax.adam(1e-3), params)
    assert report.total_bytes == 8 * 10**12 + 16 + 4
    assert len(jax.live_arrays()) == before


def test_a_tree_without_parameters():
    report = adam_jax.memory(adam_jax.adam(1e-3), {})
    assert (report.parameters, report.total_bytes, report.size) == ((), 4, 0)
    assert isnan(report.bytes_per_parameter)
    assert str(report).splitlines()[-1] == "0 parameters"


def test_the_table():
    tx = labelled({"w": "adam", "b": "sgd", "deep": "adam"})
    shown = str(adam_jax.memory(tx, PARAMS | {"w": jnp.ones((1000, 300))}))
    assert (
        shown
        == """\
parameter         shape              mu        nu  trace     total
['w']             (1000, 300)  1.14 MiB  1.14 MiB         2.29 MiB
['b']             (4,)                               8 B       8 B
['deep'][0]['s']  ()                4 B       4 B              8 B
other                                                          4 B
total                          1.14 MiB  1.14 MiB    8 B  2.29 MiB

300,005 parameters, 8.00 bytes a parameter"""
    )


def test_a_bare_array_and_a_state_of_moments_alone():
    assert (
        str(adam_jax.memory(optax.trace(0.9), jnp.ones(256)))
        == """\
parameter  shape      trace     total
params     (256,)  1.00 KiB  1.00 KiB
total              1.00 KiB  1.00 KiB

256 parameters, 4.00 bytes a parameter"""
    )


def test_of_many_parameters_the_largest_are_shown():
    params = [jax.ShapeDtypeStruct((size,), jnp.float32) for size in range(1, 26)]
    lines = str(adam_jax.memory(optax.trace(0.9), params)).splitlines()
    assert lines[1].split() == ["[24]", "(25,)", "100", "B", "100", "B"]
    assert lines[20].split() == ["[5]", "(6,)", "24", "B", "24", "B"]
    assert lines[21].split() == ["and", "5", "more", "60", "B", "60", "B"]
    assert lines[22].split() == ["total", "1.27", "KiB", "1.27", "KiB"]
    assert len(lines) == 25
    rows = adam_jax.memory(optax.trace(0.9), params[:20])
    assert "more" not in str(rows)


@pytest.mark.parametrize(
    ("tx", "params", "message"),
    [
        (3, PARAMS, "`tx` must be an Optax transformation, got 3"),
        (PARAMS["w"], optax.trace(0.9), "`tx` must be an Optax transformation, got float32[3, 4]"),
        (
            optax.trace(0.9),
            {"w": ["text"]},
            "params['w'][0] must be an array or a jax.ShapeDtypeStruct, got 'text'",
        ),
        (
            optax.trace(0.9),
            {"w": np.array(["text"])},
            "params['w'] must be an array or a jax.ShapeDtypeStruct, got <U4[1]",
        ),
        (
            adam_jax.adam(1e-3),
            {"n": jnp.arange(3)},
            "params['n'] must be floating or complex, got int32",
        ),
    ],
)
def test_bad_input(tx, params, message):
    with pytest.raises(TypeError) as caught:
        adam_jax.memory(tx, params)
    assert str(caught.value) == message


def test_numbers_are_parameters_too():
    assert held(optax.trace(0.9), {"w": 1.0}) == {"['w']": {"trace": 4}}
