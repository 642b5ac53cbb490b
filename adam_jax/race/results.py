"""What a race finds out: its runs, and how the entrants stand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import numpy as np

# "Reaches the best": a loss at most this share above it.
_TOLERANCE = 0.1


@dataclass(frozen=True)
class Run:
    """One entrant at one learning rate from one seed.

    Attributes:
      entrant: its name.
      learning_rate: the rate.
      seed: the seed.
      losses: the training loss before the first epoch and after each.
      evaluation: what the problem's `evaluate` said; `None` if it has none or the run diverged.
    """

    entrant: str
    learning_rate: float
    seed: int
    losses: tuple[float, ...]
    evaluation: dict[str, float] | None

    @property
    def final_loss(self) -> float:
        """The training loss after the last epoch; infinite where the run diverged."""
        return _finite_or_inf(self.losses[-1])

    @property
    def diverged(self) -> bool:
        """Whether the run ended in NaN or infinity."""
        return not math.isfinite(self.losses[-1])


@dataclass(frozen=True)
class Outcome:
    """All runs of one entrant, and what they cost.

    Attributes:
      entrant: its name.
      runs: its runs, by learning rate, then by seed.
      step_seconds: the time of a step, a run's share of it; see `adam_jax.race.runner`.
      compile_seconds: tracing and compiling the training of all runs.
      state_bytes: bytes of optimizer state a parameter.
      digest: of the user's file that the entrant is from, and of what that imports from beside
        it; empty for a built-in one.
      samples: the problem's `samples` of the best rate's median run, by caption.
    """

    entrant: str
    runs: tuple[Run, ...]
    step_seconds: float
    compile_seconds: float
    state_bytes: float
    digest: str = ""
    samples: dict[str, str | np.ndarray] = field(default_factory=dict)

    def at(self, learning_rate: float) -> list[Run]:
        """The runs at one learning rate, one a seed."""
        return [run for run in self.runs if run.learning_rate == learning_rate]

    @property
    def learning_rates(self) -> list[float]:
        """The learning rates tried, in order."""
        return sorted({run.learning_rate for run in self.runs})

    def final_loss(self, learning_rate: float) -> float:
        """The median over seeds; infinite where most of them diverged."""
        return median(run.final_loss for run in self.at(learning_rate))

    @property
    def best_learning_rate(self) -> float:
        """The rate with the lowest final loss."""
        return min(self.learning_rates, key=self.final_loss)

    @property
    def best_run(self) -> Run:
        """At the best rate the run in the middle; of an even number the better one of two."""
        runs = sorted(self.at(self.best_learning_rate), key=lambda run: run.final_loss)
        return runs[(len(runs) - 1) // 2]

    def steps_to(self, target: float, learning_rate: float, steps: int) -> float | None:
        """When the loss, median over seeds, first came down to the target; `None` for never.

        And for who diverged later: that is no solution. Who only drifts away has been there.

        Args:
          target: the loss to come down to; between epochs it is taken to fall in a straight line.
          learning_rate: of the runs.
          steps: optimizer steps an epoch.
        """
        if math.isinf(self.final_loss(learning_rate)):
            return None
        return _crossing(median_curve(self.at(learning_rate)), target, steps)


@dataclass(frozen=True)
class Standing:
    """One row of the table: an entrant at its best learning rate.

    Attributes:
      outcome: the entrant's runs and costs.
      learning_rate: its best one.
      final_loss: median over seeds; infinite if every rate diverged.
      lowest: the lowest final loss over seeds.
      highest: the highest final loss over seeds.
      evaluation: medians over seeds.
      steps_to_target: when the loss, median over seeds, reached the target; `None` for never.
      forgiving: the share of learning rates whose final loss is within a tenth of the best.
      edge: "smallest" or "largest" if the best rate is the end of several, else `None`.
    """

    outcome: Outcome
    learning_rate: float
    final_loss: float
    lowest: float
    highest: float
    evaluation: dict[str, float]
    steps_to_target: float | None
    forgiving: float
    edge: str | None

    @property
    def entrant(self) -> str:
        """Its name."""
        return self.outcome.entrant

    @property
    def diverged(self) -> bool:
        """Whether no learning rate ended with a loss."""
        return not math.isfinite(self.final_loss)


def target_loss(outcomes: Sequence[Outcome]) -> float:
    """The level that counts as reaching the best: a tenth above the lowest final loss of all."""
    finals = (outcome.final_loss(outcome.best_learning_rate) for outcome in outcomes)
    return level(min(finals, default=math.inf))


def standings(outcomes: Sequence[Outcome], target: float, steps: int) -> list[Standing]:
    """The table's rows, lowest final loss first; `steps` is the number of steps an epoch."""
    rows = [_standing(outcome, target, steps) for outcome in outcomes]
    return sorted(rows, key=lambda row: row.final_loss)


def median_curve(runs: Sequence[Run]) -> list[float]:
    """The loss at each epoch's end, median over runs, infinite where most are not finite."""
    finite = (map(_finite_or_inf, run.losses) for run in runs)
    return [median(losses) for losses in zip(*finite, strict=True)]


def rounded(value: float, digits: int) -> str:
    """Significant digits for people, but 120 and not 1.2e+02.

    >>> rounded(0.01234, 2), rounded(99.9, 2), rounded(123.4, 2), rounded(1e7, 2)
    ('0.012', '100', '123', '1e+07')
    """
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if 100 <= abs(float(text)) < 1e5 else text


def _standing(outcome: Outcome, target: float, steps: int) -> Standing:
    best = outcome.best_learning_rate
    runs = outcome.at(best)
    rates = outcome.learning_rates
    loss = outcome.final_loss(best)
    within = [rate for rate in rates if outcome.final_loss(rate) <= level(loss) < math.inf]
    return Standing(
        outcome=outcome,
        learning_rate=best,
        final_loss=loss,
        lowest=min(run.final_loss for run in runs),
        highest=max(run.final_loss for run in runs),
        evaluation=_evaluation(runs),
        steps_to_target=outcome.steps_to(target, best, steps),
        forgiving=len(within) / len(rates),
        edge=_edge(best, rates) if math.isfinite(loss) else None,
    )


def level(loss: float, tolerance: float = _TOLERANCE) -> float:
    """What counts as reaching a loss: at most this share above it."""
    return loss + tolerance * abs(loss)


def _evaluation(runs: Sequence[Run]) -> dict[str, float]:
    found = [run.evaluation for run in runs if run.evaluation is not None]
    names = dict.fromkeys(name for figures in found for name in figures)
    return {name: median(figures[name] for figures in found if name in figures) for name in names}


def _crossing(curve: Sequence[float], target: float, steps: int) -> float | None:
    """The step at which the curve first comes down to the target, straight between epochs."""
    if math.isinf(target):  # no entrant has a loss, so there is nothing to reach
        return None
    if curve[0] <= target:
        return 0.0
    for epoch, (before, after) in enumerate(pairwise(curve)):
        if after <= target:
            # From an infinite loss there is no slope: the epoch's end is what is known.
            share = (before - target) / (before - after) if math.isfinite(before) else 1.0
            return (epoch + share) * steps
    return None


def _edge(best: float, rates: Sequence[float]) -> str | None:
    if len(rates) < 2 or best not in (rates[0], rates[-1]):
        return None
    return "smallest" if best == rates[0] else "largest"


def _finite_or_inf(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


@dataclass(frozen=True)
class Failure:
    """What kept an entrant, or all of them, from finishing on a problem.

    Attributes:
      entrant: its name; `None` where the problem itself failed.
      reason: in a line.
    """

    entrant: str | None
    reason: str


@dataclass(frozen=True)
class Race:
    """All that came out on one problem.

    Attributes:
      problem: its name.
      about: what it is, in a line; may be empty.
      learning_rates: those tried.
      seeds: how many.
      epochs: passes through the data.
      steps: optimizer steps an epoch.
      target: the training loss that counts as solved; `None` for a tenth above the lowest.
      outcomes: of the entrants that finished.
      failures: of those that did not.
      samples: of the best run of the best entrant, by caption.
      device: what kind of device it was raced on; empty if nothing was.
      others: entrants that earlier races with these settings have kept, and that are not here.
    """

    problem: str
    about: str
    learning_rates: tuple[float, ...]
    seeds: int
    epochs: int
    steps: int
    target: float | None
    outcomes: tuple[Outcome, ...]
    failures: tuple[Failure, ...]
    samples: dict[str, str | np.ndarray]
    device: str = ""
    others: tuple[str, ...] = ()

    @property
    def solved_at(self) -> float:
        """The loss that steps count to; infinite where nothing has one."""
        return target_loss(self.outcomes) if self.target is None else self.target

    @property
    def standings(self) -> list[Standing]:
        """The entrants that finished, lowest final loss first."""
        return standings(self.outcomes, self.solved_at, self.steps)
