"""Makes the golden traces with the frameworks themselves, or checks that they still hold.

    python tests/parity/make_traces.py --torch --keras           # writes torch.npz and keras.npz
    python tests/parity/make_traces.py --torch --keras --check   # compares, and fails on a change

It needs what ``pip install -e '.[parity]'`` installs. A check runs the frameworks on the gradients
of the files, and prints a line a case; a call whose signature has changed fails too.

Every optimizer runs in float64, where a convention is right or wrong, and in float32, where users
are. In float64 that is the default dtype of the framework too: else `torch.optim.NAdam` keeps the
product of its momenta in float32, and Keras its learning rate.
"""

import argparse
import inspect
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from framework_states import State, keras_state, state_difference, torch_state
from traces import (
    DTYPES,
    FOLDER,
    Case,
    Traces,
    as_rows,
    difference,
    join,
    load,
    save,
    split,
    touched,
)

# The parameters, and what gives the state.
Step: TypeAlias = tuple[dict[str, Any], Callable[[], State]]

SEED = 2026
SHAPES: dict[str, list[int]] = {"w": [4, 3], "b": [5], "s": []}
STEPS = 200
RECORDED = [*range(1, 11), 12, 15, 18, 21, 25, 30, 36, 43, 50, 60, 70, 85, 100]
RECORDED += [120, 140, 160, 180, 200]
MOVED = 100  # the step after which the state is recorded too
# How far the same framework may be from itself, on another processor.
SAME = {"float64": 1e-13, "float32": 1e-6}

TORCH = {
    "Adam": Case("Adam", {}),
    "Adam-l2": Case("Adam", {"lr": 2e-3, "weight_decay": 0.01}),
    "Adam-decoupled": Case(
        "Adam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}
    ),
    "Adam-amsgrad": Case("Adam", {"lr": 0.01, "amsgrad": True}),
    "Adam-maximize": Case("Adam", {"weight_decay": 0.01, "maximize": True}),
    "AdamW": Case("AdamW", {"lr": 0.01}),
    "AdamW-decay": Case(
        "AdamW", {"lr": 0.01, "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.1}
    ),
    # Whose product, rounded before it is taken off 1, would give another factor.
    "AdamW-product": Case("AdamW", {"lr": 0.0243, "weight_decay": 0.11}),
    "AdamW-amsgrad": Case("AdamW", {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    "AdamW-schedule": Case("AdamW", {"lr": 0.02, "weight_decay": 0.1}, schedule=0.98),
    "NAdam": Case("NAdam", {}),
    "NAdam-l2": Case("NAdam", {"momentum_decay": 0.05, "weight_decay": 0.01}),
    "NAdam-decoupled": Case(
        "NAdam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}
    ),
    "RAdam": Case("RAdam", {"lr": 0.01}),
    "RAdam-l2": Case("RAdam", {"weight_decay": 0.01}),
    "RAdam-decoupled": Case(
        "RAdam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}
    ),
    "Adamax": Case("Adamax", {"lr": 0.01, "eps": 1e-3}),
    "Adamax-l2": Case("Adamax", {"weight_decay": 0.01}),
    "SparseAdam": Case("SparseAdam", {"lr": 0.01}),
}
KERAS = {
    "Adam": Case("Adam", {}),
    "Adam-decay": Case("Adam", {"learning_rate": 0.01, "weight_decay": 0.1}),
    "Adam-amsgrad": Case("Adam", {"learning_rate": 0.01, "amsgrad": True}),
    "AdamW": Case("AdamW", {"learning_rate": 0.01}),
    "AdamW-amsgrad": Case("AdamW", {"learning_rate": 0.01, "amsgrad": True}),
    "AdamW-schedule": Case("AdamW", {"learning_rate": 0.02, "weight_decay": 0.1}, schedule=0.98),
    "Nadam": Case("Nadam", {}),
    "Nadam-decay": Case("Nadam", {"learning_rate": 0.01, "weight_decay": 0.1}),
    "Adamax": Case("Adamax", {"learning_rate": 0.01, "epsilon": 1e-3}),
    "Adamax-decay": Case("Adamax", {"learning_rate": 0.01, "weight_decay": 0.1}),
    "Adamax-slow": Case("Adamax", {"learning_rate": 0.01, "beta_1": 0.999}),
    "Lion": Case("Lion", {}),
    "Lion-decay": Case("Lion", {"learning_rate": 0.002, "weight_decay": 0.1}),
    "Lamb": Case("Lamb", {}),
    "Lamb-decay": Case("Lamb", {"learning_rate": 0.01, "weight_decay": 0.1}),
}


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """The parameters before the first step, and the gradients, all of them float32 numbers.

    Every entry has a magnitude of its own, from nine decades, so that some are near eps; noise; and
    a drift away from zero, so that a relative difference has a meaning. All swell and shrink
    together, and are largest early, which a maximum remembers. One entry is zero at first, and one
    in the end.
    """
    rng = np.random.default_rng(SEED)
    entries = sum(int(np.prod(shape)) for shape in SHAPES.values())
    sign = rng.choice([-1.0, 1.0], entries)
    initial = sign * rng.uniform(0.5, 2.0, entries)
    size = 10.0 ** rng.uniform(-7.0, 2.0, entries)
    size[:3] = 1e-7, 1e-8, 1e-5
    swell = np.exp(rng.normal(size=(STEPS, 1)))
    swell[10:16] *= 30.0
    gradients = size * swell * (rng.normal(size=(STEPS, entries)) - 0.5 * sign)
    gradients[:20, 3] = 0.0
    gradients[100:, 4] = 0.0
    return initial.astype(np.float32), gradients.astype(np.float32)


def run_torch(
    case: Case, dtype: str, params: dict[str, Any], gradients: dict[str, Any]
) -> Iterator[Step]:
    import torch

    torch.set_num_threads(1)
    torch.set_default_dtype(getattr(torch, dtype))
    leaves = {
        name: torch.nn.Parameter(torch.tensor(x if case.optimizer != "SparseAdam" else as_rows(x)))
        for name, x in params.items()
    }
    if case.optimizer == "SparseAdam":
        gradients = {name: np.stack([as_rows(g) for g in x]) for name, x in gradients.items()}
    arguments = (
        case.arguments if case.optimizer == "SparseAdam" else {**case.arguments, "foreach": False}
    )
    optimizer = getattr(torch.optim, case.optimizer)(leaves.values(), **arguments)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, case.schedule)
    for t in range(STEPS):
        for name, leaf in leaves.items():
            leaf.grad = torch.tensor(np.asarray(gradients[name][t]))
            if case.optimizer == "SparseAdam":
                indices = torch.tensor(touched(t, len(leaf)))[None]
                # Each row in two halves, which PyTorch sums.
                halves = leaf.grad[indices[0]] / 2
                leaf.grad = torch.sparse_coo_tensor(
                    torch.cat([indices, indices], 1), torch.cat([halves, halves]), leaf.shape
                )
        optimizer.step()
        schedule.step()
        now = {
            name: leaf.detach().numpy().reshape(params[name].shape).copy()
            for name, leaf in leaves.items()
        }
        yield now, partial(torch_state, optimizer, list(leaves))


def run_keras(
    case: Case,
    dtype: str,
    params: dict[str, Any],
    gradients: dict[str, Any],
    begin: Callable[[Any], None] = lambda _: None,
) -> Iterator[Step]:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    jax.config.update("jax_enable_x64", dtype == "float64")
    keras.config.set_floatx(dtype)
    keras.utils.clear_session()  # names are numbered anew
    leaves = {name: keras.Variable(x, dtype=dtype, name=name) for name, x in params.items()}
    arguments = dict(case.arguments)
    if case.schedule != 1:
        arguments["learning_rate"] = keras.optimizers.schedules.ExponentialDecay(
            arguments["learning_rate"], decay_steps=1, decay_rate=case.schedule
        )
    optimizer = getattr(keras.optimizers, case.optimizer)(**arguments)
    optimizer.build(list(leaves.values()))
    begin(optimizer)
    step = jax.jit(optimizer.stateless_apply)
    state = [x.value for x in optimizer.variables]
    values = [x.value for x in leaves.values()]
    for t in range(len(gradients["w"])):
        now = [jax.numpy.asarray(gradients[name][t]) for name in leaves]
        values, state = step(state, now, values)
        now = dict(zip(leaves, map(np.asarray, values), strict=True))
        yield now, partial(keras_state, optimizer, state, list(leaves))


def signature(optimizer: Callable[..., Any]) -> list[list[Any]]:
    """Name, kind and default of every parameter but the framework's tensors."""
    return [
        [p.name, p.kind.name, list(p.default) if isinstance(p.default, tuple) else p.default]
        for p in inspect.signature(optimizer).parameters.values()
        if p.name not in {"params", "kwargs"}
    ]


def about_torch() -> tuple[dict[str, str], Any]:
    import torch

    return {"torch": torch.__version__}, torch.optim


def about_keras() -> tuple[dict[str, str], Any]:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    return {"keras": keras.__version__, "jax": jax.__version__}, keras.optimizers


FRAMEWORKS: dict[str, tuple[dict[str, Case], Any, Any]] = {
    "torch": (TORCH, about_torch, run_torch),
    "keras": (KERAS, about_keras, run_keras),
}


def recorded(run: Iterator[Step]) -> tuple[np.ndarray, State]:
    """The parameters at the recorded steps, and the state at its own."""
    rows = []
    for step, (row, state) in enumerate(run, start=1):
        rows.append(join(row, SHAPES))
        if step == MOVED:
            kept = state()
    return np.stack(rows)[np.array(RECORDED) - 1], kept


def make(framework: str, initial: np.ndarray, gradients: np.ndarray) -> Traces:
    """Runs every case of a framework."""
    cases, about, run = FRAMEWORKS[framework]
    versions, module = about()
    parameters, states = {}, {}
    about_states: dict[str, Any] = {"at": MOVED, "fields": {}, "numbers": {}, "rest": {}}
    for name, case in cases.items():
        for dtype in DTYPES:
            start, stream = (split(x.astype(dtype), SHAPES) for x in (initial, gradients))
            trace, (moments, numbers, rest) = recorded(run(case, dtype, start, stream))
            assert np.abs(trace).min() > 0.05, f"{name}: too near zero for a relative difference"
            parameters[name, dtype] = trace
            states[name, dtype] = np.stack([join(tree, SHAPES) for tree in moments.values()])
            assert trace.dtype == states[name, dtype].dtype == dtype
            about_states["fields"][name] = list(moments)
            about_states["rest"][name] = rest
            about_states["numbers"].setdefault(name, {})[dtype] = numbers
    optimizers = sorted({case.optimizer for case in cases.values()})
    return Traces(
        {
            "framework": framework,
            "versions": {"python": platform.python_version(), "numpy": np.__version__, **versions},
            "seed": SEED,
            "shapes": SHAPES,
            "steps": RECORDED,
            "signatures": {name: signature(getattr(module, name)) for name in optimizers},
            "states": about_states,
        },
        cases,
        initial,
        gradients,
        parameters,
        states,
    )


def failures(framework: str, golden: Traces, bound: dict[str, float]) -> int:
    """Prints how a framework differs from its golden traces; how many cases do by too much."""
    fresh = make(framework, golden.initial, golden.gradients)
    print(f"{framework}: golden {golden.about['versions']}, here {fresh.about['versions']}")
    failed = 0
    made = [traces.about[key] for key in ("seed", "shapes", "steps") for traces in (golden, fresh)]
    if made[::2] != made[1::2] or fresh.cases != golden.cases:
        print(f"FAILED {framework}: the file was made for other cases or inputs")
        return 1
    for name, now in fresh.about["signatures"].items():
        before = golden.about["signatures"][name]
        if now != before:
            print(f"FAILED {framework} {name}: its arguments {before} became {now}")
            failed += 1
    for (name, dtype), trace in fresh.parameters.items():
        apart = difference(trace, golden.parameters[name, dtype])
        apart = max(apart, state_difference(fresh, golden, (name, dtype)))
        bad = not apart <= bound[dtype]
        print(f"{'FAILED' if bad else 'ok':6} {framework} {name} {dtype}: {apart:.1e}")
        failed += bad
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    for framework in FRAMEWORKS:
        parser.add_argument(f"--{framework}", action="store_true")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder of the files")
    parser.add_argument("--check", action="store_true", help="compare with the files there")
    arguments = parser.parse_args(argv)
    chosen = [name for name in FRAMEWORKS if getattr(arguments, name)]
    if not chosen:
        parser.error("name a framework, --torch or --keras, or both")
    failed = 0
    for framework in chosen:
        path = arguments.out / f"{framework}.npz"
        if arguments.check:
            failed += failures(framework, load(path), SAME)
        else:
            save(make(framework, *inputs()), path)
            print(f"{path}: {path.stat().st_size} bytes")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
