"""The picture of a search: the final loss against each hyperparameter, and the ladder behind it."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from adam_jax.race.canvas import PRINT, drawing, plain, png, scale, sheet
from adam_jax.race.colours import GREY, SERIES
from adam_jax.race.tune.results import Findings, Rung, Scan
from adam_jax.race.tune.show import neighbourhood
from adam_jax.race.tune.space import LEARNING_RATE, Axis

_BLUE, _GREEN = SERIES[0], SERIES[2]
_INK = "#00664a"  # the green, dark enough for letters
_FAINT = "#b5b5b5"
_PANEL, _TITLES, _LABELS = 4.0, 0.65, 1.0  # inches
_SUBTITLE = (
    "dots: median over seeds; bars: lowest to highest; grey: after a part of the budget; "
    "green: recommended"
)
_CEILING = 3.0  # times the first loss: what is above is drawn there


def draw(title: str, found: Findings) -> bytes:
    """Draws a search.

    Args:
      title: what was tuned on what.
      found: the findings.

    Returns:
      A PNG file, with a panel for each hyperparameter, the learning rate's first.
    """
    with drawing():
        return png(_figure(title, found))


def _figure(title: str, found: Findings) -> Any:
    scans = found.scans[::-1]
    panels = max(1, len(scans))
    height = _TITLES + panels * (_PANEL + _LABELS)
    matters = "hyperparameters matter" if panels > 1 else "the learning rate matters"
    figure = sheet(PRINT, f"{title}: how much {matters}", _SUBTITLE, height)
    for index in range(panels):
        bottom = height - _TITLES - (index + 1) * (_PANEL + _LABELS) + _LABELS * 0.6
        place = (0.085, bottom / height, 0.885, _PANEL / height)
        axes = figure.add_axes(place)
        axes.grid(linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel("training loss", fontsize=11)
        if scans:
            _panel(axes, found, scans[index])
        else:
            _ladder(axes, found, found.rungs)
            _labelled(axes, LEARNING_RATE, of_complement=False)
    return figure


def _panel(axes: Any, found: Findings, scan: Scan) -> None:
    whole = {value: trial for value, trial in scan.trials.items() if not trial.diverged}
    x = _across(scan.axis, whole)
    most = _ceiling(found)
    # With several hyperparameters those of the ladder differ in all of them.
    shown = _ladder(axes, found, found.rungs[:-1]) if len(scan.held) == 1 else []
    ends = (scan.alike[0], scan.alike[-1]) if scan.doubtful else (scan.low, scan.high)
    axes.axvspan(*_across(scan.axis, ends), color=_GREEN, alpha=0.16, lw=0)
    losses = [min(trial.final_loss, most) for trial in whole.values()]
    spans = [(min(*trial.final, most), min(max(trial.final), most)) for trial in whole.values()]
    axes.vlines(x, *zip(*spans, strict=True), color=_BLUE, lw=1.6, alpha=0.5)
    axes.plot(x, losses, "o-", color=_BLUE, lw=2, ms=6, mec="white", mew=0.7)
    if shown:
        _named(axes, found.epochs, x[0], losses[0], _BLUE)
    scale(axes, [*shown, *(end for span in spans for end in span)])
    _diverged(axes, _across(scan.axis, scan.trials.keys() - whole.keys()))
    _labelled(axes, scan.axis.name, scan.axis.of_complement)
    axes.axvline(*_across(scan.axis, [scan.recommended]), color=_GREEN, lw=2, ls=(0, (4, 1.5)))
    text = f"{scan.axis.name.replace('_', ' ')} {scan.recommended:.6g}: {neighbourhood(scan)}"
    axes.set_title(text, loc="left", fontsize=11, color=_INK, fontweight="bold")


def _diverged(axes: Any, x: Sequence[float]) -> None:
    if x:
        top = axes.get_xaxis_transform()
        axes.plot(x, [0.97] * len(x), "x", color=_BLUE, mew=2, ms=7, transform=top)
        axes.text(min(x), 0.93, "diverged", color=GREY, transform=top, va="top", fontsize=10)


def _ladder(axes: Any, found: Findings, rungs: Sequence[Rung]) -> list[float]:
    """The rungs as faint lines, each named at its lower end; the losses drawn."""
    most = _ceiling(found)
    shown: list[float] = []
    for rung in rungs:
        kept = {values[0]: loss for values, loss in rung.losses.items() if math.isfinite(loss)}
        if not kept:
            continue
        rates = sorted(kept)
        losses = [min(kept[rate], most) for rate in rates]
        axes.plot(rates, losses, ".-", color=_FAINT, lw=1.2, ms=5, zorder=1.5)
        _named(axes, rung.epochs, rates[0], losses[0], GREY)
        shown += losses
    return shown


def _named(axes: Any, epochs: int, x: float, y: float, colour: str) -> None:
    """Writes to the left of a line's start how long had been trained by then."""
    axes.annotate(
        f"{epochs} epoch{'s' * (epochs > 1)}",
        (x, y),
        xytext=(-6, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=9,
        color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )


def _labelled(axes: Any, name: str, of_complement: bool) -> None:
    axes.set_xlabel(name.replace("_", " "), fontsize=11)
    axes.set_xscale("log")
    axes.margins(x=0.1)  # room for the names of the rungs
    if of_complement:
        axes.invert_xaxis()
        axes.xaxis.set_major_formatter(lambda x, _: f"{1 - x:.9g}")
        axes.xaxis.set_minor_formatter("")
    else:
        low, high = axes.get_xlim()
        plain(axes.xaxis, [low, high])


def _across(axis: Axis, values: Iterable[float]) -> list[float]:
    """Where values are drawn: on a log axis in either case."""
    return [1 - value if axis.of_complement else value for value in values]


def _ceiling(found: Findings) -> float:
    first = abs(found.initial_loss)
    return _CEILING * first if math.isfinite(first) and first else math.inf
