"""The search: successive halving among the first candidates, then a scan of each hyperparameter.

A scan trains for the whole budget and from the start, with the other hyperparameters held at the
best candidate's: first next to the best value, half as far apart as the grid is, then outward until
on both sides a value is worse by more than the tolerance or the range ends. Where no other value is
as good as the best one, it looks closer.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from adam_jax.race.tune.results import Cost, Findings, Rung, Scan, Trial
from adam_jax.race.tune.space import Axis, Values
from adam_jax.race.tune.trainer import Trainer

_HANDFUL = 3  # have the whole budget
_WIDTH = 6  # of the groups of a scan
_CLOSEST = 1 / 16  # of a step of the grid: where looking closer ends


@dataclass(frozen=True)
class Progress:
    """How far the search has come.

    Attributes:
      stage: what it does, in a few words.
      done: epochs trained so far, those of all candidates.
      total: of the whole search, as far as can be told.
      rung: whether the stage is done with that.
    """

    stage: str
    done: int
    total: int
    rung: bool = False


def ladder(width: int, epochs: int) -> list[tuple[int, int]]:
    """The rungs: at most how many take part, and the epochs that they have been given by its end.

    Each halves the width and doubles the epochs, as far as these can be divided.

    >>> ladder(22, 10), ladder(22, 2), ladder(5, 1)
    ([(22, 2), (11, 3), (6, 5), (3, 10)], [(22, 1), (11, 2)], [(5, 1)])
    """
    widths = [width]
    while math.ceil(widths[-1] / 2) >= _HANDFUL:
        widths.append(math.ceil(widths[-1] / 2))
    budgets = sorted({math.ceil(epochs / 2**index) for index in range(len(widths))})
    return list(zip(widths, budgets, strict=False))


class Search:
    """A search under way; `findings` tells what is known so far."""

    def __init__(
        self,
        trainer: Trainer,
        axes: Sequence[Axis],
        candidates: Sequence[Values],
        seeds: int,
        epochs: int,
        tolerance: float,
    ):
        self._trainer = trainer
        self._axes = axes
        self._candidates = candidates
        self._ladder = ladder(len(candidates), epochs)
        self._trials: dict[Values, Trial] = {}
        self._scanned: dict[Values, Trial] = {}
        self._expected = 0
        cost = Cost(halving=0, scans=0, grid=len(candidates) * seeds * epochs)
        self.findings = Findings(epochs, seeds, tolerance, (), {}, (), cost, complete=False)

    def run(self) -> Iterator[Progress]:
        """Yields progress after each epoch of a group."""
        yield from self._halve()
        if self.findings.winner is not None:
            held = self.findings.winner.values
            # The learning rate last: it is what the others' best values change most.
            for axis in reversed(self._axes):
                yield from self._scan(axis, held)
                held = _with(held, self._axes.index(axis), self.findings.scans[-1].recommended)
        self.findings = replace(self.findings, complete=True)

    def _halve(self) -> Iterator[Progress]:
        budgets = [0, *(epochs for _, epochs in self._ladder)]
        shares = [b - a for a, b in pairwise(budgets)]
        whole = sum(width * share for (width, _), share in zip(self._ladder, shares, strict=True))
        self._expected = whole + self._scans_ahead()
        group = self._trainer.start(self._candidates)
        for rung, (width, epochs) in enumerate(self._ladder):
            going_on = self._best_of(group.members)[:width] if rung else group.members
            if not going_on:  # all have diverged
                return
            if rung:
                group = self._trainer.keep(group, going_on)
            for epoch in self._trainer.train(group, epochs):
                stage = f"{len(going_on)} candidates, epoch {epoch} of {self.findings.epochs}"
                yield self._count(stage, len(going_on), epoch == epochs)
            self._trials |= group.trials()
            losses = {values: self._trials[values].final_loss for values in going_on}
            rungs = (*self.findings.rungs, Rung(epochs, losses))
            self.findings = replace(self.findings, rungs=rungs, trials=dict(self._trials))

    def _best_of(self, members: Sequence[Values]) -> list[Values]:
        alive = [values for values in members if not self._trials[values].diverged]
        return sorted(alive, key=lambda values: self._trials[values].rank)

    def _scan(self, axis: Axis, held: Values) -> Iterator[Progress]:
        index = self._axes.index(axis)
        before = self.findings.scans
        known = {
            values[index]: trial
            for values, trial in (self._trials | self._scanned).items()
            if _with(values, index, held[index]) == held
            and (trial.diverged or trial.epochs == self.findings.epochs)
        }
        scan = self._noted(axis, held, known, before)
        while values := wanted(scan):
            group = self._trainer.start([_with(held, index, value) for value in values])
            epochs = self.findings.epochs
            self._expected = self._spent + len(values) * epochs + self._scans_ahead()
            for epoch in self._trainer.train(group, epochs):
                stage = f"{axis.name}: {len(values)} values around the best, epoch {epoch}"
                yield self._count(f"{stage} of {epochs}", len(values), epoch == epochs, scan=True)
            self._scanned |= group.trials()
            found = {trial.values[index]: trial for trial in group.trials().values()}
            scan = self._noted(axis, held, scan.trials | found, before)

    def _noted(
        self, axis: Axis, held: Values, trials: dict[float, Trial], before: tuple[Scan, ...]
    ) -> Scan:
        scan = Scan(axis, held, dict(sorted(trials.items())), self.findings.tolerance)
        self.findings = replace(self.findings, scans=(*before, scan))
        return scan

    def _count(self, stage: str, width: int, rung: bool, scan: bool = False) -> Progress:
        cost = self.findings.cost
        trained = width * self.findings.seeds
        halving, scans = (0, trained) if scan else (trained, 0)
        cost = replace(cost, halving=cost.halving + halving, scans=cost.scans + scans)
        self.findings = replace(self.findings, cost=cost)
        return Progress(stage, self._spent, max(self._spent, self._expected), rung)

    @property
    def _spent(self) -> int:
        """Epochs of all candidates, from one seed."""
        return (self.findings.cost.halving + self.findings.cost.scans) // self.findings.seeds

    def _scans_ahead(self) -> int:
        """What those not begun yet will take, if each needs two groups."""
        return (len(self._axes) - len(self.findings.scans)) * 2 * _WIDTH * self.findings.epochs


def wanted(scan: Scan) -> list[float]:
    """The values that a scan is to try next; none if it is done."""
    axis, tried = scan.axis, scan.trials
    middle = axis.place(scan.best)
    above = [value for value in axis.fine if axis.place(value) > middle][:1]
    below = [value for value in axis.fine if axis.place(value) < middle][-1:]
    if not tried.keys() >= {*below, *above}:
        around = [value for value in axis.fine if value not in tried]
        return sorted(sorted(around, key=lambda v: abs(axis.place(v) - middle))[:_WIDTH])
    sides = [side for side in _outward(scan) if side]
    if sides:
        return sorted(value for side in sides for value in side[: _WIDTH // 2])
    return _closer(scan)


def _outward(scan: Scan) -> Iterator[list[float]]:
    """On either side what is left of the grid, if the nearest of it is not known to be worse."""
    grid, alike, tried = scan.axis.grid, scan.alike, scan.trials
    above = [value for value in grid if value > alike[-1]]
    below = [value for value in reversed(grid) if value < alike[0]]
    for side in (above, below):
        if side and side[0] not in tried:
            yield [value for value in side if value not in tried]


def _closer(scan: Scan) -> list[float]:
    """Values between the best one and those beside it, if all of these are certainly worse."""
    axis, values = scan.axis, list(scan.trials)
    index = values.index(scan.best)
    beside = values[max(0, index - 1) : index + 2]
    places = [axis.place(value) for value in beside]
    step = (axis.place(axis.high) - axis.place(axis.low)) / (len(axis.grid) - 1)
    if len(scan.alike) > 1 or len(beside) < 3 or max(np.diff(places)) < _CLOSEST * step:
        return []
    gaps = [np.linspace(a, b, _WIDTH // 2 + 2)[1:-1] for a, b in pairwise(places)]
    return sorted({axis.at(float(place)) for gap in gaps for place in gap} - scan.trials.keys())


def _with(values: Values, index: int, value: float) -> Values:
    return (*values[:index], value, *values[index + 1 :])
