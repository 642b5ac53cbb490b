"""Golden traces: what other frameworks' optimizers did, as files, and how ours are held to them.

A file has the gradients, the parameters before the first step, and, for every case and dtype, the
parameters after some of the steps and the framework's state after one of them; `make_traces.py`
makes it. A case names an optimizer of the framework and its arguments, so that ours, with the same
names, is called as the framework's was.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

FOLDER = Path(__file__).parent
DTYPES = ("float64", "float32")


@dataclass(frozen=True)
class Case:
    """One optimizer of the framework, as it was called.

    Attributes:
      optimizer: its name.
      arguments: its keyword arguments.
      schedule: the factor of the learning rate from one step to the next.
    """

    optimizer: str
    arguments: dict[str, Any]
    schedule: float = 1.0


@dataclass(frozen=True)
class Traces:
    """One file.

    Attributes:
      about: what can be told as JSON: ``framework``, ``versions``, ``seed``, the ``shapes`` of the
        arrays, the recorded ``steps``, from 1, for every optimizer its ``signatures``, and of the
        states the step ``at`` which they were taken, and by case their ``fields``, all else that
        the framework keeps as ``rest``, and the numbers that it keeps as ``numbers``, by dtype too.
      cases: by name.
      initial: the parameters, all arrays raveled, one after the other.
      gradients: of shape (steps, entries).
      parameters: by case and dtype, of shape (recorded steps, entries).
      states: by case and dtype, of shape (fields, entries).
    """

    about: dict[str, Any]
    cases: dict[str, Case]
    initial: np.ndarray
    gradients: np.ndarray
    parameters: dict[tuple[str, str], np.ndarray]
    states: dict[tuple[str, str], np.ndarray]

    def first_array(self) -> "Traces":
        """The same of the first array alone, which is faster to compile for."""
        name, shape = next(iter(self.about["shapes"].items()))
        size = int(np.prod(shape))
        return Traces(
            {**self.about, "shapes": {name: shape}},
            self.cases,
            self.initial[:size],
            self.gradients[:, :size],
            {key: trace[:, :size] for key, trace in self.parameters.items()},
            {key: moments[:, :size] for key, moments in self.states.items()},
        )


def save(traces: Traces, path: Path) -> None:
    about = {**traces.about, "cases": {name: vars(case) for name, case in traces.cases.items()}}
    arrays = {f"{name}/{dtype}": x for (name, dtype), x in traces.parameters.items()}
    arrays |= {f"{name}/{dtype}/state": x for (name, dtype), x in traces.states.items()}
    np.savez_compressed(
        path,
        about=np.array(json.dumps(about)),
        initial=traces.initial,
        gradients=traces.gradients,
        **arrays,
    )


def load(path: Path) -> Traces:
    with np.load(path) as file:
        about = json.loads(str(file["about"]))
        cases = {name: Case(**case) for name, case in about.pop("cases").items()}
        keys = [(name, dtype) for name in cases for dtype in DTYPES]
        parameters = {(name, dtype): file[f"{name}/{dtype}"] for name, dtype in keys}
        states = {(name, dtype): file[f"{name}/{dtype}/state"] for name, dtype in keys}
        return Traces(about, cases, file["initial"], file["gradients"], parameters, states)


def split(flat: Any, shapes: dict[str, list[int]]) -> dict[str, Any]:
    """Raveled arrays, one after the other along the last axis, each in its shape."""
    tree, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        tree[name] = flat[..., start : start + size].reshape((*flat.shape[:-1], *shape))
        start += size
    return tree


def join(tree: dict[str, Any], shapes: dict[str, list[int]]) -> np.ndarray:
    """The inverse of `split`."""
    parts = [np.asarray(tree[name]) for name in shapes]
    lead = parts[0].shape[: parts[0].ndim - len(next(iter(shapes.values())))]
    return np.concatenate([x.reshape((*lead, -1)) for x in parts], axis=-1)


def touched(t: int, rows: int) -> list[int]:
    """Which rows of an array have a gradient in a step, from 0: at random, but one at least."""
    some = np.random.default_rng(t).random(rows) < 0.4
    return [row for row in range(rows) if some[row] or row == t % rows]


def as_rows(x: Any) -> np.ndarray:
    """An array of rows; a number is one."""
    return np.atleast_1d(np.asarray(x))


def difference(actual: np.ndarray, desired: np.ndarray) -> float:
    """The largest relative difference of any entry of any array at any recorded step."""
    assert actual.dtype == desired.dtype
    assert actual.shape == desired.shape
    return float(np.max(np.abs(actual - desired) / np.abs(desired)))


def distances(actual: np.ndarray, traces: Traces, name: str) -> tuple[float, float]:
    """How far a float32 run is from the framework's in float32, and from that in float64."""
    theirs = traces.parameters
    in_float32 = difference(actual, theirs[name, "float32"])
    return in_float32, difference(actual.astype("float64"), theirs[name, "float64"])


def call(module: Any, case: Case, **changes: Any) -> optax.GradientTransformation:
    """The optimizer of that name in ``module``, called as in the case but for the changes."""
    arguments = {**case.arguments, **changes}
    if case.schedule != 1:
        name = "lr" if "lr" in arguments else "learning_rate"
        arguments[name] = schedule(arguments[name], case.schedule)
    return getattr(module, case.optimizer)(**arguments)


def schedule(start: float, factor: float) -> Any:
    """A learning rate as a function of the count of steps done."""
    return lambda count: start * jnp.power(factor, count)


def replay(
    optimizers: dict[str, optax.GradientTransformation], traces: Traces, dtype: str
) -> dict[str, np.ndarray]:
    """The parameters at the recorded steps as each makes them: one jitted scan, compiled once."""
    shapes = traces.about["shapes"]
    params = split(jnp.asarray(traces.initial, dtype), shapes)
    gradients = split(jnp.asarray(traces.gradients, dtype), shapes)
    recorded = np.array(traces.about["steps"]) - 1
    runs = trained(optimizers, params, gradients)
    return {name: join(path, shapes)[recorded] for name, (path, _) in runs.items()}


def trained(
    optimizers: dict[str, optax.GradientTransformation], initial: Any, gradients: Any
) -> dict[str, tuple[Any, Any]]:
    """By name the parameters after each step, and the last state: one program for all."""

    def step(carry, gradient):
        after = {}
        for name, (params, state) in carry.items():
            updates, new = optimizers[name].update(gradient, state, params)
            after[name] = optax.apply_updates(params, updates), new
        return after, {name: params for name, (params, _) in after.items()}

    @jax.jit
    def run(initial, gradients):
        start = {name: (initial, tx.init(initial)) for name, tx in optimizers.items()}
        return jax.lax.scan(step, start, gradients)

    ends, paths = run(initial, gradients)
    return {name: (paths[name], state) for name, (_, state) in ends.items()}


def continued(
    tx: optax.GradientTransformation, state: Any, traces: Traces, key: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """The parameters at the recorded steps after that of the states, and the framework's.

    Args:
      tx: an optimizer.
      state: its state, moved there.
      traces: of the framework.
      key: a case and a dtype.
    """
    shapes, at = traces.about["shapes"], traces.about["states"]["at"]
    recorded = np.array(traces.about["steps"])
    trace = traces.parameters[key]
    params = split(jnp.asarray(trace[recorded == at][0]), shapes)
    gradients = split(jnp.asarray(traces.gradients[at:], key[1]), shapes)

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    rows = jax.jit(lambda carry, stream: jax.lax.scan(step, carry, stream)[1])
    after = recorded > at
    ours = join(rows((params, state), gradients), shapes)
    return ours[recorded[after] - at - 1], trace[after]
