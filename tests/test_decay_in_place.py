"""`decay.in_place` against its own formulas, rounded by numpy, on parameters of every size.

That PyTorch and Keras round so, their traces tell: see `test_like_torch.py`, `test_like_keras.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_kind

import adam_jax
from adam_jax import decay, like_torch
from adam_jax.rules.nadam import NAdam
from adam_jax.services.by_path import by_path
from adam_jax.services.path_rules import Scale

LR, WD = 0.01, 0.0131  # 1 - LR * WD is a quarter of a last place from a float32
RNG = np.random.default_rng(0)
# Of which a step is a small part, so that parameter and update add up to exactly what is meant.
P = np.copysign(10.0 ** RNG.uniform(-1, 3, 4096), RNG.normal(size=4096)).astype("float32")
G = RNG.normal(size=4096).astype("float32")
F = np.float32


def shrunk(p, factor, rate=WD):
    """A decayed parameter: with a factor as PyTorch's, else as Keras's."""
    return F(1 - LR * rate) * p if factor else p - F(LR * rate) * p


def stepped(tx, params, gradients, jit=True, **extra):
    """The parameters after one step."""

    def step(params, gradients):
        updates, _ = tx.update(gradients, tx.init(params), params, **extra)
        return optax.apply_updates(params, updates)

    return jax.tree.map(np.asarray, (jax.jit(step) if jit else step)(params, gradients))


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("factor", [True, False])
def test_the_decay_is_rounded_by_itself(factor, jit):
    """To the last bit, which neither a sum that is rounded once nor the other way has."""
    expected = shrunk(P, factor) + np.copysign(F(LR), -G)
    tx = adam_jax.lion(LR, weight_decay=decay.in_place(WD, factor=factor))
    np.testing.assert_array_equal(stepped(tx, P, G, jit), expected)
    once = stepped(adam_jax.lion(LR, weight_decay=WD), P, G, jit)
    assert np.mean(once != expected) > 0.1
    other = stepped(adam_jax.lion(LR, weight_decay=decay.in_place(WD, factor=not factor)), P, G)
    assert np.mean(other != expected) > 0.1


def test_a_decay_that_rounding_takes_is_none():
    tx = adam_jax.lion(LR, weight_decay=decay.in_place(1e-6))  # 1 - 1e-8 is 1
    np.testing.assert_array_equal(
        stepped(tx, P, G), stepped(adam_jax.lion(LR, weight_decay=0), P, G)
    )


def test_terms_are_added_one_after_the_other():
    """Of NAdam: the gradient's and the mean's, from float64, rounded where PyTorch does.

    In which order, its traces tell.
    """
    b1, b2 = (0.9 * (1 - 0.5 * 0.96 ** (t * 0.004)) for t in (1, 2))
    size = np.abs(np.float64(G)) + 1e-8  # the root of the corrected mean square in the first step
    first = -2e-3 * np.float64(G) / size
    second = -2e-3 * b2 * 0.1 * np.float64(G) / (1 - b1 * b2) / size
    expected = (P + first.astype("float32")) + second.astype("float32")
    both = P + (first + second).astype("float32")
    actual = stepped(like_torch.NAdam(), P, G)
    # Terms have their own last place, which now and then is the parameter's.
    assert np.mean(actual != expected) < 0.02
    assert np.mean(both != expected) > 0.1


@pytest.mark.parametrize("factor", [True, False])
def test_masks_schedules_and_factors_of_a_leaf(factor):
    form = decay.in_place(lambda count: WD * (1 + count), factor=factor)
    tx = adam_jax.lion(lambda _: LR, weight_decay=form, mask={"a": True, "b": False, "c": True})
    grouped = by_path({"^c$": Scale(weight_decay=3.0)})(tx)
    params, gradients = (dict.fromkeys("abc", x) for x in (P, G))
    after = stepped(grouped, params, gradients)
    for leaf, rate in (("a", WD), ("b", 0.0), ("c", 3 * WD)):
        expected = shrunk(np.float64(P), factor=False, rate=rate) - np.copysign(LR, G)
        np.testing.assert_allclose(after[leaf], expected, rtol=3e-7, atol=3e-9)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("rates", [(0.0243, 0.11), (0.0282, 0.2), (0.0389, 0.49), (0.01, 0.0131)])
def test_the_factor_is_that_of_the_product_in_double_precision(rates, jit):
    """Of all but the last pair a product that is rounded first would give another factor."""
    lr, wd = rates
    tx, ones = like_torch.AdamW(lr, weight_decay=wd), jnp.ones(3)
    factor = stepped(tx, ones, jnp.zeros(3), jit)
    np.testing.assert_array_equal(factor, F(1 - lr * wd))
    assert np.all(factor != F(1 - F(lr * wd))) == (rates != (0.01, 0.0131))


@pytest.mark.parametrize("share", [0.3, 0.5, 2.0])
def test_a_factor_of_a_leaf_is_in_the_product(share):
    """As of a group of PyTorch with its own decay, whose factor is rounded once."""
    rng, ones = np.random.default_rng(1), jnp.ones(3)
    for lr, wd in [(0.0243, 0.11), *zip(*rng.uniform(0.001, 0.3, (2, 12)), strict=True)]:
        tx = by_path({"a": Scale(weight_decay=share)})(like_torch.AdamW(lr, weight_decay=wd))
        factor = stepped(tx, {"a": ones}, {"a": jnp.zeros(3)})["a"]
        np.testing.assert_array_equal(factor, F(1 - lr * wd * share))


def test_a_schedule_of_the_decay_rises_with_the_count():
    def path(form):
        tx = adam_jax.adamw(LR, weight_decay=form(lambda count: 0.5 * count))

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(G, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (jnp.asarray(P), tx.init(P)), length=5)[1]

    found, expected = path(decay.in_place), path(decay.by_learning_rate)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not np.allclose(found, path(lambda _: decay.in_place(0.5)), rtol=1e-4)


def test_another_state_is_refused():
    tx = adam_jax.adamw(LR, weight_decay=decay.in_place(WD))
    for state in ((), adam_jax.adam(LR).init(P)):
        with pytest.raises(ValueError, match=r"^`state` must be a tuple of 3 states, got "):
            tx.update(G, state, P)


def test_a_float64_rate_does_not_widen_what_is_rounded(x64):
    for tx in (
        adam_jax.lion(jnp.asarray(LR), weight_decay=decay.in_place(WD)),
        adam_jax.lion(LR, weight_decay=decay.in_place(jnp.asarray(WD))),
        adam_jax.lion(lambda count: jnp.asarray(LR) + 0.0 * count, weight_decay=decay.in_place(WD)),
    ):
        expected = shrunk(P, factor=True) + np.copysign(F(LR), -G)
        np.testing.assert_array_equal(stepped(tx, P, G), expected)


@pytest.mark.parametrize("rate", [LR, lambda count: LR / (1 + count)], ids=["number", "schedule"])
@pytest.mark.parametrize("share", [0.0, WD, lambda count: WD * count])
def test_the_state_is_that_of_adamw(rate, share):
    """So that each takes over where the other stopped."""
    params = {"w": P[:8], "b": P[:2]}
    ours = adam_jax.adamw(rate, weight_decay=decay.in_place(share)).init(params)
    assert_same_kind(ours, adam_jax.adamw(rate, weight_decay=share).init(params))
    adam = like_torch.NAdam(rate).init(params), adam_jax.nadam(rate).init(params)
    assert_same_kind(*adam)


@pytest.mark.parametrize("factor", [True, False])
def test_a_decay_of_zero_is_one(factor):
    tx = adam_jax.adamw(LR, weight_decay=decay.in_place(0.0, factor=factor))
    np.testing.assert_array_equal(stepped(tx, P, G), stepped(adam_jax.adam(LR), P, G))
    with pytest.raises(ValueError, match="params"):
        tx.update(G, tx.init(P))
    grouped = by_path({"a": Scale(weight_decay=0.5)})(tx)
    stepped(grouped, {"a": P}, {"a": G})


def test_a_factor_of_a_leaf_is_one_on_its_l2_too():
    def after(share, factor):
        tx = by_path({"^a$": Scale(weight_decay=factor)})(like_torch.NAdam(0.1, weight_decay=share))
        return stepped(tx, {"a": P}, {"a": G})["a"]

    np.testing.assert_allclose(after(0.25, 2.0), after(0.5, 1.0), rtol=1e-6)
    assert np.mean(after(0.25, 2.0) != after(0.25, 1.0)) > 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_other_dtypes(dtype):
    params, gradients = (jnp.asarray(x, dtype) for x in (P, G))
    tx, once = (adam_jax.adamw(LR, weight_decay=form) for form in (decay.in_place(0.5), 0.5))
    after = stepped(tx, params, gradients)
    assert after.dtype == dtype
    a, b = (np.asarray(x, "complex64") for x in (after, stepped(once, params, gradients)))
    np.testing.assert_allclose(a, b, rtol=1e-6 if dtype == "complex64" else 1e-2, atol=1e-6)
    assert np.mean(a == b) > (0.5 if dtype == "complex64" else 0.99)


def test_without_parameters_terms_are_added_up():
    tx = like_torch.NAdam()
    alone, _ = tx.update(G, tx.init(P))
    np.testing.assert_allclose(alone, stepped(tx, np.zeros_like(P), G), rtol=1e-6)
    decaying = adam_jax.adamw(LR, weight_decay=decay.in_place(WD))
    with pytest.raises(ValueError, match="params"):
        decaying.update(G, decaying.init(P))


def test_nothing_of_a_parameters_size_besides():
    def temporaries(form):
        tx = adam_jax.adamw(LR, weight_decay=form)

        def step(params, state, gradients):
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(P, tx.init(P), G).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(decay.in_place(WD)) <= temporaries(WD)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: decay.in_place(-0.1), ValueError, "`weight_decay` must be"),
        (lambda: decay.in_place(0.1, factor="x"), TypeError, "`factor` must be"),
        (lambda: NAdam(0.9, 0.999, 1e-8, apart=True), ValueError, "`apart` needs `nesterov`"),
        (lambda: adam_jax.adamw(0.1, weight_decay=decay.in_place), TypeError, "call it"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
