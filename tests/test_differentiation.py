"""One can differentiate through a step: in gradients, state and hyperparameters, also at zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import FORMATS, MEMBERS

every = pytest.mark.parametrize("member", [m for m in MEMBERS if not MEMBERS[m].variant])
# A variant by its decay has the direction of another row.
every_variant_too = pytest.mark.parametrize(
    "member", [m for m, row in MEMBERS.items() if not (row.variant and row.decay)]
)
# Without an average a gradient is all of its mean square, where its maximum with 1 has a kink.
KINKED = {"stable_adamw"}
GRADIENT = jnp.array([0.0, 1.0, -3.0])


def two_steps(g, member, **more):
    row = MEMBERS[member]
    tx = row.direction(**{**row.settings, **more})
    first, state = tx.update(g, tx.init(g))
    second, _ = tx.update(0.5 * g**2, state)
    return first + second


@every_variant_too
def test_reverse_and_forward_mode_agree_and_are_finite_at_zero(member):
    reverse = jax.jacrev(two_steps)(GRADIENT, member)
    forward = jax.jacfwd(two_steps)(GRADIENT, member)
    assert np.isfinite(reverse).all()
    np.testing.assert_allclose(reverse, forward, rtol=1e-5, atol=1e-5)
    if not MEMBERS[member].variant:
        assert np.isfinite(jax.hessian(lambda g: two_steps(g, member).sum())(GRADIENT)).all()


@every
def test_derivatives_are_right_in_float64(member, x64):
    g = jnp.array([0.7, 1.0, -3.0], jnp.float64)
    exact = jax.jacrev(two_steps)(g, member)
    h = 1e-6
    for i in range(3):
        ends = [two_steps(g.at[i].add(d), member) for d in (h, -h)]
        np.testing.assert_allclose(exact[:, i], (ends[0] - ends[1]) / (2 * h), atol=1e-8)


@every
@pytest.mark.parametrize("value", [0.0, 1e-30, 0.3, 0.9])
def test_derivatives_in_decay_rates(member, value, x64):
    # Far from where a root begins, for differences to tell.
    settings = MEMBERS[member].settings
    smooth = {name: 0.1 for name in ("eps", "eps_root") if name in settings}

    def loss(b, name):
        g = jnp.array([0.7, 1.0, -3.0])
        return two_steps(g, member, **{**smooth, name: b}).sum()

    for name in ("b1", "b2"):
        exact = jax.grad(loss)(value, name)
        assert np.isfinite(exact)
        if member in KINKED and name == "b2" and value < 0.1:
            continue
        h = 1e-6
        # Of second order, and from 0 to one side. Traced values, as in the derivative.
        weights = {-h: -0.5, h: 0.5} if value >= h else {0.0: -1.5, h: 2.0, 2 * h: -0.5}
        difference = sum(w * loss(jnp.float64(value + d), name) for d, w in weights.items()) / h
        np.testing.assert_allclose(exact, difference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("member", "storage"),
    [
        (m, f)
        for m in MEMBERS
        for f in FORMATS
        # Signs have no derivative.
        if not MEMBERS[m].variant and m != "lion" and (m == "adam" or f == "bfloat16")
    ],
)
def test_derivatives_flow_through_the_stored_state(member, storage):
    row = MEMBERS[member]

    def final(g, **arguments):
        tx = row.direction(**row.settings, **arguments)
        _, state = tx.update(g, tx.init(g))
        return tx.update(jnp.ones(3), state)[0].sum()

    g = jnp.array([1.5, 2.0, -3.0])
    exact = jax.grad(final)(g)
    assert np.abs(exact).max() > 0
    stored = jax.grad(lambda g: final(g, **FORMATS[storage].arguments))(g)
    if len(FORMATS[storage].dtypes) > 1:  # codes are integers, which have no derivative
        assert np.isfinite(stored).all()
    else:
        np.testing.assert_allclose(stored, exact, atol=0.02)
