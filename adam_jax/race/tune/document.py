"""A search for machines: what `--json` prints, and `tune.json` holds."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jax

from adam_jax.race.problem import Problem
from adam_jax.race.records import number, versions
from adam_jax.race.tune.results import Findings, Scan, Trial
from adam_jax.race.tune.space import Axis
from adam_jax.race.tune.verdict import verdicts


def report(problem: Problem, entrant: str, axes: Sequence[Axis], found: Findings) -> str:
    """The whole search as one JSON document; `null` where a number is not finite."""
    names = [axis.name for axis in axes]
    trial = found.recommended
    document = {
        "problem": problem.name,
        "entrant": entrant,
        "ranges": {axis.name: [axis.low, axis.high] for axis in axes},
        "seeds": found.seeds,
        "epochs": found.epochs,
        "steps_per_epoch": problem.steps,
        "tolerance": found.tolerance,
        "complete": found.complete,
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
        "recommended": None if trial is None else _trial(names, trial),
        "neighbourhoods": [_scan(names, scan) for scan in found.scans],
        "verdicts": [asdict(verdict) for verdict in verdicts(found)],
        "epochs_trained": asdict(found.cost),
        "rungs": [{"epochs": rung.epochs, "candidates": len(rung.losses)} for rung in found.rungs],
        "candidates": [_trial(names, trial) for trial in found.trials.values()],
    }
    return json.dumps(document, indent=2, allow_nan=False)


def _scan(names: Sequence[str], scan: Scan) -> dict[str, Any]:
    return {
        "name": scan.axis.name,
        "recommended": scan.recommended,
        "lowest_loss_at": scan.best,
        "within_tolerance": [scan.low, scan.high],
        "not_told_apart": [scan.alike[0], scan.alike[-1]],
        "trials": [_trial(names, trial) for trial in scan.trials.values()],
    }


def _trial(names: Sequence[str], trial: Trial) -> dict[str, Any]:
    return {
        **dict(zip(names, trial.values, strict=True)),
        "epochs": trial.epochs,
        "final_loss": number(trial.final_loss),
        "final_losses": [number(loss) for loss in trial.final],
        "diverged": not math.isfinite(trial.final_loss),
        "epoch_losses": [[number(loss) for loss in row] for row in trial.losses],
    }
