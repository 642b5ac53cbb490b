"""States of Keras's optimizers move in and out, and runs go on: against its traces."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from checks import configured
from parity.traces import DTYPES, FOLDER, call, continued, difference, load, split

from adam_jax import like_keras
from adam_jax.interop.keras import from_keras, to_keras

TRACES = load(FOLDER / "keras.npz")
SHAPES = TRACES.about["shapes"]
AT = TRACES.about["states"]["at"]
NAMES = {name: name for name in SHAPES}
BOUND = {"float64": 1e-12, "float32": 1e-5}


def variables(case, dtype):
    """What Keras had after `AT` steps, by its variables' paths."""
    parts = TRACES.about["states"]
    numbers, fields = parts["numbers"][case][dtype], parts["fields"][case]
    trees = [split(row, SHAPES) for row in TRACES.states[case, dtype]]
    moments = {f"{name}_{f}": tree[name] for f, tree in zip(fields, trees) for name in SHAPES}
    found = {}
    for path in parts["rest"][case]:
        integer = path.endswith("iteration")
        number = np.array(numbers.get(path, 0), "int32" if integer else dtype)
        found[path] = number if path in numbers else moments[path.rpartition("/")[2]].copy()
    return found


def params_at(case, dtype):
    steps = np.array(TRACES.about["steps"])
    return split(jnp.asarray(TRACES.parameters[case, dtype][steps == AT][0]), SHAPES)


@cache
def moved_in(case, dtype):
    """The state moved in, and the parameters' farthest difference after that."""
    with configured({"jax_enable_x64": dtype == "float64"}):
        tx = call(like_keras, TRACES.cases[case])
        state = from_keras(variables(case, dtype), tx, params_at(case, dtype), NAMES)
        return state, difference(*continued(tx, state, TRACES, (case, dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TRACES.cases)
def test_the_run_goes_on(case, dtype):
    print("DIFF", case, dtype, moved_in(case, dtype)[1])
    assert moved_in(case, dtype)[1] <= BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TRACES.cases)
def test_what_moved_in_moves_out(case, dtype):
    like = variables(case, dtype)
    with configured({"jax_enable_x64": dtype == "float64"}):
        out = to_keras(moved_in(case, dtype)[0], params_at(case, dtype), NAMES, like, beta_1=0.9)
    assert list(out) == list(like)
    for path, x in like.items():
        assert (out[path].dtype, out[path].shape) == (x.dtype, x.shape)
        # Nadam's product of momenta is rounded in every step there.
        np.testing.assert_allclose(out[path], x, rtol=1e-5 if path == "variable" else 0)
