"""The command from end to end: real training, what it costs, and what it does when it cannot."""

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import optax
import pytest
from small_problem import LINE

from adam_jax.race import entrants, limit, problem
from adam_jax.race.cli import main
from adam_jax.race.errors import UsageError
from adam_jax.race.limit import within
from adam_jax.race.tune.search import Search
from adam_jax.race.tune.space import Axis, candidates
from adam_jax.race.tune.trainer import Trainer

FEW = ("--entrant", "sgd", "--seeds", "2", "--learning-rates", "0.001:1:4")


def by_hand(own, rate, momentum, seed, epochs):
    """The losses of one run on the small problem, in double precision, by the formulas."""
    x, y = (np.asarray(array, np.float64) for array in own.feed.data)
    init_key, data_key = jax.random.split(jax.random.key(seed))
    first = own.init(init_key)
    params = np.append(np.asarray(first["w"], np.float64), float(first["b"]))
    trace = np.zeros(4)

    def residual(rows):
        ones = np.append(x[rows], np.ones((len(rows), 1)), 1)
        return ones, ones @ params - y[rows]

    losses = []
    for epoch in range(epochs):
        batches = np.asarray(own.feed.epoch(jax.random.fold_in(data_key, epoch)))
        if not losses:
            losses.append(np.mean([np.mean(residual(rows)[1] ** 2) for rows in batches]))
        for rows in batches:
            ones, error = residual(rows)
            gradient = 2 * ones.T @ error / len(rows)
            trace = gradient + momentum * trace
            params = params - rate * (gradient + momentum * trace if momentum else gradient)
        losses.append(np.mean([np.mean(residual(rows)[1] ** 2) for rows in batches]))
    return losses


def axis(*rates):
    return (Axis("learning_rate", rates),)


@pytest.fixture
def documented(capsys):
    """Tunes for a machine, and returns the document."""

    def documented(*arguments, status=0):
        assert main(["tune", *arguments, "--json"]) == status
        return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)

    return documented


@pytest.fixture
def refused(refused_by):
    return refused_by("tune")


def test_each_run_is_a_plain_loop_whatever_left_its_group(write):
    own = problem.load(write())
    traces = []
    counted = entrants.Entrant("sgd", lambda rate: (traces.append(rate), optax.sgd(rate))[1])
    trainer = Trainer(own, counted, axis(0.003, 0.3), 2)
    group = trainer.start([(0.003,), (0.1,), (0.3,)])
    assert list(trainer.train(group, 2)) == [1, 2]
    smaller = trainer.keep(group, [(0.3,), (0.1,)])
    assert list(trainer.train(smaller, 3)) == [3]
    trials = group.trials() | smaller.trials()
    for rate, seed, epochs in ((0.003, 0, 2), (0.1, 1, 3)):
        expected = by_hand(own, rate, 0.0, seed, epochs)
        np.testing.assert_allclose(trials[(rate,)].losses[seed], expected, rtol=2e-5)
    # `init` and an epoch are traced to be checked, and an epoch for the second width.
    assert len(traces) <= 5


def test_the_best_rate_of_a_quadratic(documented, write):
    """Gradient descent on a quadratic, whose loss after so many steps is a formula of the rate."""
    curvatures = [1.0, 2.0, 8.0]
    path = write(f"""
import jax.numpy as jnp
curvatures = jnp.array({curvatures})
data = jnp.zeros(12)
batch_size = 1
epochs = 1

def init(key):
    return jnp.ones(3)

def loss(params, batch):
    return 0.1 + 0.5 * jnp.sum(curvatures * params**2) + 0 * jnp.sum(batch)
""")
    choice = ("--learning-rates", "0.01:1:9", "--tolerance", "0.1", "--seeds", "1")
    found = documented(path, "--entrant", "sgd", *choice)

    def lost(rate):
        shrunk = (1 - rate * np.array(curvatures)) ** (2 * 12)
        return 0.1 + 0.5 * np.sum(curvatures * shrunk)

    rates = np.geomspace(0.01, 1, 20_001)
    losses = np.array([lost(rate) for rate in rates])
    good = rates[losses <= 1.1 * losses.min()]
    (scan,) = found["neighbourhoods"]
    rate = found["recommended"]["learning_rate"]
    assert scan["recommended"] == rate
    assert good[0] <= rate <= good[-1]
    assert found["recommended"]["final_loss"] == pytest.approx(lost(rate), rel=1e-4)
    for trial in scan["trials"]:
        if not trial["diverged"]:
            assert trial["final_loss"] == pytest.approx(lost(trial["learning_rate"]), rel=1e-3)
    low, high = scan["within_tolerance"]
    # Straight lines between values lie above a convex curve: what is said to be good is.
    assert good[0] / 1.01 <= low <= rate <= high <= good[-1] * 1.01
    assert low <= good[0] * 1.3
    assert high >= good[-1] / 1.3


@pytest.fixture(scope="module")
def digits():
    """Adam on the built-in problem, searched, and as a whole grid."""
    own = problem.load("digits")
    (adam,) = entrants.load("adam")
    searched = axis(*np.geomspace(1e-4, 10**1.5, 12).tolist())
    trainer = Trainer(own, adam, searched, 3)
    first = candidates(searched)
    search = Search(trainer, searched, first, 3, 10, 0.05)
    list(search.run())
    grid = trainer.start(first)
    list(trainer.train(grid, 10))
    return search.findings, grid.trials()


@pytest.mark.exhaustive
def test_halving_finds_what_the_whole_grid_finds_for_about_half(digits):
    found, grid = digits
    whole = min(grid.values(), key=lambda trial: trial.rank)
    assert found.winner.values == whole.values
    assert found.winner.final == pytest.approx(whole.final, rel=0.05)
    # 12 for 3 epochs, 6 for 2 more, 3 for 5 more, from three seeds.
    assert found.cost.halving == 3 * (12 * 3 + 6 * 2 + 3 * 5)
    assert found.cost.grid == 3 * 12 * 10
    assert found.cost.halving < 0.55 * found.cost.grid


@pytest.mark.exhaustive
def test_the_best_on_digits_is_where_it_is_known_to_be(digits):
    """Of rates a decade apart it is 0.01."""
    (scan,) = digits[0].scans
    assert 10**-2.5 < scan.recommended < 10**-1.5
    assert scan.alike[0] <= 0.0104
    assert scan.alike[-1] >= 0.0096


def test_several(documented, write):
    also = "momentum=0.5:0.99"
    choice = ("--entrant", "momentum", "--seeds", "1", "--learning-rates", "0.001:0.1:3")
    found = documented(write(), *choice, "--also", also, "--epochs", "1")
    assert found["ranges"] == {"learning_rate": [0.001, 0.1], "momentum": [0.5, 0.99]}
    assert len(found["candidates"]) == 6
    assert [scan["name"] for scan in found["neighbourhoods"]] == ["momentum", "learning_rate"]
    own = problem.load(write())
    for trial in found["candidates"]:
        expected = by_hand(own, trial["learning_rate"], trial["momentum"], 0, 1)
        np.testing.assert_allclose(trial["epoch_losses"][0], expected, rtol=5e-4)


def test_document_and_files(documented, write, tmp_path):
    out = tmp_path / "new" / "out"
    found = documented(write(), *FEW, "--out", str(out))
    assert {path.name for path in out.iterdir()} == {"tune.png", "tune.json"}
    assert json.loads((out / "tune.json").read_text()) == found
    assert found["ranges"] == {"learning_rate": [0.001, 1]}
    assert (found["seeds"], found["epochs"], found["steps_per_epoch"]) == (2, 3, 5)
    assert found["complete"] is True
    assert found["versions"]["jax"] == jax.__version__
    assert found["recommended"]["final_loss"] < 0.1
    assert [verdict["code"] for verdict in found["verdicts"]] == ["few-seeds", "falling"]
    content = (out / "tune.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert 1000 <= width <= 2000
    assert 600 <= height <= 1500


def test_nan_from_the_start_is_said(documented, write):
    path = write(LINE.replace("return jnp.mean(", "return jnp.nan * jnp.mean("))
    found = documented(path, *FEW, status=2)
    assert found["recommended"] is None
    assert [verdict["code"] for verdict in found["verdicts"]] == ["nan-from-the-start"]


def test_an_entrant_of_the_users_own(documented, write):
    source = "import optax\ndef make(rate, *, clip=1.0, **rest):\n"
    source += "    return optax.chain(optax.clip(clip), optax.sgd(rate))\n"
    name = f"{write(source, 'own_entrant.py')}:make"
    choice = ("--seeds", "1", "--learning-rates", "0.01:1:3", "--epochs", "1")
    found = documented(write(), "--entrant", name, *choice, "--also", "clip=0.1:10")
    assert set(found["ranges"]) == {"learning_rate", "clip"}
    assert 0.1 <= found["recommended"]["clip"] <= 10


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--entrant", "adam,sgd"], "--entrant must name one, got 'adam,sgd'"),
        (["--entrant", "all"], "--entrant must name one, got 'all'"),
        (["--entrant", "adma"], "no entrant 'adma'; did you mean adam"),
        (["--learning-rates", "0.1,0.2"], "--learning-rates must be at least 3, got 2"),
        (["--learning-rates", "fast"], "must be a list such as 0.001,0.01 or lowest:highest"),
        (["--also", ""], "--also must be a list of name=lowest:highest such as b2=0.9:0.9999"),
        (["--also", "b2"], "such as b2=0.9:0.9999, got 'b2'"),
        (["--also", "b2=0.9"], "got 'b2=0.9'"),
        (["--also", "b2=0.9:x"], "got 'b2=0.9:x'"),
        (["--also", "b2=0.99:0.9"], "0 <= lowest < highest < 1 in float32, got 'b2=0.99:0.9'"),
        (["--also", "b2=0.9:0.99999999"], "highest < 1 in float32"),  # which rounds to 1
        (["--also", "eps=0:1"], "0 < lowest < highest in float32, got 'eps=0:1'"),
        (["--also", "eps=1e-46:1"], "0 < lowest < highest in float32"),
        (["--also", "eps=nan:1"], "0 < lowest < highest in float32"),
        (["--also", "eps=1:1e39"], "0 < lowest < highest in float32"),
        (["--also", "eps=1e-8:1,eps=1e-9:1"], "must name each once, got 'eps' twice"),
        (["--also", "learning_rate=0.1:1"], "must not name 'learning_rate': --learning-rates"),
        (["--also", "speed=0.1:1"], "must name what 'adam' takes (b1, b2, eps, eps_root), got 's"),
        (["--also", "nesterov=0.1:1"], "entrant 'adam' failed with traced `nesterov`"),
        (["--also", "mu_dtype=1:9"], "entrant 'adam' failed with traced `mu_dtype`"),
        (["--also", "seed=1:9"], "entrant 'adam' failed with traced `seed`"),
        (["--entrant", "sgd", "--also", "eps=0.1:1"], "'sgd' takes"),
        (["--entrant", f"{'x' * 300}.py:make"], "no such file"),
        (["--learning-rates", "1e-4:1:1000000000"], "--learning-rates must be at most 1000"),
        (["--seeds", "100000000"], "at most 1,000, got '100000000'"),
        (["--seeds", "0"], "positive integer, got '0'"),
        (["--epochs", "-1"], "--epochs"),
        (["--tolerance", "0"], "between 0 and 1, got '0'"),
        (["--tolerance", "1"], "between 0 and 1, got '1'"),
        (["--tolerance", "nan"], "finite number, got 'nan'"),
        (["--time-limit", "0"], "positive number of seconds, got '0'"),
    ],
)
def test_arguments(refused, write, arguments, rule):
    assert rule in refused(write(), *arguments)


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("def loss", "def lose", "line.py: has no `loss`"),
        ("    x, y = batch", "    x, y, z = batch", "line.py:16: ValueError: not enough"),
        ("def init", "def init(key): raise ValueError('boom')\ndef _", "ValueError: boom"),
    ],
)
def test_problems(refused, write, old, new, rule):
    assert old in LINE
    assert rule in refused(write(LINE.replace(old, new)))


@pytest.mark.parametrize("name", ["a_file", "x" * 300])
def test_an_unwritable_folder(capsys, write, tmp_path, name):
    (tmp_path / "a_file").touch()
    assert main(["tune", write(), "--out", str(tmp_path / name)]) == 2
    printed = capsys.readouterr()
    assert "--out must be a folder that can be written" in printed.err
    assert printed.err.count("\n") == 1


class TestStopped:
    """In the middle: by the user, or by what the machine lacks."""

    @pytest.fixture
    def stopping(self, monkeypatch):
        """Makes an epoch of training fail."""

        def stopping(after, error):
            calls = iter(range(99))
            whole = Trainer.train

            def train(trainer, group, epochs):
                for epoch in whole(trainer, group, epochs):
                    if next(calls) == after:
                        raise error
                    yield epoch

            monkeypatch.setattr(Trainer, "train", train)

        return stopping

    # Four candidates have no rungs: three epochs, and then those of the scan.
    def test_before_anything_is_known(self, capsys, write, tmp_path, stopping):
        stopping(1, KeyboardInterrupt())
        assert main(["tune", write(), *FEW, "--out", str(tmp_path / "out")]) == 130
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.endswith("adam-jax: interrupted before anything was finished\n")
        assert not (tmp_path / "out").exists()

    def test_keeps_what_is_known(self, capsys, write, tmp_path, stopping):
        stopping(4, KeyboardInterrupt())
        out = tmp_path / "out"
        assert main(["tune", write(), *FEW, "--out", str(out), "--json"]) == 130
        printed = capsys.readouterr()
        assert printed.err.endswith("adam-jax: interrupted; what was known by then is kept\n")
        found = json.loads(printed.out)
        assert found["complete"] is False
        assert found["recommended"]["epochs"] == 3
        assert json.loads((out / "tune.json").read_text()) == found
        assert (out / "tune.png").exists()

    def test_an_error_keeps_it_too(self, capsys, write, tmp_path, stopping):
        stopping(4, UsageError("entrant 'sgd' cannot be run: RESOURCE_EXHAUSTED"))
        assert main(["tune", write(), *FEW, "--out", str(tmp_path / "out")]) == 2
        printed = capsys.readouterr()
        assert "recommended" in printed.out
        assert "Not complete" in printed.out
        assert printed.err.endswith("cannot be run: RESOURCE_EXHAUSTED\n")
        assert (tmp_path / "out" / "tune.json").exists()

    def test_by_a_real_signal(self, write):
        command = [sys.executable, "-m", "adam_jax", "tune", write(), *FEW, "--json"]
        command += ["--epochs", "100000"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert "4 candidates, epoch 1 of 100000" in process.stderr.readline()
            os.kill(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert out == ""
        assert err == "adam-jax: interrupted before anything was finished\n"

    def test_out_of_memory(self, capsys, write, monkeypatch):
        def start(*arguments):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile ...")

        trainer_check = Trainer._check
        monkeypatch.setattr(
            Trainer,
            "_check",
            lambda self, axes: (trainer_check(self, axes), setattr(self, "_start", start)),
        )
        assert main(["tune", write(), *FEW]) == 2
        assert capsys.readouterr().err == (
            "adam-jax: error: entrant 'sgd' cannot be run: RESOURCE_EXHAUSTED: Out of memory\n"
        )


class TestTimeLimit:
    @pytest.fixture(autouse=True)
    def patient(self, monkeypatch):
        """It is the tests' own process that would be ended."""
        monkeypatch.setattr(limit, "_PATIENCE", 600.0)

    def test_python_that_hangs(self, refused, write):
        path = write(LINE + "\nimport time\nwhile True: time.sleep(0.01)\n")
        said = refused(path, *FEW, "--time-limit", "0.3")
        assert "reading the problem took more than the 0.3 s of --time-limit" in said

    def test_an_entrant_that_hangs(self, refused, write):
        path = write("import time\nwhile True: time.sleep(0.01)\n", "own.py")
        said = refused(write(), "--entrant", f"{path}:make", "--time-limit", "0.3")
        assert "reading the entrant took more than the 0.3 s of --time-limit" in said

    def test_longer_than_a_thread_can_wait(self, monkeypatch):
        failed = []
        monkeypatch.setattr(threading, "excepthook", failed.append)
        before = set(threading.enumerate())
        with within(1e12, "it"):
            (watching,) = set(threading.enumerate()) - before
            watching.join(0.1)
            assert watching.is_alive()
        watching.join()
        assert not failed

    def test_it_is_an_error_and_no_interruption(self):
        def hang():
            with within(0.05, "it"):
                while True:
                    time.sleep(0.01)

        with pytest.raises(UsageError, match=r"^it took more than the 0.05 s of --time-limit$"):
            hang()

    @pytest.mark.parametrize("seconds", [1e-9, 1e-4])
    def test_it_is_none_either_where_all_is_over_just_then(self, seconds):
        over = 0
        while over < 200:
            with contextlib.suppress(UsageError), within(seconds, "it"):
                time.sleep(seconds)
            over += 1
        assert over == 200  # and no KeyboardInterrupt, whenever it is heard

    def test_in_the_background_where_ctrl_c_is_not_heard(self):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.test_it_is_an_error_and_no_interruption()
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        finally:
            signal.signal(signal.SIGINT, before)

    def test_a_device_that_hangs(self, write, tmp_path):
        """Nothing in Python is heard while it waits for that."""
        source = LINE.replace("    x, y = batch", "    jax.debug.callback(hang)\n    x, y = batch")
        source += "\nimport time\ndef hang(): time.sleep(1000)\n"
        command = [sys.executable, "-m", "adam_jax", "tune", write(source), *FEW]
        command += ["--time-limit", "3", "--out", str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 2
        assert done.stdout == ""
        assert "of --time-limit\n" in done.stderr
        assert not (tmp_path / "out").exists()

    def test_the_last_thing_is_done_before_the_process_is_ended(self):
        source = """if True:
            import ctypes
            from adam_jax.race.limit import within
            with within(0.1, "it", lambda: print("known")):
                ctypes.CDLL(None).sleep(1000)  # which hears no interruption
        """
        command = [sys.executable, "-c", source]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert (done.returncode, done.stdout) == (2, "known\n")
        assert done.stderr == "adam-jax: error: it took more than the 0.1 s of --time-limit\n"

    def test_nothing_is_left_behind(self):
        before = signal.getsignal(signal.SIGINT)
        with within(60, "it"):
            pass
        with pytest.raises(KeyboardInterrupt), within(60, "it"):
            raise KeyboardInterrupt
        assert signal.getsignal(signal.SIGINT) is before


def test_what_the_problem_prints_is_not_in_the_document(capsys, write):
    source = LINE + "\nprint('hello')\n"
    assert main(["tune", write(source), *FEW, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["complete"] is True
    assert "hello" in printed.err


def test_missing_extra(tmp_path, write):
    program = "import sys; sys.modules['matplotlib'] = None; from adam_jax.race.cli import main; "
    program += f"sys.exit(main(['tune', {write()!r}, '--out', {str(tmp_path / 'out')!r}]))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "needs matplotlib, which is not installed" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
