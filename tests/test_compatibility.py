"""Changing the import is enough: Optax's arguments, Optax's state, and every JAX transformation."""

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_kind, configured
from parity import traces
from training import assert_close, descend, gradients, moved, parameters, stepper

import adam_jax
from adam_jax import storage


class Optax:
    """Optax with what its `contrib` has."""

    def __getattr__(self, name):
        return getattr(optax, name, None) or getattr(optax.contrib, name)


OPTAX = Optax()
NAMES = [
    name
    for name in adam_jax.__all__
    if hasattr(optax, name) or hasattr(optax.contrib, name)
    if name not in {"lift", "storage"}
]
DECAYED = {"dense": {"w": True, "b": False}, "scale": False}
SCHEDULE = optax.cosine_decay_schedule(1e-2, 20)

# Each takes a module, ours or Optax's.
MADE = {
    "adam": lambda m: m.adam(1e-2),
    "scale_by_adam": lambda m: optax.chain(m.scale_by_adam(0.8, 0.9, 1e-3), optax.scale(-1e-2)),
    "nesterov": lambda m: m.adam(1e-2, nesterov=True),
    "eps_root": lambda m: m.adam(1e-2, eps_root=1e-2),
    "schedule": lambda m: m.adam(SCHEDULE),
    "adamw": lambda m: m.adamw(1e-2, weight_decay=0.5),
    "adamw_mask": lambda m: m.adamw(1e-2, weight_decay=0.5, mask=DECAYED),
    "adamw_all": lambda m: m.adamw(
        SCHEDULE, 0.8, 0.99, 1e-3, 1e-3, None, 0.5, lambda _: DECAYED, nesterov=True
    ),
}
# Those of the family that Optax has too, with their defaults but for what is told.
FAMILY = {
    "adam": {},
    "adamw": {"weight_decay": 0.5},
    "nadam": {},
    "nadamw": {"weight_decay": 0.5},
    "amsgrad": {},
    "amsgrad-raw": {"bias_correction_mu": False, "bias_correction_nu": False},
    "adamax": {},
    "adamaxw": {"weight_decay": 0.5},
    "radam": {},
    "radam-nesterov": {"nesterov": True, "threshold": 6.0},
    "adabelief": {},
    "yogi": {},
    "adopt": {},
    "adopt-unclipped": {"use_clipping": False, "nesterov": True},
    "ademamix": {},
    "ademamix-scheduled": {"b3": lambda t: 0.9 + 4e-4 * t, "alpha": optax.linear_schedule(0, 5, 9)},
    "adan": {"b2": 0.5},  # where the paper's weight of changes is Optax's
    "lamb": {"weight_decay": 0.1},
    "lion": {},
}
made = pytest.mark.parametrize("make", MADE.values(), ids=MADE)
STATE = {"float32": None, "bfloat16": storage.bfloat16()}
stored = pytest.mark.parametrize("dtype", STATE.values(), ids=STATE)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_optaxs_and_then_our_own(name):
    def arguments(module, kind):
        given = inspect.signature(getattr(module, name)).parameters.values()
        # Of two functions it is their values that count.
        return [(p.name, callable(p.default) or p.default) for p in given if p.kind is kind]

    positional, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    assert arguments(adam_jax, positional) == arguments(OPTAX, positional)
    theirs = arguments(OPTAX, keyword)
    assert arguments(adam_jax, keyword)[: len(theirs)] == theirs


def test_the_family_shares_these_names_with_optax():
    assert set(NAMES) >= {"scale_by_adam"} | {name.split("-")[0] for name in FAMILY}
    assert "adam_mini" not in NAMES


@made
def test_state_is_optaxs_leaf_for_leaf(make):
    def states(module):
        tx, params = make(module), parameters()
        fresh = jax.eval_shape(tx.init, params)
        return fresh, jax.eval_shape(tx.update, params, fresh, params)[1]

    def described(module):
        leaves = jax.tree_util.tree_leaves_with_path(states(module))
        return [(jax.tree_util.keystr(path), x.shape, x.dtype, x.weak_type) for path, x in leaves]

    assert described(adam_jax) == described(optax)
    assert jax.tree.structure(states(adam_jax)) == jax.tree.structure(states(optax))


@cache
def trained(module, dtype):
    """By case the parameters after each of 200 steps, and the state then: one program."""
    recorded = traces.load(traces.FOLDER / "torch.npz")  # for its gradients, between 1e-8 and 1e2
    start, stream = (x.astype(dtype) for x in (recorded.initial, recorded.gradients))
    cases = {
        case: getattr(module, case.split("-")[0])(1e-3, **settings)
        for case, settings in FAMILY.items()
    }

    with configured({"jax_enable_x64": dtype == "float64"}):
        return traces.trained(cases, jnp.asarray(start), stream)


@pytest.mark.parametrize("case", FAMILY)
def test_the_familys_state_is_optaxs_and_so_are_200_steps(case):
    """Of Optax in float64, for in float32 ADOPT of Optax is 2e-5 off that itself."""
    (ours, state), (_, theirs), (exact, exact_state) = (
        trained(module, dtype)[case]
        for module, dtype in ((adam_jax, "float32"), (OPTAX, "float32"), (OPTAX, "float64"))
    )
    assert_same_kind(state, theirs)
    np.testing.assert_allclose(ours, exact, rtol=5e-6)
    for moment, truth in zip(*map(jax.tree.leaves, (state, exact_state)), strict=True):
        np.testing.assert_allclose(moment, np.asarray(truth), rtol=2e-5)


def test_a_departure_from_optax_would_be_seen():
    def moved(module, **settings):
        tx = module.nadam(1e-3, **settings)
        return run(tx, 200)

    def run(tx, steps):
        params = jnp.ones(3)
        state = tx.init(params)
        stream = jnp.asarray(np.random.default_rng(0).standard_normal((steps, 3)), jnp.float32)
        for g in stream:
            updates, state = jax.jit(tx.update)(g, state, params)
            params = optax.apply_updates(params, updates)
        return params

    theirs = moved(optax)
    assert_close(moved(adam_jax), theirs, rtol=5e-6)
    with pytest.raises(AssertionError):
        assert_close(moved(adam_jax, momentum_decay=4e-3), theirs, rtol=5e-6)


@pytest.mark.costly
@made
def test_a_state_runs_on_under_the_other(make):
    params = parameters()
    stream = gradients(20, params)
    transformations = [make(m) for m in (adam_jax, optax)]
    steps = [stepper(tx) for tx in transformations]
    whole = [
        descend(step, params, tx.init(params), stream)
        for step, tx in zip(steps, transformations, strict=True)
    ]
    for tx, first, second, expected in zip(transformations, steps, steps[::-1], whole, strict=True):
        halfway = descend(first, params, tx.init(params), stream[:10])
        switched, state = descend(second, *halfway, stream[10:])
        assert_close(switched, expected[0], atol=5e-6)
        assert_close(state, expected[1], rtol=2e-5, atol=1e-6)


def test_a_bfloat16_mean_of_optaxs_runs_on():
    params = parameters()
    stream = gradients(20, params)
    theirs, ours = (m.adam(1e-2, mu_dtype=jnp.bfloat16) for m in (optax, adam_jax))
    halfway, state = moved(theirs, params, stream[:10])
    switched, after = descend(stepper(ours), halfway, state, stream[10:])
    assert_close(switched, moved(theirs, params, stream)[0], atol=2e-3)
    assert jax.tree.structure(after) == jax.tree.structure(ours.init(params))
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(state)]


def test_a_bfloat16_mean_square_of_optaxs_is_refused_by_name():
    params = parameters(jnp.bfloat16)
    state = optax.adam(1e-2).init(params)  # which has its parameters' dtype
    with pytest.raises(ValueError, match=r"state\.mu\['dense'\]\['b'\] must be float32 or wider"):
        adam_jax.adam(1e-2).update(params, state)
    bfloat16 = adam_jax.adam(1e-2, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16)
    bfloat16.update(params, state)


@stored
def test_state_is_carried_by_scan(dtype):
    params = parameters()
    stream = gradients(5, params)
    tx = adam_jax.adamw(SCHEDULE, mu_dtype=dtype, nu_dtype=dtype, nesterov=True)

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *stream)
    scanned, _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), stacked))(params)
    # The compiler may contract a product and a sum in one program and not in the other.
    assert_close(scanned, moved(tx, params, stream), rtol=1e-6 if dtype is None else 1e-2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["learning_rate", "b1"])
def test_vmap_over_a_hyperparameter(name):
    params = parameters()
    stream = gradients(10, params)
    values = [0.0, 0.01, 0.75]

    def run(value):
        tx = adam_jax.adam(**{"learning_rate": 0.1, name: value})
        return moved(tx, params, stream)

    together = jax.vmap(run)(jnp.array(values))
    for lane, value in enumerate(values):
        assert_close(
            jax.tree.map(lambda x, i=lane: x[i], together), run(value), atol=1e-5, rtol=2e-6
        )


@pytest.mark.exhaustive
def test_grad_through_steps_and_their_hyperparameters():
    params = parameters()

    def final_loss(module, params, hyperparameters):
        def loss(params):
            return sum(jnp.sum(jnp.cos(3 * x) + x**2) for x in jax.tree.leaves(params))

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        tx = module.adamw(**hyperparameters, nesterov=True)
        return loss(jax.lax.scan(step, (params, tx.init(params)), length=8)[0][0])

    numbers = {"learning_rate": 0.05, "b1": 0.9, "b2": 0.98, "eps": 0.1, "eps_root": 0.01}
    numbers = {k: jnp.float32(v) for k, v in numbers.items()} | {"weight_decay": jnp.float32(0.1)}
    ours, theirs = (
        jax.jit(jax.grad(final_loss, argnums=(1, 2)), static_argnums=0)(m, params, numbers)
        for m in (adam_jax, optax)
    )
    assert_close(ours, theirs, rtol=2e-3, atol=2e-4)
    assert all(abs(float(x)) > 1e-3 for x in jax.tree.leaves(ours[1]))


@stored
def test_a_jitted_step_takes_over_what_is_donated_to_it(dtype):
    tx = adam_jax.adamw(1e-2, mu_dtype=dtype, nu_dtype=dtype)

    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    params = parameters()
    stream = gradients(3, params)
    expected = moved(tx, params, stream)
    state = tx.init(params)
    for gradient in stream:
        before = jax.tree.leaves((params, state))
        places = {x.unsafe_buffer_pointer() for x in before}
        params, state = donating(params, state, gradient)
        assert all(x.is_deleted() for x in before)
        assert {x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, state))} == places
    assert_close((params, state), expected)


def test_numpy_parameters_and_gradients_are_taken():
    params = jax.tree.map(np.asarray, parameters())
    gradient = jax.tree.map(np.asarray, gradients(1, params)[0])
    tx = adam_jax.adamw(1e-2)
    updates, _ = tx.update(gradient, tx.init(params), params)
    assert_close(updates, tx.update(gradient, tx.init(parameters()), parameters())[0])


def test_a_mask_that_is_a_function_sees_the_callers_dtypes():
    def low(tree):
        return jax.tree.map(lambda x: x.dtype == jnp.bfloat16, tree)

    params = {"low": jnp.ones(1, jnp.bfloat16), "high": jnp.ones(1)}
    zero = jax.tree.map(jnp.zeros_like, params)
    for library in (optax, adam_jax):
        tx = library.adamw(1.0, weight_decay=0.5, mask=low)
        updates, _ = tx.update(zero, tx.init(params), params)
        assert (updates["low"], updates["high"]) == (-0.5, 0)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"a": True}, "`mask` must be a prefix of the parameters' tree: "),
        ({"w": "yes"}, "`mask`['w'] must be True or False, got 'yes'"),
        (lambda params: 3, "`mask` must be True or False, got 3"),
    ],
    ids=["prefix", "text", "number"],
)
def test_a_bad_mask_is_refused_by_name(mask, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        adam_jax.adamw(0.1, mask=mask).init({"w": jnp.ones(2)})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_parameters_of_another_tree_are_refused_by_name():
    tx = adam_jax.adamw(0.1)
    g = {"w": jnp.ones(2)}
    state = tx.init(g)
    with pytest.raises(ValueError, match=r"^no gradient for params\['x'\], which is in the parame"):
        tx.update(g, state, {"w": jnp.ones(2), "x": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"^gradient for params\['w'\]: no such leaf in the param"):
        tx.update(g, state, {"x": jnp.ones(2)})


def test_an_injected_state_is_optaxs_own_where_the_seed_is_static():
    params = {"w": jnp.arange(3.0)}
    ours, theirs = (
        optax.inject_hyperparams(library.adam, static_args=names)(0.1)
        for library, names in ((adam_jax, ("seed",)), (optax, ()))
    )
    state = theirs.init(params)
    assert jax.tree.structure(ours.init(params)) == jax.tree.structure(state)
    _, state = ours.update(params, state, params)
    updates, _ = theirs.update(params, state, params)
    np.testing.assert_allclose(updates["w"], [0, -0.1, -0.1], rtol=1e-4)


def test_a_float64_decay_rate_keeps_its_digits_beside_float32_leaves(x64):
    g = jnp.ones(2, jnp.float32)

    def nu(b2):
        tx = adam_jax.scale_by_adam(b2=b2)
        return tx.update(g, tx.init(g))[1].nu

    traced = jax.jit(nu)(jnp.float64(1 - 1e-10))
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, 1e-10, rtol=1e-6)


def test_a_rule_without_moments_is_lifted():
    class State(NamedTuple):
        count: Any

    @dataclass(frozen=True)
    class Sign(adam_jax.Rule):
        moments: ClassVar = {}

        def coefficients(self, t):
            return ()

        def update(self, c, g):
            return (jnp.sign(g),)

    Sign.State = State
    tx = adam_jax.lift(Sign())
    g = {"w": jnp.array([2.0, -3.0])}
    updates, state = tx.update(g, tx.init(g))
    assert updates["w"].tolist() == [1, -1]
    assert state.count == 1
