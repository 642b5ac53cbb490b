"""`lazy_adam` does what PyTorch's SparseAdam did: against its traces (see `parity/`)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import configured
from parity.traces import DTYPES, FOLDER, as_rows, difference, join, load, split, touched

from adam_jax import Rows, lazy_adam
from adam_jax.interop import from_torch, to_torch

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


SIZE, WIDTH, BEFORE, NEXT = 11, 3, 20, 100
GROUP = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "params": [0]}


def sparse_adam(p, entry, rows, g):
    """A step of PyTorch's SparseAdam, in its order, on distinct rows."""
    (b1, b2), step = GROUP["betas"], entry["step"] + 1
    mu, nu = entry["exp_avg"], entry["exp_avg_sq"]
    mu[rows] += (g - mu[rows]) * (1 - b1)
    nu[rows] += (g * g - nu[rows]) * (1 - b2)
    rate = GROUP["lr"] * np.sqrt(1 - b2**step) / (1 - b1**step)
    p[rows] -= rate * mu[rows] / (np.sqrt(nu[rows]) + GROUP["eps"])
    entry["step"] = step


def move_in(dtype, catch_up):
    """Where both are 100 steps after SparseAdam's state has moved in, and both states."""
    rng = np.random.default_rng(5)
    p = rng.normal(size=(SIZE, WIDTH)).astype(dtype)
    entry = {"step": 0, "exp_avg": np.zeros_like(p), "exp_avg_sq": np.zeros_like(p)}
    given = [
        (rng.choice(SIZE, 4, replace=False), rng.normal(size=(4, WIDTH)).astype(dtype))
        for _ in range(BEFORE + NEXT)
    ]
    for each in given[:BEFORE]:
        sparse_adam(p, entry, *each)
    tx = lazy_adam(GROUP["lr"], eps_hat=True, catch_up=catch_up, tables=lambda path, leaf: True)
    ours, state_dict = jnp.asarray(p), {"state": {0: entry}, "param_groups": [GROUP]}
    state = from_torch(state_dict, tx, ours, 0)
    update = jax.jit(tx.update)
    for each in given[BEFORE:]:
        sparse_adam(p, entry, *each)
        updates, state = update(Rows(*map(jnp.asarray, each), SIZE), state, ours)
        ours = optax.apply_updates(ours, updates)
    return p, np.asarray(ours), entry, to_torch(state, ours, 0, state_dict)["state"][0]


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-6)])
def test_a_run_goes_on_where_sparse_adam_stopped(dtype, bound):
    with configured({"jax_enable_x64": dtype == "float64"}):
        theirs, ours, entry, found = move_in(dtype, "none")
        assert np.abs(theirs - ours).max() <= bound
        twin = move_in(dtype, "decay")
    assert found["step"] == entry["step"] == BEFORE + NEXT
    for field in ("exp_avg", "exp_avg_sq"):
        np.testing.assert_allclose(found[field], entry[field], rtol=10 * bound, atol=bound)
    assert np.abs(twin[0] - twin[1]).max() > 1e-3  # rows that wait otherwise
