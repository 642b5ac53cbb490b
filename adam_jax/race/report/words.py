"""What a race says, in sentences: of each entrant, and of each picture for who cannot see it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from adam_jax.race.profiles import Score
from adam_jax.race.results import Race, Standing, median_curve, rounded

_FEW = 5


@dataclass(frozen=True)
class Result:
    """A race as it stands."""

    race: Race

    @cached_property
    def target(self) -> float:
        """The loss that counts as solved."""
        return self.race.solved_at

    @cached_property
    def rows(self) -> list[Standing]:
        """The entrants that finished, lowest loss first."""
        return self.race.standings

    @cached_property
    def figures(self) -> list[str]:
        """The names of what the problem's own `evaluate` told."""
        return list(dict.fromkeys(name for row in self.rows for name in row.evaluation))


def summary(result: Result) -> str:
    """The race in one clause."""
    if not result.rows:
        return "nobody finished"
    best = result.rows[0]
    if best.diverged:
        return "every run diverged"
    return f"{best.entrant} has the lowest loss, {_at_rate(best)}"


def verdicts(result: Result) -> list[tuple[str, str]]:
    """Each entrant that finished, and a sentence on it."""
    return [(row.entrant, _sentence(row, result)) for row in result.rows]


def _sentence(row: Standing, result: Result) -> str:
    if row.diverged:
        return "diverged at every learning rate, so try smaller."
    parts = [*_standing(row, result), _reached(row, result)]
    if row.edge:
        other = "larger" if row.edge == "largest" else "smaller"
        parts.append(f"best at the {row.edge} rate tried, so try {other}")
    return f"{'; '.join(part for part in parts if part)}."


def _standing(row: Standing, result: Result) -> list[str]:
    best, *others = result.rows
    seeds = result.race.seeds
    if row is best:
        level = [other for other in others if other.lowest <= best.highest]
        names = "every other" if len(level) == len(others) > 1 else listed(level)
        meets = f"not settled: its range over {seeds} seeds meets that of {names}"
        alone = f"no other's range over {seeds} seeds meets its"
        judged = (meets if level else alone) if others and seeds > 1 else ""
        return [f"lowest loss, {_at_rate(row)}" if others else f"loss {_at_rate(row)}", judged]
    times = row.final_loss / best.final_loss if best.final_loss > 0 else 0
    more = f", {rounded(times, 2)} times the lowest" if times >= 1.05 else ""
    told = seeds == 1 or row.lowest > best.highest
    return [
        f"loss {_at(row)}{more}",
        "" if told else f"its range over seeds meets {best.entrant}'s",
    ]


def _reached(row: Standing, result: Result) -> str:
    target = rounded(result.target, 3)
    if row.steps_to_target is None:
        return f"never reached {target}"
    told = row is result.rows[0]
    level = "the target" if result.race.target is not None else "10% above the lowest"
    what = f"{target}, {level}," if told else target
    return f"reached {what} after {row.steps_to_target:.0f} steps"


def _at(row: Standing) -> str:
    return f"{rounded(row.final_loss, 3)} at {row.learning_rate:.3g}"


def _at_rate(row: Standing) -> str:
    return f"{rounded(row.final_loss, 3)} at learning rate {row.learning_rate:.3g}"


def curves(result: Result) -> str:
    """What the curves show."""
    rows = [row for row in result.rows if not row.diverged]
    if not rows:
        return "No curves: every run diverged."
    start = median_curve(rows[0].outcome.at(rows[0].learning_rate))[0]
    ends = [f"{row.entrant} at {rounded(row.final_loss, 3)}" for row in rows]
    least = f"From {rounded(start, 3)} " if math.isfinite(start) else "It comes "
    steps = result.race.epochs * result.race.steps
    chart = "Line chart of training loss against optimizer step."
    return f"{chart} {least}to, after {steps} steps: {several(ends)}."


def learning_rates(result: Result) -> str:
    """What the picture of the learning rates shows."""
    ends = [f"{row.entrant} {_at(row)}" for row in result.rows if not row.diverged]
    return f"Final training loss against learning rate. Lowest: {several(ends) or 'none'}."


def costs(what: str, values: dict[str, float]) -> str:
    """What a picture of bars shows."""
    low, high = (pick(values, key=lambda name: values[name]) for pick in (min, max))
    return (
        f"Bar chart of {what}: from {rounded(values[low], 2)} ({low}) "
        f"to {rounded(values[high], 2)} ({high})."
    )


def scored(score: Score) -> str:
    """A sentence on an entrant over all problems."""
    tuned, number = score.tuned, len(score.problems)
    fewest = tuned.ratios.count(1.0)
    most = f", {fewest} of them in the fewest steps" if fewest else ""
    solved = (
        f"solved {tuned.solved} of {number}{most}" if tuned.solved else f"solved none of {number}"
    )
    return (
        f"score {tuned.score:.2f} with learning rates tuned on each problem, "
        f"{score.default.score:.2f} near its usual {score.default_rate:g}; {solved}."
    )


def counted(scores: Sequence[Score], races: Sequence[Race]) -> str:
    """Over how many problems scores are, and which ones they leave out."""
    inside = scores[0].problems
    left = [race.problem for race in races if race.problem not in inside]
    if not left:
        return f"it is over all {len(inside)}"
    return (
        f"it is over {len(inside)} of {len(races)}, without {several(left)}, where nobody finished "
        "or somebody has not had a turn"
    )


def others(race: Race) -> str:
    """Who is not here, though its runs are kept."""
    return (
        f"results.jsonl also has the runs of {several(race.others)} with these settings; "
        "who is named in --entrants too, and has not changed, is shown from there."
    )


def listed(rows: Sequence[Standing]) -> str:
    """The names, joined as a sentence does it."""
    return several([row.entrant for row in rows])


def several(parts: Sequence[str]) -> str:
    """Parts of a sentence; of many the first ones.

    Example:
      >>> several(["a", "b", "c"]), several(list("abcdefgh"))
      ('a, b and c', 'a, b, c, d and 4 more')
    """
    if len(parts) > _FEW + 1:
        parts = [*parts[: _FEW - 1], f"{len(parts) - _FEW + 1} more"]
    *first, last = parts or [""]
    return f"{', '.join(first)} and {last}" if first else last
