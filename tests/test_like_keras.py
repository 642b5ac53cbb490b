"""What is called as in Keras does what Keras did: against its traces (see `parity/`)."""

import inspect
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import configured
from parity.traces import DTYPES, FOLDER, call, difference, distances, load, replay, schedule

import adam_jax
from adam_jax import decay, like_keras

TRACES = load(FOLDER / "keras.npz")
FIRST = TRACES.first_array()
# Of every entry, at every recorded step, relative to itself.
BOUND = {"float64": 1e-13, "float32": 1e-6}
# What rounds a parameter once a step, and no decay rate.
HAT = {"eps": 1e-7, "eps_hat": True}
ONCE = {
    "Adam-decay": lambda: adam_jax.adamw(0.01, **HAT, weight_decay=0.1),
    "Adam-amsgrad": lambda: adam_jax.amsgrad(0.01, **HAT, correct_after_max=True),
    "AdamW": lambda: adam_jax.adamw(0.01, **HAT, weight_decay=0.004),
    "AdamW-amsgrad": lambda: adam_jax.amsgradw(
        0.01, **HAT, weight_decay=0.004, correct_after_max=True
    ),
    "AdamW-schedule": lambda: adam_jax.adamw(schedule(0.02, 0.98), **HAT, weight_decay=0.1),
    "Adamax-slow": lambda: adam_jax.adamax(0.01, 0.999, eps=1e-7, eps_inside=False),
    "Lion-decay": lambda: adam_jax.lion(0.002, weight_decay=0.1),
}


def optimizer(name, **changes):
    return call(like_keras, TRACES.cases[name], **changes)


@cache
def ours(dtype):
    with configured({"jax_enable_x64": dtype == "float64"}):
        return replay({name: optimizer(name) for name in TRACES.cases}, TRACES, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TRACES.cases)
def test_steps_are_kerass(name, dtype):
    assert difference(ours(dtype)[name], TRACES.parameters[name, dtype]) <= BOUND[dtype]


@pytest.mark.parametrize("name", TRACES.cases)
def test_float32_is_as_near_to_kerass_float64_as_theirs_is(name):
    assert distances(ours("float32")[name], TRACES, name)[1] <= 8e-6


@cache
def rounded_once():
    return replay({name: make() for name, make in ONCE.items()}, TRACES, "float32")


@pytest.mark.parametrize("name", ONCE)
def test_rounding_once_would_be_found_and_is_nearer_to_float64(name):
    """So that Keras's roundings have a reason here, and that they are not everyone's too."""
    apart, near = distances(rounded_once()[name], TRACES, name)
    _, far = distances(ours("float32")[name], TRACES, name)
    assert apart > BOUND["float32"]
    assert near < min(2e-6, far)


# Each takes one convention from elsewhere; named for what is wrong.
TWINS = {
    "Adam": lambda: adam_jax.adam(1e-3, eps=1e-7),  # eps is added after the correction
    "Adam-decay": lambda: optimizer("Adam-decay", weight_decay=decay.l2(0.1)),
    "Adam-amsgrad": lambda: adam_jax.amsgrad(0.01, eps=1e-7),  # the maximum of what is corrected
    "AdamW": lambda: optimizer("AdamW", weight_decay=0.01),  # PyTorch's
    "AdamW-amsgrad": lambda: adam_jax.amsgradw(
        0.01, eps=1e-7, weight_decay=0.004, correct_after_max=True
    ),
    "AdamW-schedule": lambda: like_keras.Adam(
        schedule(0.02, 0.98), weight_decay=decay.independent(0.002)
    ),
    "Nadam": lambda: adam_jax.nadam(1e-3, eps=1e-7, momentum_decay=4e-3),  # PyTorch's
    "Nadam-decay": lambda: optimizer(
        "Nadam-decay", weight_decay=decay.by_learning_rate(0.1, after=True)
    ),
    "Adamax": lambda: adam_jax.adamax(0.01, eps=1e-3),  # eps inside
    "Adamax-decay": lambda: optimizer("Adamax-decay", weight_decay=decay.l2(0.1)),
    "Adamax-slow": lambda: optimizer("Adamax-slow", beta_1=0.99),
    "Lion": lambda: adam_jax.lion(1e-3),  # decays by 1e-3
    "Lion-decay": lambda: optimizer("Lion-decay", weight_decay=decay.l2(0.1)),
    "Lamb": lambda: adam_jax.lamb(1e-3),  # eps 1e-6
    "Lamb-decay": lambda: adam_jax.lamb(0.01, eps=1e-7, weight_decay=0.1),  # inside the ratio
}


@cache
def wrong():
    return replay({name: make() for name, make in TWINS.items()}, FIRST, "float32")


@pytest.mark.parametrize("name", TRACES.cases)
def test_another_convention_would_be_found(name):
    apart = difference(wrong()[name], FIRST.parameters[name, "float32"])
    assert apart > 2 * BOUND["float32"]


def test_what_is_zero_takes_its_first_step_of_lamb_undecayed():
    """Its ratio is 1, and decay comes first, which takes nothing off it."""
    tx, zero = like_keras.Lamb(0.1, weight_decay=0.5), jnp.zeros(2)
    updates, _ = tx.update(jnp.array([3.0, -0.2]), tx.init(zero), zero)
    np.testing.assert_allclose(updates, [-0.1, 0.1], rtol=2e-5)


# What every optimizer of Keras takes besides, and what we add.
NOT_TAKEN = {
    *("clipnorm", "clipvalue", "global_clipnorm", "use_ema", "ema_momentum"),
    *("ema_overwrite_frequency", "loss_scale_factor", "gradient_accumulation_steps", "name"),
}


def expected(name):
    """Keras's signature as ours should be."""
    taken = [p for p in TRACES.about["signatures"][name] if p[0] not in NOT_TAKEN]
    added = {"mu_dtype": None, "nu_dtype": None, "seed": 0}
    if name == "Lion":
        del added["nu_dtype"]
    return [*taken, *([key, "KEYWORD_ONLY", value] for key, value in added.items())]


OPTIMIZERS = sorted(TRACES.about["signatures"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_signature_is_kerass(name):
    parameters = inspect.signature(getattr(like_keras, name)).parameters.values()
    ours = [[p.name, p.kind.name, p.default] for p in parameters]
    assert ours == expected(name)
    assert ours != expected("Lion" if name == "AdamW" else "AdamW")  # another would be found


@pytest.mark.costly
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_storage_is_passed_on(name):
    params = jnp.ones(8)
    make = getattr(like_keras, name)
    both = {} if name == "Lion" else {"nu_dtype": jnp.bfloat16}
    state = make(mu_dtype=jnp.bfloat16, **both).init(params)
    dtypes = [x.dtype for x in jax.tree.leaves(state) if x.ndim]
    assert dtypes == [jnp.bfloat16] * (1 + len(both))

    def momentum(seed):
        tx = make(0.1, mu_dtype=jnp.bfloat16, seed=seed)
        _, state = tx.update(jnp.linspace(0.1, 1, 8), tx.init(params), params)
        return next(x for x in jax.tree.leaves(state) if x.dtype == jnp.bfloat16)

    assert not np.array_equal(momentum(0), momentum(1))


@pytest.mark.costly
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learning_rate_and_decay_may_be_traced(name):
    params, gradient = jnp.array([1.0, -2.0]), jnp.array([3.0, 0.2])

    def step(rate, share):
        tx = getattr(like_keras, name)(rate, weight_decay=share)
        return tx.update(gradient, tx.init(params), params)[0]

    static = step(0.1, 0.05)
    traced = jax.jit(step)
    np.testing.assert_allclose(traced(0.1, 0.05), static, rtol=1e-6)
    assert np.all(static != traced(0.1, 0.0))


@pytest.mark.parametrize("name", ["Adam", "Nadam", "Adamax"])
def test_without_decay_no_parameters_are_needed(name):
    tx = getattr(like_keras, name)()
    updates, _ = tx.update(jnp.array([3.0]), tx.init(jnp.array([1.0])))
    assert updates < 0


def test_adamw_needs_a_decay():
    with pytest.raises(TypeError, match="weight_decay"):
        like_keras.AdamW(weight_decay=None)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"beta_1": 1.5}, "^`beta_1` must be"),
        ({"weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_bad_arguments_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(like_keras, name)(**arguments)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "Lion"])
def test_a_bad_epsilon_is_refused(name):
    with pytest.raises(ValueError, match=r"^`epsilon` must be"):
        getattr(like_keras, name)(epsilon=-1e-7)
