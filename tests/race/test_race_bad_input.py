"""Whatever cannot be raced is refused in one line, with status 2, and leaves nothing behind."""

import os
import subprocess
import sys

import jax
import pytest
from small_problem import LINE

from adam_jax.race import entrants, limit, problem, runner
from adam_jax.race.cli import main
from adam_jax.race.errors import UsageError


@pytest.fixture
def refused(refused_by):
    return refused_by("race")


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--entrants", "adma"], "no entrant 'adma'; did you mean "),
        (["--entrants", ""], "no entrant ''; it must be all, one of `adam-jax optimizers`"),
        (["--entrants", "adam,sgd,adam"], "each once, got 'adam' 2 times"),
        (["--entrants", "adam:nine_bit"], "format must be one of float32, bfloat16, eight_bit"),
        (["--entrants", ":x"], "no entrant ':x'; it must be all"),
        (["--entrants", "no_such_module:make"], "No module named 'no_such_module'"),
        (["--entrants", "optax:no_such_function"], "no function 'no_such_function'"),
        (["--entrants", "missing.py:make"], "no such file"),
        (["--entrants", f"{'x' * 300}.py:make"], "no such file"),
        (["--entrants", "optax:safe_norm"], "must take a (traced) learning rate"),
        (["--entrants", "math:sqrt"], "must take a (traced) learning rate"),
        (["--learning-rates", "fast"], "must be a list such as 0.001,0.01 or lowest:highest"),
        (["--learning-rates", "1:0.1:3"], "lowest:highest:count"),
        (["--learning-rates", "0:1:3"], "lowest:highest:count"),
        (["--learning-rates", "0.1:1:1"], "lowest:highest:count"),
        (["--learning-rates", "0.1:1"], "lowest:highest:count"),
        (["--learning-rates", "0.1,-0.1"], "positive and finite in float32, got '0.1,-0.1'"),
        (["--learning-rates", "0.1,1e-46"], "positive and finite in float32"),
        (["--learning-rates", "1e-40"], "positive and finite in float32"),  # flushed to 0
        (["--learning-rates", "1e39"], "positive and finite in float32"),
        (["--learning-rates", "0.1,0.10000000001"], "must differ from one another in float32"),
        (["--learning-rates", "nan"], "positive and finite"),
        (["--learning-rates", "0.1,0.1"], "must differ"),
        (["--learning-rates", "1e-4:1:1000000000"], "must be at most 1000 of them, got more"),
        (["--seeds", "99999999999999999999"], "at most 1,000, got '99999999999999999999'"),
        (["--epochs", "1" + 400 * "0"], "at most 1,000,000,000"),
        (["--seeds", 5000 * "1"], "at most 1,000, got '111"),
        (["--seeds", "0"], "positive integer, got '0'"),
        (["--seeds", "many"], "positive integer, got 'many'"),
        (["--epochs", "-3"], "--epochs"),
        (["--target", "nan"], "finite number, got 'nan'"),
        (["--time-limit", "0"], "positive number of seconds, got '0'"),
        (["--time-limit", "soon"], "finite number, got 'soon'"),
        (["--fast"], "--fast"),
    ],
)
def test_arguments(refused, write, arguments, rule):
    assert rule in refused(write(), *arguments)


def test_arguments_that_do_not_go_together(capsys, write):
    assert main(["race", write(), "--fresh"]) == 2
    assert "--fresh must come with --out" in capsys.readouterr().err
    assert main(["race", f"{write()},digits", "--target", "1"]) == 2
    assert "--target must be for one problem, got 2" in capsys.readouterr().err


def test_no_command(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("several", "rule"),
    [
        ("digits,digit", "got 'digit'"),
        ("digits,", "got ''"),
        ("all,digits,all", "named once, got 'all' 2 times"),
        ("digits,here.py", "no such file"),
        (",".join(f"problem_{index}" for index in range(99)), "got 'problem_0'"),
    ],
)
def test_no_such_problem_among_several(refused, several, rule):
    assert rule in refused(several)


@pytest.mark.parametrize(
    "problem", ["digit", "nowhere/problem.py", "folder.py", "", f"{'x' * 300}.py"]
)
def test_no_such_problem(refused, tmp_path, monkeypatch, problem):
    (tmp_path / "folder.py").mkdir()
    monkeypatch.chdir(tmp_path)
    assert problem in refused(problem)


def changed(old, new):
    assert old in LINE
    return LINE.replace(old, new)


NO_DATA = changed("data = ", "_data = ").replace("batch_size = 8", "")
BATCHES = NO_DATA + "\ndef batches(key):\n    "


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("", "has no `init`"),
        (changed("def loss", "def lose"), "line.py: has no `loss`"),
        (changed("def init", "init = 1\ndef _"), "must be a function: `init`"),
        (changed("import jax\n", "import jax\nimport no_such_module\n"), "line.py:4: Module"),
        ("def init(key:\n", "line.py:1: SyntaxError"),
        ("raise SystemExit(3)", "line.py:1: SystemExit: 3"),
        ("raise ValueError('two\\nlines')", "line.py:1: ValueError: two"),
        ("raise GeneratorExit", "line.py:1: GeneratorExit"),
        ("class E(Exception): __str__ = None\nraise E", "line.py:2: E\n"),
        (
            changed("return jnp.mean(", "return ("),
            "must return a floating-point scalar, got float32[8]",
        ),
        (changed("return jnp.mean(", "return jnp.argmax("), "floating-point scalar, got int32[]"),
        (changed("return jnp.mean(", "return jnp.nan * jnp.mean("), "is nan before the first step"),
        (changed("return jnp", "return 1.0, jnp"), "floating-point scalar, got tuple"),
        (changed("    x, y = batch", "    x, y, z = batch"), "line.py:16: ValueError: not enough"),
        (changed("return jnp.mean(", "return float("), "`loss` failed: line.py:17: "),
        (changed("jnp.zeros(())}", "1}"), "params['b'] must be floating-point, got int32"),
        (changed("jnp.zeros(())}", "'one'}"), "`init` failed"),
        (changed('return {"w"', 'return {} and {"w"'), "must return parameters, got none"),
        (changed('return {"w": jax', 'return {"w": jnp.zeros((0, 3))} or {"w": jax'), "got none"),
        (changed("batch_size = 8", "batch_size = True"), "positive integer, got True"),
        (changed("batch_size = 8", "batch_size = 0"), "positive integer, got 0"),
        (changed("batch_size = 8", "batch_size = 8.0"), "positive integer, got 8.0"),
        (changed("batch_size = 8", "batch_size = 41"), "at most the length of `data`, 40, got 41"),
        (changed("batch_size = 8", ""), "has `data` but no `batch_size`"),
        (changed("data = (x, x ", "data = (x[:9], x "), "first axis, got lengths [9, 40]"),
        (changed("data = (", "data = 3; _ = ("), "`data` must be arrays, got int"),
        (changed("data = (", "class A: shape = 3\ndata = A(); _ = ("), "must be arrays: TypeError"),
        (
            changed("data = (", "import numpy; data = numpy.array(['a'] * 9); _ = ("),
            "must be arrays",
        ),
        (changed('"b": jnp', 'f"b{key}": x, "b": jnp'), "one shape for every key"),
        (NO_DATA, "must have either `batches`, or `data` and `batch_size`"),
        (LINE + "\ndef batches(key): pass", "must have either"),
        (BATCHES + "return []", "must yield the batches of one epoch, got none"),
        (BATCHES + "return None", "`batches` failed: TypeError"),
        (BATCHES + "yield from (_data, (x[:3], x[:3, 0]))", "batch 1 is float32[3, 3], float32[3]"),
        (BATCHES + "yield 'text'", "line.py: "),
        (BATCHES + "import itertools; return itertools.repeat(1.0)", "got more than 100000"),
        (changed("epochs = 3", "epochs = 0"), "`epochs` must be a positive integer, got 0"),
        (changed("[0.01, 0.1]", "'1:2'"), "`learning_rates` must be a list"),
        (changed("[0.01, 0.1]", "0.1"), "`learning_rates` must be a list"),
        (changed("[0.01, 0.1]", "[-1.0]"), "positive and finite"),
        (changed("[0.01, 0.1]", "range(1, 10**12)"), "`learning_rates` must be at most 1000 of"),
        (changed("[0.01, 0.1]", "[10**400]"), "`learning_rates` must be a list"),
        (changed('{"bias_error":', '{"bias_error",'), "`evaluate` must return a dict"),
        (changed("abs(float(", "abs(str("), "`evaluate` failed"),
    ],
)
def test_problem_files(refused, write, source, rule):
    assert rule in refused(write(source))


def test_an_entrant_that_cannot_be_run_does_not_take_the_others_along(capsys, write, monkeypatch):
    calls = iter(range(9))

    def losses(track, *arguments):
        if next(calls) == 5:  # sgd asks four times in its three epochs
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile ...")
        return measured(track, *arguments)

    measured = runner.Track.losses
    monkeypatch.setattr(runner.Track, "losses", losses)
    assert main(["race", write(), "--entrants", "sgd,adam,momentum"]) == 2
    printed = capsys.readouterr()
    assert "Lowest loss: " in printed.out
    first, second, third = printed.err.splitlines()
    assert first.startswith("sgd: done, 1 of 3")
    assert second == (
        "adam-jax: error: entrant 'adam' cannot be run: RESOURCE_EXHAUSTED: Out of memory"
    )
    assert third.startswith("momentum: done, 3 of 3")


def test_a_callback_that_raises(capsys, write):
    source = changed("    x, y = batch", "    x, y = batch\n    jax.debug.callback(boom)")
    source += "def boom(): raise ValueError('boom')\n"
    assert main(["race", write(source), "--entrants", "sgd", "--seeds", "1"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("adam-jax: error: line.py: `loss` cannot be run: ")
    assert error.endswith(": ValueError: boom")


def test_an_entrant_that_is_never_read(refused, write, monkeypatch):
    monkeypatch.setattr(limit, "_PATIENCE", 600.0)  # it is the tests' process that would be ended
    path = write("import time\nwhile True: time.sleep(0.01)\n", "own.py")
    said = refused(write(), "--entrants", f"sgd,{path}:make", "--time-limit", "0.3")
    assert "reading the entrants took more than the 0.3 s of --time-limit" in said


@pytest.mark.costly
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "json"])
def test_output_that_cannot_be_written(write, tmp_path, form):
    command = [sys.executable, "-m", "adam_jax", "race", write(), "--entrants", "sgd", *form]
    command += ["--out", str(tmp_path / "out")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == [
        "adam-jax: error: cannot print the results: No space left on device"
    ]
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_letters_that_the_output_lacks(write):
    command = [sys.executable, "-m", "adam_jax", "race", write(), "--entrants", "sgd"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=ascii_only, capture_output=True, check=False)
    assert done.returncode == 0
    assert b"\\xb5s" in done.stdout


def test_batches_that_shrink_later(refused, write):
    source = BATCHES + "import random; return [_data] * (random.random() < 0 or next(counts))\n"
    source += "counts = iter([2, 2, 1])\n"
    assert "as much for every key" in refused(write(source), "--seeds", "1", "--entrants", "sgd")


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("def make(rate): return 3", "must return an Optax transformation, got int"),
        ("def make(): pass", "must take a (traced) learning rate"),
        (
            "def make(rate): return None if rate > 0 else 1",
            "entrant.py:1: TracerBoolConversionError",
        ),
        (
            # As JAX words it when trees differ, in other words in each version.
            "def make(rate): raise ValueError('the trees differ at key path\\n    b')",
            "the trees differ at key path b",
        ),
    ],
)
def test_entrant_files(refused, write, source, rule):
    assert rule in refused(write(), "--entrants", f"adam,{write(source, 'entrant.py')}:make")


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        (
            "import optax\ndef update(g, s, p): return g[0], s\n"
            "def make(rate): return optax.GradientTransformation(lambda p: (), update)",
            "entrant.py:2: KeyError",
        ),
        (
            "import optax\n"
            "def make(rate): return optax.GradientTransformation("
            "lambda p: rate, lambda g, s, p: (g, s > 0))",
            "but they differ: The input carry component carry[1] has type float32[]",
        ),
    ],
)
def test_entrants_that_cannot_be_traced(write, source, rule):
    racing = entrants.load(f"adam,{write(source, 'entrant.py')}:make")
    with pytest.raises(UsageError) as error:
        next(runner.race(problem.load(write()), racing, runner.Settings((0.1,), 1, 1)))
    assert rule in str(error.value)


@pytest.mark.parametrize("where", ["a_file", "a_file/below", "x" * 300])
def test_unwritable_folder(capsys, write, tmp_path, where):
    (tmp_path / "a_file").touch()
    before = sorted(tmp_path.rglob("*"))
    problem = write()
    assert main(["race", problem, "--out", str(tmp_path / where)]) == 2
    printed = capsys.readouterr()
    assert "--out must be a folder that can be written" in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "line.py"])


def test_a_folder_that_fails_in_the_end_has_nothing_half_written(capsys, write, tmp_path):
    (tmp_path / "out" / "curves.png").mkdir(parents=True)  # cannot be replaced by a file
    arguments = ["--entrants", "sgd", "--out", str(tmp_path / "out")]
    assert main(["race", write(), *arguments]) == 2
    printed = capsys.readouterr()
    assert "Lowest loss: sgd" in printed.out
    assert "--out must be a folder that can be written" in printed.err.splitlines()[-1]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"curves.png", "results.jsonl"}  # runs are kept as they are made


@pytest.mark.parametrize("package", ["rich", "matplotlib", "sklearn"])
def test_missing_extra(tmp_path, package):
    program = f"import sys; sys.modules[{package!r}] = None; from adam_jax.race.cli import main; "
    program += f"sys.exit(main(['race', 'digits', '--out', {str(tmp_path / 'out')!r}]))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"adam-jax: error: the race needs {package}, which is not installed: "
        "pip install 'adam_jax[race]'\n"
    )
    assert not list(tmp_path.iterdir())


def test_heavy_packages_wait_until_they_are_used():
    program = "import adam_jax.race.cli, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert not {"rich", "matplotlib", "sklearn"} & set(done.stdout.split())
