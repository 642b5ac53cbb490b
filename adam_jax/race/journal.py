"""The `results.jsonl` of a folder: read before a race, and extended as each entrant is done.

The runs of an entrant on a problem are written at once and to the disk, so whatever ends the race,
at most the last of them are torn; they are left out, and raced again. A later race with the same
problem, entrant, learning rates, seeds and epochs, from the same text of the user's files and of
what they import from beside them, takes the runs from there.
"""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adam_jax.race import folder, records
from adam_jax.race.course import Course
from adam_jax.race.entrants import Entrant
from adam_jax.race.errors import UsageError
from adam_jax.race.results import Outcome

NAME = "results.jsonl"

_BEGINNING = b'{"problem": '  # of a line of ours, also of a torn one


class Journal:
    """What was raced already, and what is being raced.

    Args:
      place: the folder; it is made when there is something to keep.
      fresh: whether to race again what is there; it stays until that is done.

    Raises:
      UsageError: if there are other results in the folder than a race's, or another race writes.
    """

    def __init__(self, place: Path, fresh: bool = False):
        self.path = place / NAME
        self._fresh = fresh
        self._lock = folder.Lock(place)
        self._lines: dict[tuple[Any, ...], bytes] = {}  # of whole groups, by identity
        self._outcomes: dict[tuple[Any, ...], Outcome] = {}
        self._torn = False  # whether there is in the file more than whole groups
        if place.is_dir():
            self._lock.take()
        try:
            if self.path.exists():
                self._read()
        except UsageError:
            self.close()
            raise

    def taken(self, course: Course, entrant: Entrant) -> Outcome | None:
        """The outcome of an earlier race, if it is there and wanted."""
        if self._fresh:
            return None
        return self._outcomes.get(records.of_group(course, entrant.name, entrant.digest))

    def others(self, course: Course, named: Sequence[str]) -> list[str]:
        """Who else has runs there that could stand beside those of the entrants named, once."""
        there = [
            kept.entrant
            for group, kept in self._outcomes.items()
            if group == records.of_group(course, kept.entrant, kept.digest)
        ]
        return [] if self._fresh else [name for name in dict.fromkeys(there) if name not in named]

    def keep(self, course: Course, outcome: Outcome) -> None:
        """Writes the runs of an entrant.

        Raises:
          UsageError: if they cannot be written.
        """
        group = records.of_group(course, outcome.entrant, outcome.digest)
        lines = [json.dumps(each, allow_nan=False) for each in records.written(course, outcome)]
        content = "".join(f"{line}\n" for line in lines).encode()
        with folder.writing(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._lock.take() and self.path.exists():
                self._read()  # what another race has written since this one began
        again = self._torn or group in self._lines
        self._lines[group] = content
        with folder.writing(self.path.parent):
            if not again:
                _append(self.path, content)
        if again:
            folder.write(self.path.parent, {NAME: b"".join(self._lines.values())})
            self._torn = False

    def close(self) -> None:
        """Lets another race write there."""
        self._lock.give_back()

    def _read(self) -> None:
        if not self.path.is_file():
            raise self._foreign(1)
        with folder.writing(self.path.parent):
            *lines, rest = self.path.read_bytes().split(b"\n")
        if rest[: len(_BEGINNING)] != _BEGINNING[: len(rest)]:
            raise self._foreign(len(lines) + 1)
        # A run that is there twice, as where two files were put together, counts once.
        groups: dict[tuple[Any, ...], dict[tuple[Any, ...], tuple[Any, bytes]]] = defaultdict(dict)
        for number, line in enumerate(lines, 1):
            group, record = self._record(number, line)
            groups[group][record["learning_rate"], record["seed"]] = (record, line)
        for group, members in groups.items():
            found = [record for record, _ in members.values()]
            if records.whole(found):
                self._outcomes[group] = records.read(found)
                self._lines[group] = b"".join(line + b"\n" for _, line in members.values())
        kept = sum(content.count(b"\n") for content in self._lines.values())
        self._torn = bool(rest) or kept < len(lines)

    def _record(self, number: int, line: bytes) -> tuple[tuple[Any, ...], records.Record]:
        try:
            record = json.loads(line)
            records.whole([record])
            records.read([record])
            group = records.identity(record)
            hash(group)
            return group, record
        # A number may be too large for a float, and brackets nested too deeply.
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
            raise self._foreign(number) from None

    def _foreign(self, number: int) -> UsageError:
        return UsageError(
            f"--out must be a folder without a {NAME} of anything but races, got "
            f"{str(self.path.parent)!r}: line {number} is not a run as this version writes it"
        )


def _append(path: Path, content: bytes) -> None:
    """In one write, and to the disk."""
    with open(path, "ab", buffering=0) as file:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
