"""A race in a process of its own, watched from here; `child` is the other side.

A problem that raises, hangs, crashes or is killed, in Python or inside of XLA, takes nobody along:
the process is ended, that is told of the entrant whose turn it was, and another process goes on
with those that are left.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from queue import Empty, SimpleQueue
from typing import IO, Any, Self

from adam_jax.race import wire
from adam_jax.race.course import Asked, Course
from adam_jax.race.results import Failure, Outcome
from adam_jax.race.runner import Began, Progress

# The same modules are found there as here, and none beside them in the current folder.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from adam_jax.race.child import main; main()"
)
_LOOK = 0.5  # seconds between two looks at whether it is alive
_PATIENCE = 5.0  # seconds for what should take none
_KILLED = -9


def race(
    problem: str, asked: Asked, limit: float | None, left: Callable[[Course], Sequence[str]]
) -> Iterator[wire.Event]:
    """Yields the problem as it is raced, then what happens, an outcome or a failure an entrant.

    Args:
      problem: its name.
      asked: what is asked of it.
      limit: seconds for the problem to be read, and for each entrant from its tracing to its end.
      left: says which entrants are to be raced, once the problem is known.
    """
    names: list[str] | None = None
    while names is None or names:
        turn = None
        with _Child(problem, asked, limit) as child:
            for event in child.events():
                if isinstance(event, Course):
                    if names is None:
                        yield event
                        names = list(left(event))
                    if not names:
                        return
                    child.tell(names)
                    continue
                said = Failure(turn, event.reason) if isinstance(event, _Ended) else event
                yield said
                if isinstance(said, Began):
                    turn = said.entrant
                if isinstance(said, Outcome | Failure):
                    if names is None or said.entrant is None:
                        return
                    names.remove(said.entrant)
                    turn = names[0] if names else None
                    if not names:
                        return


@dataclass(frozen=True)
class _Ended:
    """The process is no more.

    Attributes:
      reason: why, in a line.
    """

    reason: str


class _Child:
    """The process. It is gone, and what it has started with it, when the context is left."""

    def __init__(self, problem: str, asked: Asked, limit: float | None):
        self._request = {"problem": problem, **asdict(asked)}
        self._limit = limit
        self._lines: SimpleQueue[bytes] = SimpleQueue()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that Ctrl-C is for the command alone to answer
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.tell(self._request)
        return self

    def __exit__(self, *_: Any) -> None:
        self._kill()
        self._process.wait()
        self._listener.join(timeout=_PATIENCE)
        with suppress(BrokenPipeError):
            self._stdin.close()

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def tell(self, message: Any) -> None:
        """Says something to it, if it still listens."""
        with suppress(BrokenPipeError):  # that it has ended is seen where it is listened to
            self._stdin.write(json.dumps(message).encode() + b"\n")
            self._stdin.flush()

    def events(self) -> Iterator[wire.Event | _Ended]:
        """What it tells; in the end, that it has ended, or had to be ended."""
        deadline = None
        while True:
            line = self._line(deadline)
            event = None if line is None else wire.decoded(line)
            # That it goes on does not make it less late, though an outcome that it has sent counts.
            if event is None or (isinstance(event, Progress) and _over(deadline)):
                yield _Ended(self._reason(deadline))
                return
            if self._limit is not None and isinstance(event, wire.Ready | Began):
                deadline = time.monotonic() + self._limit
            yield event

    def _line(self, deadline: float | None) -> bytes | None:
        """The next line; `None` if it has ended, or the time is up."""
        while True:
            alive = self._process.poll() is None
            left = _LOOK if deadline is None else deadline - time.monotonic()
            # What it has said counts, also what has not been heard yet.
            wait = min(left, _LOOK) if left > 0 else _LOOK
            try:
                return self._lines.get(timeout=wait if alive else _PATIENCE) or None
            except Empty:
                if not alive or left <= 0:
                    return None

    def _reason(self, deadline: float | None) -> str:
        if _over(deadline) and self._process.poll() is None:
            return f"took more than the {self._limit:g} s of --time-limit"
        try:
            status = self._process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            return "closed the pipe that it should tell its results through"
        if status == _KILLED:
            return "was killed, perhaps for want of memory"
        if status < 0:
            return f"crashed: {signal.strsignal(-status) or f'signal {-status}'}"
        return f"ended its process, with exit status {status}"

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as told:
            for line in told:
                if line.endswith(b"\n"):  # and not torn
                    self._lines.put(line)
        self._lines.put(b"")

    def _kill(self) -> None:
        if os.name == "posix":
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)  # also what it has started
        self._process.kill()


def _over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline
