"""What to make of a search, a sentence each; above all whether its budget was too small to tell."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np

from adam_jax.race.results import rounded
from adam_jax.race.tune.chance import ahead
from adam_jax.race.tune.results import Findings, Scan, Trial
from adam_jax.race.tune.space import LEARNING_RATE

_FEWEST = 3  # seeds, of which ranges that do not meet are unlikely by chance, at 5%
_TOO_SMALL = "Too small a budget to tell:"
_UNDECIDED = {"order", "falling", "noise"}  # the codes of what begins so


@dataclass(frozen=True)
class Verdict:
    """One thing that there is to say.

    Attributes:
      code: for machines.
      text: a sentence or two.
    """

    code: str
    text: str


def verdicts(found: Findings) -> list[Verdict]:
    """All that there is to say, the gravest first."""
    if not found.rungs:
        return []
    trial, said = found.recommended, [*_start(found)]
    if trial:
        said += _few_seeds(found)
    if trial is None:
        return said or [*_diverged(found)]
    said += [*_incomplete(found), *_nothing_learnt(found, trial), *_order(found)]
    said += _falling(found, trial)
    for scan in found.scans:
        said += [*_doubts(found, scan), *_range(scan)]
    return [*said, *_cliff(found)]


def is_undecided(found: Findings) -> bool:
    """Whether the budget was too small to tell."""
    return any(verdict.code in _UNDECIDED for verdict in verdicts(found))


def _start(found: Findings) -> Iterator[Verdict]:
    if math.isnan(found.initial_loss):
        yield Verdict(
            "nan-from-the-start",
            "The loss is not finite before the first step, whatever the learning rate: "
            "the fault is in the problem's `init`, `loss` or data.",
        )


def fall(trial: Trial) -> float:
    """By what share the loss fell in the last tenth of the training, the median over seeds.

    The loss is taken to be straight between the ends of epochs.
    """
    return median(map(_fall, trial.losses))


def _fall(losses: tuple[float, ...]) -> float:
    before = float(np.interp(0.9 * (len(losses) - 1), range(len(losses)), losses))
    return (before - losses[-1]) / abs(before) if math.isfinite(losses[-1]) and before else 0.0


def _diverged(found: Findings) -> Iterator[Verdict]:
    lasted = found.rungs[-1].epochs
    if all(trial.diverged for trial in found.trials.values()):
        low = min(values[0] for values in found.trials)
        yield Verdict(
            "all-diverged",
            f"Every learning rate diverged, from {low:.3g} on, so none can be recommended. "
            "Try smaller ones.",
        )
    elif found.complete:
        yield Verdict(
            "all-diverged",
            f"Every learning rate that was best after {lasted} epochs diverged later, so none can "
            "be recommended. Try more of the smaller ones.",
        )


def _incomplete(found: Findings) -> Iterator[Verdict]:
    if not found.complete:
        yield Verdict(
            "incomplete", "Not complete: how far off it one may go is not known to its ends."
        )


def _nothing_learnt(found: Findings, trial: Trial) -> Iterator[Verdict]:
    if trial.final_loss >= found.initial_loss:
        yield Verdict(
            "nothing-learnt",
            f"Nothing was learnt: the lowest loss, {rounded(trial.final_loss, 3)}, is no lower "
            f"than before the first step, {rounded(found.initial_loss, 3)}.",
        )


def _order(found: Findings) -> Iterator[Verdict]:
    """Whether a part of the budget has misled, as far as is known, and by more than chance."""
    best, winner = found.recommended, found.winner
    if best is None or winner is None or found.seeds < _FEWEST:
        return
    turned = _turned(found, best)
    at_first = found.trials.get(best.values, winner)
    if turned:
        yield Verdict(
            "order",
            f"{_TOO_SMALL} after {found.rungs[-2].epochs} of {found.epochs} epochs learning rate "
            f"{turned.values[0]:.3g} was ahead of {best.values[0]:.3g}, in the end behind; more "
            "--epochs may turn it again.",
        )
    elif at_first.epochs < found.epochs and ahead(best.final, winner.final):
        yield Verdict(
            "order",
            f"{_TOO_SMALL} learning rate {best.values[0]:.3g} was given up after "
            f"{at_first.epochs} of {found.epochs} epochs, and is best in the end; more --epochs "
            "may turn it again.",
        )


def _turned(found: Findings, best: Trial) -> Trial | None:
    """The one that was most ahead of the best when it was last decided who trains on."""
    if len(found.rungs) < 2 or not found.scans:
        return None
    last, scan = found.rungs[-2].epochs, found.scans[-1]
    worse = [trial for value, trial in scan.trials.items() if value not in scan.good]
    turned = [
        trial.after(last)
        for trial in worse
        if trial.epochs == found.epochs
        and ahead(best.final, trial.final)
        and ahead(trial.after(last).final, best.after(last).final)
    ]
    return min(turned, key=lambda trial: trial.rank, default=None)


def _falling(found: Findings, trial: Trial) -> Iterator[Verdict]:
    share = fall(trial)
    if share > found.tolerance:
        yield Verdict(
            "falling",
            f"{_TOO_SMALL} the loss still fell by {share:.0%} in the last tenth of "
            f"{_epochs(found.epochs)}, so a longer run ends lower, and its best learning rate may "
            "be smaller.",
        )


def _doubts(found: Findings, scan: Scan) -> Iterator[Verdict]:
    if scan.doubtful:
        values = [*scan.alike, *scan.doubtful]
        yield Verdict(
            "noise",
            f"{_TOO_SMALL} {_plain(scan)} anywhere in {scan.span(min(values), max(values))} may be "
            f"as good as {scan.axis.text(scan.best)}, which ended lowest, for all that "
            f"{found.seeds} seeds say (rank-sum test at 5%). More --seeds or --epochs tell more.",
        )


def _range(scan: Scan) -> Iterator[Verdict]:
    name = _plain(scan)
    if scan.indifferent:
        yield Verdict(
            "indifferent",
            f"The {name} does not matter here: all of {scan.span(scan.axis.low, scan.axis.high)} "
            f"end within {scan.tolerance:.0%} of the best.",
        )
    elif scan.edge:
        further, option = {
            "smallest": ("smaller", "downwards"),
            "largest": ("larger", "upwards"),
        }[scan.edge]
        given = "--learning-rates" if scan.axis.name == LEARNING_RATE else "--also"
        yield Verdict(
            f"{further}-may-be-better",
            f"Best at the {scan.edge} {name} tried, {scan.axis.text(scan.best)}: widen {given} "
            f"{option}.",
        )


def _cliff(found: Findings) -> Iterator[Verdict]:
    if not found.scans:
        return
    scan = found.scans[-1]
    lost = []
    for value in reversed(scan.trials):
        if not scan.trials[value].lost:
            break
        lost.append(value)
    if lost:
        yield Verdict(
            "cliff",
            f"Diverges for a seed or more from {_plain(scan)} {scan.axis.text(lost[-1])} on.",
        )


def _few_seeds(found: Findings) -> Iterator[Verdict]:
    if found.seeds < _FEWEST:
        seeds = "One seed does" if found.seeds == 1 else "Two seeds do"
        yield Verdict(
            "few-seeds", f"{seeds} not tell how much of this is chance; --seeds {_FEWEST} does."
        )


def _plain(scan: Scan) -> str:
    return scan.axis.name.replace("_", " ") if scan.axis.name == LEARNING_RATE else scan.axis.name


def _epochs(count: int) -> str:
    return f"{count} epochs" if count > 1 else "one epoch"
