"""`adam-jax memory` tells what `adam_jax.memory` does, of published models and the user's own."""

import json
import os
import subprocess
import sys

import jax
import pytest
from jax.sharding import AbstractMesh
from small_problem import LINE

import adam_jax
from adam_jax.race.cli import main
from adam_jax.race.models import MODELS

FORMATS = ["float32", "bfloat16", "eight_bit", "float8", "four_bit"]

# As published: Hugging Face's gpt2, gpt2-xl and meta-llama/Meta-Llama-3-8B and 70B; torchvision's
# vit_h_14 at 224 pixels (ViT_H_14_Weights.IMAGENET1K_SWAG_LINEAR_V1), 632M in Dosovitskiy 2021,
# Table 1.
PARAMETERS = {
    "gpt2-small": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "vit-h-14": 632_045_800,
}

# The least and the most bytes a parameter: codes, a scale a block, and small leaves in float32.
BOUNDS = {
    "float32": (8, 8.001),
    "bfloat16": (4, 4.001),
    "eight_bit": (2.03, 2.04),
    "float8": (2.06, 2.07),
    "four_bit": (1.06, 1.07),
}

OWN = """
import jax
import jax.numpy as jnp

print("a line of its own")

def arrays():
    return {"w": jnp.zeros((10**7, 10**6)), "b": jnp.zeros(())}

def shapes():
    return [jax.ShapeDtypeStruct((4096, 4), jnp.bfloat16)]

def scaled(key, scale=3.0):
    return scale * jax.random.normal(key, (8,))

def text():
    return {"w": jnp.zeros(3), "name": "line"}

def integers():
    return {"n": jnp.arange(3)}

def nothing():
    return {}

def broken():
    return {}["w"]

def two(key, size):
    return jnp.zeros(size)
"""


@pytest.fixture
def documented(capsys):
    def documented(*models):
        assert main(["memory", *models, "--json"]) == 0
        printed = capsys.readouterr()
        return json.loads(printed.out, parse_constant=pytest.fail)["models"]

    return documented


@pytest.mark.parametrize("name", MODELS)
def test_published_models_have_the_published_sizes(name):
    leaves = jax.tree.leaves(MODELS[name]())
    assert sum(leaf.size for leaf in leaves) == PARAMETERS[name]
    assert all(type(leaf) is jax.ShapeDtypeStruct for leaf in leaves)


@pytest.mark.exhaustive
def test_every_published_model_in_every_format(documented):
    models = documented()
    assert {model["model"]: model["parameters"] for model in models} == PARAMETERS
    for model in models:
        assert [cost["format"] for cost in model["formats"]] == FORMATS
        full = 8 * model["parameters"] + 4
        for cost in model["formats"]:
            low, high = BOUNDS[cost["format"]]
            assert low <= cost["bytes_per_parameter"] <= high
            assert cost["bytes_per_parameter"] == cost["state_bytes"] / model["parameters"]
            assert cost["state_bytes"] + cost["saved_bytes"] == full


def test_the_document_says_what_python_says(documented):
    (model,) = documented("gpt2-small")
    for cost in model["formats"]:
        stored = getattr(adam_jax.storage, cost["format"])()
        tx = adam_jax.adamw(1e-3, mu_dtype=stored, nu_dtype=stored)
        report = adam_jax.memory(tx, MODELS["gpt2-small"]())
        assert cost["state_bytes"] == report.total_bytes


def test_the_table(capsys):
    assert main(["memory", "gpt2-small", "llama3-8b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * len(FORMATS)
    assert lines[:3] == [
        "model          parameters  format     bytes/param.       state       saved",
        "gpt2-small    124,439,808  float32           8.000  949.40 MiB",
        "                           bfloat16          4.000  474.70 MiB  474.70 MiB",
    ]
    assert lines[6] == "llama3-8b   8,030,261,248  float32           8.000   59.83 GiB"


def test_what_each_device_holds_and_sends(capsys):
    assert main(["memory", "gpt2-small", "--devices", "8,64", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    params = MODELS["gpt2-small"]()
    for cost in model["formats"]:
        for part in cost["divided"]:
            mesh = AbstractMesh((part["devices"] // 8, 8), ("x", "y"))
            stored = getattr(adam_jax.storage, cost["format"])()
            tx = adam_jax.scale_by_adam(mu_dtype=stored, nu_dtype=stored)
            plan = adam_jax.sharding.plan(adam_jax.sharding.zero(tx, mesh, ("x", "y")), params)
            assert part["device_bytes"] == plan.device_bytes
    # Of 12 layers' 12 * 768**2 and the embeddings almost all is divided, but 50257 is odd.
    exact = [8 * 124_439_808 / n for n in (8, 64)]
    divided = [part["device_bytes"] for part in model["formats"][0]["divided"]]
    assert divided == pytest.approx(exact, rel=1e-6)
    size = 4 * 124_439_808
    for sent, n in zip(model["traffic"], (8, 64), strict=True):
        assert sent["sent_replicated"] == sent["sent_zero"] == 2 * (size * (n - 1) // n)
        assert sent["sent_divided"] == 3 * (size * (n - 1) // n)
        assert sent["held_divided"] * n == sent["held_replicated"] == 2 * size


def test_the_table_of_devices(capsys):
    assert main(["memory", "gpt2-small", "--devices", "8,512"]) == 0
    tables = [part.splitlines() for part in capsys.readouterr().out.split("\n\n")]
    assert tables[0][0].split()[-4:] == ["of", "8", "of", "512"]
    assert tables[1][0].split()[-4:] == ["8", "devices", "512", "devices"]
    assert [len(lines) for lines in tables] == [1 + len(FORMATS), 6]


@pytest.mark.parametrize("text", ["0", "8,", "8,x", "-8"])
def test_numbers_of_devices(capsys, text):
    assert main(["memory", "gpt2-small", f"--devices={text}"]) == 2
    assert "must be a positive integer" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1" + 30 * "0", 5000 * "1"])
def test_more_devices_than_there_are(capsys, text):
    assert main(["memory", "gpt2-small", "--devices", f"8,{text}"]) == 2
    error = f"adam-jax: error: argument --devices: must be at most 1,000,000, got {text!r}\n"
    assert capsys.readouterr() == ("", error)


def test_a_model_named_twice_is_shown_once(documented):
    assert [model["model"] for model in documented("vit-h-14", "vit-h-14")] == ["vit-h-14"]


@pytest.mark.parametrize(
    ("function", "parameters"), [("arrays", 10**13 + 1), ("shapes", 4096 * 4), ("scaled", 8)]
)
def test_models_of_ones_own(documented, write, function, parameters):
    spec = f"{write(OWN)}:{function}"
    (model,) = documented(spec)
    assert (model["model"], model["parameters"]) == (spec, parameters)
    assert model["formats"][0]["state_bytes"] == 8 * parameters + 4


def test_a_problem_and_a_module(documented, write, monkeypatch):
    path = write(LINE)
    monkeypatch.syspath_prepend(os.path.dirname(path))
    models = documented(f"{path}:init", "line:init")
    assert [model["parameters"] for model in models] == [4, 4]


def test_what_a_users_file_prints_is_not_in_the_document(capsys, write):
    assert main(["memory", f"{write(OWN)}:shapes", "--json"]) == 0
    printed = capsys.readouterr()
    json.loads(printed.out)
    assert printed.err == "a line of its own\n"


KNOWN = "gpt2-small, gpt2-xl, llama3-8b, llama3-70b, vit-h-14"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "gpt5",
            f"model must be one of {KNOWN}, or file.py:function or module:function; got 'gpt5'",
        ),
        ("", f"model must be one of {KNOWN}, or file.py:function or module:function; got ''"),
        (
            "gpt2-xl:arrays",
            f"model must be one of {KNOWN}, or file.py:function or module:function;"
            " got 'gpt2-xl:arrays'",
        ),
        (
            "no_such_module:make",
            "cannot import no_such_module: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("math:pi", "model 'math:pi': no function 'pi' there"),
    ],
)
def test_no_such_model(capsys, spec, message):
    assert main(["memory", "gpt2-small", spec]) == 2
    assert capsys.readouterr() == ("", f"adam-jax: error: {message}\n")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("absent", "model {!r}: no function 'absent' there"),
        (
            "text",
            "model {!r} has no Adam state: TypeError:"
            " params['name'] must be an array or a jax.ShapeDtypeStruct, got 'line'",
        ),
        (
            "integers",
            "model {!r} has no Adam state: TypeError:"
            " params['n'] must be floating or complex, got int32",
        ),
        ("nothing", "model {!r} must have parameters, got none"),
        ("broken", "model {!r} failed: line.py:26: KeyError: 'w'"),
        (
            "two",
            "model {!r} failed: TypeError: two() missing 1 required positional argument: 'size'",
        ),
    ],
)
def test_models_that_cannot_be_used(capsys, write, function, message):
    spec = f"{write(OWN)}:{function}"
    assert main(["memory", spec, "--json"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"adam-jax: error: {message.format(spec)}"


def test_a_missing_file(capsys, tmp_path):
    assert main(["memory", f"{tmp_path / 'absent.py'}:make"]) == 2
    assert capsys.readouterr().err == f"adam-jax: error: no such file: {tmp_path / 'absent.py'}\n"


def test_no_extra_is_needed():
    program = "import sys; sys.modules.update(dict.fromkeys(['rich', 'matplotlib', 'sklearn'])); "
    program += "from adam_jax.race.cli import main; sys.exit(main(['memory', 'gpt2-small']))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "124,439,808" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "json"])
def test_output_that_cannot_be_written(form):
    command = [sys.executable, "-m", "adam_jax", "memory", "gpt2-small", *form]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "adam-jax: error: cannot print the results: No space left on device\n"
