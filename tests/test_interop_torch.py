"""States of PyTorch's optimizers move in and out, and runs go on: against its traces."""

import copy
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits, configured
from parity.traces import DTYPES, FOLDER, call, continued, difference, load, split

import adam_jax
from adam_jax import like_torch, storage
from adam_jax.interop.torch import from_torch, to_torch

TRACES = load(FOLDER / "torch.npz")
SHAPES = TRACES.about["shapes"]
AT = TRACES.about["states"]["at"]
NAMES = {name: position for position, name in enumerate(SHAPES)}
BOUND = {"float64": 1e-12, "float32": 1e-6}


def state_dict(case, dtype):
    """What PyTorch had after `AT` steps."""
    parts = TRACES.about["states"]
    numbers = parts["numbers"][case][dtype]
    entries = {position: dict(numbers) for position in NAMES.values()}
    for field, row in zip(parts["fields"][case], TRACES.states[case, dtype], strict=True):
        for name, x in split(row, SHAPES).items():
            entries[NAMES[name]][field] = x.copy()
    return {"state": entries, "param_groups": copy.deepcopy(parts["rest"][case])}


def params_at(case, dtype):
    steps = np.array(TRACES.about["steps"])
    return split(jnp.asarray(TRACES.parameters[case, dtype][steps == AT][0]), SHAPES)


def optimizer(case):
    return call(like_torch, TRACES.cases[case])


@cache
def moved_in(case, dtype):
    """A transformation, the state moved in, and the parameters' farthest difference after that."""
    with configured({"jax_enable_x64": dtype == "float64"}):
        tx = optimizer(case)
        state = from_torch(state_dict(case, dtype), tx, params_at(case, dtype), NAMES)
        return state, difference(*continued(tx, state, TRACES, (case, dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TRACES.cases)
def test_the_run_goes_on(case, dtype):
    print("DIFF", case, dtype, moved_in(case, dtype)[1])
    assert moved_in(case, dtype)[1] <= BOUND[dtype]
