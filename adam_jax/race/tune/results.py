"""What a search finds out: its trials, the rungs of its ladder, and the range of good values."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from statistics import median

from adam_jax.race.results import level
from adam_jax.race.tune.chance import ahead
from adam_jax.race.tune.space import Axis, Values

_FAR = math.log(3) - 1e-9  # on an axis's scale


@dataclass(frozen=True)
class Trial:
    """One candidate, trained from every seed.

    Attributes:
      values: its hyperparameters, in the order of the axes.
      losses: by seed, the training loss before the first epoch and after each that it was given.
    """

    values: Values
    losses: tuple[tuple[float, ...], ...]

    @property
    def epochs(self) -> int:
        """How many it was given."""
        return len(self.losses[0]) - 1

    @cached_property
    def final(self) -> tuple[float, ...]:
        """The last loss of each seed; infinite where it is not finite."""
        return tuple(row[-1] if math.isfinite(row[-1]) else math.inf for row in self.losses)

    @property
    def final_loss(self) -> float:
        """The median over seeds; infinite where most of them diverged."""
        return median(self.final)

    @property
    def lost(self) -> int:
        """How many seeds ended in NaN or infinity."""
        return self.final.count(math.inf)

    @property
    def diverged(self) -> bool:
        """Whether most seeds did."""
        return not math.isfinite(self.final_loss)

    @property
    def rank(self) -> tuple[int, float]:
        """Lower is better: a rate that now and then diverges is none to recommend."""
        return self.lost, self.final_loss

    def after(self, epochs: int) -> "Trial":
        """The same trial, as it was seen then."""
        return Trial(self.values, tuple(row[: epochs + 1] for row in self.losses))


@dataclass(frozen=True)
class Rung:
    """What decided who trains on.

    Attributes:
      epochs: that all had been given by then.
      losses: of each who took part, median over seeds.
    """

    epochs: int
    losses: dict[Values, float]


@dataclass(frozen=True)
class Scan:
    """One hyperparameter, the others held: what its values led to with the whole budget.

    Attributes:
      axis: the hyperparameter.
      held: the best candidate before, whose other values all trials share.
      trials: by value, in order; those that had the whole budget, or diverged sooner.
      tolerance: the share above the best loss that counts as good.
    """

    axis: Axis
    held: Values
    trials: dict[float, Trial]
    tolerance: float

    @property
    def best(self) -> float:
        """The value with the lowest final loss, of those where the fewest seeds diverged."""
        return min(self.trials, key=lambda value: self.trials[value].rank)

    @property
    def best_trial(self) -> Trial:
        """The trial there."""
        return self.trials[self.best]

    @cached_property
    def losses(self) -> dict[float, float]:
        """Final losses by value; infinite where more seeds diverged than at the best one."""
        least = self.best_trial.lost
        return {
            value: trial.final_loss if trial.lost <= least else math.inf
            for value, trial in self.trials.items()
        }

    @cached_property
    def good(self) -> list[float]:
        """The values around the best one that are within the tolerance of its loss."""
        most = level(self.best_trial.final_loss, self.tolerance)
        return self._around(lambda value: self.losses[value] <= most)

    @cached_property
    def alike(self) -> list[float]:
        """The values around the best one that are good, or cannot be told from it."""
        return self._around(lambda value: value in self.good or self._like_best(value))

    @cached_property
    def doubtful(self) -> list[float]:
        """The values that cannot be told from the best one, though they are far from it.

        And not good: what is within the tolerance is no matter of doubt.
        """
        middle = self.axis.place(self.best)
        far = [value for value in self.trials if abs(self.axis.place(value) - middle) >= _FAR]
        return [value for value in far if value not in self.good and self._like_best(value)]

    @property
    def recommended(self) -> float:
        """The best value, or the middle where all of the range is good: its end is no better."""
        if not self.indifferent:
            return self.best
        place = self.axis.place
        middle = (place(self.alike[0]) + place(self.alike[-1])) / 2
        return min(self.alike, key=lambda value: abs(place(value) - middle))

    @property
    def low(self) -> float:
        """The end of what is good, below."""
        return self._crossing(self.good[0], -1)

    @property
    def high(self) -> float:
        """The end of what is good, above."""
        return self._crossing(self.good[-1], 1)

    @property
    def edge(self) -> str | None:
        """Whether the best value is the "smallest" or "largest" of the range, or neither."""
        return {self.axis.low: "smallest", self.axis.high: "largest"}.get(self.best)

    @property
    def indifferent(self) -> bool:
        """Whether all of the range is good."""
        return self.good[0] <= self.axis.low and self.axis.high <= self.good[-1]

    def span(self, low: float, high: float) -> str:
        """A range as it is shown."""
        return f"{self.axis.text(low, 2)}..{self.axis.text(high, 2)}"

    def _like_best(self, value: float) -> bool:
        lost = math.isinf(self.losses[value])
        return not lost and not ahead(self.best_trial.final, self.trials[value].final)

    def _around(self, holds: Callable[[float], bool]) -> list[float]:
        values = list(self.trials)
        middle = values.index(self.best)
        below = takewhile(holds, values[:middle][::-1])
        return [*reversed(list(below)), self.best, *takewhile(holds, values[middle + 1 :])]

    def _crossing(self, inside: float, step: int) -> float:
        """Where the loss leaves the tolerance beside a good value.

        Between two values the loss is taken to be straight over the axis's scale; an infinite one
        leaves nothing to draw a line to.
        """
        values = list(self.trials)
        index = values.index(inside) + step
        if not 0 <= index < len(values) or math.isinf(self.losses[values[index]]):
            return inside
        outside, place = values[index], self.axis.place
        start, end = self.losses[inside], self.losses[outside]
        most = level(self.best_trial.final_loss, self.tolerance)
        share = (most - start) / (end - start)
        return self.axis.at(place(inside) + share * (place(outside) - place(inside)))


@dataclass(frozen=True)
class Cost:
    """Epochs of training, each candidate and seed counted.

    Attributes:
      halving: of the search among the first candidates.
      scans: of the trials around the best.
      grid: what all first candidates with the whole budget would have taken.
    """

    halving: int
    scans: int
    grid: int


@dataclass(frozen=True)
class Findings:
    """All that a search found out.

    Attributes:
      epochs: the whole budget.
      seeds: how many.
      tolerance: the share above the best loss that counts as good.
      rungs: the ladder, the whole budget last if it came to that.
      trials: of the first candidates, by values.
      scans: one a hyperparameter, the learning rate last; none if nothing was left to scan.
      cost: in epochs of training.
      complete: whether nothing was cut short.
    """

    epochs: int
    seeds: int
    tolerance: float
    rungs: tuple[Rung, ...]
    trials: dict[Values, Trial]
    scans: tuple[Scan, ...]
    cost: Cost
    complete: bool

    @property
    def recommended(self) -> Trial | None:
        """What is recommended; `None` if nothing is."""
        if not self.scans:
            return self.winner
        return self.scans[-1].trials[self.scans[-1].recommended]

    @property
    def initial_loss(self) -> float:
        """Before the first step, the median over seeds; NaN if it is that for one."""
        firsts = [row[0] for trial in self.trials.values() for row in trial.losses]
        return median(firsts) if all(map(math.isfinite, firsts)) else math.nan

    @property
    def winner(self) -> Trial | None:
        """The best of the first candidates that had the whole budget, if any came to its end."""
        whole = [trial for trial in self.trials.values() if trial.epochs == self.epochs]
        alive = [trial for trial in whole if not trial.diverged]
        return min(alive, key=lambda trial: trial.rank, default=None)
