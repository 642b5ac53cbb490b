"""`lazy_adam` does what PyTorch's SparseAdam did: against its traces (see `parity/`)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import configured
from parity.traces import DTYPES, FOLDER, as_rows, difference, join, load, split, touched

from adam_jax import Rows, lazy_adam

TRACES = load(FOLDER / "torch.npz")
BOUND = {"float64": 1e-13, "float32": 5e-6}


def replay(dtype, **settings):
    """The parameters at the recorded steps: a row that is there has its gradient in two halves."""
    shapes = TRACES.about["shapes"]
    tx = lazy_adam(**TRACES_ARGUMENTS, tables=lambda path, leaf: True, **settings)
    start = split(TRACES.initial.astype(dtype), shapes)
    params = {name: jnp.asarray(as_rows(x)) for name, x in start.items()}
    stream = split(TRACES.gradients.astype(dtype), shapes)
    length = max(len(p) for p in params.values())

    def rows(name, t):
        size = len(params[name])
        there = touched(t, size)
        g = as_rows(stream[name][t])[there] / 2
        padding = 2 * (length - len(there))
        indices = np.array([*there, *there, *[size] * padding], np.int32)
        filled = np.zeros((padding, *g.shape[1:]), dtype)
        return indices, np.concatenate([g, g, filled])

    steps = range(len(TRACES.gradients))
    all_rows = {
        n: [np.stack(x) for x in zip(*(rows(n, t) for t in steps), strict=True)] for n in params
    }
    sizes = {name: len(p) for name, p in params.items()}

    def step(carry, each):
        p, state = carry
        given = {name: Rows(*x, sizes[name]) for name, x in each.items()}
        updates, state = tx.update(given, state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), p

    run = jax.jit(lambda p, xs: jax.lax.scan(step, (p, tx.init(p)), xs)[1])
    found = {k: np.asarray(x) for k, x in run(params, all_rows).items()}
    found = {k: x.reshape(len(steps), *shapes[k]) for k, x in found.items()}
    return join(found, shapes)[np.array(TRACES.about["steps"]) - 1]


TRACES_ARGUMENTS = {"learning_rate": TRACES.cases["SparseAdam"].arguments["lr"]}


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_are_pytorchs(dtype):
    with configured({"jax_enable_x64": dtype == "float64"}):
        found = replay(dtype, eps_hat=True)
    assert difference(found, TRACES.parameters["SparseAdam", dtype]) <= BOUND[dtype]


@pytest.mark.exhaustive
@pytest.mark.parametrize("wrong", [{"eps_hat": False}, {"eps_hat": True, "catch_up": "decay"}])
def test_another_convention_would_be_found(wrong):
    found = replay("float32", **wrong)
    assert difference(found, TRACES.parameters["SparseAdam", "float32"]) > 2 * BOUND["float32"]
