"""Tables of plain text for a terminal, one column of which gives way."""

import textwrap
from collections.abc import Iterator, Sequence

from adam_jax.diagnostics import aligned

_NARROWEST = 24  # of the column that gives way; a narrower terminal folds lines itself


def folded(rows: Sequence[Sequence[str]], sides: str, column: int, width: int) -> str:
    """Rows as `aligned` shows them, with one column's words on as many lines as they need.

    >>> print(folded([["name", "does"], ["adam", "Adam " * 9]], "<<", 1, 30))
    name  does
    adam  Adam Adam Adam Adam Adam
          Adam Adam Adam Adam
    """
    widths = [max(map(len, cells)) + 2 for cells in zip(*rows, strict=True)]
    room = max(width - sum(widths) + widths[column], _NARROWEST)
    return aligned([line for row in rows for line in _lines(row, column, room)], sides)


def _lines(row: Sequence[str], column: int, room: int) -> Iterator[list[str]]:
    first, *more = textwrap.wrap(row[column], room) or [""]
    yield [*row[:column], first, *row[column + 1 :]]
    for line in more:
        yield [*[""] * column, line, *[""] * (len(row) - column - 1)]
