"""What each entrant costs: a bar each, the shortest one on top."""

from collections.abc import Mapping
from typing import Any

from matplotlib.ticker import MaxNLocator

from adam_jax.race.canvas import Paper, sheet, short
from adam_jax.race.colours import SERIES
from adam_jax.race.results import rounded

_ROW = 0.27  # inches
_BOTTOM, _LETTER = 0.55, 0.088
_LONGEST = 0.35  # of the width, for names
_NUMBER = 0.15  # of the longest bar, for its number


def bars(paper: Paper, values: Mapping[str, float], label: str) -> Any:
    """Draws a number for each name.

    Args:
      paper: what to draw on; the rows say how high it is.
      values: by name, none below 0.
      label: what the numbers are, with their unit.

    Returns:
      A figure.
    """
    ranked = sorted(values, key=lambda name: values[name])
    names = [short(name, int(_LONGEST * paper.width / _LETTER)) for name in ranked]
    height = paper.top + _ROW * len(names) + _BOTTOM
    figure = sheet(paper, "", "", height)
    left = (0.2 + _LETTER * max(map(len, names))) / paper.width
    axes = figure.add_axes(
        (left, _BOTTOM / height, 0.97 - left, _ROW * len(names) / height),
        xlim=(0, (1 + _NUMBER) * max(*values.values(), 1e-9)),
        ylim=(len(names) - 0.5, -0.5),
    )
    axes.barh(range(len(names)), [values[name] for name in ranked], 0.62, color=SERIES[0])
    for row, name in enumerate(ranked):
        axes.annotate(
            rounded(values[name], 2),
            (values[name], row),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
        )
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(labelsize=10)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(label, fontsize=11)
    return figure
