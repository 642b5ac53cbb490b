"""The command `adam-jax race`: reads what is asked, runs it, shows and keeps what comes out."""

import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from types import FrameType

import jax

from adam_jax.race import document, entrants, folder, meeting, profiles, summary, table
from adam_jax.race.cli import INTERRUPTED
from adam_jax.race.course import Asked
from adam_jax.race.errors import UsageError, printing, require
from adam_jax.race.journal import Journal
from adam_jax.race.limit import within
from adam_jax.race.meeting import Meeting, Taken
from adam_jax.race.progress import display
from adam_jax.race.results import Race
from adam_jax.race.runner import Settings
from adam_jax.race.wire import Event

FAILED = 2


def run(arguments: Namespace) -> int:
    """Races, and returns the exit status."""
    # Before any time is spent: a missing extra should not come out at the end of the race.
    if arguments.out:
        require("adam_jax.race.pictures")
    # What the user's own code prints is not a part of the document.
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
        problems = meeting.problems(arguments.problem)
        held = _meeting(arguments, len(problems))
        stopped = _hold(held, problems)
    races = held.races
    finished = any(race.outcomes for race in races)
    if finished or (races and arguments.json):
        try:
            with printing():
                _show(races, len(problems) > 1, arguments.json, complete=stopped is None)
        finally:  # a race that cannot be shown is kept all the same
            if arguments.out and finished:
                files = _files(arguments, races, held.named, len(problems) > 1, stopped is None)
                folder.write(arguments.out, files)
    if isinstance(stopped, UsageError):
        raise stopped
    if stopped:
        print(_interrupted(races, len(problems), len(held.racing)), file=sys.stderr)
        return INTERRUPTED
    if arguments.out and finished:
        print(f"adam-jax: wrote the results and pictures to {arguments.out}", file=sys.stderr)
    return FAILED if any(race.failures for race in races) else 0


def _meeting(arguments: Namespace, problems: int) -> Meeting:
    """What is asked, checked before any time is spent."""
    if problems > 1 and arguments.target is not None:
        raise UsageError(f"--target must be for one problem, got {problems}")
    if arguments.fresh and not arguments.out:
        raise UsageError("--fresh must come with --out, where there are results to leave aside")
    limit = arguments.time_limit
    # A process of its own may take its entrants along; ours come to no harm.
    apart = problems > 1 or limit is not None or not entrants.are_built_in(arguments.entrants)
    if apart:
        # An accelerator is for the processes that race; if this one held it, they had no room.
        jax.config.update("jax_platforms", "cpu")
    with within(limit, "reading the entrants"):
        racing = entrants.load(arguments.entrants)
    if arguments.out:
        folder.check(arguments.out)
    return Meeting(
        racing=racing,
        asked=Asked(arguments.learning_rates, arguments.seeds, arguments.epochs),
        apart=apart,
        limit=limit,
        journal=Journal(arguments.out, arguments.fresh) if arguments.out else None,
        target=arguments.target,
    )


def _hold(held: Meeting, problems: Sequence[str]) -> KeyboardInterrupt | UsageError | None:
    """Races, and returns what stopped it, if anything did."""
    try:
        with display(len(problems), len(held.racing)) as show, interruptible() as check:

            def seen(problem: str, event: Event | Taken) -> None:
                show(problem, event)
                check()

            held.hold(problems, seen)
    except (KeyboardInterrupt, UsageError) as stopped:
        return stopped
    finally:
        if held.journal:
            held.journal.close()
    return None


def _show(races: Sequence[Race], several: bool, as_json: bool, complete: bool) -> None:
    if several:
        scores = profiles.scores(races)
        if as_json:
            print(document.report_all(races, scores, complete))
        else:
            summary.show(races, scores)
        return
    (race,) = races
    if as_json:
        print(document.report(race, complete))
    else:
        settings = Settings(race.learning_rates, race.seeds, race.epochs)
        table.show(settings, race.standings, race.solved_at)


def _files(
    arguments: Namespace,
    races: Sequence[Race],
    named: Sequence[str],
    several: bool,
    complete: bool,
) -> dict[str, bytes]:
    """What goes into the folder beside the runs, by name."""
    pictures, report = map(require, ("adam_jax.race.pictures", "adam_jax.race.report"))
    files: dict[str, bytes] = {}
    for race in races:
        if race.outcomes:
            stem = Path(race.problem).stem
            drawn = pictures.draw(stem, race.outcomes, race.standings, race.steps)
            beginning = f"{_distinct(race, races)}_" if several else ""
            files |= {f"{beginning}{name}": content for name, content in drawn.items()}
    scores = profiles.scores(races) if several else []
    over_all = report.lines(scores, named) if scores else ()
    for name, lines in zip(("profile.png", "profile_default.png"), over_all, strict=False):
        files[name] = report.draw(lines)
    again = report.command(arguments.given)
    page: str = report.page(races, again, report.versions(races), scores, complete)
    return files | {"report.html": page.encode()}


def _distinct(race: Race, races: Sequence[Race]) -> str:
    """The problem's name without its folder, numbered if another one's is the same."""
    stem = Path(race.problem).stem
    alike = [each.problem for each in races if Path(each.problem).stem == stem]
    return f"{stem}_{alike.index(race.problem) + 1}" if len(alike) > 1 else stem


def _interrupted(races: Sequence[Race], problems: int, entrants: int) -> str:
    names = [outcome.entrant for race in races for outcome in race.outcomes]
    count = f"{len(names)} of {problems * entrants}"
    which = f": {', '.join(names) or 'none'}" if problems == 1 else ""
    return f"adam-jax: interrupted; finished entrants are kept, {count}{which}"


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
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
