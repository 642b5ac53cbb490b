"""The two pictures of a race: loss against steps, and loss against learning rate.

Drawn without pyplot, so that a caller's own figures and backend stay as they are. The colours are
Okabe and Ito's, which the colour-blind tell apart; markers and dashes say the same again, for print
in grey. Lines are named at their ends, not in a legend that the eye must travel to.

No eye follows thirty lines. Of more than ten entrants the best have colours and names among the
curves, and so has the first one that the user named, to compare them with; the others are grey. And
the picture of the learning rates is a table in colours, where each has a row.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from adam_jax.race.canvas import GREY, Label, canvas, finite, name_lines, plain, png, scale, short
from adam_jax.race.heat_map import heat_map
from adam_jax.race.results import Outcome, Standing, median_curve

# Okabe and Ito (2008), less their yellow, which is too pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "<", ">")
_DASHES = ("-", (0, (4, 1.2)))

# A loss above so many times the one at the start is drawn at the top: it is no result that anyone
# compares, and would press all the others flat.
_CEILING = 3.0

_MOST_LINES = 10
_BEST = 5


def draw(
    problem: str, outcomes: Sequence[Outcome], standings: Sequence[Standing], steps: int
) -> dict[str, bytes]:
    """Draws a race.

    Args:
      problem: its name, for the titles.
      outcomes: the entrants in the order in which they take their colours.
      standings: the same entrants at their best learning rates, the best one first.
      steps: steps an epoch.

    Returns:
      PNG files by name.
    """
    named = [outcome.entrant for outcome in outcomes]
    many = len(named) > _MOST_LINES
    if many:
        named = _foremost(named[0], [row.entrant for row in standings])
    styles = {entrant: _style(index) for index, entrant in enumerate(named)}
    ceiling = _CEILING * max(
        map(abs, finite(run.losses[0] for o in outcomes for run in o.runs)), default=1.0
    )
    return {
        "curves.png": _curves(problem, standings, steps, styles, ceiling),
        "learning_rates.png": heat_map(problem, standings, ceiling)
        if many
        else _learning_rates(problem, outcomes, styles, ceiling),
    }


def _foremost(first: str, ranked: Sequence[str]) -> list[str]:
    """The best and the first one named, the best one first; those are as many whoever is best."""
    others = [entrant for entrant in ranked if entrant != first][:_BEST]
    return [entrant for entrant in ranked if entrant == first or entrant in others]


def _curves(
    problem: str,
    standings: Sequence[Standing],
    steps: int,
    styles: dict[str, dict[str, Any]],
    ceiling: float,
) -> bytes:
    rows = [row for row in standings if not row.diverged]
    others = len(rows) - sum(row.entrant in styles for row in rows)
    figure, axes = canvas(
        f"{problem}: training loss at each entrant's best learning rate",
        "line: median over seeds; band: lowest to highest"
        + f"; grey: the {others} others" * bool(others),
    )
    labels: list[Label] = []
    shown: list[float] = []
    for row in rows:
        runs = row.outcome.at(row.learning_rate)
        losses = [min(loss, ceiling) for loss in median_curve(runs)]
        by_epoch = [finite(epoch) for epoch in zip(*(run.losses for run in runs), strict=True)]
        lowest = [min(min(epoch, default=ceiling), ceiling) for epoch in by_epoch]
        highest = [min(max(epoch, default=ceiling), ceiling) for epoch in by_epoch]
        x = [epoch * steps for epoch in range(len(losses))]
        shown += lowest
        style = styles.get(row.entrant)
        if style is None:
            axes.plot(x, losses, color="#c4c4c4", linewidth=1, zorder=1.5)
            continue
        axes.fill_between(x, lowest, highest, color=style["color"], alpha=0.12, linewidth=0)
        axes.plot(x, losses, **style, markevery=max(1, len(x) // 10))
        labels.append(
            Label(
                f"{short(row.entrant)} at {row.learning_rate:.3g}",
                x[-1],
                losses[-1],
                style["color"],
            )
        )
    axes.set_xlabel(f"optimizer step ({steps} an epoch)", fontsize=11)
    axes.set_ylabel("training loss", fontsize=11)
    axes.set_xlim(left=0)
    scale(axes, shown)
    name_lines(axes, labels)
    return png(figure)


def _learning_rates(
    problem: str, outcomes: Sequence[Outcome], styles: dict[str, dict[str, Any]], ceiling: float
) -> bytes:
    figure, axes = canvas(
        f"{problem}: how much the learning rate matters",
        "training loss after the last epoch, median over seeds",
    )
    labels: list[Label] = []
    shown: list[float] = []
    for outcome in outcomes:
        style = styles[outcome.entrant]
        rates, finals = zip(*_finals(outcome), strict=True)
        losses = [min(loss, ceiling) if math.isfinite(loss) else math.nan for loss in finals]
        axes.plot(rates, losses, **style)
        shown += finite(losses)
        if math.isfinite(losses[-1]):
            labels.append(Label(short(outcome.entrant), rates[-1], losses[-1], style["color"]))
    axes.set_xlabel("learning rate", fontsize=11)
    axes.set_ylabel("final training loss", fontsize=11)
    axes.set_xscale("log")
    plain(axes.xaxis, [rate for outcome in outcomes for rate in outcome.learning_rates])
    scale(axes, shown)
    name_lines(axes, labels + _diverged(axes, outcomes, styles))
    return png(figure)


def _diverged(
    axes: Any, outcomes: Sequence[Outcome], styles: dict[str, dict[str, Any]]
) -> list[Label]:
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
    axes.text(0.005, 1 - band / 2, "diverged", transform=axes.transAxes, va="center", color=GREY)
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
            labels.append(Label(short(outcome.entrant), rates[-1], height, colour))
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
