"""Training killed at any time goes on, from Orbax's last whole checkpoint, as if it had not been.

Skipped where Orbax is not installed: it wants a recent JAX, so that the suite runs against the
oldest dependencies without it. The `test` extra brings it.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint", reason="Orbax wants a recent JAX; `test` brings it")

from adam_jax.race import problem

SCRIPT = Path(__file__).with_name("checkpointed_training.py")
KILLS = {"starting": 5, "saving": 10, "speaking": 4}  # in which the process is killed, how often


class Training:
    """A process that trains one step for each line that it is given, and says what it does.

    Attributes:
      took: the seconds until its next line after each that began so, or from its start.
    """

    def __init__(self, folder, name, *kept):
        self.took = {}
        self._last = "starting", time.monotonic()
        self._errors = folder / "errors.txt"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, SCRIPT, folder / "digits.npz", folder / name, *kept],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # One device; and only the first process compiles.
                env={
                    **os.environ,
                    "XLA_FLAGS": "",
                    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                },
            )

    def go(self, steps):
        self._process.stdin.write(steps * "\n")
        self._process.stdin.flush()

    def says(self):
        """The words of the next line."""
        line = self._process.stdout.readline()
        assert line, f"the process has ended:\n{self._errors.read_text()}"
        (did, since), self._last = self._last, (line.split()[0], time.monotonic())
        self.took.setdefault(did, []).append(self._last[1] - since)
        return line.split()

    def kill(self):
        """Whatever it does; gives what it has said that nobody has heard yet."""
        self._process.kill()
        return self._ended(-signal.SIGKILL)

    def end(self):
        """Once it has done all steps; gives what it has said that nobody has heard yet."""
        return self._ended(0)

    def _ended(self, code):
        with self._process as process:
            process.stdin.close()
            *said, _ = process.stdout.read().split("\n")  # the last may be cut off
        assert process.returncode == code, self._errors.read_text()
        return [line.split() for line in said]


class Uninterrupted:
    """A run that is never killed, and that goes as far as someone wants to know."""

    def __init__(self, folder):
        self._training = Training(folder, "uninterrupted")
        self._digests = {}
        self.require_of(1)

    def require_of(self, steps):
        missing = max(0, steps - len(self._digests))
        self._training.go(missing)
        self._digests |= digests([self._training.says() for _ in range(missing)])
        return self._digests

    def end(self):
        self._training.end()


def digests(lines):
    """By the steps of which they are."""
    return {int(step): digest for step, digest in lines if step != "saving"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("checkpoints")
    images, labels = problem.load("digits").feed.data
    np.savez(made / "digits.npz", images=images, labels=labels)
    return made


@pytest.fixture(scope="module")
def uninterrupted(folder):
    """The digest of each step up to the one that is given."""
    run = Uninterrupted(folder)
    yield run.require_of
    run.end()


def killed(heard, delay, *arguments):
    """What a process says until it is killed, so long after so many lines; and what these took."""
    training = Training(*arguments)
    training.go(7)
    lines = [training.says() for _ in range(heard)]
    time.sleep(delay)
    return lines + training.kill(), training.took


@pytest.mark.exhaustive
def test_killed_at_any_time_training_goes_on_to_the_bit(folder, uninterrupted):
    """Half of the times while it saves, and a fourth before it has said anything."""
    rng = np.random.default_rng(0)
    run = folder, "killed", "params", "state"
    saved, maybe, cut, lives = 0, 0, 0, []
    shortest = {"starting": np.inf, "saving": np.inf}

    def look(lines):
        """No checkpoint is lost that was written, and none is found that was not."""
        nonlocal saved, maybe, cut
        lives.append(digests(lines))
        if not lines:
            return
        first = min(lives[-1])
        assert first in (saved + 1, maybe + 1)
        cut += first != maybe + 1
        of = [int(step) for said, step in lines if said == "saving"]
        # Who says anything after it has written it.
        written = of if lines[-1][0] != "saving" else of[:-1]
        saved = max([first - 1, *written])
        maybe = max([saved, *of])

    kills = rng.permutation([what for what, times in KILLS.items() for _ in range(times)])
    for what in ["all", *kills]:  # of the first life, all is heard
        heard = {
            "all": 10,
            "starting": 0,
            "saving": 3 * rng.integers(1, 4),  # each third line
            "speaking": rng.integers(1, 10),
        }
        lines, took = killed(heard[what], rng.uniform() * shortest.get(what, 0.0), *run)
        look(lines)
        for did, seconds in shortest.items():
            shortest[did] = min([seconds, *took.get(did, [])])
    last = Training(*run)
    last.go(5)
    look(last.end())

    assert KILLS["saving"] / 2 <= cut < len(lives)
    assert sum(not life for life in lives) >= KILLS["starting"] / 2
    expected = uninterrupted(max(lives[-1]))
    assert len(set(expected.values())) == len(expected) > len(lives) / 2
    for life in lives:
        assert life.items() <= expected.items()


def test_without_the_optimizers_state_it_does_not(folder, uninterrupted):
    run = folder, "forgetful", "params"
    before = digests(killed(4, 0.0, *run)[0])
    training = Training(*run)
    training.go(5)
    after = digests(training.end())
    expected = uninterrupted(max(after))
    assert before.items() <= expected.items()
    assert min(after) > 1
    assert not after.items() & expected.items()
