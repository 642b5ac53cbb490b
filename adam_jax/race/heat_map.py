"""A race of many: a row an entrant, the best one first, and a column a learning rate."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.patches import Rectangle

from adam_jax.race.canvas import Paper, finite, sheet, short
from adam_jax.race.colours import GREY, LOST
from adam_jax.race.results import Standing, rounded

_ROW = 0.26  # inches
_HEADER, _BOTTOM, _RIGHT = 0.4, 0.15, 0.15
_GUTTER = 0.04  # between cells, of a cell
_LETTER = 0.088  # of a name, inches
_LONGEST = 20  # of a name, letters
_DIGIT = 0.09  # of a learning rate, inches
_NARROWEST = 0.45  # what a number needs, inches
_COLOURS = colormaps["Blues_r"]


def heat_map(paper: Paper, problem: str, standings: Sequence[Standing], ceiling: float) -> Any:
    """Draws the final losses.

    Args:
      paper: what to draw on; the rows say how high it is.
      problem: its name, for the title.
      standings: the entrants in the order of their rows.
      ceiling: the loss from which on all have one colour.

    Returns:
      A figure.
    """
    rates = sorted({rate for row in standings for rate in row.outcome.learning_rates})
    names = [short(row.entrant, _LONGEST) for row in standings]
    height = paper.top + _HEADER + _ROW * len(names) + _BOTTOM
    figure = sheet(
        paper,
        f"{problem}: how much the learning rate matters",
        "training loss after the last epoch, median over seeds; framed: each entrant's best; "
        "\N{MULTIPLICATION SIGN}: diverged",
        height,
    )
    left = 0.3 + _LETTER * max(map(len, names))
    width = paper.width - left - _RIGHT
    across, up = width / paper.width, _ROW * len(names) / height
    axes = figure.add_axes((left / paper.width, _BOTTOM / height, across, up))
    _scales(axes, names, [f"{rate:.3g}" for rate in rates], width)
    losses = [[row.outcome.final_loss(rate) for rate in rates] for row in standings]
    shade = shades([min(loss, ceiling) for row in losses for loss in finite(row)])
    numbers = width / len(rates) >= _NARROWEST
    for index, row in enumerate(standings):
        for column, loss in enumerate(losses[index]):
            best = not row.diverged and rates[column] == row.learning_rate
            _cell(axes, (column, index), loss, shade(min(loss, ceiling)), best, numbers)
    return figure


def _scales(axes: Any, names: Sequence[str], rates: Sequence[str], width: float) -> None:
    """Writes a name beside each row, and above the columns as many rates as there is room for."""
    axes.set(xlim=(0, len(rates)), ylim=(len(names), 0))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=10)
    axes.set_yticks([row + 0.5 for row in range(len(names))], names)
    needed = max(_NARROWEST, _DIGIT * max(map(len, rates)))
    step = math.ceil(needed * len(rates) / width)
    axes.set_xticks([column + 0.5 for column in range(0, len(rates), step)], rates[::step])
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("learning rate", fontsize=10)


def _cell(
    axes: Any, place: tuple[int, int], loss: float, shade: float, best: bool, numbers: bool
) -> None:
    x, y = place
    lost = not math.isfinite(loss)
    colour = LOST if lost else _COLOURS(0.15 + 0.85 * shade)[:3]
    ink = GREY if lost else _ink(colour)
    corner, size = (x + _GUTTER / 2, y + _GUTTER / 2), 1 - _GUTTER
    axes.add_patch(Rectangle(corner, size, size, facecolor=colour, linewidth=0))
    if best:
        frame = Rectangle((x + 0.05, y + 0.1), 0.9, 0.8, fill=False, edgecolor=ink, linewidth=1.2)
        axes.add_patch(frame)
    if lost or numbers:
        axes.text(
            x + 0.5,
            y + 0.53,
            "\N{MULTIPLICATION SIGN}" if lost else rounded(loss, 2),
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold" if best else "normal",
            color=ink,
        )


def _ink(colour: Any) -> str:
    """Black or white, whichever is told better from the colour."""
    weights = (0.2126, 0.7152, 0.0722)  # of red, green and blue in luminance
    luminance = sum(w * part**2.2 for w, part in zip(weights, colour, strict=True))
    return "black" if luminance > 0.179 else "white"


def shades(losses: Sequence[float]) -> Any:
    """From a loss to where it is between the lowest one, 0, and the highest one, 1."""
    if not losses:
        return lambda _: 1.0
    # In log, unless a loss (a likelihood, a return) is not positive.
    scale = math.log if min(losses) > 0 else float
    low, high = scale(min(losses)), scale(max(losses))
    return lambda loss: (scale(loss) - low) / ((high - low) or 1.0) if loss < math.inf else 1.0
