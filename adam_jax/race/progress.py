"""What a race shows on stderr while it runs: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console

from adam_jax.race.results import Outcome
from adam_jax.race.runner import Progress

Show = Callable[[Progress | Outcome], None]


@contextmanager
def display(entrants: int, epochs: int) -> Iterator[Show]:
    """Gives a function that shows the events of a race as they come."""
    if sys.stderr.isatty():
        with _bar(entrants, epochs) as show:
            yield show
    else:
        yield _lines(entrants)


@contextmanager
def _bar(entrants: int, epochs: int) -> Iterator[Show]:
    bar = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    # An entrant's compilation takes about as long as an epoch or more, so it counts as one.
    task = bar.add_task("tracing", total=entrants * (epochs + 1))

    def show(event: Progress | Outcome) -> None:
        if isinstance(event, Progress):
            bar.update(task, description=f"{event.entrant}: epoch {event.epoch} of {epochs}")
            bar.advance(task)

    with bar:
        yield show


def _lines(entrants: int) -> Show:
    began = time.perf_counter()
    done = 0

    def show(event: Progress | Outcome) -> None:
        nonlocal done
        if isinstance(event, Outcome):
            done += 1
            seconds = time.perf_counter() - began
            line = f"{event.entrant}: done, {done} of {entrants} after {seconds:.1f} s"
            print(line, file=sys.stderr, flush=True)

    return show
