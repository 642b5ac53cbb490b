"""A race for machines: what `--json` prints and `results.jsonl` holds."""

import json
import math
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from adam_jax.race.problem import Problem
from adam_jax.race.results import Outcome, Run, Standing
from adam_jax.race.runner import Settings


def report(
    problem: Problem,
    settings: Settings,
    rows: Sequence[Standing],
    target: float,
    complete: bool,
) -> str:
    """The whole race as one JSON document; `null` where a number is not finite.

    Args:
      problem: what was raced on.
      settings: what was run.
      rows: the entrants that finished.
      target: the loss that the steps count to.
      complete: whether all entrants finished.
    """
    found = {
        "problem": problem.name,
        "learning_rates": settings.learning_rates,
        "seeds": settings.seeds,
        "epochs": settings.epochs,
        "steps_per_epoch": problem.steps,
        "target_loss": _number(target),
        "complete": complete,
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
        "standings": [_standing(row) for row in rows],
        "runs": [_run(problem, run) for row in rows for run in row.outcome.runs],
    }
    return json.dumps(found, indent=2, allow_nan=False)


def lines(problem: Problem, outcomes: Sequence[Outcome]) -> str:
    """Every run as a line of JSON."""
    records = (_run(problem, run) for outcome in outcomes for run in outcome.runs)
    return "".join(f"{json.dumps(record, allow_nan=False)}\n" for record in records)


def versions() -> dict[str, str | None]:
    """Those of the packages that results depend on; `None` for what is not installed."""
    return {name: _version(name) for name in ("adam_jax", "jax", "optax")}


def _run(problem: Problem, run: Run) -> dict[str, Any]:
    return {
        "problem": problem.name,
        "entrant": run.entrant,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "final_loss": _number(run.final_loss),
        "diverged": run.diverged,
        "initial_loss": _number(run.losses[0]),
        "epoch_losses": [_number(loss) for loss in run.losses[1:]],
        "evaluation": _numbers(run.evaluation),
    }


def _standing(row: Standing) -> dict[str, Any]:
    return {
        "entrant": row.entrant,
        "best_learning_rate": None if row.diverged else row.learning_rate,
        "final_loss": _number(row.final_loss),
        "final_loss_lowest": _number(row.lowest),
        "final_loss_highest": _number(row.highest),
        "evaluation": _numbers(row.evaluation),
        "steps_to_target": row.steps_to_target,
        "microseconds_per_step": row.outcome.step_seconds * 1e6,
        "compile_seconds": row.outcome.compile_seconds,
        "state_bytes_per_parameter": row.outcome.state_bytes,
        "forgiving": row.forgiving,
        "edge": row.edge,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that was not installed
        return None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(figures: dict[str, float] | None) -> dict[str, float | None] | None:
    return None if figures is None else {name: _number(value) for name, value in figures.items()}
