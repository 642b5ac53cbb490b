"""One can differentiate through a step: in gradients, state and hyperparameters, also at zero.

So one can through training. A derivative of many steps is one program, compiled once a member.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import FORMATS, MEMBERS

import adam_jax
from adam_jax.averaging import average_params
from adam_jax.clipping import clip_by_global_norm
from adam_jax.services.accumulate import accumulate
from adam_jax.services.skip_unstable import skip_unstable
from adam_jax.services.with_metrics import with_metrics

every = pytest.mark.parametrize("member", [m for m in MEMBERS if not MEMBERS[m].variant])
# A variant by its decay has the direction of another row.
every_variant_too = pytest.mark.parametrize(
    "member", [m for m, row in MEMBERS.items() if not row.by_decay]
)
# Without an average a gradient is all of its mean square, where its maximum with 1 has a kink.
KINKED = {"stable_adamw"}


# --- Through two steps ----------------------------------------------------------------------------


def two_steps(g, member, **more):
    row = MEMBERS[member]
    tx = row.direction(**{**row.settings, **more})
    first, state = tx.update(g, tx.init(g))
    second, _ = tx.update(0.5 * g**2, state)
    return first + second


@pytest.mark.costly
@every_variant_too
def test_reverse_and_forward_mode_agree_and_are_finite_at_zero(member):
    @jax.jit
    def derivatives(g):
        modes = [mode(two_steps)(g, member) for mode in (jax.jacrev, jax.jacfwd)]
        second = () if MEMBERS[member].variant else jax.hessian(total)(g)
        return modes, second

    def total(g):
        return two_steps(g, member).sum()

    (reverse, forward), second = derivatives(jnp.array([0.0, 1.0, -3.0]))
    assert np.isfinite(reverse).all()
    np.testing.assert_allclose(reverse, forward, rtol=1e-5, atol=1e-5)
    assert np.isfinite(second).all()


@pytest.mark.costly
@every
def test_derivatives_are_right_in_float64(member, x64):
    g, h = jnp.array([0.7, 1.0, -3.0]), 1e-6

    @jax.jit
    def both(g):
        ends = [jax.vmap(lambda g: two_steps(g, member))(g + d * jnp.eye(3)) for d in (h, -h)]
        return jax.jacfwd(two_steps)(g, member), (ends[0] - ends[1]).T / (2 * h)

    np.testing.assert_allclose(*both(g), atol=1e-8)


@pytest.mark.exhaustive
@every
def test_derivatives_in_decay_rates(member, x64):
    # Far from where a root begins, for differences to tell.
    settings = MEMBERS[member].settings
    smooth = {name: 0.1 for name in ("eps", "eps_root") if name in settings}
    values, h = np.array([0.0, 1e-30, 0.3, 0.9]), 1e-6
    # Of second order, and from 0 to one side.
    stencils = np.where(values[:, None] >= h, [-h, 0.0, h], [0.0, h, 2 * h])
    weights = np.where(values[:, None] >= h, [-0.5, 0.0, 0.5], [-1.5, 2.0, -0.5]) / h

    @jax.jit
    def both(values):
        def along(name):
            def loss(b):
                g = jnp.array([0.7, 1.0, -3.0])
                return two_steps(g, member, **{**smooth, name: b}).sum()

            ends = jax.vmap(jax.vmap(loss))(values[:, None] + stencils)
            return jax.vmap(jax.grad(loss))(values), jnp.sum(weights * ends, axis=1)

        return {name: along(name) for name in ("b1", "b2")}

    for name, (exact, difference) in both(jnp.asarray(values)).items():
        assert np.isfinite(exact).all()
        kept = slice(2 if member in KINKED and name == "b2" else 0, None)
        np.testing.assert_allclose(exact[kept], difference[kept], rtol=1e-4, atol=1e-6)


@pytest.mark.costly
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

    @jax.jit
    def both(g):
        return [
            jax.grad(lambda g, kind=kind: final(g, **kind))(g)
            for kind in ({}, FORMATS[storage].arguments)
        ]

    exact, stored = both(jnp.array([1.5, 2.0, -3.0]))
    assert np.abs(exact).max() > 0
    if len(FORMATS[storage].dtypes) > 1:  # codes are integers, which have no derivative
        assert np.isfinite(stored).all()
    else:
        np.testing.assert_allclose(stored, exact, atol=0.02)


# --- Through training -----------------------------------------------------------------------------

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3))
Y = X @ [1.0, -2.0, 0.5] + 0.1 * RNG.normal(size=8)


# One array, for one program a leaf. Its last two entries are 0, where a cube has no gradient.
START = [0.3, -0.2, 0.5, 0.4, 0.0, 0.0]


def loss(params, y):
    weights, bias, still = params[:3], params[3], params[4:]
    return jnp.mean((jnp.asarray(X) @ weights + bias**3 - y) ** 2) + jnp.sum(still**3)


def trained(tx, loss, params, steps):
    """The parameters after so many steps of gradient descent."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), None, length=steps)[0][0]


def loss_after(steps, tx, params=START, y=Y):
    def of(params):
        return loss(params, y)

    return of(trained(tx, of, jnp.asarray(params), steps))


@pytest.mark.costly
@every_variant_too
def test_derivatives_through_training(member, x64):
    """In the first parameters and the learning rate: right, and finite where gradients are 0."""
    row = MEMBERS[member]

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def final(rate, params, y):
        return loss_after(4, row.optimizer(rate, **row.settings), params, y)

    rate, params, h = 0.03, jnp.array(START), 1e-6
    # Not where gradients are 0: near there only eps makes a step smooth.
    along = jnp.array([0.2, -0.7, 1.0, 0.5, 0.0, 0.0])
    _, (by_rate, by_params) = final(rate, params, Y)
    assert abs(by_rate) > 1e-3
    ends = [final(rate + d, params + d * along, Y)[0] for d in (h, -h)]
    exact, expected = by_rate + by_params @ along, (ends[0] - ends[1]) / (2 * h)
    np.testing.assert_allclose(exact, expected, rtol=1e-6)
    np.testing.assert_allclose(by_params[4:], 0, atol=1e-8)  # Yogi drifts
    for derivative in final(rate, jnp.zeros(6), np.zeros(8))[1]:
        assert np.isfinite(derivative).all()


@pytest.mark.exhaustive
def test_through_optaxs_adam_the_derivative_is_nan_where_a_gradient_is_0(x64):
    @jax.jit
    def derivatives(params):
        return [
            jax.grad(lambda p, m=module: loss_after(4, m.adam(0.03), p))(params)
            for module in (adam_jax, optax)
        ]

    ours, theirs = derivatives(jnp.array(START))
    assert not np.any(ours[4:])
    assert np.isnan(theirs[4:]).all()
    np.testing.assert_allclose(ours[:4], theirs[:4], rtol=1e-6)


def test_derivatives_in_every_hyperparameter_of_adamw(x64):
    names = ("learning_rate", "b1", "b2", "eps", "eps_root", "weight_decay")
    at, h = jnp.array([0.03, 0.8, 0.95, 1e-2, 1e-2, 0.2]), 1e-6

    @jax.jit
    @jax.value_and_grad
    def final(at):
        return loss_after(10, adam_jax.adamw(**dict(zip(names, at, strict=True))))

    exact = final(at)[1]
    ends = [[float(final(at + d * axis)[0]) for d in (h, -h)] for axis in jnp.eye(6)]
    assert np.abs(exact).min() > 1e-3
    np.testing.assert_allclose(exact, np.diff(ends)[:, 0] / (-2 * h), rtol=1e-6)


def serviced(rate):
    """Of two gradients the mean makes one step, and is clipped."""
    adamw = adam_jax.adamw(rate, weight_decay=0.1)
    step = optax.chain(clip_by_global_norm(0.5), adamw, average_params(0.9))
    return with_metrics(skip_unstable(accumulate(step, 2), threshold=100.0))


@pytest.mark.exhaustive
def test_derivatives_through_services(x64):
    """Whose norm, which all is divided by, may be 0 too."""

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def final(rate, params, y):
        return loss_after(6, serviced(rate), params, y)

    rate, params, h = 0.03, jnp.array(START), 1e-6
    along = jnp.array([0.2, -0.7, 1.0, 0.5, 0.0, 0.0])
    _, (by_rate, by_params) = final(rate, params, Y)
    ends = [final(rate + d, params + d * along, Y)[0] for d in (h, -h)]
    np.testing.assert_allclose(
        by_rate + by_params @ along, (ends[0] - ends[1]) / (2 * h), rtol=1e-6
    )
    assert not np.any(by_params[4:])
    for derivative in final(rate, jnp.zeros(6), np.zeros(8))[1]:
        assert np.isfinite(derivative).all()


# --- A learning rate that is learnt ---------------------------------------------------------------


INPUTS = RNG.normal(size=(64, 20))
LABELS = np.sign(INPUTS @ RNG.normal(size=20) + 3 * RNG.logistic(size=64))


def after_ten_steps(rate):
    """Of logistic regression on labels with noise: of a rate there is one that is best."""

    def loss(weights):
        return jnp.mean(jax.nn.softplus(-jnp.asarray(LABELS) * (jnp.asarray(INPUTS) @ weights)))

    return loss(trained(adam_jax.adam(rate), loss, jnp.zeros(20), 10))


def test_a_learning_rate_is_learnt_through_ten_steps(x64):
    """Through ten steps of Adam, by two hundred of Adam, as good a one as the best of a grid."""
    rates = jnp.geomspace(1e-3, 1.0, 301)  # 2.3% apart
    grid = jax.jit(jax.vmap(after_ten_steps))(rates)

    @jax.jit
    def learnt(rate):
        tx = adam_jax.adam(optax.cosine_decay_schedule(0.05, 200))
        end = jnp.exp(trained(tx, lambda x: after_ten_steps(jnp.exp(x)), jnp.log(rate), 200))
        return end, after_ten_steps(rate), after_ten_steps(end)

    rate, before, after = learnt(0.003)
    assert rate == pytest.approx(float(rates[jnp.argmin(grid)]), rel=0.03)
    assert after < 0.7 * before
    assert after < 1.0001 * grid.min()


@pytest.mark.exhaustive
def test_radams_derivative_is_finite_where_nothing_is_averaged():
    """At b2 = 0 what counts the averaged gradients leaves float32, from the second step on."""

    def moved(b2):
        tx, g = adam_jax.radam(0.1, b2=b2), jnp.array([0.7, -3.0])
        state, total = tx.init(g), 0.0
        for _ in range(7):
            updates, state = tx.update(g, state)
            total += jnp.sum(updates)
        return total

    for b2 in (0.0, 1e-30, 0.5):
        assert np.isfinite(jax.grad(moved)(jnp.float32(b2)))
