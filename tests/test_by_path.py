"""Rules by path: the factors, the groups, and what is said where a rule would be ignored."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import oracle_descent
import pytest
from checks import (
    assert_same_bits,
    assert_same_kind,
)
from training import assert_close, gradients, moved, parameters

import adam_jax
from adam_jax import decay
from adam_jax.diagnostics import memory
from adam_jax.leaves import is_bias
from adam_jax.services.by_path import by_path
from adam_jax.services.path_rules import FREEZE, Scale

RATE, WD, STEPS = 0.1, 0.5, 6
LR, NO_DECAY = Scale(learning_rate=0.1), Scale(weight_decay=0.0)


def alone(tx, name, params, stream):
    """Where one leaf goes if it is all that there is."""
    return moved(tx, params[name], [g[name] for g in stream])[0]


def flat(dtype=jnp.float32):
    """Three leaves of one shape, and a stream of gradients."""
    params = {name: parameters(dtype)["dense"]["w"] + i for i, name in enumerate("abc")}
    return params, gradients(STEPS, params)


@pytest.mark.parametrize(
    ("module", "name"),
    [(adam_jax, "adamw"), (adam_jax, "lamb"), (adam_jax, "lion"), (optax, "adamw")],
    ids=["adamw", "lamb", "lion", "optax"],
)
def test_a_learning_rate_factor_is_that_of_an_optimizer_of_its_own(module, name):
    params, stream = flat()
    make = getattr(module, name)
    result, state = moved(by_path({"^b$": LR})(make(RATE)), params, stream)
    whole, expected_state = moved(make(RATE), params, stream)
    expected = alone(make(RATE / 10), "b", params, stream)
    assert_close(result, whole | {"b": expected}, atol=4e-7)
    assert_close(state, expected_state)  # one, and the optimizer's own
    assert np.abs(whole["b"] - expected).max() > 1e-2


FORMS = {
    "l2": decay.l2,
    "by_learning_rate": decay.by_learning_rate,
    "after": lambda rate: decay.by_learning_rate(rate, after=True),
    "proximal": decay.proximal,
    "by_schedule": lambda rate: decay.by_schedule(rate, lambda count: 1 / (1 + count)),
    "independent": decay.independent,
    "in_place": decay.in_place,
}


def expected_of(form, params, stream, lr, decay_factor, lr_factor=1.0):
    """Float64: the whole step of each form, times the factor of the learning rate."""
    # In place differs by what is rounded.
    named = "by_learning_rate" if form == "in_place" else form
    settings = {"weight_decay": WD * decay_factor, "form": named}
    settings["schedule"] = lambda count: 1 / (1 + count)
    if form == "l2":
        settings["learning_rate"] = lambda count: lr(count) * lr_factor
        return oracle_descent.descend(oracle.adam, stream, params, **settings)[-1]
    p, directions = np.asarray(params, np.float64), oracle.adam(stream)[0]
    for count, direction in enumerate(directions):
        one = oracle_descent.descend(
            lambda _, d=direction: ([d], {}),
            stream[:1],
            p,
            **{k: v for k, v in settings.items() if k != "schedule"},
            schedule=lambda _, c=count: 1 / (1 + c),
            learning_rate=lr(count),
        )[-1]
        p = p + lr_factor * (one - p)
    return p


@pytest.mark.costly
@pytest.mark.parametrize("traced", [False, True], ids=["static", "traced"])
@pytest.mark.parametrize("form", FORMS)
def test_factors_of_every_form_of_decay_are_those_of_the_paper(form, traced):
    factors = {"a": (1.0, 1.0), "b": (1.0, 0.25), "c": (0.5, 3.0)}
    params, stream = flat()
    lr = (lambda count: RATE / (1 + count)) if traced else (lambda count: RATE)
    cast = jnp.float32 if traced else float
    rules = {k: Scale(cast(a), cast(b)) for k, (a, b) in factors.items()}
    inner = adam_jax.adamw(lr if traced else RATE, weight_decay=FORMS[form](WD))
    result, state = moved(by_path(rules)(inner), params, stream)
    for k, (lr_factor, decay_factor) in factors.items():
        own = np.stack([g[k] for g in stream])
        expected = expected_of(form, params[k], own, lr, decay_factor, lr_factor)
        np.testing.assert_allclose(result[k], expected, atol=3e-6)
        twin = expected_of(form, params[k], own, lr, 1.0, lr_factor)
        assert decay_factor == 1 or np.abs(twin - expected).max() > 3e-4
    assert_same_kind(state, inner.init(params))


def test_a_proximal_factor_is_one_on_the_rate_and_not_on_the_share():
    params, stream = flat()
    inner = adam_jax.adan(1.0, weight_decay=decay.proximal(2.0))
    result, _ = moved(by_path({"a": Scale(weight_decay=5.0)})(inner), params, stream)
    expected = alone(adam_jax.adan(1.0, weight_decay=decay.proximal(10.0)), "a", params, stream)
    np.testing.assert_allclose(result["a"], expected, atol=1e-6)
    share = 5 * 2 / 3  # were it on the share, a step would lose more than all of the parameter
    assert share > 1 > 10 / 11


@pytest.mark.parametrize("name", ["lamb", "adan"])
def test_no_decay_by_a_rule_is_that_by_a_mask(name):
    params = parameters()
    stream = gradients(STEPS, params)
    make = getattr(adam_jax, name)
    result, _ = moved(by_path({is_bias: NO_DECAY})(make(RATE, weight_decay=WD)), params, stream)
    mask = {"dense": {"w": True, "b": False}, "scale": True}
    assert_close(result, moved(make(RATE, weight_decay=WD, mask=mask), params, stream)[0], 1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_factors_of_one_leave_all_bits(dtype):
    params, stream = flat(dtype)
    inner = adam_jax.adamw(RATE, weight_decay=WD)
    expected = moved(inner, params, stream)
    for rules in ([("a", Scale())], [("a", Scale()), ("c", Scale(0.5, 0.5))], []):
        (result, _), names = moved(by_path(rules)(inner), params, stream), ("a", "b")
        assert_same_bits([result[k] for k in names], [expected[0][k] for k in names])


def test_the_product_is_rounded_once():
    params = {"w": jnp.ones(4096, jnp.bfloat16)}
    g = {"w": jnp.asarray(np.random.default_rng(0).normal(size=4096), jnp.bfloat16)}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (g, params))

    def update(tx, g, params):
        return tx.update(g, tx.init(params), params)[0]["w"]

    inner, k = adam_jax.adamw(RATE, eps=1.0), 0.3
    once = update(by_path({"w": Scale(k)})(inner), g, params)
    exact = update(inner, *wide) * jnp.float32(k)
    assert_same_bits(once, exact.astype(jnp.bfloat16))
    twice = update(inner, g, params) * jnp.bfloat16(k)
    assert np.mean(np.asarray(twice != once)) > 0.1


def test_frozen_leaves_keep_their_bits_and_have_no_state():
    params = parameters() | {"scale": jnp.array([-0.0, 1e-45, jnp.inf])}
    stream = gradients(STEPS, params)
    stream[1]["scale"] = jnp.full(3, jnp.nan, jnp.float32)
    inner = adam_jax.adamw(RATE, weight_decay=WD)
    tx = by_path({"scale": FREEZE})(inner)
    result, state = moved(tx, params, stream)
    assert_same_bits(result["scale"], params["scale"])
    rest, inner_state = moved(
        inner, {"dense": params["dense"]}, [{"dense": g["dense"]} for g in stream]
    )
    assert_same_bits(result["dense"], rest["dense"])
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(inner_state)) == 5
    rows = {row.path: row.total_bytes for row in memory(tx, params).parameters}
    assert rows == {"['dense']['b']": 32, "['dense']['w']": 96, "['scale']": 0}
    twin, _ = moved(by_path({"scale": Scale(0.0)})(inner), params, stream)
    assert np.isnan(twin["scale"]).all()  # a factor of 0 is not frozen


def test_leaves_with_an_optimizer_of_their_own():
    params, stream = flat()
    inner, own = adam_jax.adamw(RATE), optax.sgd(0.01, momentum=0.9)
    groups = by_path([("a", own), ("b", Scale(0.5)), ("c", FREEZE)])
    tx = groups(inner)
    result, state = moved(tx, params, stream)
    np.testing.assert_allclose(result["a"], alone(own, "a", params, stream), rtol=1e-6)
    np.testing.assert_allclose(
        result["b"], alone(adam_jax.adamw(RATE / 2), "b", params, stream), atol=4e-7
    )
    assert groups.labels(params) == {"a": "rule_1", "b": "shared", "c": "frozen"}
    assert set(state.inner_states) == {"rule_1", "shared", "frozen"}
    assert [x.shape for x in jax.tree.leaves(state.inner_states["rule_1"])] == [(3, 4)]
    assert [x.shape for x in jax.tree.leaves(state.inner_states["shared"])] == [(), (3, 4), (3, 4)]


@pytest.mark.parametrize("gradient", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("wrapper", [lambda tx: tx, adam_jax.cautious], ids=["alone", "cautious"])
def test_rules_see_the_parameters_dtype(wrapper, gradient):
    def is_low(path, leaf):
        return leaf.dtype == jnp.bfloat16

    params = {"low": jnp.ones(2, jnp.bfloat16), "wide": jnp.ones(2)}
    stream = [jax.tree.map(lambda p: jnp.ones_like(p, gradient), params)]
    for action in (Scale(learning_rate=0.0), FREEZE):
        tx = wrapper(by_path({is_low: action})(adam_jax.adam(RATE)))
        result, _ = moved(tx, params, stream)
        assert_same_bits(result["low"], params["low"])
        assert np.abs(result["wide"] - params["wide"]).min() > RATE / 2
