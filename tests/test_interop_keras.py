"""States of Keras's optimizers move in and out, and runs go on: against its traces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import configured
from parity.traces import DTYPES, FOLDER, call, continued, difference, load, split

import adam_jax
from adam_jax import like_keras
from adam_jax.interop.keras import from_keras, to_keras

# One array, for which a run compiles in a third of the time of three.
TRACES = load(FOLDER / "keras.npz").first_array()
AT = TRACES.about["states"]["at"]
NAMES = {"w": "w"}
# Of every entry, at every recorded step of the next 100, relative to itself.
BOUND = {"float64": 1e-12, "float32": 1e-6}
SCALARS = ("iteration", "learning_rate", "variable")


def variables(case, dtype):
    """What Keras had after `AT` steps, by its variables' paths."""
    parts = TRACES.about["states"]
    numbers, fields = parts["numbers"][case][dtype], parts["fields"][case]
    rows = dict(zip(fields, TRACES.states[case, dtype], strict=True))
    found = {}
    for path in parts["rest"][case]:
        tail = path.rpartition("/")[2]
        if tail in SCALARS:
            found[path] = np.array(numbers[path], "int32" if tail == "iteration" else dtype)
        elif tail.startswith("w_"):
            found[path] = split(rows[tail.removeprefix("w_")], TRACES.about["shapes"])["w"].copy()
    return found


def params_at(case, dtype):
    which = np.array(TRACES.about["steps"]) == AT
    return split(jnp.asarray(TRACES.parameters[case, dtype][which][0]), TRACES.about["shapes"])


def going_on(case, dtype, spoil=lambda moving: None):
    """How far the next 100 steps are from Keras's, after a move."""
    with configured({"jax_enable_x64": dtype == "float64"}):
        moving = variables(case, dtype)
        spoil(moving)
        tx = call(like_keras, TRACES.cases[case])
        state = from_keras(moving, tx, params_at(case, dtype), NAMES)
        return difference(*continued(tx, state, TRACES, (case, dtype)))


@pytest.mark.costly
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TRACES.cases)
def test_a_run_goes_on(case, dtype):
    assert going_on(case, dtype) <= BOUND[dtype]


SPOILED = {
    "the step is one off": ("Adam", "iteration", lambda x: x.__isub__(1)),
    "the mean is another": ("Lamb", "w_momentum", lambda x: x.__imul__(1.001)),
    "the mean square is another": ("Adam", "w_velocity", lambda x: x.__imul__(1.001)),
    "the maximum is another": ("Adam-amsgrad", "w_velocity_hat", lambda x: x.__imul__(1.001)),
}


@pytest.mark.parametrize("what", SPOILED)
def test_another_state_would_be_found(what):
    case, tail, change = SPOILED[what]
    apart = going_on(case, "float64", lambda moving: change(moving[f"{case[:4].lower()}/{tail}"]))
    assert apart > 1e3 * BOUND["float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TRACES.cases)
def test_what_moved_in_moves_out(case, dtype):
    moving = variables(case, dtype)
    # Of an optimizer that is new: only the learning rate is taken.
    new = {k: x if k.endswith("rate") else np.zeros_like(x) for k, x in moving.items()}
    with configured({"jax_enable_x64": dtype == "float64"}):
        params = params_at(case, dtype)
        state = from_keras(moving, call(like_keras, TRACES.cases[case]), params, NAMES)
        out = to_keras(state, params, NAMES, new, beta_1=0.9)
    assert list(out) == list(moving)
    for path, x in moving.items():
        assert (out[path].dtype, out[path].shape) == (x.dtype, x.shape)
        # Nadam's product of momenta is rounded in every step there.
        tolerance = 1e-5 if dtype == "float32" else 1e-13
        np.testing.assert_allclose(out[path], x, rtol=tolerance if path == "variable" else 0)


# --- Names, layouts and faults --------------------------------------------------------------------

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
PATHS = {"dense": {"kernel": "sequential/dense/kernel", "bias": "sequential/dense/bias"}}


class Variable:
    """What is asked of a variable of Keras, here without it."""

    def __init__(self, path, value):
        self.path, self.value = path, value


def of_adam(**changes):
    """Variables of numbers that are all different, in Keras's order."""
    numbers = iter(np.arange(1, 100, dtype=np.float32))
    found = {"adam/iteration": np.int32(7), "adam/learning_rate": np.float32(1e-3)}
    for leaf, shape in (("kernel", (2, 3)), ("bias", (3,))):
        for there in ("momentum", "velocity"):
            x = np.array([next(numbers) for _ in range(np.prod(shape))], np.float32)
            found[f"adam/sequential_dense_{leaf}_{there}"] = x.reshape(shape)
    return {path: x for path, x in (found | changes).items() if x is not None}


def moved(variables=None, tx=None, params=PARAMS, names=PATHS, layout=None):
    variables = of_adam() if variables is None else variables
    return from_keras(variables, tx or like_keras.Adam(), params, names, layout)


NAMINGS = {
    "arrays by paths": (of_adam, PATHS),
    "variables by paths": (lambda: [Variable(k, x) for k, x in of_adam().items()], PATHS),
    "variables by position": (
        lambda: [Variable(k, x) for k, x in of_adam().items()],
        {"dense": {"kernel": 0, "bias": 1}},
    ),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_variables_are_found(naming):
    make, names = NAMINGS[naming]
    state, exact = moved(make(), names=names)[0], of_adam()
    assert state.count == 7
    for leaf in ("kernel", "bias"):
        for tree, there in ((state.mu, "momentum"), (state.nu, "velocity")):
            x = exact[f"adam/sequential_dense_{leaf}_{there}"]
            np.testing.assert_array_equal(tree["dense"][leaf], x)
    out = to_keras(moved(), PARAMS, names, make())
    assert list(out) == list(exact)
    assert all(np.array_equal(out[path], x) for path, x in exact.items())


def test_a_layout_is_undone():
    params = jax.tree.map(lambda x: x.T, PARAMS)
    state = moved(params=params, layout=lambda name, x: x.T)
    out = to_keras(state, params, PATHS, of_adam(), layout=lambda name, x: x.T)
    assert all(np.array_equal(out[path], x) for path, x in of_adam().items())


KERNEL, BIAS = "adam/sequential_dense_kernel_momentum", "adam/sequential_dense_bias_velocity"
FAULTS = {
    "empty": (dict, "`variables` must have one iteration, got"),
    "no paths": (lambda: list(of_adam().values()), r"`variables`\[0\] must have a path, got"),
    "half a step": (
        lambda: of_adam(**{"adam/iteration": np.float32(0.5)}),
        "'adam/iteration' must be a count, got",
    ),
    "too many steps": (
        lambda: of_adam(**{"adam/iteration": 2**40}),
        r"must be a count, got .*: a whole number in \[0, 2\*\*31\)",
    ),
    "numbers for paths": (lambda: {3: 1.0}, "`variables` must have paths for keys, got 3"),
    "no variables": (lambda: 3, "`variables` must be an optimizer's variables, got 3"),
    "missing": (
        lambda: of_adam(**{KERNEL: None}),
        r"`tx` keeps mu of params\['dense'\]\['kernel'\]",
    ),
    "NaN": (
        lambda: of_adam(**{BIAS: np.full(3, np.nan, np.float32)}),
        r"'adam/sequential_dense_bias_velocity' must be finite, got nan at \[0\]",
    ),
    "negative": (
        lambda: of_adam(**{BIAS: -np.ones(3, np.float32)}),
        "_velocity' must be >= 0, got -1",
    ),
    "a shape": (
        lambda: of_adam(**{KERNEL: np.ones((3, 2), np.float32)}),
        r"as params\['dense'\]\['kernel'\], has shape \(3, 2\), must have \(2, 3\)",
    ),
    "float64": (lambda: of_adam(**{KERNEL: np.ones((2, 3))}), "is float64, which mu of params"),
    "averages": (
        lambda: of_adam(**{"adam/sequential_dense_kernel_average": np.ones((2, 3))}),
        "'adam/sequential_dense_kernel_average' is no moment of Adam's family",
    ),
    "one more": (
        lambda: of_adam(**{"adam/sequential_dense_1_bias_momentum": np.ones(2)}),
        "'adam/sequential_dense_1_bias_momentum' is no moment of Adam's family",
    ),
    "AMSGrad": (
        lambda: of_adam(
            **{f"{path}_hat": x for path, x in of_adam().items() if path.endswith("velocity")}
        ),
        "_velocity_hat' has no place: `tx` keeps no nu_max",
    ),
}


def one_line(info):
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 250


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_variables_are_refused_in_one_line(fault):
    make, message = FAULTS[fault]
    with pytest.raises((ValueError, TypeError), match=message) as info:
        moved(make())
    one_line(info)


@pytest.mark.parametrize(
    ("name", "message"),
    [("dense/kernel", "`names` has 'dense/kernel' for params"), (2, "`names` has 2 for params")],
)
def test_wrong_names_are_refused_in_one_line(name, message):
    with pytest.raises(ValueError, match=message) as info:
        moved(names={"dense": {**PATHS["dense"], "kernel": name}})
    one_line(info)


def test_what_cannot_leave_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"needs nu of params\['dense'\]\['bias'\]") as info:
        to_keras(adam_jax.lion(1e-3).init(PARAMS), PARAMS, PATHS, of_adam())
    one_line(info)
    with pytest.raises(ValueError, match="no variable for nu_max of params") as info:
        to_keras(like_keras.Adam(amsgrad=True).init(PARAMS), PARAMS, PATHS, of_adam())
    one_line(info)
    with pytest.raises(ValueError, match="`beta_1` must be given for Nadam") as info:
        to_keras(moved(), PARAMS, PATHS, of_adam(variable=np.float32(1)))
    one_line(info)
