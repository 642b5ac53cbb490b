"""The tables of a page, with what each cell is worth beside what it shows, to be sorted by."""

import math
from collections.abc import Iterable, Sequence

from adam_jax.race.report.markup import Markup, element, joined
from adam_jax.race.report.profiles import Profile
from adam_jax.race.report.words import Result
from adam_jax.race.results import Standing, rounded

# What a cell shows, and what it is worth: `None` for nothing, which is last in every order.
Cell = tuple[str, float | None]

_NONE: Cell = ("\N{EN DASH}", None)


def standings(result: Result) -> Markup:
    """The entrants at their best learning rates."""
    figures = list(dict.fromkeys(name for row in result.rows for name in row.evaluation))
    headers = [
        "best learning rate",
        "final loss",
        "range over seeds",
        *(name.replace("_", " ") for name in figures),
        f"steps to {rounded(result.target, 3)}",
        "time a step (\N{MICRO SIGN}s)",
        "compile (s)",
        "state (bytes a parameter)",
        "forgiving",
    ]
    rows = [(row.entrant, _cells(row, figures)) for row in result.rows]
    caption = f"{result.race.problem}: every entrant at its best learning rate"
    return _table(caption, "entrant", headers, rows, sorted_by="final loss")


def scores(profiles: Sequence[Profile]) -> Markup:
    """The scores over all problems."""
    entrants = dict.fromkeys(entrant for profile in profiles for entrant in profile.ranked)
    rows = [
        (entrant, [_score(profile.scores.get(entrant)) for profile in profiles])
        for entrant in entrants
    ]
    headers = [f"score, {profile.name}" for profile in profiles]
    return _table("Scores over all problems", "entrant", headers, rows, sorted_by="")


def _cells(row: Standing, figures: Sequence[str]) -> list[Cell]:
    outcome = row.outcome
    costs = [outcome.step_seconds * 1e6, outcome.compile_seconds, outcome.state_bytes]
    cost = [_number(value, 2) for value in costs]
    if row.diverged:
        return [_NONE, ("diverged", None), _NONE, *(_NONE for _ in figures), _never(), *cost, _NONE]
    span = "\N{EN DASH}".join(rounded(loss, 2) for loss in (row.lowest, row.highest))
    steps = row.steps_to_target
    return [
        (f"{row.learning_rate:.3g}", row.learning_rate),
        _number(row.final_loss, 3),
        (span, row.highest - row.lowest if math.isfinite(row.highest) else None),
        *(_number(row.evaluation.get(name), 3) for name in figures),
        _never() if steps is None else (f"{steps:.0f}", steps),
        *cost,
        (f"{row.forgiving:.0%}", row.forgiving),
    ]


def _score(score: float | None) -> Cell:
    return _NONE if score is None else (f"{score:.2f}", score)


def _never() -> Cell:
    return "never", None


def _number(value: float | None, digits: int) -> Cell:
    if value is None or not math.isfinite(value):
        return _NONE
    return rounded(value, digits), value


def _table(
    caption: str,
    first: str,
    headers: Sequence[str],
    rows: Iterable[tuple[str, Sequence[Cell]]],
    sorted_by: str,
) -> Markup:
    heads = (
        element("th", header, scope="col", aria_sort="ascending" if header == sorted_by else None)
        for header in (first, *headers)
    )
    body = (joined((element("th", name, scope="row"), *map(_cell, cells))) for name, cells in rows)
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heads)),
        element("tbody", *(element("tr", cells) for cells in body)),
        class_="sortable",
    )
    # Can be reached by keyboard, to be scrolled.
    return element("div", table, class_="scroll", role="region", aria_label=caption, tabindex=0)


def _cell(cell: Cell) -> Markup:
    text, value = cell
    return element("td", text, data_value="" if value is None else repr(float(value)))
