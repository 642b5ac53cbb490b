"""A run as a record: a line of `results.jsonl`, which stands for itself.

What a line has of its entrant and of its problem is the same in all lines of a group, the runs of
one entrant on one problem; a group's samples are in the line of the run that they are from. `null`
stands where a number is not finite.
"""

import math
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from adam_jax.race.course import Course
from adam_jax.race.results import Outcome, Run

Record = dict[str, Any]

# What two lines of one group agree on, and no two groups.
_IDENTITY = (
    "problem",
    "problem_digest",
    "entrant",
    "entrant_digest",
    "learning_rates",
    "seeds",
    "epochs",
    "device",
    "versions",
)


def written(course: Course, outcome: Outcome) -> list[Record]:
    """A record a run, in the order of the runs."""
    shared = {
        **_identified(course, outcome.entrant, outcome.digest),
        "steps_per_epoch": course.steps,
        "target": course.target,
        "about": course.about,
        "microseconds_per_step": outcome.step_seconds * 1e6,
        "compile_seconds": outcome.compile_seconds,
        "state_bytes_per_parameter": outcome.state_bytes,
    }
    records = [of_run(course.problem, run) | shared for run in outcome.runs]
    if outcome.samples:
        shown = {caption: _sample(sample) for caption, sample in outcome.samples.items()}
        records[outcome.runs.index(outcome.best_run)]["samples"] = shown
    return records


def read(records: Sequence[Record]) -> Outcome:
    """The outcome that a group of records was written of.

    Raises:
      KeyError, TypeError, ValueError: if they are not such a group.
    """
    first = records[0]
    samples = [record["samples"] for record in records if "samples" in record]
    return Outcome(
        entrant=first["entrant"],
        runs=tuple(map(_run, records)),
        step_seconds=float(first["microseconds_per_step"]) / 1e6,
        compile_seconds=float(first["compile_seconds"]),
        state_bytes=float(first["state_bytes_per_parameter"]),
        digest=first["entrant_digest"],
        samples={
            caption: sample if isinstance(sample, str) else np.asarray(sample, np.float32)
            for shown in samples
            for caption, sample in shown.items()
        },
    )


def whole(records: Sequence[Record]) -> bool:
    """Whether a group has each of its runs once."""
    first = records[0]
    runs = [(record["learning_rate"], record["seed"]) for record in records]
    rates, seeds = set(first["learning_rates"]), range(first["seeds"])
    # The number first: what a file says of seeds may be far too many to list.
    if len(runs) != len(rates) * len(seeds):
        return False
    return set(runs) == {(rate, seed) for rate in rates for seed in seeds}


def identity(record: Record) -> tuple[Any, ...]:
    """Which group a record is of.

    Raises:
      KeyError, TypeError: if it is no such record.
    """
    return tuple(_fixed(record[name]) for name in _IDENTITY)


def of_group(course: Course, entrant: str, digest: str) -> tuple[Any, ...]:
    """The identity of an entrant's runs on a problem."""
    return identity(_identified(course, entrant, digest))


def of_run(problem: str, run: Run) -> Record:
    """What there is to say of a run alone."""
    return {
        "problem": problem,
        "entrant": run.entrant,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "final_loss": number(run.final_loss),
        "diverged": run.diverged,
        "initial_loss": number(run.losses[0]),
        "epoch_losses": [number(loss) for loss in run.losses[1:]],
        "evaluation": numbers(run.evaluation),
    }


def versions() -> dict[str, str | None]:
    """Of the packages that decide what comes out."""
    return {name: _version(name) for name in ("adam_jax", "jax", "optax")}


def number(value: float) -> float | None:
    """A number as JSON can have it."""
    return value if math.isfinite(value) else None


def numbers(figures: dict[str, float] | None) -> dict[str, float | None] | None:
    """Numbers by name as JSON can have them."""
    return None if figures is None else {name: number(value) for name, value in figures.items()}


def _identified(course: Course, entrant: str, digest: str) -> Record:
    found = (
        course.problem,
        course.digest,
        entrant,
        digest,
        course.learning_rates,
        course.seeds,
        course.epochs,
        course.device,
        versions(),
    )
    return dict(zip(_IDENTITY, found, strict=True))


def _fixed(value: Any) -> Any:
    """The same, as a part of a key."""
    if isinstance(value, dict):
        return tuple(value.items())
    return tuple(value) if isinstance(value, list) else value


def _run(record: Record) -> Run:
    losses = (record["initial_loss"], *record["epoch_losses"])
    figures = record["evaluation"]
    return Run(
        entrant=record["entrant"],
        learning_rate=float(record["learning_rate"]),
        seed=int(record["seed"]),
        losses=tuple(map(_float, losses)),
        evaluation=None if figures is None else {name: _float(x) for name, x in figures.items()},
    )


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _sample(sample: str | np.ndarray) -> Any:
    if isinstance(sample, str):
        return sample
    return np.round(np.nan_to_num(sample).astype(float), 3).tolist()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that was not installed
        return None
