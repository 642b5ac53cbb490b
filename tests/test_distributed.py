"""State divided over processes; one is killed, and others go on from the last checkpoint.

Skipped where Orbax is not installed: it wants a recent JAX, so that the suite runs against the
oldest dependencies without it. The `test` extra brings it.
"""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import distributed_training as training
import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("orbax.checkpoint", reason="Orbax wants a recent JAX; `test` brings it")

SCRIPT = Path(training.__file__)
PATIENCE = 120  # seconds, for a machine that does much else
TRIES = 3  # of ports: another may take one first, whereupon JAX fails in more than one way


def free_ports():
    """Ports that nobody has, which somebody may take before one is used."""
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        yield port


class Job:
    """Processes that train together, and what they say; nothing of it outlives the block."""

    def __init__(self, folder, processes, ports=None):
        self._folder, self._count = folder, processes
        self._ports = free_ports() if ports is None else ports
        self._errors = [folder / f"errors-{processes}-{i}.txt" for i in range(processes)]
        self.processes = []
        # Whatever a process waits for: it is over when this is.
        self._clock = threading.Timer(PATIENCE, self.kill)

    def __enter__(self):
        self._clock.start()
        for _ in range(TRIES):
            self._start()
            if self._is_begun():
                return self
            self._close()
        self._clock.cancel()
        return pytest.fail(self._said())

    def __exit__(self, *_):
        self._clock.cancel()
        self._close()

    def _start(self):
        port = next(self._ports)
        for i, errors in enumerate(self._errors):
            arguments = [port, i, self._count, self._folder / "checkpoints"]
            with errors.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, SCRIPT, *map(str, arguments)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=file,
                        text=True,
                        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
                    )
                )

    def _is_begun(self):
        """Whether the first process, with which the others meet, has found them."""
        return any(line.startswith("begun") for line in self.processes[0].stdout)

    def _close(self):
        self.kill()
        for process in self.processes:
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        self.processes = []

    def end(self):
        """Once all have done what they were told to; gives how they ended."""
        for process in self.processes:
            process.stdin.close()
        return [process.wait() for process in self.processes]

    def kill(self):
        for process in self.processes:
            process.kill()

    def go(self, steps, processes):
        for process in processes:
            process.stdin.write(steps * "\n")
            process.stdin.flush()

    def says(self, process=0):
        """Of its next step the number, the digest and the bytes."""
        for line in self.processes[process].stdout:
            if line.startswith("step"):  # and not Gloo
                _, step, digest, size = line.split()
                return int(step), digest, int(size)
        return pytest.fail(self._said())

    def _said(self):
        return "\n".join(errors.read_text()[-2000:] for errors in self._errors)


@pytest.fixture(scope="module")
def uninterrupted():
    """The digest after each step of one process, whose state is whole; and that state's bytes."""
    tx = training.optimizer()
    params = jax.tree.map(jnp.asarray, training.beginning())
    state, take = tx.init(params), jax.jit(training.take_of(tx))
    found = []
    for step in range(8):
        params, state = take(params, state, training.batch(step))
        found.append(training.digest({"params": params, "state": state}))
    return found, sum(x.nbytes for x in jax.tree.leaves(state))


def test_a_job_goes_on_with_another_number_of_processes(tmp_path, uninterrupted):
    digests, whole = uninterrupted
    assert len(set(digests)) == len(digests)
    with Job(tmp_path, 4) as job:
        *others, last = job.processes
        job.go(5, job.processes)
        before = [job.says() for _ in range(5)]
        job.go(1, others)  # they wait for the last one, in the middle of a step
        last.kill()
        assert last.wait() == -signal.SIGKILL
    with Job(tmp_path, 2) as job:
        job.go(4, job.processes)
        after = [job.says() for _ in range(4)]
        assert job.end() == [0, 0]
    # From the checkpoint of the fourth step.
    assert [step for step, *_ in before + after] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert [digest for _, digest, _ in before + after] == digests[:5] + digests[4:]
    # Each array is divided but the count, and the scalar's moments.
    left = 4 + 4 + 2
    (_, _, quarter), (_, _, half) = before[0], after[0]
    assert whole - left == 4 * (quarter - left) == 2 * (half - left)


def test_a_port_that_another_has_taken_is_left_for_the_next(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        ports = itertools.chain([taken.getsockname()[1]], free_ports())
        with Job(tmp_path, 1, ports) as job:
            job.go(1, job.processes)
            assert job.says()[0] == 1
            assert job.end() == [0]
