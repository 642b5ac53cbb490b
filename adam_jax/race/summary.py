"""Races on several problems for people: who did best over all, and what came out on each."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from adam_jax.race.profiles import LARGEST, Score
from adam_jax.race.results import Race, rounded

_LEGEND = (
    "Score: the share of problems that an entrant solves within tau times the steps of the fastest "
    f"one, mean over tau from 1 to {LARGEST:g}. Tuned: with the learning rate of the grid that "
    "needs the fewest steps on the problem. Default: with the rate of the grid that is nearest to "
    "the default rate. Solved: how often the loss came down to the problem's target, or to 10% "
    "above the lowest, at any learning rate."
)


def show(races: Sequence[Race], scores: Sequence[Score]) -> None:
    """Prints the entrants, best first, what the columns mean, and a line a problem."""
    console = Console(markup=False, highlight=False, emoji=False)
    if scores:
        console.print(_table(scores), crop=False)
        console.print()
        console.print(_LEGEND, style="dim")
        console.print()
    for race in races:
        for line in _lines(race):
            console.print(line, soft_wrap=True)


def _table(scores: Sequence[Score]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("entrant", overflow="fold", vertical="bottom")
    for header in ("tuned\nscore", "default\nscore", "default\nrate", "solved"):
        table.add_column(header, justify="right", vertical="bottom", no_wrap=True)
    for index, each in enumerate(scores):
        table.add_row(
            each.entrant,
            f"{each.tuned.score:.2f}",
            f"{each.default.score:.2f}",
            f"{each.default_rate:g}",
            f"{each.tuned.solved} of {len(each.problems)}",
            style="bold" if index == 0 else None,
        )
    return table


def _lines(race: Race) -> Iterator[str]:
    name = Path(race.problem).stem
    rows = race.standings
    if rows and not rows[0].diverged:
        best = rows[0]
        rate, loss = f"{best.learning_rate:.3g}", rounded(best.final_loss, 3)
        yield f"{name}: best {best.entrant} at learning rate {rate}, loss {loss}"
    elif rows:
        yield f"{name}: every run diverged"
    for failure in race.failures:
        yield f"{name}: {failure.entrant or 'the problem'}: {failure.reason}"
