"""What a search shows on stderr while it runs: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console

from adam_jax.race.tune.search import Progress

Show = Callable[[Progress], None]


@contextmanager
def display() -> Iterator[Show]:
    """Gives a function that shows the events of a search as they come."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    bar = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("compiling", total=None)

    def show(event: Progress) -> None:
        bar.update(task, description=event.stage, completed=event.done, total=event.total)

    with bar:
        yield show


def _lines() -> Show:
    began = time.perf_counter()

    shown = False

    def show(event: Progress) -> None:
        nonlocal shown
        if event.rung or not shown:
            shown = True
            seconds = time.perf_counter() - began
            left = seconds * (event.total / event.done - 1)
            line = f"{event.stage}: after {seconds:.1f} s"
            line += f", about {left:.0f} s left" * (left > 0)
            print(line, file=sys.stderr, flush=True)

    return show
