"""A score over problems: performance profiles, as in AlgoPerf.

On a problem an entrant needs so many steps to come down to the target, and r times as many as the
one that needs the fewest; r is infinite where it never does, diverges or fails. Its profile is the
share of problems with r <= tau, and its score the mean of the profile over tau from 1 to 4: 1 for
who is the fastest on every problem, 0 for who solves none within four times the fastest's steps.
Between two measurements, which are an epoch apart, the loss is taken to be straight.

There are two profiles. In *tuned* each entrant has on each problem the learning rate of the grid
with which it needs the fewest steps, in *default* the one of the grid that is nearest to its
usual rate. The target is the same in both.

Dolan & Moré 2002, "Benchmarking Optimization Software with Performance Profiles",
https://doi.org/10.1007/s101070100263; the score and its range as in Dahl et al. 2023,
"Benchmarking Neural Network Training Algorithms", section 4.5, https://arxiv.org/abs/2306.07179.
They count time; steps are the same on every machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adam_jax.race.entrants import default_rate
from adam_jax.race.results import Outcome, Race

LARGEST = 4.0  # tau; beyond it a problem is as good as not solved


@dataclass(frozen=True)
class Profile:
    """How an entrant does over problems.

    Attributes:
      ratios: a problem each, its steps over the fewest of any entrant; infinite for not solved.
    """

    ratios: tuple[float, ...]

    def share(self, tau: float) -> float:
        """The share of problems solved within `tau` times the fewest steps.

        >>> Profile((1.0, 3.0, math.inf)).share(2.0)
        0.3333333333333333
        """
        return sum(ratio <= tau for ratio in self.ratios) / len(self.ratios)

    @property
    def score(self) -> float:
        """The mean share over `tau` from 1 to 4.

        >>> Profile((1.0, 2.5, math.inf, 9.0)).score
        0.375
        """
        kept = (max(0.0, LARGEST - ratio) / (LARGEST - 1.0) for ratio in self.ratios)
        return sum(kept) / len(self.ratios)

    @property
    def solved(self) -> int:
        """On how many problems it has come down to the target, however late."""
        return sum(map(math.isfinite, self.ratios))


@dataclass(frozen=True)
class Score:
    """An entrant over all problems.

    Attributes:
      entrant: its name.
      problems: their names.
      tuned: at its best learning rate on each problem.
      default: at its usual learning rate on all.
      default_rate: that one; of a problem's grid the nearest to it is taken.
    """

    entrant: str
    problems: tuple[str, ...]
    tuned: Profile
    default: Profile
    default_rate: float


def scores(races: Sequence[Race]) -> list[Score]:
    """The entrants' scores, the best one first; a problem on which nobody finished is left out."""
    settled = {race.problem: [each.entrant for each in race.outcomes] for race in races}
    for race in races:
        settled[race.problem] += [each.entrant for each in race.failures if each.entrant]
    tried = list(dict.fromkeys(name for names in settled.values() for name in names))
    # Where somebody has not had a turn yet, nobody is compared.
    counted = [race for race in races if race.outcomes and set(settled[race.problem]) == set(tried)]
    found = {race.problem: {each.entrant: each for each in race.outcomes} for race in counted}

    tuned: list[dict[str, float]] = []
    default: list[dict[str, float]] = []
    for race in counted:
        outcomes = found[race.problem].values()
        tuned.append(_ratios({each.entrant: _fewest(each, race) for each in outcomes}))
        default.append(_ratios({each.entrant: _usual(each, race) for each in outcomes}))

    made = [
        Score(
            entrant=name,
            problems=tuple(found),
            tuned=Profile(tuple(ratios.get(name, math.inf) for ratios in tuned)),
            default=Profile(tuple(ratios.get(name, math.inf) for ratios in default)),
            default_rate=default_rate(name),
        )
        for name in tried * bool(counted)
    ]
    return sorted(made, key=lambda each: (-each.tuned.score, -each.default.score))


def corners(found: Sequence[Profile]) -> list[float]:
    """The values of tau where any of the profiles climbs, and both ends.

    >>> corners([Profile((1.5, 9.0)), Profile((1.0, 2.0))])
    [1.0, 1.5, 2.0, 4.0]
    """
    ratios = {ratio for each in found for ratio in each.ratios if ratio <= LARGEST}
    return sorted({1.0, LARGEST} | ratios)


def _fewest(outcome: Outcome, race: Race) -> float:
    return min(_steps(outcome, rate, race) for rate in outcome.learning_rates)


def _usual(outcome: Outcome, race: Race) -> float:
    usual = default_rate(outcome.entrant)
    rate = min(outcome.learning_rates, key=lambda rate: abs(math.log(rate / usual)))
    return _steps(outcome, rate, race)


def _steps(outcome: Outcome, rate: float, race: Race) -> float:
    steps = outcome.steps_to(race.solved_at, rate, race.steps)
    return math.inf if steps is None else steps


def _ratios(steps: dict[str, float]) -> dict[str, float]:
    fewest = min(steps.values())
    return {entrant: _ratio(own, fewest) for entrant, own in steps.items()}


def _ratio(own: float, fewest: float) -> float:
    if math.isinf(own):
        return math.inf
    if own == fewest:  # also where no step at all is needed
        return 1.0
    return own / fewest if fewest else math.inf
