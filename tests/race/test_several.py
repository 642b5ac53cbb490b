"""Whatever a problem or an entrant does, it is said, the others go on, and nothing is left over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_problem import LINE

from adam_jax.race import watched
from adam_jax.race.cli import main
from adam_jax.race.journal import NAME

TIMES = {"microseconds_per_step", "compile_seconds"}
OTHER = LINE.replace('"""A line', '"""Another line').replace("epochs = 3", "epochs = 2")
OTHER += """
def samples(params):
    return {"bias": str(float(params["b"])), "weights": params["w"][None]}
"""

# What an entrant does where only a race calls it: when its step is traced, or run.
OWN = """
import ctypes, os, time
from pathlib import Path
import jax, optax

def stepping(rate, act):
    sgd = optax.sgd(rate)
    return optax.GradientTransformation(sgd.init, lambda *args: (act(), sgd.update(*args))[1])

def fine(rate): return optax.sgd(rate)
def raises(rate): return stepping(rate, lambda: 1 / 0)
def killed(rate): return stepping(rate, lambda: os.kill(os.getpid(), 9))
def exits(rate): return stepping(rate, lambda: os._exit(3))
def crashes(rate): return stepping(rate, lambda: ctypes.string_at(0))

def sleeps(rate):
    def sleep():
        Path(__file__).with_name("hanging").touch()
        time.sleep(1e5)
    return stepping(rate, sleep)

def loops(rate):
    def update(g, state, params):  # inside of XLA, where no signal gets to Python
        Path(__file__).with_name("hanging").touch()
        for_ever = lambda x: jax.lax.while_loop(lambda x: x.sum() < 1e9, lambda x: x * 0, x)
        return jax.tree.map(for_ever, g), state
    return optax.GradientTransformation(optax.sgd(rate).init, update)
"""
LIMIT = 1000
REASONS = {
    "raises": "failed: own.py:11: ZeroDivisionError: division by zero",
    "killed": "was killed, perhaps for want of memory",
    "exits": "ended its process, with exit status 3",
    "crashes": f"crashed: {signal.strsignal(signal.SIGSEGV)}",
    "sleeps": "took more than the 1000 s of --time-limit",
    "loops": "took more than the 1000 s of --time-limit",
}


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
    """The processes that these tests start take from this one's cache, as it does itself."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture
def hurried(monkeypatch, tmp_path):
    """Lets the time limit be over a second after an entrant has begun to hang, and not before.

    With a real one of a few seconds a slow machine would fail where nothing hangs.
    """
    ahead = 0.0

    def monotonic():
        nonlocal ahead
        hanging = tmp_path / "hanging"
        if hanging.exists() and time.time() - hanging.stat().st_mtime > 1:
            hanging.unlink()
            ahead += LIMIT
        return time.monotonic() + ahead

    monkeypatch.setattr(watched, "time", SimpleNamespace(monotonic=monotonic))


def check_entrants(capsys, write, names):
    own = write(OWN, "own.py")
    racing = ["sgd", *(f"{own}:{name}" for name in names), f"{own}:fine"]
    arguments = ["--entrants", ",".join(racing), "--seeds", "1", "--learning-rates", "0.1"]
    assert main(["race", write(), *arguments, "--time-limit", str(LIMIT), "--json"]) == 2
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["failures"] == [
        {"entrant": f"{own}:{name}", "reason": REASONS[name]} for name in names
    ]
    losses = {run["entrant"]: run["epoch_losses"] for run in found["runs"]}
    assert losses == {"sgd": losses["sgd"], f"{own}:fine": losses["sgd"]}
    told = [line for line in printed.err.splitlines() if line.startswith("adam-jax: error: ")]
    assert told == [f"adam-jax: error: entrant '{own}:{name}' {REASONS[name]}" for name in names]


def test_an_entrant_that_goes_on_for_ever(capsys, write, monkeypatch):
    """Each epoch is told of long before anyone looks whether the time is up."""
    now = 0.0

    def monotonic():
        nonlocal now
        now += 1  # a look is a second
        return now

    monkeypatch.setattr(watched, "time", SimpleNamespace(monotonic=monotonic))
    arguments = ["--entrants", "sgd", "--seeds", "1", "--learning-rates", "0.1", "--json"]
    assert main(["race", write(), *arguments, "--epochs", "5000", "--time-limit", "600"]) == 2
    (failure,) = json.loads(capsys.readouterr().out)["failures"]
    assert failure == {"entrant": "sgd", "reason": "took more than the 600 s of --time-limit"}


def test_an_entrant_of_the_users_own_is_apart(capsys, write):
    """On one problem without a time limit, too."""
    own = write(OWN, "own.py")
    arguments = ["--entrants", f"{own}:killed,sgd", "--seeds", "1", "--learning-rates", "0.1"]
    assert main(["race", write(), *arguments]) == 2
    printed = capsys.readouterr()
    assert f"entrant '{own}:killed' {REASONS['killed']}" in printed.err
    assert "Lowest loss: sgd" in printed.out


def test_an_entrant_that_takes_its_process_along(capsys, write, hurried):
    check_entrants(capsys, write, ["raises", "killed", "loops"])


@pytest.mark.exhaustive
def test_every_way_to_fail(capsys, write, hurried):
    check_entrants(capsys, write, list(REASONS))


def test_problems_that_fail(capsys, write, tmp_path):
    paths = {
        "line": write(),
        "nan": write(LINE.replace("return jnp.mean(", "return jnp.nan * jnp.mean("), "nan.py"),
        "other": write(OTHER, "other.py"),
    }
    out = tmp_path / "out"
    arguments = ["--entrants", "sgd", "--seeds", "1", "--out", str(out)]
    assert main(["race", ",".join(paths.values()), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-3:] == [
        next(line for line in printed.out.splitlines() if line.startswith("line: best sgd at ")),
        "nan: the problem: the loss is nan before the first step, from every seed",
        next(line for line in printed.out.splitlines() if line.startswith("other: best sgd at ")),
    ]
    assert "2 of 2" in printed.out
    assert f"sgd on {paths['other']}: done, 3 of 3" in printed.err
    assert f"adam-jax: error: {paths['nan']}: the loss is nan" in printed.err
    runs = [json.loads(line) for line in (out / NAME).read_text().splitlines()]
    (shown,) = (run for run in runs if "samples" in run)
    assert (shown["problem"], shown["learning_rate"]) == (paths["other"], 0.1)
    assert abs(float(shown["samples"]["bias"]) - 0.5) == shown["evaluation"]["bias_error"]
    assert np.shape(shown["samples"]["weights"]) == (1, 3)
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "results.jsonl",
        "line_curves.png",
        "line_learning_rates.png",
        "other_curves.png",
        "other_learning_rates.png",
        "profile.png",
        "profile_default.png",
    }


@pytest.mark.exhaustive
def test_problems_that_raise_or_hang(capsys, write):
    paths = [
        write(LINE + "\nraise ValueError('no\\nway')", "raises.py"),
        write(LINE + "\nimport time; time.sleep(1e5)", "hangs.py"),
        write(LINE + "\nimport os; os.kill(os.getpid(), 9)", "killed.py"),
        write(LINE.replace("init(key):", "init(key):\n    jnp.ones(1 << 46)")),
    ]
    arguments = ["--entrants", "sgd", "--seeds", "1", "--time-limit", "30", "--json"]
    assert main(["race", ",".join(paths), *arguments]) == 2
    races = json.loads(capsys.readouterr().out)["races"]
    reasons = [failure["reason"] for race in races for failure in race["failures"]]
    assert reasons[0].endswith(": ValueError: no")
    assert reasons[1] == "took more than the 30 s of --time-limit"
    assert reasons[2] == "was killed, perhaps for want of memory"
    assert reasons[3].startswith("`init` failed: line.py:13: ")
    assert "RESOURCE_EXHAUSTED: Out of memory" in reasons[3]


def lines(folder):
    """The lines of a folder's file without what differs from one race to another, in any order."""
    whole = (folder / NAME).read_text().rpartition("\n")[0]
    found = [json.loads(line) for line in whole.splitlines()]
    return sorted(
        json.dumps({name: each[name] for name in each if name not in TIMES}) for each in found
    )


def descendants(process):
    """The processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, rest = stat.read_text().partition(" (")
        except OSError:  # it has just ended
            continue
        if int(rest.rpartition(") ")[2].split()[1]) == process.pid:
            found.append(int(number))
    return found


def gone(number):
    """Whether a process has ended within some seconds."""
    for _ in range(200):
        if not Path(f"/proc/{number}").exists() or "Z" in Path(f"/proc/{number}/stat").read_text():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def started(write, tmp_path):
    """Starts a race on two problems, apart, as a process."""
    paths = f"{write()},{write(OTHER, 'other.py')}"
    arguments = ["--entrants", "sgd,adam", "--seeds", "2", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "adam_jax", "race", paths, *arguments]

    def started():
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    return started


@pytest.fixture
def uninterrupted(capsys, write, tmp_path):
    """The lines of the same races, each in this process: where it is raced makes no difference."""
    arguments = ["--entrants", "sgd,adam", "--seeds", "2", "--out", str(tmp_path / "whole")]
    for path in (write(), write(OTHER, "other.py")):
        assert main(["race", path, *arguments]) == 0
    capsys.readouterr()
    return lines(tmp_path / "whole")


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")


@pytest.mark.exhaustive
@needs_proc
def test_killed_and_gone_on(started, uninterrupted, tmp_path):
    with started() as process:
        for _ in range(3):  # in the middle of the second problem
            assert ": done, " in process.stderr.readline()
        children = descendants(process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert children
    assert all(gone(child) for child in children)
    kept = (tmp_path / "out" / NAME).read_bytes()
    assert kept.count(b"\n") in (12, 16)
    with started() as process:
        _, err = process.communicate()
    assert process.returncode == 0
    assert err.count(": taken from ") == kept.count(b"\n") // 4
    assert (tmp_path / "out" / NAME).read_bytes().startswith(kept)
    assert lines(tmp_path / "out") == uninterrupted


@pytest.mark.exhaustive
def test_killed_again_and_again(started, uninterrupted, tmp_path):
    """In one folder: so many lines after the beginning, and so many seconds after that."""
    for told, seconds in [(0, 0.5), (0, 5), (1, 0), (1, 0.1), (2, 0.02), (2, 3), (4, 0), (4, 0.1)]:
        with started() as process:
            for _ in range(told):
                process.stderr.readline()
            time.sleep(seconds)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        kept = lines(tmp_path / "out") if (tmp_path / "out" / NAME).exists() else []
        assert kept == [line for line in uninterrupted if line in kept]
    with started() as process:
        process.communicate()
    assert process.returncode == 0
    assert lines(tmp_path / "out") == uninterrupted


@needs_proc
def test_interrupted(started, tmp_path):
    with started() as process:
        assert ": done, 1 of 4" in process.stderr.readline()
        children = descendants(process)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("adam-jax: interrupted; finished entrants are kept, ")
    assert "line: best " in out
    assert all(gone(child) for child in children)
    kept = lines(tmp_path / "out")
    assert len(kept) == 4 * int(err.rpartition(", ")[2].split(" of ")[0])
