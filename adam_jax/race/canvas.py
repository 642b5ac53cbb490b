"""What the pictures of a race share: the paper, its scales, and names at the ends of lines."""

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adam_jax.race.colours import GREY, GRID, INK, PAPER

# Inches: margins around the axes, between a line's end and its name, and a letter of a name.
_LEFT, _BOTTOM, _TOP, _RIGHT = 0.76, 0.6, 0.12, 0.1
_TITLES = 0.65
_GAP = 0.27
_LETTER = 0.0927
_NAME_HEIGHT = 0.2
# From the left end of a name, half way up, to a little short of its line's end.
_LEADER = {"arrowstyle": "-", "lw": 1.2, "relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 5}
# A name is what its owner wrote: a dollar in it begins no formula.
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": PAPER,
    "axes.labelcolor": INK,
    "grid.color": GRID,
    "svg.fonttype": "none",
    "svg.hashsalt": "adam_jax",  # the same picture has the same bytes
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Paper:
    """What is drawn on.

    Attributes:
      width: inches.
      height: inches, of a picture of lines.
      titled: whether the titles stand on it, or beside it as on a page.
    """

    width: float
    height: float
    titled: bool

    @property
    def letters(self) -> int:
        """How long a line's name may be, for the lines to keep more than half of the width."""
        return int(0.4 * self.width / _LETTER)

    @property
    def top(self) -> float:
        """Inches that are free, or for the titles, above the axes."""
        return _TITLES + _TOP if self.titled else _TOP


PRINT = Paper(9.0, 5.5, titled=True)


@contextmanager
def drawing() -> Iterator[None]:
    """Where figures are made and written: our style in place of the caller's."""
    with rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks has boxes in a PNG file, and is whole in SVG.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


class Label(NamedTuple):
    """A line's name, and the point that it belongs to."""

    text: str
    x: float
    y: float
    colour: str


def canvas(paper: Paper, title: str, subtitle: str) -> tuple[Any, Any]:
    """A figure for lines, and its axes."""
    figure = sheet(paper, title, subtitle, paper.height)
    axes = figure.add_axes(_place(paper, paper.width - _LEFT - _RIGHT))
    axes.grid(linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)
    return figure, axes


def sheet(paper: Paper, title: str, subtitle: str, height: float) -> Any:
    """A figure without axes, so many inches high; titles, if any, are above `paper.top`."""
    figure = Figure(figsize=(paper.width, height), dpi=150, facecolor=PAPER)
    FigureCanvasAgg(figure)
    if paper.titled:
        figure.text(0.02, 1 - 0.3 / height, title, fontsize=14, fontweight="bold")
        figure.text(0.02, 1 - 0.55 / height, subtitle, fontsize=10.5, color=GREY)
    return figure


def scale(axes: Any, losses: Sequence[float]) -> None:
    """A log axis, unless a loss (a likelihood, a return) is not positive."""
    if losses and min(losses) > 0:
        axes.set_yscale("log")
        plain(axes.yaxis, losses)


def plain(axis: Any, values: Sequence[float]) -> None:
    """Writes 0.01 for 10 to the -2, and more than powers of ten if there would be but one."""
    axis.set_major_formatter("{x:g}")
    if values and max(values) < 10 * min(values):
        axis.set_minor_formatter("{x:g}")


def name_lines(paper: Paper, axes: Any, labels: Sequence[Label]) -> None:
    """Writes each name to the right of the axes, level with its line's end where there is room."""
    longest = max((len(label.text) for label in labels), default=0)
    width = paper.width - _LEFT - _GAP - _LETTER * (longest + 1) - _RIGHT
    place = _place(paper, width)
    axes.set_position(place)
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((label.x, label.y)) for label in labels]
    gap = _NAME_HEIGHT / (place[3] * paper.height)
    heights = apart([float(y) for _, y in ends], gap)
    for label, (x, y), height in zip(labels, ends, heights, strict=True):
        axes.annotate(
            label.text,
            xy=(x, y),
            xytext=(1 + _GAP / width, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=11,
            annotation_clip=False,
            arrowprops=_LEADER | {"color": label.colour},
        )


def _place(paper: Paper, width: float) -> tuple[float, float, float, float]:
    """Where axes of so many inches are, in shares of the figure."""
    height = paper.height - _BOTTOM - paper.top
    return (
        _LEFT / paper.width,
        _BOTTOM / paper.height,
        width / paper.width,
        height / paper.height,
    )


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Moves heights as little as makes them `gap` apart, all the way from 0 to 1.

    Example:
      >>> apart([0.5, 0.5], gap=0.1)
      [0.45, 0.55]
    """
    gap = min(gap, 1 / max(1, len(heights) - 1))
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    # Each cluster is [where its middle wants to be, its members]; those that touch are merged.
    clusters: list[tuple[float, list[int]]] = []
    for index in order:
        members, middle = [index], min(max(heights[index], 0.0), 1.0)
        while (
            clusters and clusters[-1][0] + gap * (len(clusters[-1][1]) + len(members)) / 2 > middle
        ):
            members = clusters.pop()[1] + members
            half = gap * (len(members) - 1) / 2
            middle = sum(heights[member] for member in members) / len(members)
            middle = min(max(middle, half), 1 - half)
        clusters.append((middle, members))
    placed = {
        member: middle + gap * (place - (len(members) - 1) / 2)
        for middle, members in clusters
        for place, member in enumerate(members)
    }
    return [placed[index] for index in range(len(heights))]


def short(name: str, most: int) -> str:
    """A name in so many letters: the end of a path says more than its start."""
    name = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name
    )
    return name if len(name) <= most else f"...{name[3 - most :]}"


def finite(losses: Iterable[float]) -> list[float]:
    """Those of them that are numbers."""
    return [loss for loss in losses if math.isfinite(loss)]


def png(figure: Any) -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
