"""The command `adam-jax tune`: reads what is asked, searches, shows and keeps what comes out."""

import math
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from adam_jax.race import entrants, folder, grid, problem
from adam_jax.race.cli import INTERRUPTED
from adam_jax.race.command import interruptible
from adam_jax.race.entrants import Entrant
from adam_jax.race.errors import UsageError, printing, require
from adam_jax.race.limit import within
from adam_jax.race.tune import document
from adam_jax.race.tune.progress import display
from adam_jax.race.tune.search import Search
from adam_jax.race.tune.show import show
from adam_jax.race.tune.space import DEFAULT_LEARNING_RATES, axes, candidates
from adam_jax.race.tune.trainer import Trainer


def run(arguments: Namespace) -> int:
    """Searches, and returns the exit status."""
    # Before any time is spent: a missing extra should not come out at the end of the search.
    picture = require("adam_jax.race.tune.picture") if arguments.out else None
    stdout = sys.stdout
    # What the user's own code prints is not a part of the document.
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
        with within(arguments.time_limit, "reading the entrant"):
            entrant = _entrant(arguments.entrant)
        rates = arguments.learning_rates or grid.learning_rates(DEFAULT_LEARNING_RATES)
        searched = axes(rates, arguments.also, entrant)
        if arguments.out:
            folder.check(arguments.out)
        with within(arguments.time_limit, "reading the problem"):
            chosen = problem.load(arguments.problem)
            trainer = Trainer(chosen, entrant, searched, arguments.seeds)
        epochs = arguments.epochs or chosen.epochs
        first = candidates(searched)
        search = Search(trainer, searched, first, arguments.seeds, epochs, arguments.tolerance)

        def tell() -> None:
            found = search.findings
            title = f"{entrant.name} on {Path(chosen.name).stem}"
            report = document.report(chosen, entrant.name, searched, found)
            try:
                with printing(), redirect_stdout(stdout):
                    if arguments.json:
                        print(report)
                    else:
                        show(title, searched, found)
            finally:  # a search that cannot be shown is kept all the same
                if picture:
                    drawn = picture.draw(title, found)
                    files = {"tune.png": drawn, "tune.json": f"{report}\n".encode()}
                    folder.write(arguments.out, files)

        stopped = _stopped(search, arguments.time_limit, tell)
    if stopped and search.findings.recommended is None:
        raise stopped
    tell()
    if isinstance(stopped, UsageError):
        raise stopped
    if stopped:
        print("adam-jax: interrupted; what was known by then is kept", file=sys.stderr)
        return INTERRUPTED
    if picture:
        print(f"adam-jax: wrote the picture and tune.json to {arguments.out}", file=sys.stderr)
    # What is NaN before the first step is the problem's own fault, as in a race.
    return 2 if math.isnan(search.findings.initial_loss) else 0


def _entrant(text: str) -> Entrant:
    found = entrants.load(text)
    if len(found) != 1:
        raise UsageError(f"--entrant must name one, got {text!r}")
    return found[0]


def _stopped(
    search: Search, limit: float | None, last: Callable[[], None]
) -> KeyboardInterrupt | UsageError | None:
    """Searches, and returns what kept it from its end; does the last thing if no other can be."""

    def known() -> None:
        if search.findings.recommended is not None:
            last()

    try:
        with display() as shown, interruptible() as check, within(limit, "the search", known):
            for event in search.run():
                shown(event)
                check()
    except (KeyboardInterrupt, UsageError) as stopped:
        return stopped
    return None
