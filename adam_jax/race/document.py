"""A race for machines: what `--json` prints."""

import json
from collections.abc import Sequence
from typing import Any

from adam_jax.race import records
from adam_jax.race.profiles import Score
from adam_jax.race.records import number
from adam_jax.race.results import Race, Standing


def report(race: Race, complete: bool) -> str:
    """One race as a JSON document; `null` where a number is not finite.

    Args:
      race: what came out.
      complete: whether all entrants have had their turn.
    """
    found = _race(race) | {"complete": complete, "versions": records.versions()}
    return json.dumps(found, indent=2, allow_nan=False)


def report_all(races: Sequence[Race], scores: Sequence[Score], complete: bool) -> str:
    """The same of races on several problems, and the entrants' scores over all of them."""
    found = {
        "complete": complete,
        "versions": records.versions(),
        "scores": [_score(score) for score in scores],
        "races": [_race(race) for race in races],
    }
    return json.dumps(found, indent=2, allow_nan=False)


def _race(race: Race) -> dict[str, Any]:
    rows = race.standings
    return {
        "problem": race.problem,
        "about": race.about,
        "learning_rates": race.learning_rates,
        "seeds": race.seeds,
        "epochs": race.epochs,
        "steps_per_epoch": race.steps,
        "target_loss": number(race.solved_at),
        "device": race.device,
        "standings": [_standing(row) for row in rows],
        "failures": [{"entrant": each.entrant, "reason": each.reason} for each in race.failures],
        "runs": [records.of_run(race.problem, run) for row in rows for run in row.outcome.runs],
    }


def _standing(row: Standing) -> dict[str, Any]:
    return {
        "entrant": row.entrant,
        "best_learning_rate": None if row.diverged else row.learning_rate,
        "final_loss": number(row.final_loss),
        "final_loss_lowest": number(row.lowest),
        "final_loss_highest": number(row.highest),
        "evaluation": records.numbers(row.evaluation),
        "steps_to_target": row.steps_to_target,
        "microseconds_per_step": row.outcome.step_seconds * 1e6,
        "compile_seconds": row.outcome.compile_seconds,
        "state_bytes_per_parameter": row.outcome.state_bytes,
        "forgiving": row.forgiving,
        "edge": row.edge,
    }


def _score(score: Score) -> dict[str, Any]:
    def profile(ratios: Sequence[float]) -> dict[str, float | None]:
        return dict(zip(score.problems, map(number, ratios), strict=True))

    return {
        "entrant": score.entrant,
        "tuned": score.tuned.score,
        "default": score.default.score,
        "default_learning_rate": score.default_rate,
        "solved": score.tuned.solved,
        "problems": len(score.problems),
        "tuned_steps_over_the_fewest": profile(score.tuned.ratios),
        "default_steps_over_the_fewest": profile(score.default.ratios),
    }
