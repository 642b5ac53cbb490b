"""What people do with an optimizer: to climb, over complex numbers, with all services around it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits
from family import mostly
from services import STEPS, around_adamw, assert_trained, poisoned
from training import assert_close, gradients, moved, parameters

import adam_jax
from adam_jax import like_torch
from adam_jax.services.path_rules import FREEZE, Scale

# --- Climbing -------------------------------------------------------------------------------------


def uphill(tx):
    return optax.chain(optax.scale(-1.0), tx)


def test_gradients_turned_round_climb_as_one_descends():
    params = parameters()
    stream = gradients(8, params)
    turned = [jax.tree.map(jnp.negative, g) for g in stream]
    tx = adam_jax.adamw(1e-2, weight_decay=0.1)
    climbed, (_, state) = moved(uphill(tx), params, stream)
    assert_same_bits((climbed, state), moved(tx, params, turned))
    torch = like_torch.AdamW(1e-2, weight_decay=0.1, maximize=True)
    assert_close(climbed, moved(torch, params, stream)[0], atol=1e-6)


def test_weight_decay_shrinks_when_climbing_and_grows_behind_an_update_turned_round():
    tx, params = adam_jax.adamw(1e-2, weight_decay=0.1), jnp.array([1.0, -2.0])
    still = [jnp.zeros(2)] * 10
    shrunk, _ = moved(uphill(tx), params, still)
    grown, _ = moved(optax.chain(tx, optax.scale(-1.0)), params, still)
    assert np.all(np.abs(shrunk) < np.abs(params))
    assert np.all(np.abs(grown) > np.abs(params))


def test_it_finds_a_maximum():
    def height(x):
        return -jnp.sum((x - jnp.array([1.0, -2.0])) ** 2)

    tx = uphill(adam_jax.adam(optax.cosine_decay_schedule(0.1, 200)))
    np.testing.assert_allclose(descended(tx, height, jnp.zeros(2), 200)[0], [1.0, -2.0], atol=1e-3)


def descended(tx, loss, params, steps, conjugate=True):
    """Parameters after each of so many steps, the last ones first apart."""

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(loss)(params)
        if conjugate:
            gradient = jax.tree.map(jnp.conj, gradient)
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    (params, _), path = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, length=steps))(
        params
    )
    return params, path


# --- Complex numbers ------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
SIGNALS = jnp.asarray(RNG.normal(size=(16, 32)), jnp.float32)
FILTER = jnp.asarray(RNG.normal(size=17) + 1j * RNG.normal(size=17), jnp.complex64)
FILTER = FILTER.at[jnp.array([0, 16])].set(1.0)  # of real signals these two are real


def filtered(response):
    return jnp.fft.irfft(jnp.fft.rfft(SIGNALS) * response, 32)


def misfit(response):
    return jnp.mean((filtered(response) - filtered(FILTER)) ** 2)


def misfit_of_pairs(pair):
    return misfit(jax.lax.complex(*pair))


def test_a_filter_is_learnt_by_its_frequencies_as_complex_numbers_and_as_pairs():
    tx = adam_jax.adam(optax.cosine_decay_schedule(0.1, 300))
    zeros = jnp.zeros(17)
    found, path = descended(tx, misfit, jax.lax.complex(zeros, zeros), 300)
    pair, path_of_pairs = descended(tx, misfit_of_pairs, (zeros, zeros), 300)
    np.testing.assert_allclose(found, FILTER, atol=2e-3)
    np.testing.assert_allclose(jax.lax.complex(*pair), FILTER, atol=2e-3)
    # A complex number has one mean square, and so moves by the rate; of a pair each part does.
    moving = slice(1, 16)
    np.testing.assert_allclose(np.abs(path[0])[moving], 0.1, rtol=1e-5)
    first = np.hypot(*(part[0] for part in path_of_pairs))
    np.testing.assert_allclose(first[moving], 0.1 * np.sqrt(2), rtol=1e-5)


def test_without_the_conjugate_of_jaxs_gradient_it_is_not():
    tx = adam_jax.adam(optax.cosine_decay_schedule(0.1, 300))
    found, _ = descended(tx, misfit, jnp.zeros(17, jnp.complex64), 300, conjugate=False)
    assert misfit(found) > misfit(jnp.zeros(17, jnp.complex64))


# --- All services at once -------------------------------------------------------------------------

X = jnp.linspace(-1, 1, 32)[:, None]
Y = jnp.sin(3 * X)
STORED = {"float32": None, "eight_bit": adam_jax.storage.eight_bit(min_size=0)}
RULES = {"bias": Scale(weight_decay=0.0), "^out": Scale(learning_rate=0.5), "scale": FREEZE}
stored = pytest.mark.parametrize("stored", mostly(("eight_bit",), STORED))


@pytest.mark.exhaustive
@stored
def test_around_plain_arrays_with_holes(stored):
    tx = around_adamw(RULES, STORED[stored])
    rng = np.random.default_rng(0)
    params = {
        "hidden": {"kernel": jnp.asarray(rng.normal(size=(1, 16)), jnp.float32), "none": None},
        "bias": jnp.zeros(16),
        "scale": jnp.full(16, 1.5),
        "out": [jnp.asarray(0.3 * rng.normal(size=(16, 1)), jnp.float32), (), jnp.zeros((0, 3))],
    }

    def loss(p):
        hidden = jnp.tanh(X @ p["hidden"]["kernel"] + p["bias"])
        return jnp.mean(((hidden * p["scale"]) @ p["out"][0] - Y) ** 2)

    def step(carry, i):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(poisoned(gradient, i), state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    first = jax.jit(tx.init)(params)
    (after, state), losses = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(STEPS)))(
        (params, first)
    )
    assert_trained(first, state, losses, 0.2)
    assert_same_bits(after["scale"], params["scale"])
    assert jax.tree.structure(after) == jax.tree.structure(params)


def as_pure(nnx, tree):
    """Without the boxes of arrays."""
    return getattr(nnx, "as_pure", nnx.pure)(tree)


def of_arrays(nnx, tx):
    """Moments in blocks are a tree. In a box NNX's optimizer keeps the leaves of it and no more."""
    return optax.GradientTransformationExtraArgs(lambda p: tx.init(as_pure(nnx, p)), tx.update)


def test_flax_nnx_optimizer_breaks_blocks_and_is_not_believed():
    """It makes mappings of nodes inside a Variable; the way round it is `of_arrays`."""
    nnx = pytest.importorskip("flax.nnx", reason="Flax wants a recent JAX; `test` brings it")
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    tx = adam_jax.adam(0.1, mu_dtype=STORED["eight_bit"], nu_dtype=STORED["eight_bit"])
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param))
    with pytest.raises(ValueError, match="gradients have other containers than the state"):
        optimizer.update(model, nnx.state(model, nnx.Param))


@pytest.mark.exhaustive
@stored
def test_around_flax_nnx(stored):
    nnx = pytest.importorskip("flax.nnx", reason="Flax wants a recent JAX; `test` brings it")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(1, 16, rngs=rngs)
            self.norm = nnx.BatchNorm(16, rngs=rngs)  # its statistics are no parameters
            self.out = nnx.Linear(16, 1, rngs=rngs)

        def __call__(self, x):
            return self.out(jnp.tanh(self.norm(self.hidden(x))))

    model, traces = Model(nnx.Rngs(0)), []
    tx = of_arrays(nnx, around_adamw(RULES, STORED[stored]))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, i):
        traces.append(1)
        value, gradient = nnx.value_and_grad(lambda m: jnp.mean((m(X) - Y) ** 2))(model)
        optimizer.update(model, poisoned(gradient, i), value=value)
        return value

    first = jax.tree.map(jnp.copy, as_pure(nnx, optimizer.opt_state))
    scale, mean = (jnp.copy(x[...]) for x in (model.norm.scale, model.norm.mean))
    losses = [float(step(model, optimizer, jnp.int32(i))) for i in range(STEPS)]
    assert_trained(first, as_pure(nnx, optimizer.opt_state), losses, 0.3)
    assert traces == [1]
    assert_same_bits(model.norm.scale[...], scale)
    assert np.all(model.norm.mean[...] != mean)


@pytest.mark.exhaustive
@stored
def test_around_flax_linen(stored):
    linen = pytest.importorskip("flax.linen", reason="Flax wants a recent JAX; `test` brings it")
    from flax.training.train_state import TrainState

    model = linen.Sequential([linen.Dense(16), jnp.tanh, linen.Dense(1)])
    params = model.init(jax.random.key(0), X)
    tx = around_adamw({"bias$": Scale(weight_decay=0.0)}, STORED[stored])
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    @jax.jit
    def run(state):
        def step(state, i):
            def loss(params):
                return jnp.mean((state.apply_fn(params, X) - Y) ** 2)

            value, gradient = jax.value_and_grad(loss)(state.params)
            return state.apply_gradients(grads=poisoned(gradient, i)), value

        return jax.lax.scan(step, state, jnp.arange(STEPS))

    after, losses = run(state)
    assert_trained(state.opt_state, after.opt_state, losses, 0.3)
