"""The command `adam-jax race`: reads what is asked, runs it, shows and keeps what comes out."""

import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from types import FrameType

from adam_jax.race import document, entrants, folder, problem, table
from adam_jax.race.cli import INTERRUPTED
from adam_jax.race.entrants import Entrant
from adam_jax.race.errors import UsageError, printing, require
from adam_jax.race.problem import Problem
from adam_jax.race.progress import display
from adam_jax.race.results import Outcome, Race, standings, target_loss
from adam_jax.race.runner import Settings, race


def run(arguments: Namespace) -> int:
    """Races, and returns the exit status."""
    # Before any time is spent: a missing extra should not come out at the end of the race.
    pictures = require("adam_jax.race.pictures") if arguments.out else None
    # What the user's own code prints is not a part of the document.
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
        racing = entrants.load(arguments.entrants)
        chosen = problem.load(arguments.problem)
        settings = Settings(
            learning_rates=arguments.learning_rates or chosen.learning_rates,
            seeds=arguments.seeds,
            epochs=arguments.epochs or chosen.epochs,
        )
        if arguments.out:
            folder.check(arguments.out)
        outcomes, stopped = _outcomes(chosen, racing, settings)
    if outcomes:
        target = target_loss(outcomes) if arguments.target is None else arguments.target
        rows = standings(outcomes, target, chosen.steps)
        try:
            with printing():
                if arguments.json:
                    print(document.report(chosen, settings, rows, target, complete=stopped is None))
                else:
                    table.show(settings, rows, target)
        finally:  # a race that cannot be shown is kept all the same
            if pictures:
                files = pictures.draw(Path(chosen.name).stem, outcomes, rows, chosen.steps)
                files["results.jsonl"] = document.lines(chosen, outcomes).encode()
                files["report.html"] = _report(chosen, settings, outcomes, arguments)
                folder.write(arguments.out, files)
    if isinstance(stopped, UsageError):
        raise stopped
    if stopped is None:
        if pictures:
            print(f"adam-jax: wrote the results and pictures to {arguments.out}", file=sys.stderr)
        return 0
    kept = ", ".join(outcome.entrant for outcome in outcomes) or "none"
    count = f"{len(outcomes)} of {len(racing)}"
    print(f"adam-jax: interrupted; finished entrants are kept, {count}: {kept}", file=sys.stderr)
    return INTERRUPTED


def _report(
    chosen: Problem,
    settings: Settings,
    outcomes: Sequence[Outcome],
    arguments: Namespace,
) -> bytes:
    raced = Race(
        problem=chosen.name,
        about=chosen.about,
        learning_rates=settings.learning_rates,
        seeds=settings.seeds,
        epochs=settings.epochs,
        steps=chosen.steps,
        target=arguments.target,
        outcomes=tuple(outcomes),
        failures=(),
        samples={},
    )
    report = require("adam_jax.race.report")
    page: str = report.page([raced], report.command(arguments.given), report.versions())
    return page.encode()


def _outcomes(
    chosen: Problem, racing: Sequence[Entrant], settings: Settings
) -> tuple[list[Outcome], KeyboardInterrupt | UsageError | None]:
    """The entrants that finished, and what stopped the others."""
    outcomes: list[Outcome] = []
    try:
        with display(len(racing), settings.epochs) as show, _interruptible() as check:
            for event in race(chosen, racing, settings):
                if isinstance(event, Outcome):
                    outcomes.append(event)
                show(event)
                check()
    except (KeyboardInterrupt, UsageError) as stopped:
        return outcomes, stopped
    return outcomes, None


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """A check that raises once Ctrl-C has been pressed, also if it came where Python ignores it.

    As it does in callbacks of its garbage collector, of which JAX has one.
    """
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(number, frame)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, note) if in_main_thread else None
    try:
        yield check
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, before)
