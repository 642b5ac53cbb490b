"""The two pictures of a race: loss against steps, and loss against learning rate.

Drawn without pyplot, so that a caller's own figures and backend stay as they are. Lines are named
at their ends, not in a legend that the eye must travel to.

No eye follows thirty lines. Of more than ten entrants the best have colours and names among the
curves, and so has the first one that the user named, to compare them with; the others are grey. And
the picture of the learning rates is a table in colours, where each has a row.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from adam_jax.race.canvas import (
    PRINT,
    Label,
    Paper,
    canvas,
    drawing,
    finite,
    name_lines,
    plain,
    png,
    scale,
    short,
)
from adam_jax.race.colours import GREY, OTHERS, style
from adam_jax.race.heat_map import heat_map
from adam_jax.race.results import Outcome, Standing, median_curve

Styles = Mapping[str, Mapping[str, Any]]

# A loss above so many times the one at the start is drawn at the top: it is no result that anyone
# compares, and would press all the others flat.
_CEILING = 3.0

# Lines matter more than the rates at their ends, where there is room for one of them.
_LETTERS_FOR_RATES = 30

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
    names = foremost([o.entrant for o in outcomes], [row.entrant for row in standings])
    styles = {entrant: style(index) for index, entrant in enumerate(names)}
    with drawing():
        drawn = figures(PRINT, problem, outcomes, standings, steps, styles)
        return {f"{name}.png": png(figure()) for name, figure in drawn.items()}


def figures(
    paper: Paper,
    problem: str,
    outcomes: Sequence[Outcome],
    standings: Sequence[Standing],
    steps: int,
    styles: Styles,
) -> dict[str, Callable[[], Any]]:
    """What makes the figures of a race, by name; to be called within `drawing`.

    Args:
      paper: what to draw on.
      problem: as in `draw`.
      outcomes: as in `draw`.
      standings: as in `draw`.
      steps: as in `draw`.
      styles: the looks of those that are `foremost`.
    """
    most = ceiling(outcomes)
    if are_many(outcomes):
        rates = partial(heat_map, paper, problem, standings, most)
    else:
        rates = partial(_learning_rates, paper, problem, outcomes, styles, most)
    curves = partial(_curves, paper, problem, standings, steps, styles, most)
    return {"curves": curves, "learning_rates": rates}


def ceiling(outcomes: Sequence[Outcome]) -> float:
    """The loss above which all are drawn alike."""
    first = finite(run.losses[0] for outcome in outcomes for run in outcome.runs)
    return _CEILING * max(map(abs, first), default=1.0)


def are_many(entrants: Sequence[Any]) -> bool:
    """Whether they are more than a picture of lines can hold."""
    return len(entrants) > _MOST_LINES


def foremost(named: Sequence[str], ranked: Sequence[str]) -> list[str]:
    """Those that have colours: all, or of many the best and the first one that the user named."""
    return _foremost(named[0], ranked) if are_many(named) else list(named)


def _foremost(first: str, ranked: Sequence[str]) -> list[str]:
    """The best and the first one named, the best one first; those are as many whoever is best."""
    others = [entrant for entrant in ranked if entrant != first][:_BEST]
    return [entrant for entrant in ranked if entrant == first or entrant in others]


def _curves(
    paper: Paper,
    problem: str,
    standings: Sequence[Standing],
    steps: int,
    styles: Styles,
    most: float,
) -> Any:
    rows = [row for row in standings if not row.diverged]
    others = len(rows) - sum(row.entrant in styles for row in rows)
    figure, axes = canvas(
        paper,
        f"{problem}: training loss at each entrant's best learning rate",
        "line: median over seeds; band: lowest to highest"
        + f"; grey: the {others} others" * bool(others),
    )
    labels: list[Label] = []
    shown: list[float] = []
    for row in rows:
        runs = row.outcome.at(row.learning_rate)
        losses = [min(loss, most) for loss in median_curve(runs)]
        by_epoch = [finite(epoch) for epoch in zip(*(run.losses for run in runs), strict=True)]
        lowest = [min(min(epoch, default=most), most) for epoch in by_epoch]
        highest = [min(max(epoch, default=most), most) for epoch in by_epoch]
        x = [epoch * steps for epoch in range(len(losses))]
        shown += lowest
        look = styles.get(row.entrant)
        if look is None:
            axes.plot(x, losses, color=OTHERS, linewidth=0.8, zorder=1.5)
            continue
        axes.fill_between(x, lowest, highest, color=look["color"], alpha=0.12, linewidth=0)
        axes.plot(x, losses, **look, markevery=max(1, len(x) // 10))
        at = f" at {row.learning_rate:.3g}" if paper.letters >= _LETTERS_FOR_RATES else ""
        name = short(row.entrant, paper.letters - len(at)) + at
        labels.append(Label(name, x[-1], losses[-1], look["color"]))
    axes.set_xlabel(f"optimizer step ({steps} an epoch)", fontsize=11)
    axes.set_ylabel("training loss", fontsize=11)
    axes.set_xlim(left=0)
    scale(axes, shown)
    name_lines(paper, axes, labels)
    return figure


def _learning_rates(
    paper: Paper, problem: str, outcomes: Sequence[Outcome], styles: Styles, most: float
) -> Any:
    figure, axes = canvas(
        paper,
        f"{problem}: how much the learning rate matters",
        "training loss after the last epoch, median over seeds",
    )
    labels: list[Label] = []
    shown: list[float] = []
    for outcome in outcomes:
        look = styles[outcome.entrant]
        rates, finals = zip(*_finals(outcome), strict=True)
        losses = [min(loss, most) if math.isfinite(loss) else math.nan for loss in finals]
        axes.plot(rates, losses, **look)
        shown += finite(losses)
        if math.isfinite(losses[-1]):
            name = short(outcome.entrant, paper.letters)
            labels.append(Label(name, rates[-1], losses[-1], look["color"]))
    axes.set_xlabel("learning rate", fontsize=11)
    axes.set_ylabel("final training loss", fontsize=11)
    axes.set_xscale("log")
    plain(axes.xaxis, [rate for outcome in outcomes for rate in outcome.learning_rates])
    scale(axes, shown)
    name_lines(paper, axes, labels + _diverged(paper, axes, outcomes, styles))
    return figure


def _diverged(paper: Paper, axes: Any, outcomes: Sequence[Outcome], styles: Styles) -> list[Label]:
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
            labels.append(Label(short(outcome.entrant, paper.letters), rates[-1], height, colour))
    return labels


def _finals(outcome: Outcome) -> list[tuple[float, float]]:
    return [(rate, outcome.final_loss(rate)) for rate in outcome.learning_rates]


def _make_room(axes: Any, share: float) -> None:
    """Raises the upper limit until a share of the height is free on top, above a rule."""
    to_scale = axes.yaxis.get_transform()
    bottom, free = axes.get_ylim()
    low, high = to_scale.transform([bottom, free])
    top = to_scale.inverted().transform(low + (high - low) / (1 - share))
    axes.axhline(free, color=GREY, lw=0.8)
    for minor in (False, True):  # heights there are no losses
        ticks = [tick for tick in axes.get_yticks(minor=minor) if tick <= free]
        axes.set_yticks(ticks, minor=minor)
    axes.set_ylim(bottom, top)
