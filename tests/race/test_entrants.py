"""Entrants with a storage format: ``adamw:eight_bit`` is what its name says, in every array."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import assert_close, gradients, moved, parameters

import adam_jax
from adam_jax import storage
from adam_jax.race import entrants, problem
from adam_jax.race.cli import main
from adam_jax.race.results import Outcome
from adam_jax.race.runner import Settings, race

FORMATS = {
    "float32": storage.float32(),
    "bfloat16": storage.bfloat16(),
    "eight_bit": storage.eight_bit(min_size=0),
    "float8": storage.float8(min_size=0),
    "four_bit": storage.four_bit(min_size=0),
}
WIDE = """
import jax, jax.numpy as jnp
data, batch_size, epochs = jnp.ones((4, 3)), 2, 1
def init(key): return {"w": jnp.ones((3, 1000)), "v": jnp.ones((100, 3)), "b": jnp.ones(())}
def loss(params, x): return jnp.mean((x @ params["w"]) ** 2) + sum(map(jnp.sum, params.values()))
"""


def built(spec, rate=0.1):
    (entrant,) = entrants.load(spec)
    assert entrant.name == spec
    return entrant.build(rate)


@pytest.mark.costly
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_both_moments_of_every_array_are_in_the_format(optimizer, name):
    stored = FORMATS[name]
    made = getattr(adam_jax, optimizer)(0.1, mu_dtype=stored, nu_dtype=stored)
    params = parameters()
    stream = gradients(5, params)
    found = moved(built(f"{optimizer}:{name}"), params, stream)
    assert_close(found, moved(made, params, stream))
    for moment in (found[1][0].mu, found[1][0].nu):
        arrays = jax.tree.leaves(moment, is_leaf=lambda x: isinstance(x, storage.Blocks))
        assert all(stored.holds(array) for array in arrays)


def test_by_default_the_package_leaves_small_arrays_in_float32():
    """The twin: what the race does differently, and says so in its help."""
    tx = adam_jax.adam(0.1, mu_dtype=storage.eight_bit(), nu_dtype=storage.eight_bit())
    assert {x.dtype for x in jax.tree.leaves(tx.init(parameters())[0].mu)} == {jnp.dtype("float32")}


def test_every_format_of_the_package_can_race():
    functions = {name for name in storage.__all__ if name.islower()}
    assert set(storage.FORMATS) == functions == set(FORMATS)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FORMATS)
def test_state_bytes_are_those_of_the_arrays(write, name):
    path = write(WIDE)
    events = race(problem.load(path), entrants.load(f"adam:{name}"), Settings((0.1, 1.0), 2, 1))
    (outcome,) = (event for event in events if isinstance(event, Outcome))
    params = problem.load(path).init(jax.random.key(0))
    state = built(f"adam:{name}").init(params)
    held = sum(np.asarray(array).nbytes for array in jax.tree.leaves(state))
    assert outcome.state_bytes == held / 3301


@pytest.mark.exhaustive
def test_state_bytes_by_hand(write):
    """Blocks of 256: four a row of 1000, one a row of 3, one for the number; a count of 4 bytes."""
    events = race(
        problem.load(write(WIDE)), entrants.load("adam:eight_bit"), Settings((0.1,), 1, 1)
    )
    (outcome,) = (event for event in events if isinstance(event, Outcome))
    assert outcome.state_bytes * 3301 == pytest.approx(2 * (3301 + 4 * (3 * 4 + 100 + 1)) + 4)


@pytest.mark.exhaustive
def test_raced_beside_one_another(write, capsys):
    names = "adamw,adamw:eight_bit,adam:bfloat16"
    assert main(["race", write(), "--entrants", names, "--json"]) == 0
    standings = json.loads(capsys.readouterr().out)["standings"]
    assert {row["entrant"] for row in standings} == set(names.split(","))


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("adam:nine_bit", "must be one of float32, bfloat16, eight_bit, float8, four_bit, got 'n"),
        ("adam:", "format must be one of float32, bfloat16"),
        ("adam:Blocks", "format must be one of float32, bfloat16"),
        ("sgd:eight_bit", "'sgd:eight_bit': sgd has no storage formats; those of `adam-jax"),
        ("sgd:nine_bit", "sgd has no storage formats"),
        ("adma:eight_bit", "cannot import adma"),
        ("adam:eight_bit,adam:eight_bit", "each once, got 'adam:eight_bit' 2 times"),
    ],
)
def test_refused_in_one_line(write, capsys, spec, rule):
    assert main(["race", write(), "--entrants", spec]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("adam-jax: error: ")
    assert rule in printed.err
    assert printed.err.count("\n") == 1


def test_a_file_named_like_one_of_ours(write):
    """The colon of a file's function is no format."""
    path = write("import optax\nfrom optax import sgd as eight_bit\n", "adam.py")
    assert built(f"{path}:eight_bit").init({}) == built("sgd").init({})


def test_the_help_tells(capsys):
    with pytest.raises(SystemExit):
        main(["race", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "`adam-jax optimizers`, which with :FORMAT have both moments of every array, small ones too"
        in told
    )
    assert "eight_bit" in told
