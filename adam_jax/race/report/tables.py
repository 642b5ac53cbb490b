"""The tables of a page, with what each cell is worth beside what it shows, to be sorted by."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from adam_jax.race.heat_map import shades
from adam_jax.race.pictures import ceiling
from adam_jax.race.profiles import Score
from adam_jax.race.report.markup import Markup, element, joined
from adam_jax.race.report.words import Result
from adam_jax.race.results import Standing, rounded

_SHADES = 6  # that the style sheet has


class Cell(NamedTuple):
    """What a cell shows, what it is worth (`None`, as for nothing, is last), and its class."""

    text: str
    worth: float | None
    kind: str | None = None


_NONE = Cell("\N{EN DASH}", None)
_NEVER = Cell("never", None)


def standings(result: Result) -> Markup:
    """The entrants at their best learning rates."""
    headers = [
        "best learning rate",
        "final loss",
        "range over seeds",
        *(name.replace("_", " ") for name in result.figures),
        f"steps to {rounded(result.target, 3) if math.isfinite(result.target) else 'target'}",
        "time a step (\N{MICRO SIGN}s)",
        "compile (s)",
        "state (bytes a parameter)",
        "forgiving",
    ]
    rows = [(row.entrant, _cells(row, result.figures)) for row in result.rows]
    caption = f"{result.race.problem}: every entrant at its best learning rate"
    return _table(caption, headers, rows, sorted_by=2)


def learning_rates(result: Result) -> Markup:
    """The final losses, the lower the stronger in colour."""
    rates = sorted({rate for row in result.rows for rate in row.outcome.learning_rates})
    losses = [[row.outcome.final_loss(rate) for rate in rates] for row in result.rows]
    most = ceiling(result.race.outcomes)
    shade = shades([min(loss, most) for row in losses for loss in row if math.isfinite(loss)])

    def cell(loss: float, best: bool) -> Cell:
        if not math.isfinite(loss):
            return Cell("\N{MULTIPLICATION SIGN}", None, "lost")
        kind = f"shade-{min(int(shade(min(loss, most)) * _SHADES), _SHADES - 1)}"
        return Cell(rounded(loss, 2), loss, f"{kind} best" if best else kind)

    rows = [
        (
            row.entrant,
            [
                cell(loss, rate == row.learning_rate)
                for rate, loss in zip(rates, of_row, strict=True)
            ],
        )
        for row, of_row in zip(result.rows, losses, strict=True)
    ]
    caption = (
        "Final training loss by learning rate, median over seeds. Framed: each entrant's best; "
        "\N{MULTIPLICATION SIGN}: diverged"
    )
    headers = [f"{rate:.3g}" for rate in rates]
    return _table(caption, headers, rows, kind="sortable heat")


def scores(found: Sequence[Score], rules: Sequence[str]) -> Markup:
    """The scores over all problems, under the rules of that name: tuned, and usual rates."""
    rows = [
        (
            each.entrant,
            [
                _score(each.tuned.score),
                _score(each.default.score),
                Cell(f"{each.default_rate:g}", each.default_rate),
                Cell(f"{each.tuned.solved} of {len(each.problems)}", each.tuned.solved),
            ],
        )
        for each in found
    ]
    headers = [*(f"score, {rule}" for rule in rules), "usual learning rate", "solved"]
    return _table("Scores over all problems", headers, rows)


def _cells(row: Standing, figures: Sequence[str]) -> list[Cell]:
    outcome = row.outcome
    costs = [outcome.step_seconds * 1e6, outcome.compile_seconds, outcome.state_bytes]
    cost = [_number(value, 2) for value in costs]
    if row.diverged:
        return [
            _NONE,
            Cell("diverged", None),
            _NONE,
            *(_NONE for _ in figures),
            _NEVER,
            *cost,
            _NONE,
        ]
    span = "\N{EN DASH}".join(rounded(loss, 2) for loss in (row.lowest, row.highest))
    steps = row.steps_to_target
    return [
        Cell(f"{row.learning_rate:.3g}", row.learning_rate),
        _number(row.final_loss, 3),
        Cell(span, row.highest - row.lowest if math.isfinite(row.highest) else None),
        *(_number(row.evaluation.get(name), 3) for name in figures),
        _NEVER if steps is None else Cell(f"{steps:.0f}", steps),
        *cost,
        Cell(f"{row.forgiving:.0%}", row.forgiving),
    ]


def _score(score: float) -> Cell:
    return Cell(f"{score:.2f}", score)


def _number(value: float | None, digits: int) -> Cell:
    if value is None or not math.isfinite(value):
        return _NONE
    return Cell(rounded(value, digits), value)


def _table(
    caption: str,
    headers: Sequence[str],
    rows: Iterable[tuple[str, Sequence[Cell]]],
    sorted_by: int | None = None,
    kind: str = "sortable",
) -> Markup:
    heads = (
        element("th", header, scope="col", aria_sort="ascending" if place == sorted_by else None)
        for place, header in enumerate(("entrant", *headers))
    )
    body = (joined((element("th", name, scope="row"), *map(_cell, cells))) for name, cells in rows)
    table = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", element("tr", *heads)),
        element("tbody", *(element("tr", cells) for cells in body)),
        class_=kind,
    )
    # Can be reached by keyboard, to be scrolled.
    return element("div", table, class_="scroll", role="region", aria_label=caption, tabindex=0)


def _cell(cell: Cell) -> Markup:
    worth = "" if cell.worth is None else repr(float(cell.worth))
    return element("td", cell.text, data_value=worth, class_=cell.kind)
