"""The two pictures of a race: loss against steps, and loss against learning rate.

Drawn without pyplot, so that a caller's own figures and backend stay as they are. The colours are
Okabe and Ito's, which the colour-blind tell apart; markers and dashes say the same again, for print
in grey. Lines are named at their ends, not in a legend that the eye must travel to.
"""

import io
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adam_jax.race.results import Outcome, Standing, median_curve

# Okabe and Ito (2008), less their yellow, which is too pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "<", ">")
_DASHES = ("-", (0, (4, 1.2)))
_GREY = "#555555"
# Shares of the picture's width: the left margin, and a letter of a line's name.
_LEFT = 0.085
_LETTER = 0.0103
_LONGEST = 32
# From the left end of a name, half way up, to a little short of its line's end.
_LEADER = {"arrowstyle": "-", "lw": 1.2, "relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 5}

# A loss above so many times the one at the start is drawn at the top: it is no result that anyone
# compares, and would press all the others flat.
_CEILING = 3.0


def draw(
    problem: str, outcomes: Sequence[Outcome], standings: Sequence[Standing], steps: int
) -> dict[str, bytes]:
    """Draws a race.

    Args:
      problem: its name, for the titles.
      outcomes: the entrants in the order in which they take their colours.
      standings: the same entrants at their best learning rates.
      steps: steps an epoch.

    Returns:
      PNG files by name.
    """
    styles = {outcome.entrant: _style(index) for index, outcome in enumerate(outcomes)}
    ceiling = _CEILING * max(
        map(abs, _finite(run.losses[0] for o in outcomes for run in o.runs)), default=1.0
    )
    return {
        "curves.png": _curves(problem, standings, steps, styles, ceiling),
        "learning_rates.png": _learning_rates(problem, outcomes, styles, ceiling),
    }


class _Label(NamedTuple):
    """A line's name, and the point that it belongs to."""

    text: str
    x: float
    y: float
    colour: str


def _curves(
    problem: str,
    standings: Sequence[Standing],
    steps: int,
    styles: dict[str, dict[str, Any]],
    ceiling: float,
) -> bytes:
    rows = [row for row in standings if not row.diverged]
    figure, axes = _canvas(
        f"{problem}: training loss at each entrant's best learning rate",
        "line: median over seeds; band: lowest to highest",
    )
    labels: list[_Label] = []
    shown: list[float] = []
    for row in rows:
        runs = row.outcome.at(row.learning_rate)
        style = styles[row.entrant]
        losses = [min(loss, ceiling) for loss in median_curve(runs)]
        by_epoch = [_finite(epoch) for epoch in zip(*(run.losses for run in runs), strict=True)]
        lowest = [min(min(epoch, default=ceiling), ceiling) for epoch in by_epoch]
        highest = [min(max(epoch, default=ceiling), ceiling) for epoch in by_epoch]
        x = [epoch * steps for epoch in range(len(losses))]
        axes.fill_between(x, lowest, highest, color=style["color"], alpha=0.12, linewidth=0)
        axes.plot(x, losses, **style, markevery=max(1, len(x) // 10))
        labels.append(
            _Label(
                f"{_short(row.entrant)} at {row.learning_rate:.3g}",
                x[-1],
                losses[-1],
                style["color"],
            )
        )
        shown += lowest
    axes.set_xlabel(f"optimizer step ({steps} an epoch)", fontsize=11)
    axes.set_ylabel("training loss", fontsize=11)
    axes.set_xlim(left=0)
    _scale(axes, shown)
    _name_lines(axes, labels)
    return _png(figure)


def _learning_rates(
    problem: str, outcomes: Sequence[Outcome], styles: dict[str, dict[str, Any]], ceiling: float
) -> bytes:
    figure, axes = _canvas(
        f"{problem}: how much the learning rate matters",
        "training loss after the last epoch, median over seeds",
    )
    labels: list[_Label] = []
    shown: list[float] = []
    for outcome in outcomes:
        style = styles[outcome.entrant]
        rates, finals = zip(*_finals(outcome), strict=True)
        losses = [min(loss, ceiling) if math.isfinite(loss) else math.nan for loss in finals]
        axes.plot(rates, losses, **style)
        shown += _finite(losses)
        if math.isfinite(losses[-1]):
            labels.append(_Label(_short(outcome.entrant), rates[-1], losses[-1], style["color"]))
    axes.set_xlabel("learning rate", fontsize=11)
    axes.set_ylabel("final training loss", fontsize=11)
    axes.set_xscale("log")
    _plain(axes.xaxis, [rate for outcome in outcomes for rate in outcome.learning_rates])
    _scale(axes, shown)
    _name_lines(axes, labels + _diverged(axes, outcomes, styles))
    return _png(figure)


def _diverged(
    axes: Any, outcomes: Sequence[Outcome], styles: dict[str, dict[str, Any]]
) -> list[_Label]:
    """Adds a band on top where each entrant that has diverged has a row of crosses.

    Returns:
      The names of those whose line ends there.
    """
    lost = {
        outcome.entrant: [rate for rate, loss in _finals(outcome) if math.isinf(loss)]
        for outcome in outcomes
    }
    rows = [outcome for outcome in outcomes if lost[outcome.entrant]]
    if not rows:
        return []
    band = min(0.05 * len(rows), 0.4)
    _make_room(axes, band)
    axes.text(0.005, 1 - band / 2, "diverged", transform=axes.transAxes, va="center", color=_GREY)
    to_data = axes.transAxes + axes.transData.inverted()
    labels = []
    for row, outcome in enumerate(rows):
        colour = styles[outcome.entrant]["color"]
        height = to_data.transform((0, 1 - band * (row + 0.5) / len(rows)))[1]
        rates = lost[outcome.entrant]
        axes.plot(rates, [height] * len(rates), "x", color=colour, mew=2, ms=7)
        for (rate, loss), (following, lost_loss) in pairwise(_finals(outcome)):
            if math.isfinite(loss) and math.isinf(lost_loss):
                axes.plot([rate, following], [loss, height], ":", color=colour, lw=1.2)
        if rates[-1] == outcome.learning_rates[-1]:
            labels.append(_Label(_short(outcome.entrant), rates[-1], height, colour))
    return labels


def _finals(outcome: Outcome) -> list[tuple[float, float]]:
    return [(rate, outcome.final_loss(rate)) for rate in outcome.learning_rates]


def _make_room(axes: Any, share: float) -> None:
    """Raises the upper limit until a share of the height is free on top, and greys that."""
    to_scale = axes.yaxis.get_transform()
    bottom, free = axes.get_ylim()
    low, high = to_scale.transform([bottom, free])
    top = to_scale.inverted().transform(low + (high - low) / (1 - share))
    axes.axhspan(free, top, color="#eeeeee", lw=0)
    for minor in (False, True):  # heights there are no losses
        ticks = [tick for tick in axes.get_yticks(minor=minor) if tick <= free]
        axes.set_yticks(ticks, minor=minor)
    axes.set_ylim(bottom, top)


def _canvas(title: str, subtitle: str) -> tuple[Any, Any]:
    figure = Figure(figsize=(9, 5.5), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((_LEFT, 0.11, 0.7, 0.75))
    figure.text(0.02, 0.945, title, fontsize=14, fontweight="bold")
    figure.text(0.02, 0.9, subtitle, fontsize=10.5, color=_GREY)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)
    return figure, axes


def _style(index: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        # By turns, so that two lines on top of each other (adam and adamw) both show; there are
        # odd many colours, so a second round through them has the other dashes.
        "linestyle": _DASHES[index % len(_DASHES)],
        "linewidth": 2,
        "markersize": 6.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.7,
    }


def _scale(axes: Any, losses: Sequence[float]) -> None:
    """A log axis, unless a loss (a likelihood, a return) is not positive."""
    if losses and min(losses) > 0:
        axes.set_yscale("log")
        _plain(axes.yaxis, losses)


def _plain(axis: Any, values: Sequence[float]) -> None:
    """Writes 0.01 for 10 to the -2, and more than powers of ten if there would be but one."""
    axis.set_major_formatter("{x:g}")
    if values and max(values) < 10 * min(values):
        axis.set_minor_formatter("{x:g}")


def _name_lines(axes: Any, labels: Sequence[_Label]) -> None:
    """Writes each name to the right of the axes, level with its line's end where there is room."""
    longest = max((len(label.text) for label in labels), default=0)
    axes.set_position((_LEFT, 0.11, 0.91 - _LEFT - _LETTER * longest, 0.75))
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((label.x, label.y)) for label in labels]
    heights = _apart([float(y) for _, y in ends], gap=0.048)
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


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Moves heights as little as makes them `gap` apart, all the way from 0 to 1.

    Example:
      >>> _apart([0.5, 0.5], gap=0.1)
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


def _short(name: str) -> str:
    """A name that leaves room for the picture: the end of a path says more than its start."""
    return name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}"


def _finite(losses: Iterable[float]) -> list[float]:
    return [loss for loss in losses if math.isfinite(loss)]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
