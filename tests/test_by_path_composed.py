"""Rules by path with other transformations, with what is no array, and under settings of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import (
    assert_same_bits,
    assert_same_kind,
    assert_traced_once_and_donated,
    configured,
)
from training import assert_close, gradients, moved, parameters

import adam_jax
from adam_jax import decay
from adam_jax.leaves import is_bias, matrices_only
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


NOT_TAKEN = r"^params\['dense'\]\['b'\] has a `weight_decay` factor, and the optimizer inside no"


def deaf(inner):
    """A wrapper that passes no extra arguments on."""
    return optax.GradientTransformation(inner.init, lambda u, s, p=None: inner.update(u, s, p))


@pytest.mark.costly
@pytest.mark.parametrize(
    "inner",
    [
        optax.adamw(RATE, weight_decay=WD),
        adam_jax.adam(RATE),
        deaf(adam_jax.adamw(RATE)),
        optax.partition(
            {"ours": adam_jax.adamw(RATE), "theirs": optax.adamw(RATE)},
            {"dense": {"w": "ours", "b": "theirs"}, "scale": "ours"},
        ),
    ],
    ids=["optax", "no_decay", "deaf", "one_part"],
)
@pytest.mark.parametrize("factor", [0.0, jnp.float32(1.0)], ids=["static", "traced"])
def test_a_decay_factor_that_nothing_takes_is_an_error(inner, factor):
    params = parameters()
    tx = by_path({is_bias: Scale(weight_decay=factor)})(inner)
    with pytest.raises(ValueError, match=NOT_TAKEN):
        jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)
    harmless = by_path({is_bias: Scale(0.5, 1.0)})(inner)
    harmless.update(params, harmless.init(params), params)


def test_a_decay_factor_for_leaves_that_are_not_there_is_an_error():
    params = parameters()
    tx = by_path({is_bias: NO_DECAY})(optax.flatten(adam_jax.adamw(RATE)))
    with pytest.raises(ValueError, match=r"^no `weight_decay` factor for params, inside"):
        tx.update(params, tx.init(params), params)


MASK = {"dense": {"w": True, "b": True}, "scale": False}
PASSING = {
    "chain": lambda tx: optax.apply_if_finite(optax.chain(optax.clip(1.0), tx), 3),
    "cautious": adam_jax.cautious,
    "grams": adam_jax.grams,
    "masked": lambda tx: optax.masked(tx, MASK),
    "partition": lambda tx: optax.partition({True: tx, False: optax.sgd(0.1)}, MASK),
    "master_weights": adam_jax.master_weights,
    "by_path": by_path({"scale": FREEZE, "w": Scale(0.5)}),
}


@pytest.mark.costly
@pytest.mark.parametrize("wrapper", PASSING.values(), ids=PASSING)
def test_a_decay_factor_passes_through_wrappers(wrapper):
    params = parameters()
    stream = gradients(STEPS, params)
    no_bias = {"dense": {"w": True, "b": False}, "scale": True}
    inner = wrapper(adam_jax.adamw(RATE, weight_decay=WD))
    result, _ = moved(by_path({is_bias: NO_DECAY})(inner), params, stream)
    masked = wrapper(adam_jax.adamw(RATE, weight_decay=WD, mask=no_bias))
    assert_close(result, moved(masked, params, stream)[0], atol=1e-6)
    twin, _ = inner.update(stream[0], inner.init(params), params)
    first, _ = masked.update(stream[0], masked.init(params), params)
    assert np.abs(twin["dense"]["b"] - first["dense"]["b"]).max() > 1e-3


def test_factors_of_rules_in_rules_are_multiplied():
    params, stream = flat()
    inner = adam_jax.adamw(RATE, weight_decay=WD)
    nested = by_path({"[ab]": Scale(0.5, 4.0)})(by_path({"[bc]": Scale(3.0, 0.5)})(inner))
    one = by_path({"a": Scale(0.5, 4.0), "b": Scale(1.5, 2.0), "c": Scale(3.0, 0.5)})(inner)
    assert_close(moved(nested, params, stream)[0], moved(one, params, stream)[0], atol=1e-6)
    back_to_one = by_path({"a": Scale(1.0, 2.0)})(by_path({"a": Scale(1.0, 0.5)})(optax.adam(RATE)))
    assert_same_bits(moved(back_to_one, params, stream), moved(optax.adam(RATE), params, stream))


def test_injected_and_traced_factors_do_not_recompile():
    params, stream = flat()

    def make(learning_rate, share, decaying):
        rules = {"a": Scale(share, decaying)}
        return by_path(rules)(adam_jax.adamw(learning_rate, weight_decay=WD))

    tx = optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)(RATE, 0.5, 2.0)
    assert_close(moved(tx, params, stream)[0], moved(make(RATE, 0.5, 2.0), params, stream)[0], 1e-6)
    inside = by_path({"a": Scale(0.5, 2.0)})(
        optax.inject_hyperparams(adam_jax.adamw, hyperparam_dtype=jnp.float32)(
            RATE, weight_decay=WD
        )
    )
    assert_close(moved(inside, params, stream)[0], moved(tx, params, stream)[0], 1e-6)

    traces = []

    @jax.jit
    def end(share, decaying):
        traces.append(1)
        tx = make(RATE, share, decaying)
        return tx.update(stream[0], tx.init(params), params)[0]

    ones = jnp.ones(3)
    batched = jax.vmap(end)(0.5 * ones, jnp.arange(3.0))
    for i in range(3):
        result = end(jnp.float32(0.5), jnp.float32(i))
        assert_close(result, jax.tree.map(lambda x, i=i: x[i], batched), atol=1e-7)
    assert len(traces) == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_state_is_of_one_kind_scanned_and_donated(dtype):
    params = parameters(dtype)
    rules = {r"/w": Scale(0.5, 2.0), "scale": FREEZE, "b": optax.sgd(0.1, momentum=0.9)}
    for inner in (adam_jax.adamw(RATE), adam_jax.cautious(adam_jax.adamw(RATE))):
        tx = by_path(rules)(inner)
        g = jax.tree.map(lambda p: p.astype(dtype), gradients(1, params)[0])
        assert_traced_once_and_donated(tx, parameters(dtype), g)
        assert_same_kind(jax.eval_shape(tx.init, params), jax.eval_shape(tx.init, params))

        def step(carry, _, tx=tx, g=g):
            updates, state = tx.update(g, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        (_, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=3)
        assert_same_kind(state, tx.init(params))
    # The twin: Optax's state takes the dtype of what it is given; under these rules it does not.
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    theirs = by_path({"scale": LR})(optax.adam(RATE))
    assert_same_kind(theirs.update(wide, theirs.init(params), params)[1], theirs.init(params))


def test_leaves_that_are_none_and_trees_that_are_empty():
    tx = by_path({"w": Scale(0.5, 2.0), "b": FREEZE})(
        adam_jax.adamw(RATE, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 0, tree))
    )
    params = {"w": jnp.ones((0, 2)), "b": None, "bias": jnp.array(1.0), "f": None}
    state = tx.init(params)
    for given in (params, params | {"b": jnp.ones(2), "f": jax.nn.relu}):
        updates, state = tx.update(params, state, given)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert tx.update({}, tx.init({}), {})[0] == {}
    with pytest.raises(ValueError, match=r"^gradient for params\['bias'\] has shape \(3,\)"):
        tx.update(params | {"bias": jnp.ones(3)}, state, params)


def test_an_equinox_model():
    eqx = pytest.importorskip("equinox", reason="Equinox wants a recent JAX")
    model = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    rules = [(is_bias, NO_DECAY), ("layers/0/", FREEZE), ("layers/1", LR)]
    groups = by_path(rules)
    assert [row.names for row in groups.describe(params).rows] == [
        ("layers/0/bias", "layers/1/bias"),
        ("layers/0/weight",),
        ("layers/1/weight",),
        (),
    ]
    tx = groups(adam_jax.adamw(RATE, weight_decay=WD, mask=matrices_only))
    updates, _ = tx.update(params, tx.init(params), model)
    after = eqx.apply_updates(model, updates)
    assert_same_bits(after.layers[0].weight, model.layers[0].weight)
    assert bool(jnp.all(after.layers[1].weight != model.layers[1].weight))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "settings",
    [
        {"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise"},
        {"jax_enable_x64": True},
        {"jax_debug_nans": True, "jax_check_tracer_leaks": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_under_settings_of_jax(settings):
    with configured(settings):
        params = {"a": jnp.ones((2, 3), jnp.complex64), "b": jnp.ones(3), "bias": jnp.ones(())}
        share = jnp.asarray(0.5)
        tx = by_path({"^a": Scale(share, share), "b$": FREEZE, "bias": NO_DECAY})(
            adam_jax.adamw(RATE, weight_decay=decay.proximal(WD))
        )
        state = jax.jit(tx.init)(params)
        for update in (tx.update, jax.jit(tx.update)):
            updates, new = update(params, state, params)
            assert_same_kind(new, state)
            assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(
                lambda x: x.dtype, params
            )


def test_a_state_is_mapped_by_optax():
    params, _ = flat()
    tx = by_path({"a": Scale(0.5, 2.0), "b": FREEZE})(adam_jax.adamw(RATE))
    marked = optax.tree_utils.tree_map_params(tx, lambda x: "of a leaf", tx.init(params))
    assert jax.tree.leaves(marked).count("of a leaf") == 4


def test_precision_belongs_outside():
    params, stream = flat(jnp.bfloat16)
    rules = {"a": Scale(0.5, 2.0), "b": FREEZE}
    wide = [jax.tree.map(lambda x: x.astype(jnp.float32), tree) for tree in (params, *stream)]
    expected, _ = moved(by_path(rules)(adam_jax.adamw(RATE)), wide[0], wide[1:])
    tx = adam_jax.master_weights(by_path(rules)(adam_jax.adamw(RATE)))
    result, _ = moved(tx, params, stream)
    assert_close(result, jax.tree.map(lambda x: x.astype(jnp.bfloat16), expected), rtol=2**-7)
    assert_same_bits(result["b"], params["b"])
    inside = by_path(rules)(adam_jax.master_weights(adam_jax.adamw(RATE)))
    with pytest.raises(ValueError, match="MasterWeights rounds steps: it belongs outside"):
        inside.init(params)


def test_an_average_belongs_outside_where_a_factor_changes_the_step():
    params, _ = flat()
    averaged = optax.chain(optax.sgd(1.0), adam_jax.average_params(0.0))
    with pytest.raises(ValueError, match=r"^AverageParams averages steps: it belongs outside"):
        by_path({"a": Scale(0.1)})(averaged).init(params)
    by_path({"a": FREEZE})(averaged).init(params)  # the step is as it was
    tx = optax.chain(by_path({"a": Scale(0.1)})(optax.sgd(1.0)), adam_jax.average_params(0.0))
    updates, state = tx.update(params, tx.init(params), params)
    assert_same_bits(adam_jax.averaged_params(state), optax.apply_updates(params, updates))


def test_a_decay_factor_of_what_a_mask_leaves_out_is_no_silent_one():
    params, _ = flat()
    adamw = adam_jax.adamw(RATE, weight_decay=WD, mask={"a": False, "b": True, "c": True})
    for outer in (lambda tx: tx, by_path({"c": Scale(weight_decay=3.0)})):
        tx = outer(by_path({"a": Scale(weight_decay=2.0)})(adamw))
        with pytest.raises(ValueError, match=r"params\['a'\] has a `weight_decay` factor"):
            tx.update(params, tx.init(params), params)
    # Of what it does take there is one.
    tx = by_path({"b": Scale(weight_decay=2.0)})(adamw)
    updates, _ = tx.update(params, tx.init(params), params)
    once, _ = adamw.update(params, adamw.init(params), params)
    assert_close(once["b"] - updates["b"], RATE * WD * params["b"], rtol=1e-4, atol=1e-6)
    assert_same_bits([updates[k] for k in "ac"], [once[k] for k in "ac"])
