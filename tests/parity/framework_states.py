"""What the frameworks' optimizers keep, as the golden traces record it."""

import json
import math
from typing import Any, TypeAlias

import numpy as np
from traces import Traces

MEANS = ("exp_avg", "momentum")
# Moments by field and array, numbers by field, and all else that there is, as JSON.
State: TypeAlias = tuple[dict[str, dict[str, Any]], dict[str, float], Any]


def torch_state(optimizer: Any, names: list[str]) -> State:
    """What an optimizer of PyTorch keeps."""
    state_dict = optimizer.state_dict()
    moments: dict[str, Any] = {}
    numbers = {}
    for position, entry in state_dict["state"].items():
        for field, x in entry.items():
            if field in ("step", "mu_product"):
                numbers[field] = float(x)
            else:
                moments.setdefault(field, {})[names[position]] = x.numpy().copy()
    return moments, numbers, state_dict["param_groups"]


def keras_state(optimizer: Any, values: list[Any], names: list[str]) -> State:
    """What an optimizer of Keras keeps."""
    moments: dict[str, Any] = {}
    numbers, paths = {}, [x.path for x in optimizer.variables]
    for path, value in zip(paths, values, strict=True):
        name, _, field = path.rpartition("/")[2].partition("_")
        if name in names and field:
            moments.setdefault(field, {})[name] = np.asarray(value)
        else:
            numbers[path] = float(value)
    return moments, numbers, paths


def state_difference(fresh: Traces, golden: Traces, key: tuple[str, str]) -> float:
    """How far two states are apart; infinite where they do not keep the same.

    Relative to what is kept; of a mean, which may be near zero, to what it is the mean of.
    """
    name, dtype = key
    (now, now_numbers), (before, before_numbers) = (
        (
            [x.about["states"][part][name] for part in ("fields", "rest")],
            x.about["states"]["numbers"],
        )
        for x in (fresh, golden)
    )
    now_numbers, before_numbers = now_numbers[name][dtype], before_numbers[name][dtype]
    if json.dumps(now) != json.dumps(before) or now_numbers.keys() != before_numbers.keys():
        return math.inf
    apart = [abs(x - before_numbers[k]) / abs(before_numbers[k]) for k, x in now_numbers.items()]
    usual = np.abs(golden.gradients[: golden.about["states"]["at"]]).mean(axis=0)
    for field, x, y in zip(before[0], fresh.states[key], golden.states[key], strict=True):
        scale = np.abs(y) + (usual if field in MEANS else 0)
        apart.append(float(np.max(np.abs(x - y) / scale)))
    return max(apart)
