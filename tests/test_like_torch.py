"""What is called as in PyTorch does what PyTorch did: against its traces (see `parity/`)."""

import inspect
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import configured
from parity.traces import DTYPES, FOLDER, call, difference, distances, load, replay

import adam_jax
from adam_jax import decay, like_torch

TRACES = load(FOLDER / "torch.npz")
FIRST = TRACES.first_array()
# Of SparseAdam see test_rows_torch.py.
CASES = [name for name, case in TRACES.cases.items() if case.optimizer != "SparseAdam"]
# Of every entry, at every recorded step, relative to itself.
BOUND = {"float64": 1e-13, "float32": 1e-6}
# What rounds a parameter once a step and not, as PyTorch does, after every operation on it.
ONCE = {
    **{
        name: lambda name=name, case=case: optimizer(
            name, weight_decay=decay.by_learning_rate(case.arguments.get("weight_decay", 0.01))
        )
        for name, case in TRACES.cases.items()
        if case.optimizer == "AdamW" or "decoupled_weight_decay" in case.arguments
    },
    "NAdam-l2": lambda: adam_jax.nadamw(2e-3, weight_decay=decay.l2(0.01), momentum_decay=0.05),
}


def optimizer(name, **changes):
    return call(like_torch, TRACES.cases[name], **changes)


@cache
def ours(dtype):
    with configured({"jax_enable_x64": dtype == "float64"}):
        return replay({name: optimizer(name) for name in CASES}, TRACES, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_steps_are_pytorchs(name, dtype):
    assert difference(ours(dtype)[name], TRACES.parameters[name, dtype]) <= BOUND[dtype]


@pytest.mark.parametrize("name", CASES)
def test_float32_is_as_near_to_pytorchs_float64_as_theirs_is(name):
    assert distances(ours("float32")[name], TRACES, name)[1] <= 8e-6


@cache
def rounded_once():
    return replay({name: make() for name, make in ONCE.items()}, TRACES, "float32")


@pytest.mark.parametrize("name", ONCE)
def test_rounding_once_would_be_found_and_is_nearer_to_float64(name):
    """So that `decay.in_place` has a reason, and so has that it is not everyone's."""
    apart, near = distances(rounded_once()[name], TRACES, name)
    _, far = distances(ours("float32")[name], TRACES, name)
    assert apart > BOUND["float32"]
    assert near <= 2e-6 < far


# Each takes one convention from elsewhere; named for what is wrong.
TWINS = {
    "Adam": lambda: adam_jax.adam(1e-3, eps_hat=True),
    "Adam-l2": lambda: optimizer("Adam-l2", decoupled_weight_decay=True),
    "Adam-decoupled": lambda: optimizer("Adam-decoupled", decoupled_weight_decay=False),
    "Adam-amsgrad": lambda: adam_jax.amsgrad(0.01),  # the maximum of what is corrected
    "Adam-maximize": lambda: optax.chain(  # parameters grow
        optimizer("Adam-maximize", maximize=False), optax.scale(-1.0)
    ),
    "AdamW": lambda: adam_jax.adamw(0.01),  # decays by 1e-4
    "AdamW-decay": lambda: optimizer(
        "AdamW-decay", weight_decay=decay.by_learning_rate(0.1, after=True)
    ),
    "AdamW-product": lambda: optimizer("AdamW-product", weight_decay=0.1),
    "AdamW-amsgrad": lambda: adam_jax.amsgradw(0.01, weight_decay=0.1, bias_correction_nu=False),
    "AdamW-schedule": lambda: optimizer("AdamW-schedule", weight_decay=decay.independent(0.002)),
    "NAdam": lambda: adam_jax.nadam(2e-3),  # a constant momentum
    "NAdam-l2": lambda: optimizer("NAdam-l2", momentum_decay=4e-3),
    "NAdam-decoupled": lambda: optimizer("NAdam-decoupled", momentum_decay=1.0),
    "RAdam": lambda: adam_jax.radam(0.01),  # eps is added after the correction
    "RAdam-l2": lambda: adam_jax.radamw(
        1e-3, eps_hat=True, threshold=4.0, weight_decay=decay.l2(0.01)
    ),
    "RAdam-decoupled": lambda: optimizer("RAdam-decoupled", decoupled_weight_decay=False),
    "Adamax": lambda: adam_jax.adamax(0.01, eps=1e-3, eps_inside=False),
    "Adamax-l2": lambda: adam_jax.adamaxw(2e-3, weight_decay=0.01),
}


@cache
def wrong():
    return replay({name: make() for name, make in TWINS.items()}, FIRST, "float32")


@pytest.mark.parametrize("name", CASES)
def test_another_convention_would_be_found(name):
    apart = difference(wrong()[name], FIRST.parameters[name, "float32"])
    assert apart > 2 * BOUND["float32"]


def radam(gradients, lr, b1, b2, eps=1e-8):
    """PyTorch's code of RAdam: the parameters after each step from 0."""
    p = mu = nu = 0.0
    rho_inf, path = 2 / (1 - b2) - 1, []
    for t, g in enumerate(gradients, 1):
        mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g * g
        step, correction = mu / (1 - b1**t), 1 - b2**t
        rho = rho_inf - 2 * t * b2**t / correction
        if rho > 5:
            top, bottom = (rho - 4) * (rho - 2) * rho_inf, (rho_inf - 4) * (rho_inf - 2) * rho
            step *= np.sqrt(correction) / (np.sqrt(nu) + eps) * np.sqrt(top / bottom)
        p -= lr * step
        path.append(p)
    return np.array(path)


def test_radam_is_rectified_above_5_and_not_at_it(x64):
    settings = 0.01, 0.9, 0.6666666666666667  # with which rho is 5 at step 97
    gradients = 10 * np.random.default_rng(0).normal(size=300)
    expected = radam(gradients, *settings)

    def follow(tx):
        def step(state, g):
            updates, state = tx.update(g, state)
            return state, updates

        return np.cumsum(jax.lax.scan(step, tx.init(0.0), jnp.asarray(gradients))[1])

    np.testing.assert_allclose(follow(like_torch.RAdam(0.01, settings[1:])), expected, rtol=1e-11)
    reached = follow(adam_jax.radam(*settings, eps_hat=True))
    np.testing.assert_allclose(reached[:96], expected[:96], rtol=1e-11)
    assert np.all(np.abs(reached - expected)[96:] > 0.02)


# What only chooses an implementation, and what we add.
NOT_TAKEN = {"foreach", "capturable", "differentiable", "fused"}
ADDED = ["mu_dtype", "nu_dtype", "seed"]


def signature(function):
    return [
        [p.name, p.kind.name, list(p.default) if isinstance(p.default, tuple) else p.default]
        for p in inspect.signature(function).parameters.values()
    ]


def expected(name):
    """PyTorch's signature as ours should be."""
    taken = [p for p in TRACES.about["signatures"][name] if p[0] not in NOT_TAKEN]
    added = dict.fromkeys(ADDED) | {"seed": 0}
    return [*taken, *([key, "KEYWORD_ONLY", value] for key, value in added.items())]


OPTIMIZERS = sorted({TRACES.cases[name].optimizer for name in CASES})


def without_order(arguments):
    """Keyword-only arguments sorted, for their order means nothing."""
    keywords = sorted((p for p in arguments if p[1] == "KEYWORD_ONLY"), key=lambda p: p[0])
    return [p for p in arguments if p[1] != "KEYWORD_ONLY"] + keywords


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_signature_is_pytorchs(name):
    ours = without_order(signature(getattr(like_torch, name)))
    assert ours == without_order(expected(name))
    others = [without_order(expected(other)) for other in OPTIMIZERS if other != name]
    assert ours not in others  # a wrong default or order would be found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_storage_is_passed_on(name):
    params = jnp.ones(8)
    tx = getattr(like_torch, name)(mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16)
    dtypes = [x.dtype for x in jax.tree.leaves(tx.init(params)) if x.ndim]
    assert dtypes == [jnp.bfloat16] * 2

    def momentum(seed):
        tx = getattr(like_torch, name)(mu_dtype=jnp.bfloat16, seed=seed)
        _, state = tx.update(jnp.linspace(0.1, 1, 8), tx.init(params), params)
        return next(x for x in jax.tree.leaves(state) if x.dtype == jnp.bfloat16)

    assert not np.array_equal(momentum(0), momentum(1))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learning_rate_and_decay_may_be_traced(name):
    params, gradient = jnp.array([1.0, -2.0]), jnp.array([3.0, 0.2])

    def steps(rate, share):
        tx = getattr(like_torch, name)(rate, weight_decay=share)
        _, state = tx.update(gradient, tx.init(params), params)
        return tx.update(gradient / 2, state, params)[0]

    static = steps(0.1, 0.05)
    traced = jax.jit(steps)
    np.testing.assert_allclose(traced(0.1, 0.05), static, rtol=1e-6)
    assert np.all(static != traced(0.1, 0.0))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "AdamW"])
def test_without_decay_no_parameters_are_needed(name):
    tx = getattr(like_torch, name)()
    updates, _ = tx.update(jnp.array([3.0]), tx.init(jnp.array([1.0])))
    assert updates < 0


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "^`lr` must be"),
        ({"betas": (0.9, 1.5)}, ValueError, r"^`betas\[1\]` must be"),
        ({"betas": 0.9}, TypeError, "^`betas` must be two"),
        ({"eps": -1e-8}, ValueError, "eps"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay"),
        ({"maximize": "yes"}, TypeError, "maximize"),
    ],
)
def test_bad_arguments_are_refused(name, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(like_torch, name)(**arguments)
