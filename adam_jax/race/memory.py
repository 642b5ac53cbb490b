"""The command `adam-jax memory`: what Adam's state costs for a model, in every storage format."""

import inspect
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any

import jax

import adam_jax
from adam_jax import storage
from adam_jax.diagnostics import aligned, human
from adam_jax.race.devices import State, Traffic, divided, table, traffic
from adam_jax.race.errors import UsageError, blaming, printing
from adam_jax.race.models import MODELS
from adam_jax.race.modules import load_function


@dataclass(frozen=True)
class Cost:
    """Adam's state in one format.

    Attributes:
      format: its name.
      state_bytes: the whole state.
      bytes_per_parameter: the same over the number of the parameters' entries.
      saved_bytes: how much less that is than in float32.
      divided: a row for each number of devices that was asked for.
    """

    format: str
    state_bytes: int
    bytes_per_parameter: float
    saved_bytes: int
    divided: tuple[State, ...]


@dataclass(frozen=True)
class Model:
    """What one model costs.

    Attributes:
      model: as the user wrote it.
      parameters: the number of the parameters' entries.
      formats: a cost each.
      traffic: a row for each number of devices that was asked for.
    """

    model: str
    parameters: int
    formats: tuple[Cost, ...]
    traffic: tuple[Traffic, ...]


def run(arguments: Namespace) -> int:
    """Prints what is asked, and returns the exit status."""
    # What the user's own code prints is not a part of the document.
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
        specs = dict.fromkeys(arguments.models or MODELS)
        models = [_measured(spec, arguments.devices) for spec in specs]
    if arguments.json:
        text = json.dumps({"models": [asdict(model) for model in models]}, indent=2)
    else:
        text = _table(models, arguments.devices)
    with printing():
        print(text)
    return 0


def _measured(spec: str, devices: Sequence[int]) -> Model:
    params = MODELS[spec]() if spec in MODELS else _own(spec)
    found = {}
    with blaming(f"model {spec!r} has no Adam state"):
        for name, build in storage.FORMATS.items():
            stored = build()
            tx = adam_jax.scale_by_adam(mu_dtype=stored, nu_dtype=stored)
            state = jax.eval_shape(tx.init, params) if devices else None
            rows = tuple(divided(state, params, count) for count in devices)
            found[name] = adam_jax.memory(tx, params), rows
    size, full = found["float32"][0].size, found["float32"][0].total_bytes
    if not size:
        raise UsageError(f"model {spec!r} must have parameters, got none")
    costs = [
        Cost(name, cost.total_bytes, cost.bytes_per_parameter, full - cost.total_bytes, rows)
        for name, (cost, rows) in found.items()
    ]
    return Model(spec, size, tuple(costs), tuple(traffic(params, count) for count in devices))


def _own(spec: str) -> Any:
    """The shapes of the tree that the user's own function returns."""
    source, _, name = spec.rpartition(":")  # from the right: a Windows path has a colon of its own
    if not source or source in MODELS:
        raise UsageError(
            f"model must be one of {', '.join(MODELS)}, or file.py:function or module:function;"
            f" got {spec!r}"
        )
    function, file = load_function(f"model {spec!r}", source, name)
    with blaming(f"model {spec!r} failed", file):
        return _shapes(function)


def _shapes(function: Callable[..., Any]) -> Any:
    """What a function returns, as shapes: it is traced, so that it allocates nothing.

    It takes nothing, or a random key, as the `init` of a problem does.
    """
    kept = []

    def traced() -> None:
        tree = function(*([jax.random.key(0)] if _takes_a_key(function) else []))
        kept.append(jax.tree.map(_shape, tree))

    jax.eval_shape(traced)
    return kept[0]


def _takes_a_key(function: Callable[..., Any]) -> bool:
    given = inspect.signature(function).parameters.values()
    return any(p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD for p in given)


def _shape(leaf: Any) -> Any:
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        return leaf  # `adam_jax.memory` says what is wrong with it, and where it is
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _table(models: Sequence[Model], devices: Sequence[int]) -> str:
    heads = [f"of {count:,}" for count in devices]
    rows = [["model", "parameters", "format", "bytes/param.", "state", "saved", *heads]]
    for model in models:
        first = [model.model, f"{model.parameters:,}"]
        for cost in model.formats:
            saved = human(cost.saved_bytes) if cost.saved_bytes else ""
            cells = [f"{cost.bytes_per_parameter:.3f}", human(cost.state_bytes), saved]
            parts = [human(state.device_bytes) for state in cost.divided]
            rows.append([*first, cost.format, *cells, *parts])
            first = ["", ""]
    text = aligned(rows, "<><>>>" + ">" * len(devices))
    if not devices:
        return text
    return f"{text}\n\n{table([(model.model, model.traffic) for model in models])}"
