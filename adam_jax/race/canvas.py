"""What the pictures of a race share: the canvas, its scales, and names at the ends of lines."""

import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

GREY = "#555555"
WIDTH, _HEIGHT = 9.0, 5.5  # inches
# Shares of the picture's width: the left margin, and a letter of a line's name.
_LEFT = 0.085
_LETTER = 0.0103
_LONGEST = 32
# From the left end of a name, half way up, to a little short of its line's end.
_LEADER = {"arrowstyle": "-", "lw": 1.2, "relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 5}


class Label(NamedTuple):
    """A line's name, and the point that it belongs to."""

    text: str
    x: float
    y: float
    colour: str


def canvas(title: str, subtitle: str) -> tuple[Any, Any]:
    """A figure for lines, and its axes."""
    figure = titled(title, subtitle, _HEIGHT)
    axes = figure.add_axes((_LEFT, 0.11, 0.7, 0.75))
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)
    return figure, axes


def titled(title: str, subtitle: str, height: float) -> Any:
    """A figure without axes, ``WIDTH`` by so many inches; the titles are in the uppermost 0.6."""
    figure = Figure(figsize=(WIDTH, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
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


def name_lines(axes: Any, labels: Sequence[Label]) -> None:
    """Writes each name to the right of the axes, level with its line's end where there is room."""
    longest = max((len(label.text) for label in labels), default=0)
    axes.set_position((_LEFT, 0.11, 0.91 - _LEFT - _LETTER * longest, 0.75))
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((label.x, label.y)) for label in labels]
    heights = apart([float(y) for _, y in ends], gap=0.048)
    for label, (x, y), height in zip(labels, ends, heights, strict=True):
        axes.annotate(
            label.text,
            xy=(x, y),
            xytext=(1.045, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=11,
            annotation_clip=False,
            arrowprops=_LEADER | {"color": label.colour},
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


def short(name: str) -> str:
    """A name that leaves room for the picture: the end of a path says more than its start."""
    return name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}"


def finite(losses: Iterable[float]) -> list[float]:
    """Those of them that are numbers."""
    return [loss for loss in losses if math.isfinite(loss)]


def png(figure: Any) -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
