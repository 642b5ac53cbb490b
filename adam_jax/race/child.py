"""A race in a process of its own, as that process sees it; `watched` is the other side.

It is told on stdin what to race, tells on stdout what the problem is, is told which entrants are
still to be raced, and tells what comes out. It ends when stdin does: nothing outlives the command.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any

from adam_jax.race import entrants, problem, wire
from adam_jax.race.course import Asked, Course, course
from adam_jax.race.errors import UsageError
from adam_jax.race.results import Failure
from adam_jax.race.runner import one_by_one


def main() -> None:
    """Races one problem, as told."""
    # What the user's own code reads and prints is not for the pipes.
    told, telling = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    lines: Queue[bytes] = Queue()
    threading.Thread(target=_listen, args=(told, lines), daemon=True).start()
    raced: Course | None = None

    def tell(event: wire.Event) -> None:
        nonlocal raced
        if isinstance(event, Course):
            raced = event
        telling.write(wire.encoded(event, raced))

    request = json.loads(lines.get())
    tell(wire.Ready())
    try:
        _race(request, lambda: json.loads(lines.get()), tell)
    except UsageError as error:
        tell(Failure(None, str(error).removeprefix(f"{Path(request['problem']).name}: ")))


def _race(
    request: dict[str, Any], left: Callable[[], list[str]], tell: Callable[[wire.Event], None]
) -> None:
    rates = request["learning_rates"]
    asked = Asked(rates and tuple(rates), request["seeds"], request["epochs"])
    chosen = problem.load(request["problem"])
    settings = asked.of(chosen)
    tell(course(chosen, settings))
    racing = entrants.load(",".join(left()))
    for event in one_by_one(chosen, racing, settings):
        tell(event)


def _listen(told: Any, lines: "Queue[bytes]") -> None:
    for line in told:
        lines.put(line)
    # Whoever asked for this is gone. What was started here, such as a problem's own workers, is in
    # the group of processes of which this one is the head.
    if os.name == "posix" and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
