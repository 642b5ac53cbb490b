"""A race for people: the table, what its columns mean, and the verdict."""

import textwrap
from collections.abc import Iterable, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from adam_jax.race.results import Standing, rounded
from adam_jax.race.runner import Settings

_MOST_NAMES = 6  # in a sentence
_NARROWEST_NAME = len("momentum")


def show(settings: Settings, rows: Sequence[Standing], target: float) -> None:
    """Prints the table, what its columns mean, and the verdict."""
    console = Console(markup=False, highlight=False, emoji=False)
    gap = 1 if console.width >= 100 else 0
    table = _table(rows, target, gap, console.width)
    needed = _needed(table, gap)
    if needed > console.width:  # goes on beyond the edge: a number is never cut
        table.width = needed
    console.print(table, crop=False)
    console.print()
    console.print(_legend(settings, target), style="dim")
    console.print()
    for line in verdict(rows, settings):
        console.print(line)


def verdict(rows: Sequence[Standing], settings: Settings) -> Iterable[str]:
    """What to make of the table, a sentence each."""
    best, others = rows[0], rows[1:]
    if best.diverged:
        yield "Every run diverged. Try smaller learning rates."
        return
    yield f"Lowest loss: {best.entrant} at learning rate {best.learning_rate:.3g}."
    level = [row for row in others if row.lowest <= best.highest]
    if level and settings.seeds > 1:
        names = "every other entrant" if level == others else _listed(level)
        yield (
            f"Not settled: its range over {settings.seeds} seeds meets that of {names}."
            " More --seeds tell more."
        )
    for edge, other in (("largest", "larger"), ("smallest", "smaller")):
        ends = [row for row in rows if row.edge == edge]
        if ends:
            yield f"Best at the {edge} learning rate tried, so try {other}: {_listed(ends)}."
    lost = [row for row in rows if row.diverged]
    if lost:
        yield f"Diverged at every learning rate: {_listed(lost)}."


def _table(rows: Sequence[Standing], target: float, gap: int, width: int) -> Table:
    figures = list(dict.fromkeys(name for row in rows for name in row.evaluation))
    # Ten columns have to fit a terminal of 80: high headers, no rules between columns, and numbers
    # that are never cut; a long name is folded instead.
    cells = [_cells(row, figures) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, gap, 0, 0))
    table.add_column("entrant", overflow="fold", vertical="bottom", min_width=_NARROWEST_NAME)
    headers = (
        "best\nlearning\nrate",
        "final\nloss",
        "range over\nseeds",
        *(_folded(name) for name in figures),
        f"steps\nto\n{rounded(target, 3)}",
        "\N{MICRO SIGN}s a\nstep",
        "com-\npile\ns",
        "state\nbytes/\nparam.",
        "for-\ngiving",
    )
    _, *columns = zip(*cells, strict=True)  # without the entrants
    for header, column in zip(headers, columns, strict=True):
        widest = max(map(cell_len, (*header.split("\n"), *column)))
        table.add_column(header, justify="right", vertical="bottom", no_wrap=True, min_width=widest)
    room = width - _needed(table, gap) + 1 + _NARROWEST_NAME  # no gap behind the last column
    for index, (name, *row) in enumerate(cells):
        table.add_row(_within(name, room), *row, style="bold" if index == 0 else None)
    return table


def _needed(table: Table, gap: int) -> int:
    return sum((column.min_width or 0) + gap + 1 for column in table.columns)


def _within(name: str, room: int) -> str:
    """A name that is too long goes on behind an underscore, and not in the middle of a word."""
    if len(name) <= room or room < _NARROWEST_NAME:
        return name
    return textwrap.fill(
        name.replace("_", "_ "), room, break_long_words=False, break_on_hyphens=False
    ).replace("_ ", "_")


def _folded(name: str) -> str:
    """A name as a high, narrow header."""
    return "\n".join(line for word in name.split("_") for line in textwrap.wrap(word, 10))


def _cells(row: Standing, figures: Sequence[str]) -> list[str]:
    outcome = row.outcome
    costs = (outcome.step_seconds * 1e6, outcome.compile_seconds, outcome.state_bytes)
    cost = [rounded(value, 2) for value in costs]
    if row.diverged:
        return [row.entrant, "", "diverged", "", *("" for _ in figures), "never", *cost, ""]
    # Without the 0 before the point, for both ends to fit.
    span = "\N{EN DASH}".join(
        rounded(loss, 2).removeprefix("0") or "0" for loss in (row.lowest, row.highest)
    )
    return [
        row.entrant,
        f"{row.learning_rate:.3g}",
        rounded(row.final_loss, 3),
        span,
        *(rounded(row.evaluation[name], 3) if name in row.evaluation else "" for name in figures),
        "never" if row.steps_to_target is None else f"{row.steps_to_target:.0f}",
        *cost,
        f"{row.forgiving:.0%}",
    ]


def _legend(settings: Settings, target: float) -> str:
    rates, seeds = len(settings.learning_rates), settings.seeds
    goal = rounded(target, 3)
    return (
        f"Loss: mean over an epoch's batches after epoch {settings.epochs}, median of {seeds} "
        f"seed{'s' * (seeds > 1)}. Steps to: where that loss has come down to {goal} "
        "(--target, the problem's own, or 10% above the lowest), a straight line between epochs. "
        f"Time a step: a run's share, {rates * seeds} runs at once; rough, for other work counts. "
        f"Forgiving: share of the {rates} learning rates that end within 10% of the entrant's own "
        "best."
    )


def _listed(rows: Sequence[Standing]) -> str:
    """The names, joined as a sentence does it; of many the first ones."""
    names = [row.entrant for row in rows]
    if len(names) > _MOST_NAMES:
        names = [*names[: _MOST_NAMES - 1], f"{len(names) - _MOST_NAMES + 1} more"]
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
