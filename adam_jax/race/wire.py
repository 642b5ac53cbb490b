"""How a race in a process of its own tells what happens: an event is a line of JSON."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from adam_jax.race import records
from adam_jax.race.course import Course
from adam_jax.race.results import Failure, Outcome
from adam_jax.race.runner import Began, Progress


@dataclass(frozen=True)
class Ready:
    """The process has started, and is about to read the problem."""


Event = Ready | Course | Began | Progress | Outcome | Failure

_PLAIN: dict[str, Any] = {each.__name__: each for each in (Ready, Began, Progress, Failure)}


def encoded(event: Event, course: Course | None) -> bytes:
    """The line of an event; an outcome needs the course that it is of."""
    if isinstance(event, Outcome):
        assert course is not None
        said: Any = records.written(course, event)
    else:
        said = asdict(event)
    return json.dumps([type(event).__name__, said]).encode() + b"\n"


def decoded(line: bytes) -> Event:
    """The event of a line."""
    kind, said = json.loads(line)
    if kind == Outcome.__name__:
        return records.read(said)
    if kind == Course.__name__:
        return Course(**{**said, "learning_rates": tuple(said["learning_rates"])})
    event: Event = _PLAIN[kind](**said)
    return event
