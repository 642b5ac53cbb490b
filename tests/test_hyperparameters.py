"""Hyperparameters in the state: changed by hand and by schedules, read, and refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits, assert_same_kind, assert_traced_once_and_donated, configured
from family import MEMBERS
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from test_exact_hyperparameters import of_member
from training import assert_close, descend, gradients, moved, parameters, stepper

import adam_jax
from adam_jax.services.with_hyperparameters import set_hyperparameters, with_hyperparameters

ADAMW = {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
adamw = partial(adam_jax.adamw, mask=None)
ROUNDING = {"rtol": 5e-7, "atol": 1e-7}


# --- change --------------------------------------------------------------------------------------


def test_numbers_change_without_retracing():
    params = parameters()
    steps = gradients(12, params)
    second = {"learning_rate": 2e-2, "b1": 0.5, "b2": 0.99, "eps": 1e-2, "weight_decay": 0.5}
    tx = optax.chain(optax.clip(100.0), with_hyperparameters(adamw, **ADAMW))
    step = stepper(tx)  # fails if traced twice
    halfway, state = descend(step, params, tx.init(params), steps[:6])
    end, state = descend(step, halfway, set_hyperparameters(state, **second), steps[6:])
    read = {name: float(optax.tree_utils.tree_get(state, name)) for name in second}
    assert read == pytest.approx(second)

    expected = moved(adamw(**ADAMW), params, steps[:6])
    expected = descend(stepper(adamw(**second)), *expected, steps[6:])
    assert_close(end, expected[0], atol=1e-6)  # a rounding of a parameter a step
    assert_close(state[1].inner_state[0], expected[1][0], **ROUNDING)


def test_numbers_are_changed_by_hand():
    params = parameters()
    tx = with_hyperparameters(adam_jax.adam, learning_rate=0.1, b2=0.999)
    state = tx.init(params)
    state.hyperparams["learning_rate"] = 0.5
    updates, after = tx.update(params, state, params)
    expected, _ = adam_jax.adam(0.5).update(params, adam_jax.adam(0.5).init(params))
    assert_close(updates, expected, rtol=1e-6)
    assert_same_kind(after, tx.init(params))
    state.hyperparams["b2"] = jnp.bfloat16(0.999)
    with pytest.raises(TypeError, match="`b2` must be float32 or wider, got bfloat16"):
        tx.update(params, state, params)


def test_every_number_may_have_a_schedule_whose_last_value_is_read():
    params = parameters()
    steps = gradients(8, params)
    schedules = {name: optax.linear_schedule(x, 0.5 * x, 8) for name, x in ADAMW.items()}
    tx = with_hyperparameters(adamw, **schedules)
    state = tx.init(params)
    expected = adamw(**ADAMW).init(params)
    update, traced = jax.jit(tx.update), jax.jit(lambda v, *a: adamw(**v).update(*a))
    for count, g in enumerate(steps):
        updates, state = update(g, state, params)
        values = {name: float(s(jnp.int32(count))) for name, s in schedules.items()}
        assert state.hyperparams == pytest.approx(values)
        desired, expected = traced(state.hyperparams, g, expected, params)
        assert_close((updates, state.inner_state), (desired, expected), **ROUNDING)
    assert int(state.count) == 8
    # The value before the first step is its.
    assert tx.init(params).hyperparams == pytest.approx(ADAMW)


def test_a_schedule_may_give_numbers():
    make, g = adam_jax.scale_by_adam, parameters()
    constant, number = (
        with_hyperparameters(make, b2=b2).init(g) for b2 in (lambda count: 0.999, 0.999)
    )
    assert constant.hyperparams == number.hyperparams
    assert constant.remainders == (None,)


@pytest.mark.costly
@pytest.mark.parametrize("member", [name for name, row in MEMBERS.items() if not row.variant])
def test_every_scalar_of_a_member_may_have_a_schedule(member):
    make, numbers = of_member(member)
    params = parameters()
    schedules = {name: optax.linear_schedule(x, 0.5 * x, 8) for name, x in numbers.items()}
    tx = with_hyperparameters(make, **schedules)
    state, expected = tx.init(params), make(**numbers).init(params)
    update, traced = jax.jit(tx.update), jax.jit(lambda v, *a: make(**v).update(*a))
    for count, g in enumerate(gradients(4, params)):
        updates, state = update(g, state, params)
        values = {name: s(jnp.int32(count)) for name, s in schedules.items()}
        desired, expected = traced(values, g, expected, params)
        assert_close((updates, state.inner_state), (desired, expected), **ROUNDING)
    still, _ = make(**numbers).update(g, expected, params)
    with pytest.raises(AssertionError):
        assert_close(still, updates, **ROUNDING)


# --- JAX -----------------------------------------------------------------------------------------


def test_the_state_keeps_its_kind_and_is_donated():
    params = parameters(jnp.bfloat16)
    tx = with_hyperparameters(adamw, **ADAMW)
    state = tx.init(params)
    assert_same_kind(jax.eval_shape(tx.init, params), jax.eval_shape(lambda: state))
    assert_same_kind(tx.update(params, state, params)[1], state)
    assert {x.dtype for x in jax.tree.leaves((state.hyperparams, state.remainders))} == {
        jnp.dtype(jnp.float32)
    }
    assert_traced_once_and_donated(tx, jax.tree.map(jnp.copy, params), params)

    def keeps(x):  # an array of its own in the state of what is made, as some of Optax's do
        return optax.inject_hyperparams(optax.sgd)(x)

    twice = with_hyperparameters(keeps, x=jnp.float32(0.1))
    assert_traced_once_and_donated(twice, jax.tree.map(jnp.copy, params), params)


def test_members_of_an_ensemble_have_their_own():
    rates, b2s = jnp.geomspace(1e-3, 1e-1, 8), 1 - jnp.geomspace(1e-3, 0.6, 8)
    params = parameters()
    steps = gradients(5, params)

    def built(rate, b2):
        return with_hyperparameters(adamw, learning_rate=rate, b2=b2, weight_decay=0.1)

    state = jax.vmap(lambda rate, b2: built(rate, b2).init(params))(rates, b2s)
    many = jax.tree.map(lambda p: jnp.stack([p] * 8), params)
    update = jax.jit(jax.vmap(built(0.0, 0.0).update, in_axes=(None, 0, 0)))
    for g in steps:
        updates, state = update(g, state, many)
        many = optax.apply_updates(many, updates)
    one = jax.jit(built(0.0, 0.0).update)
    for i in range(8):
        single, own = params, built(rates[i], b2s[i]).init(params)
        for g in steps:
            updates, own = one(g, own, single)
            single = optax.apply_updates(single, updates)
        assert_close(jax.tree.map(lambda x, i=i: x[i], (many, state)), (single, own), **ROUNDING)
    assert not np.allclose(many["dense"]["w"][0], many["dense"]["w"][7])
    # One number for all keeps the shape.
    state = set_hyperparameters(state, b2=0.999)
    np.testing.assert_array_equal(state.hyperparams["b2"], np.full(8, np.float32(0.999)))


def test_one_can_differentiate_through_each():
    def end(numbers):
        tx, params = with_hyperparameters(adamw, **numbers), jnp.linspace(0.1, 5, 63)
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(jnp.sin(3 * params), state, params)
            params = optax.apply_updates(params, updates)
        return jnp.mean(params)

    numbers = {"learning_rate": 0.1, "b1": 0.8, "b2": 0.9, "eps": 0.1, "weight_decay": 0.1}
    value_and_slopes = jax.jit(jax.value_and_grad(end))
    slopes = value_and_slopes(jax.tree.map(jnp.float32, numbers))[1]
    for name, x in numbers.items():
        near = [{**numbers, name: x * (1 + h)} for h in (0.05, -0.05)]
        up, down = (float(value_and_slopes(jax.tree.map(jnp.float32, n))[0]) for n in near)
        assert float(slopes[name]) == pytest.approx((up - down) / (0.1 * x), rel=0.05)
        assert abs(up - down) > 3e-6


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "settings",
    [
        {"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise"},
        {"jax_enable_x64": True, "jax_debug_nans": True, "jax_check_tracer_leaks": True},
    ],
    ids=["strict", "x64"],
)
def test_settings_of_jax_change_nothing(settings):
    params = parameters()
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    tx = with_hyperparameters(adamw, **{**ADAMW, "learning_rate": schedule})
    _, expected = jax.jit(tx.update)(params, tx.init(params), params)
    with configured(settings):
        _, new = jax.jit(tx.update)(params, tx.init(params), params)
    assert_same_kind(new, expected)
    assert_close(new, expected, **ROUNDING)


def test_float64_parameters_lose_a_float32_of_a_rate_and_nothing_of_decay(x64):
    g = jnp.float64(3.0) * jnp.arange(1, 9)
    for b2 in (0.999, jnp.float64(0.999)):
        tx = with_hyperparameters(adam_jax.scale_by_adam, b2=b2)
        nu = tx.update(g, tx.init(g))[1].inner_state.nu
        np.testing.assert_allclose(nu, (1 - 0.999) * np.square(g), rtol=1e-11)


def test_the_numbers_stay_on_their_devices():
    everywhere = NamedSharding(Mesh(np.array(jax.devices()), "x"), PartitionSpec())
    tx = with_hyperparameters(adam_jax.adam, learning_rate=0.1)
    state = jax.device_put(tx.init(jnp.ones(8)), everywhere)
    new = set_hyperparameters(state, learning_rate=0.2)
    assert {x.sharding for x in jax.tree.leaves(new)} == {everywhere}


# --- others --------------------------------------------------------------------------------------


def test_optaxs_optimizers_get_what_optax_gives_them():
    params = parameters()
    numbers = {"learning_rate": optax.cosine_decay_schedule(0.1, 5), "b2": 0.99, "eps": 1e-6}
    static = ("b1", "eps_root")
    theirs = optax.inject_hyperparams(optax.adam, static, jnp.float32)(**numbers)
    ours = with_hyperparameters(optax.adam, **numbers)
    expected, state = moved(theirs, params, gradients(5, params))
    params, new = moved(ours, params, gradients(5, params))
    assert_same_bits(params, expected)
    assert_same_bits(new.inner_state, state.inner_state)


def test_bfloat16_parameters_leave_the_numbers_float32():
    params = parameters(jnp.bfloat16)
    theirs = optax.inject_hyperparams(optax.adam)(0.1, b2=0.999)
    assert theirs.init(params).hyperparams["b2"] == 1
    state = with_hyperparameters(optax.adam, learning_rate=0.1, b2=0.999).init(params)
    assert state.hyperparams["b2"] == np.float32(0.999)


def test_extra_arguments_and_labels_pass():
    def taking(rate):
        def update(updates, state, params=None, *, value):
            return jax.tree.map(lambda u: -rate * value * u, updates), state

        return optax.GradientTransformationExtraArgs(optax.identity().init, update)

    params = parameters()
    tx = with_hyperparameters(taking, rate=0.5)
    updates, _ = tx.update(params, tx.init(params), params, value=2.0)
    assert_same_bits(updates, jax.tree.map(jnp.negative, params))
    tx = with_hyperparameters(adamw, **ADAMW)
    mapped = optax.tree_utils.tree_map_params(
        tx, lambda _: "like a parameter", tx.init(params), transform_non_params=lambda _: "other"
    )
    assert set(mapped.hyperparams.values()) == {"other"}
    assert mapped.inner_state[0].mu["scale"] == "like a parameter"


# --- errors --------------------------------------------------------------------------------------

BAD = [
    ({"b2": 1.5}, ValueError, "`b2` must be in [0, 1), got 1.5"),
    (
        {"learning_rate": np.nan},
        ValueError,
        "`learning_rate` must be a finite number or a schedule",
    ),
    ({"learning_rate": 1e39}, ValueError, "`learning_rate` must be a finite number or a schedule"),
    ({"b2": "0.9"}, TypeError, "`b2` must be a finite number or a schedule, got '0.9'"),
    ({"nesterov": True}, TypeError, "`nesterov` must be a finite number or a schedule, got True"),
    ({"b2": jnp.ones(3)}, TypeError, "`b2` must be a real scalar, got float32[3]"),
    ({"b2": jnp.bfloat16(0.9)}, TypeError, "`b2` must be float32 or wider, got bfloat16"),
    ({"b2": lambda c: jnp.bfloat16(0.9)}, TypeError, "`b2` must be float32 or wider, got bfloat16"),
    (
        {"mu_dtype": jnp.bfloat16},
        TypeError,
        "`mu_dtype` must be a finite number or a schedule, got",
    ),
    ({"mask": lambda tree: {}}, TypeError, "`mask` must be a finite number, got {}"),
    ({"lr": 0.1}, TypeError, "unexpected keyword argument 'lr'"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), BAD)
def test_what_may_not_change_is_refused_at_once(wrong, error, message):
    with pytest.raises(error) as caught:
        with_hyperparameters(adam_jax.adamw, **{"learning_rate": 0.1, **wrong})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "name", "rule"),
    [
        (partial(adam_jax.adam, 0.1), "b1", "in [0, 1)"),
        (partial(adam_jax.adam, 0.1), "eps", "a finite number >= 0"),
        (adam_jax.clip_by_global_norm, "max_norm", "a finite number >= 0"),
    ],
)
def test_where_a_number_is_wanted_a_schedule_is_told_the_way(make, name, rule):
    schedule = optax.linear_schedule(0.9, 0.5, 10)
    hint = "; adam_jax.with_hyperparameters takes schedules"
    with pytest.raises(TypeError) as caught:
        make(**{name: schedule})
    said = str(caught.value)
    assert said.startswith(f"`{name}` must be {rule}, got <function ")
    assert said.endswith(hint)
    assert "\n" not in said
    with_hyperparameters(make, **{name: schedule}).init(1.0)
    with pytest.raises(TypeError, match=r"got 'fast'$"):
        make(**{name: "fast"})


def test_other_errors():
    for make, message in ((1, "`make` must be a function"), (dict, "must be an Optax transf")):
        with pytest.raises(TypeError, match=message):
            with_hyperparameters(make, x=1.0)
    schedule = optax.constant_schedule(0.9)
    tx = with_hyperparameters(adam_jax.scale_by_adam, b1=schedule, b2=0.9)
    state = tx.init(1.0)
    for values, message in (
        ({"b1": 0.5}, "`b1` follows a schedule, which would not see a number"),
        ({"b3": 0.5}, "`b3` is none of the state's hyperparameters, b1 and b2"),
        ({"b2": np.inf}, "`b2` must be a finite number, got inf"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            set_hyperparameters((state,), **values)
    with pytest.raises(ValueError, match="must have one state of with_hyperparameters, got 2"):
        set_hyperparameters((state, state), b2=0.5)
    other = with_hyperparameters(adam_jax.scale_by_adam, b1=0.9, b2=0.9)
    message = r"^the state has the hyperparameters b1 \(a schedule\), b2, and not b1, b2$"
    with pytest.raises(ValueError, match=message):
        other.update(1.0, state)
    with pytest.raises(TypeError, match=r"^state must be HyperparametersState, got tuple$"):
        tx.update(1.0, (state,))
