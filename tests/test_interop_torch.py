"""States of PyTorch's optimizers move in and out, and runs go on: against its traces."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import configured
from parity.traces import DTYPES, FOLDER, call, continued, difference, load, split

from adam_jax import like_torch
from adam_jax.interop.torch import from_torch, to_torch

# One array, for which a run compiles in a third of the time of three.
TRACES = load(FOLDER / "torch.npz").first_array()
CASES = [name for name in TRACES.cases if name != "SparseAdam"]  # its arrays are rows
AT = TRACES.about["states"]["at"]
NAMES = {"w": 0}
# Of every entry, at every recorded step of the next 100, relative to itself.
BOUND = {"float64": 1e-12, "float32": 1e-6}


def state_dict(case, dtype):
    """What PyTorch had after `AT` steps."""
    parts = TRACES.about["states"]
    entry = dict(parts["numbers"][case][dtype])
    for field, row in zip(parts["fields"][case], TRACES.states[case, dtype], strict=True):
        entry[field] = split(row, TRACES.about["shapes"])["w"].copy()
    return {"state": {0: entry}, "param_groups": copy.deepcopy(parts["rest"][case])}


def params_at(case, dtype):
    which = np.array(TRACES.about["steps"]) == AT
    return split(jnp.asarray(TRACES.parameters[case, dtype][which][0]), TRACES.about["shapes"])


def going_on(case, dtype, spoil=lambda entry: None):
    """How far the next 100 steps are from PyTorch's, after a move."""
    with configured({"jax_enable_x64": dtype == "float64"}):
        moving = state_dict(case, dtype)
        spoil(moving["state"][0])
        tx = call(like_torch, TRACES.cases[case])
        state = from_torch(moving, tx, params_at(case, dtype), NAMES)
        return continued(tx, state, TRACES, (case, dtype))


@pytest.mark.costly
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on(case, dtype):
    assert difference(*going_on(case, dtype)) <= BOUND[dtype]


SPOILED = {
    "the step is one off": lambda entry: entry.update(step=entry["step"] - 1),
    "the mean is another": lambda entry: entry["exp_avg"].__imul__(1.001),
    "the mean square is another": lambda entry: entry["exp_avg_sq"].__imul__(1.001),
}


@pytest.mark.parametrize("what", SPOILED)
def test_another_state_would_be_found(what):
    moved = going_on("RAdam", "float64", SPOILED[what])
    assert difference(*moved) > 1e3 * BOUND["float64"]


def test_another_maximum_would_be_found():
    moved = going_on(
        "Adam-amsgrad", "float64", lambda entry: entry["max_exp_avg_sq"].__imul__(1.001)
    )
    assert difference(*moved) > 1e3 * BOUND["float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_what_moved_in_moves_out(case, dtype):
    moving = state_dict(case, dtype)
    with configured({"jax_enable_x64": dtype == "float64"}):
        params = params_at(case, dtype)
        state = from_torch(moving, call(like_torch, TRACES.cases[case]), params, NAMES)
        # A new optimizer's state dict is enough.
        out = to_torch(state, params, NAMES, like={**moving, "state": {}})
    assert out["param_groups"] == moving["param_groups"]
    entry, expected = out["state"][0], moving["state"][0]
    assert entry.keys() == expected.keys()
    # NAdam's product of momenta is rounded in every step there.
    tolerance = {"mu_product": 1e-13 if dtype == "float64" else 1e-5}
    for field, x in entry.items():
        assert x.dtype == dtype
        np.testing.assert_allclose(x, expected[field], rtol=tolerance.get(field, 0))


def test_a_schedule_goes_on():
    case = "AdamW-schedule"
    tx = call(like_torch, TRACES.cases[case])
    params = params_at(case, "float32")
    state = from_torch(state_dict(case, "float32"), tx, params, NAMES)
    counts = [int(x) for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.integer)]
    assert counts == [AT, AT]
