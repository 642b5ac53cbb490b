"""Races on one problem after another: what earlier ones have kept, what is new, and what failed.

One problem is raced in this process, unless an entrant is the user's own. Of several each has a
process of its own, where it may raise, hang or crash without taking the others along.
"""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from adam_jax.race import problem, watched
from adam_jax.race.course import Asked, Course, course
from adam_jax.race.entrants import Entrant
from adam_jax.race.errors import UsageError
from adam_jax.race.journal import Journal
from adam_jax.race.results import Failure, Outcome, Race
from adam_jax.race.runner import race
from adam_jax.race.wire import Event

ALL = "all"


@dataclass(frozen=True)
class Taken:
    """An entrant whose runs an earlier race has kept.

    Attributes:
      entrant: its name.
      source: the file that they are from.
    """

    entrant: str
    source: Path


Show = Callable[[str, Event | Taken], None]  # of a problem's name


def problems(text: str) -> list[str]:
    """Reads a comma list of problems; ``all`` in it is every built-in one that it does not name."""
    if os.path.isfile(text):  # its name may have commas
        return [text]
    specs = [spec.strip() for spec in text.split(",")]
    for spec in specs:
        if specs.count(spec) > 1:
            raise UsageError(f"problem must be named once, got {spec!r} {specs.count(spec)} times")
    others = [name for name in problem.names() if name not in specs]
    found = [name for spec in specs for name in (others if spec == ALL else [spec])]
    for name in found:
        problem.check(name)
    return found


@dataclass
class Meeting:
    """Races, as they come.

    Attributes:
      racing: the entrants.
      asked: what is asked of every problem.
      apart: whether each problem has a process of its own.
      limit: seconds an entrant may take; only where it can be ended, which is apart.
      journal: where runs are kept, if they are.
      target: the loss that counts as solved, whatever the problem says.
      races: what came out so far, also of a race that was interrupted.
    """

    racing: Sequence[Entrant]
    asked: Asked
    apart: bool = False
    limit: float | None = None
    journal: Journal | None = None
    target: float | None = None
    races: list[Race] = field(default_factory=list)

    @property
    def named(self) -> list[str]:
        """The entrants' names, in the order in which the user gave them."""
        return [entrant.name for entrant in self.racing]

    def hold(self, names: Sequence[str], show: Show) -> None:
        """Races on each problem, and shows what happens.

        Raises:
          UsageError: if runs cannot be kept; or, where not apart, a problem cannot be raced.
        """
        for name in names:
            found = _Found(name, self)
            try:
                with closing(self._events(name, partial(found.left, show))) as events:
                    for event in events:
                        found.add(event)
                        show(name, event)
            finally:
                if found.anything:
                    self.races.append(found.race())

    def _events(
        self, name: str, left: Callable[[Course], list[str]]
    ) -> Generator[Event, None, None]:
        if self.apart:
            yield from watched.race(name, self.asked, self.limit, left)
            return
        chosen = problem.load(name)
        settings = self.asked.of(chosen)
        on = course(chosen, settings)
        yield on
        names = left(on)
        if names:
            yield from race(chosen, [each for each in self.racing if each.name in names], settings)


class _Found:
    """What came out on a problem so far."""

    def __init__(self, name: str, meeting: Meeting):
        self._name = name
        self._meeting = meeting
        self._course: Course | None = None
        self._outcomes: dict[str, Outcome] = {}
        self._failures: list[Failure] = []

    @property
    def anything(self) -> bool:
        return bool(self._outcomes or self._failures)

    def left(self, show: Show, on: Course) -> list[str]:
        """The entrants that no earlier race has kept."""
        journal = self._meeting.journal
        names = []
        for entrant in self._meeting.racing:
            outcome = journal.taken(on, entrant) if journal else None
            if journal and outcome:
                self._outcomes[entrant.name] = outcome
                show(self._name, Taken(entrant.name, journal.path))
            else:
                names.append(entrant.name)
        return names

    def add(self, event: Event) -> None:
        if isinstance(event, Course):
            self._course = event
        elif isinstance(event, Failure):
            self._failures.append(event)
        elif isinstance(event, Outcome):
            self._outcomes[event.entrant] = event
            if self._meeting.journal and self._course:
                self._meeting.journal.keep(self._course, event)

    def race(self) -> Race:
        asked, on = self._meeting.asked, self._course
        named = self._meeting.named
        outcomes = tuple(self._outcomes[name] for name in named if name in self._outcomes)
        best = min(
            outcomes, key=lambda each: each.final_loss(each.best_learning_rate), default=None
        )
        target, journal = self._meeting.target, self._meeting.journal
        return Race(
            problem=self._name,
            about=on.about if on else "",
            learning_rates=on.learning_rates if on else asked.learning_rates or (),
            seeds=asked.seeds,
            epochs=on.epochs if on else asked.epochs or 0,
            steps=on.steps if on else 0,
            target=on.target if on and target is None else target,
            outcomes=outcomes,
            failures=tuple(self._failures),
            samples=best.samples if best else {},
            device=on.device if on else "",
            others=tuple(journal.others(on, named)) if journal and on else (),
        )
