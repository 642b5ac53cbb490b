"""What a race shows on stderr while it runs: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console

from adam_jax.race.course import Course
from adam_jax.race.meeting import Show, Taken
from adam_jax.race.results import Failure, Outcome
from adam_jax.race.runner import Progress
from adam_jax.race.wire import Event


@contextmanager
def display(problems: int, entrants: int) -> Iterator[Show]:
    """Gives a function that shows the events of a race as they come."""
    if not sys.stderr.isatty():
        yield _Lines(problems, entrants).show
        return
    bar = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.fields[left]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        yield _Bar(problems, entrants, bar).show


def failed(problem: str, failure: Failure, several: bool) -> str:
    """A failure in a line; an entrant's names the problem where there are several."""
    if failure.entrant is None:
        return f"{problem}: {failure.reason}"
    where = f" on {problem}" if several else ""
    return f"entrant {failure.entrant!r}{where} {failure.reason}"


class Clock:
    """How much is done, and how long the rest takes if it goes on as so far.

    Entrants on a problem take about as long as one another, problems do not: so for the problem
    that is being raced its own mean counts, for those that come the mean of all.
    """

    def __init__(self, problems: int, entrants: int, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._entrants = entrants
        self._coming = problems
        self._began = self._since = now()
        self._before = 0.0  # seconds, on problems that are over
        self._raced_before = 0
        self._over = 0
        self._raced = self._spared = 0  # of this problem: those that had their turn, or need none
        self._part = 0.0  # of the one whose turn it is
        self._problem: str | None = None
        self._epochs = 1

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return self._now() - self._began

    @property
    def done(self) -> float:
        """Entrants on problems, with the part of the one whose turn it is."""
        return self._over + self._raced + self._spared + self._part

    def see(self, problem: str, event: Event | Taken) -> None:
        """Takes note of what happens on a problem."""
        if problem != self._problem:
            self._begin(problem)
        if isinstance(event, Course):
            self._epochs = event.epochs
        elif isinstance(event, Progress):
            # An entrant's compilation takes about as long as an epoch or more, so it counts as one.
            self._part = (event.epoch + 1) / (self._epochs + 1)
        elif isinstance(event, Taken):
            self._spared += 1
        elif isinstance(event, Failure) and event.entrant is None:
            self._part, self._spared = 0.0, self._entrants - self._raced
        elif isinstance(event, Outcome | Failure):
            self._part = 0.0
            self._raced += 1

    def remaining(self) -> float | None:
        """Seconds; `None` for as long as there is nothing to go by."""
        here, raced = self._now() - self._since, self._raced + self._part
        if not self._raced_before + raced:
            return None
        mean = (self._before + here) / (self._raced_before + raced)
        left = self._entrants - raced - self._spared
        return left * (here / raced if raced else mean) + self._coming * self._entrants * mean

    def _begin(self, problem: str) -> None:
        now = self._now()
        self._before += now - self._since
        self._raced_before += self._raced
        self._over += self._raced + self._spared
        self._problem, self._since = problem, now
        self._raced = self._spared = 0
        self._part = 0.0
        self._coming -= 1


class _Lines:
    """A line as each entrant is done."""

    def __init__(self, problems: int, entrants: int):
        self._several = problems > 1
        self._total = problems * entrants
        self._clock = Clock(problems, entrants)

    def show(self, problem: str, event: Event | Taken) -> None:
        self._clock.see(problem, event)
        if isinstance(event, Outcome):
            name = f"{event.entrant} on {problem}" if self._several else event.entrant
            done = f"done, {self._clock.done:.0f} of {self._total}"
            left = f", {_left(self._clock)}" if self._clock.done < self._total else ""
            self._print(f"{name}: {done} after {self._clock.seconds:.1f} s{left}")
        elif isinstance(event, Taken):
            self._print(f"{event.entrant} on {problem}: taken from {event.source}")
        elif isinstance(event, Failure):
            self._print(f"adam-jax: error: {failed(problem, event, self._several)}")

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class _Bar(_Lines):
    """One bar for all that there is to do; what has failed, or was taken, in lines above it."""

    def __init__(self, problems: int, entrants: int, bar: progress.Progress):
        super().__init__(problems, entrants)
        self._bar = bar
        self._task = bar.add_task("starting", total=self._total, left="")

    def show(self, problem: str, event: Event | Taken) -> None:
        if isinstance(event, Taken | Failure):
            super().show(problem, event)
        else:
            self._clock.see(problem, event)
        self._bar.update(self._task, completed=self._clock.done, left=_left(self._clock))
        where = f" on {problem}" if self._several else ""
        if isinstance(event, Course):
            self._epochs = event.epochs
        elif isinstance(event, Progress):
            description = f"{event.entrant}{where}: epoch {event.epoch} of {self._epochs}"
            self._bar.update(self._task, description=description)

    def _print(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _left(clock: Clock) -> str:
    """The time that is left, as people say it."""
    seconds = clock.remaining()
    if seconds is None:
        return ""
    if seconds < 100:
        return f"about {seconds:.0f} s left"
    return (
        f"about {seconds / 60:.0f} min left" if seconds < 6000 else f"{seconds / 3600:.1f} h left"
    )
