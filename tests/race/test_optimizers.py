"""`adam-jax optimizers` lists the family, and the whole of it can race."""

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from training import gradients, moved, parameters

import adam_jax
from adam_jax import optimizers as package
from adam_jax import wrappers
from adam_jax.race import entrants, optimizers
from adam_jax.race.cli import main
from adam_jax.race.members import MEMBERS
from adam_jax.storage import FORMATS

# Bytes of state a parameter: a moment of float32 is 4 of them, and a block's mean square nearly 0.
BYTES = {"adam_mini": 4, "lion": 4, "adan": 16} | dict.fromkeys(
    ["ademamix", "amsgrad", "amsgradw", "mars"], 12
)


@pytest.fixture
def listed(capsys):
    assert main(["optimizers", "--json"]) == 0
    return {each.pop("name"): each for each in json.loads(capsys.readouterr().out)["optimizers"]}


def functions(folder):
    """The public functions of a package's modules, but for directions, which are no optimizers."""
    for module in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            own = inspect.isfunction(value) and value.__module__ == module.name
            if own and not name.startswith(("_", "scale_by_")) and name in adam_jax.__all__:
                yield name


def test_everyone_is_listed(listed):
    assert list(listed) == sorted(functions(package)) + sorted(functions(wrappers))
    assert {"adam", "adamw", "lion", "adam_mini", "stable_adamw", "cautious"} < set(listed)
    assert not {"lift", "memory", "scale_by_adam", "master_weights"} & set(listed)


def test_each_has_a_paper(listed):
    for each in listed.values():
        assert each["does"]
        for paper in each["papers"]:
            assert set(paper) == {"authors", "year", "title", "url"}
            assert 2014 <= paper["year"] <= 2100
            assert paper["url"].startswith("https://")
            assert not paper["url"].endswith((".", ","))
        assert each["papers"]


def test_what_is_told_of_some(listed):
    loshchilov = {
        "authors": "Loshchilov & Hutter",
        "year": 2019,
        "title": "Decoupled Weight Decay Regularization",
        "url": "https://arxiv.org/abs/1711.05101",
    }
    assert listed["adamw"]["papers"] == [loshchilov]
    assert listed["nadamw"]["papers"] == [*listed["nadam"]["papers"], loshchilov]
    assert [paper["year"] for paper in listed["adam"]["papers"]] == [2015]  # its variant is not it
    assert listed["yogi"]["does"] == "Adam whose mean square comes down slowly"
    assert listed["adamw"]["does"].startswith("Adam with decoupled weight decay: parameters also")
    assert listed["grams"]["does"].startswith("around adam: give each entry")


def test_what_their_state_costs(listed):
    found = {name: each["state_bytes_per_parameter"] for name, each in listed.items()}
    assert found == pytest.approx({name: BYTES.get(name, 8) for name in found}, abs=0.01)


def test_a_line_each(capsys, listed):
    assert main(["optimizers"]) == 0
    header, *lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert header.split() == ["optimizer", "bytes", "what", "it", "does", "paper", "title"]
    assert [line.split()[0] for line in lines] == list(listed)
    for line, each in zip(lines, listed.values(), strict=True):
        assert each["does"] in line
        assert line.endswith(each["papers"][0]["title"])
    starts = [line.index(each["does"]) for line, each in zip(lines, listed.values(), strict=True)]
    assert len(set(starts)) == 1


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_it_is_folded(listed, width):
    lines = optimizers.table(list(MEMBERS.values()), width).splitlines()
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[1:] if line[0] != " "] == list(listed)
    assert "Loshchilov & Hutter 2019" in "\n".join(lines)


def test_a_terminal_of_no_width_is_no_error():
    assert "Kingma" in optimizers.table(list(MEMBERS.values()), 1)


@pytest.mark.parametrize("arguments", [["adam"], ["--jsn"]])
def test_bad_arguments(capsys, arguments):
    assert main(["optimizers", *arguments]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)


def test_no_extra_is_needed():
    program = "import sys; sys.modules.update(dict.fromkeys(['rich', 'matplotlib', 'sklearn'])); "
    program += "from adam_jax.race.cli import main; sys.exit(main(['optimizers']))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "stable_adamw" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written():
    command = [sys.executable, "-m", "adam_jax", "optimizers"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "adam-jax: error: cannot print the results: No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="needs a shell that closes streams")
@pytest.mark.parametrize(("arguments", "status"), [("optimizers", 0), ("optimizers --fast", 2)])
def test_streams_that_are_closed(arguments, status):
    command = f'"{sys.executable}" -m adam_jax {arguments} >&- 2>&-'
    assert subprocess.run(command, shell=True, check=False).returncode == status


def test_all_is_everyone():
    names = [entrant.name for entrant in entrants.load("all")]
    assert sorted(names) == sorted([*MEMBERS, *entrants.OPTAX])
    assert tuple(names[:7]) == entrants.DEFAULT
    assert ",".join(names[:7]) == "adam,adamw,sgd,momentum,adagrad,rmsprop,adadelta"


def test_all_leaves_out_what_is_named_beside_it():
    names = [entrant.name for entrant in entrants.load("lion,all,adam:four_bit")]
    assert (names[0], names[-1]) == ("lion", "adam:four_bit")
    assert sorted(names) == sorted([*entrants.BUILT_IN, "adam:four_bit"])


@pytest.mark.exhaustive
def test_everyone_trains(capsys, write):
    choice = ["--seeds", "1", "--learning-rates", "0.01,0.1,1"]
    assert main(["race", write(), "--entrants", "all", "--json", *choice]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    rows = {row["entrant"]: row for row in found["standings"]}
    assert set(rows) == set(entrants.BUILT_IN)
    started = {run["entrant"]: run["initial_loss"] for run in found["runs"]}
    assert not [run for run in found["runs"] if run["diverged"] and run["entrant"] in MEMBERS]
    for name, row in rows.items():
        share = 0.9 if name in MEMBERS else 1.0  # Optax's AdaDelta starts slowly
        assert row["final_loss"] < share * started[name], name


@pytest.mark.costly
@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("member", MEMBERS)
def test_everyone_in_every_format(member, stored):
    """State abstractly: what the formats do to numbers, the contract tests."""
    params = {"w": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
    (plain,), (small,) = entrants.load(member), entrants.load(f"{member}:{stored}")
    costs = [adam_jax.memory(each.build(0.1), params).total_bytes for each in (plain, small)]
    if stored == "float32":
        assert costs[0] == costs[1]
    else:
        assert costs[1] < 0.6 * costs[0]


def test_a_wrapper_is_around_adam():
    params = parameters()
    stream = gradients(3, params)
    own = adam_jax.cautious(adam_jax.adam(0.1, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16))
    (entrant,) = entrants.load("cautious:bfloat16")
    found, expected = (moved(tx, params, stream) for tx in (entrant.build(0.1), own))
    assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), found, expected))


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("adamww", "no entrant 'adamww'; did you mean adamw, radamw or nadamw?"),
        ("Stable-AdamW", "no entrant 'Stable-AdamW'; did you mean stable_adamw"),
        ("sdg", "no entrant 'sdg'; did you mean sgd?"),
        ("alll", "no entrant 'alll'; did you mean all?"),
        ("grms:four_bit", "No module named 'grms'; did you mean grams:four_bit?"),
        ("all,all", "each once, got 'all' 2 times"),
        ("xyzzy", "no entrant 'xyzzy'; it must be all, one of `adam-jax optimizers` with or "),
    ],
)
def test_typos(capsys, write, spec, line):
    assert main(["race", write(), "--entrants", spec]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert len(error) < 250
