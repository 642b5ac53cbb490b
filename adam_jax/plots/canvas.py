"""Lines in small panels, and names at their ends."""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from adam_jax.plots.panels import Curve, Panel

# Okabe and Ito (2008), less their yellow, which is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", (0, (5, 1.5)))  # by turns, so that of two lines on each other both show
_GREY = "#666666"
# From the left end of a name, half way up, to its line's end.
_LEADER = {"arrowstyle": "-", "lw": 1.4, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 1}
WIDTH = 10.4  # inches, as wide as a notebook shows
_PER_ROW = 3
MOST_LINES = len(COLOURS)  # more leaves are a heat map


def grid(panels: int) -> tuple[Any, list[Any]]:
    """A figure with so many axes, three in a row."""
    columns = min(panels, _PER_ROW)
    rows = -(-panels // columns)
    width = WIDTH * {1: 0.6, 2: 0.85}.get(columns, 1.0)
    figure = canvas(width, (3.4 if columns == 1 else 2.7) * rows)
    return figure, [figure.add_subplot(rows, columns, n + 1) for n in range(panels)]


def canvas(width: float, height: float) -> Any:
    """A figure of so many inches, which a notebook shows.

    Raises:
      ImportError: there is no matplotlib.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - for who draws only
        from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415
    except ImportError:
        raise ImportError("plots need matplotlib: pip install 'adam_jax[plots]'") from None
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08, hspace=0.04)
    figure = Figure(figsize=(width, height), dpi=100, layout=layout, facecolor="white")
    # Notebooks know figures only once pyplot is loaded; this they look for themselves.
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def draw(
    axes: Any,
    panel: Panel,
    curves: Mapping[str, Curve],
    every: int,
    places: Mapping[str, int] | None = None,
) -> None:
    """Draws a panel: lines, their names at their ends, axes and titles.

    Args:
      axes: where.
      panel: what it is.
      curves: a line each, by names; the empty one is not written.
      every: how many steps lie between two points.
      places: which colour each has; by default in order.
    """
    places = places or {label: place for place, label in enumerate(curves)}
    log = is_log(panel, curves.values())
    axes.set_yscale("log" if log else "linear")
    longest = max(map(len, curves.values()))
    axes.set_xlim(every, every * max(longest, 2))
    for label, y in curves.items():
        _line(axes, y, every, places[label], log)
    _scale(axes, panel, curves.values(), log)
    low, high = axes.get_ylim()
    for mark in panel.marks:
        if low <= mark <= high:
            axes.axhline(mark, color=_GREY, linewidth=1, linestyle=":", zorder=1)
    _names(axes, {label: y for label, y in curves.items() if label}, every, places)
    frame(axes, panel)


def is_log(panel: Panel, curves: Iterable[Curve]) -> bool:
    """Whether values spread over more than a linear axis shows."""
    y = np.concatenate(list(curves))
    y = y[np.isfinite(y)]
    positive = y[y > 0]
    if panel.scale != "log" or not len(positive) or (y < 0).any():
        return False
    return bool(positive.max() > 4 * positive.min())


def _line(axes: Any, y: Curve, every: int, index: int, log: bool) -> None:
    """A line with gaps where there is no number; what a log axis cannot show is at its ends."""
    colour, dashes = COLOURS[index], _DASHES[index % len(_DASHES)]
    x = every * np.arange(1, len(y) + 1)
    shown = np.isfinite(y) & ((y > 0) | (not log))
    before, after = np.append(False, shown[:-1]), np.append(shown[1:], False)
    axes.plot(x, np.where(shown, y, math.nan), color=colour, linestyle=dashes, linewidth=1.6)
    alone = shown & ~before & ~after
    axes.plot(x[alone], y[alone], ".", color=colour)
    ends = {"v": (log & (y == 0), 0.03), "^": (np.isposinf(y), 0.97)}
    for marker, (which, height) in ends.items():
        where = x[which][:: max(1, int(which.sum()) // 30)]
        axes.plot(
            where,
            np.full(len(where), height),
            marker,
            color=colour,
            markersize=4,
            transform=axes.get_xaxis_transform(),
        )


def _scale(axes: Any, panel: Panel, curves: Iterable[Curve], log: bool) -> None:
    """Limits and ticks."""
    from matplotlib import ticker  # noqa: PLC0415

    if log:
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(ticker.LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(plain)
        short = high < 50 * low
        axes.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5) if short else (), numticks=9))
        axes.yaxis.set_minor_formatter(plain if short else ticker.NullFormatter())
    elif panel.scale in ("share", "percent"):
        highest = max((float(np.nanmax(y)) for y in curves if np.isfinite(y).any()), default=0.0)
        axes.set_ylim(-0.03, max(1.05, 1.05 * min(highest, 1e30)))
        if panel.scale == "percent":
            axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    elif panel.scale == "cosine":
        axes.set_ylim(-1.05, 1.05)
        axes.set_yticks([-1, -0.5, 0, 0.5, 1])
    elif panel.scale == "count":
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
    else:
        axes.yaxis.set_major_formatter(plain)


def plain(x: float, _: Any = None) -> str:
    """0.01 for ten to the -2, and 1e-5 for what would be long."""
    return re.sub(r"e([+-])0*", lambda e: "e" + e[1].replace("+", ""), f"{x:g}")


def _names(axes: Any, curves: Mapping[str, Curve], every: int, places: Mapping[str, int]) -> None:
    """Writes each name to the right of the axes, level with its line's end where there is room."""
    log, to_axes = axes.get_yscale() == "log", axes.transData + axes.transAxes.inverted()
    ends = []
    for label, y in curves.items():
        measured = np.flatnonzero(np.isfinite(y))
        place = int(measured[-1]) if len(measured) else 0
        zero = log and y[place] == 0
        x, value = (
            every * (place + 1),
            axes.get_ylim()[0] if zero or not len(measured) else y[place],
        )
        height = min(max(float(to_axes.transform((x, value))[1]), 0.0), 1.0)
        ends.append((height, x, value, label, f"{label}: 0" if zero else label))
    ends.sort()
    for height, (_, x, value, label, text) in zip(
        _apart([end[0] for end in ends], gap=0.095), ends, strict=True
    ):
        leader = {**_LEADER, "color": COLOURS[places[label]]}
        where = {"xytext": (1.07, height), "textcoords": "axes fraction", "annotation_clip": False}
        axes.annotate(text, (x, value), va="center", fontsize=9, arrowprops=leader, **where)


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights in order, moved until they are ``gap`` apart, and not above 1.

    >>> _apart([0.5, 0.5], gap=0.25), _apart([0.9, 1.0], gap=0.25)
    ([0.5, 0.75], [0.75, 1.0])
    """
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    top = 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], top)
        top = placed[index] - gap
    return placed


def frame(axes: Any, panel: Panel) -> None:
    """Titles, and what all axes share."""
    axes.set_title(panel.title, fontsize=10.5, fontweight="bold", loc="left", pad=17)
    above = {"xytext": (0, 5), "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(panel.note, (0, 1), xycoords="axes fraction", fontsize=9, color=_GREY, **above)
    axes.set_xlabel("step", fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    axes.grid(color="#e2e2e2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=9)
