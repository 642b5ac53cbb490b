"""What is drawn: curves out of a history, and which of them belong together and how."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from adam_jax.hyperparameters import brief

Curve: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
History: TypeAlias = Sequence[Mapping[str, Any]] | Mapping[str, Any]


class Panel(NamedTuple):
    """What belongs together: a title, how to read it, lines by their metrics, and the axis."""

    title: str
    note: str
    lines: Mapping[str, str]
    scale: str = "log"
    marks: tuple[float, ...] = ()


_NOT_MEASURED = "aux"  # of train_step's info: anything that the loss returns
_RATES = "effective_learning_rate_"
NORMS = {"grad": "gradient", "update": "update", "param": "parameters"}
PANELS = (
    Panel("Loss", "of each step's batch", {"loss": ""}),
    Panel("Norms", "of all entries", {f"{key}_norm": name for key, name in NORMS.items()}),
    Panel("Typical entries", "roots of mean squares", {f"{k}_rms": n for k, n in NORMS.items()}),
    Panel(
        "Update / parameters",
        "ratio of norms; dotted: 0.001, often right",
        {"update_to_param": ""},
        marks=(1e-3,),
    ),
    Panel(
        "Effective learning rate",
        "below it are 5%, half, 95% of the entries",
        {f"{_RATES}{part}": f"{int(part)}%" for part in ("95", "50", "05")},
    ),
    Panel(
        "Signal to noise",
        "1: gradients repeat; 0.2 or less: noise",
        {"signal_to_noise": ""},
        "share",
        (0.2, 1.0),
    ),
    Panel("Entries where eps decides", "share of all", {"eps_share": ""}, "percent"),
    Panel(
        "Direction of the update",
        "cosine of its angle with",
        {"cosine_update_gradient": "gradient", "cosine_successive_updates": "last update"},
        "cosine",
        (0.0,),
    ),
    Panel("Skipped steps", "so far", {"skipped_total": ""}, "count"),
)


def curves_of(history: Any) -> dict[str, Curve]:
    """Each metric along the steps; NaN where an entry does not have it."""
    if isinstance(history, Mapping):
        curves = {
            name: np.asarray(values, np.float64)
            for name, values in history.items()
            if name != _NOT_MEASURED
        }
    elif isinstance(history, Sequence) and all(isinstance(each, Mapping) for each in history):
        curves = {
            name: np.array([each.get(name, math.nan) for each in history], np.float64)
            for name in dict.fromkeys(name for each in history for name in each)
            if name != _NOT_MEASURED
        }
    else:
        raise TypeError(f"`history` must be dicts of metrics, got {brief(history)}")
    for name, values in curves.items():
        if values.ndim != 1:
            raise ValueError(f"`history` must have scalars a step, got {name!r} of {values.shape}")
    if not any(values.size for values in curves.values()):
        raise ValueError("`history` must have an entry, got none")
    return curves


def natural(path: str) -> list[Any]:
    """For sorting: layer 10 after layer 2."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def panel_of(name: str) -> Panel:
    """How one metric is drawn by itself."""
    path, _, metric = name.rpartition("/")
    panel = next((panel for panel in PANELS if metric in panel.lines), Panel(metric, "", {}))
    note = panel.note if len(panel.lines) == 1 else ""
    return panel._replace(title=metric, note=path or note)
