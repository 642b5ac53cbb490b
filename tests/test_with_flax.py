"""Training with Flax, NNX and Linen, is what it is with Optax's Adam.

Skipped where Flax is not installed: it wants a recent JAX, so that the suite runs against the
oldest dependencies without it. The `test` extra brings it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("flax", reason="Flax wants a recent JAX; the `test` extra brings it")

from flax import linen, nnx
from flax.training.train_state import TrainState
from training import assert_close

import adam_jax

X = jnp.linspace(-1, 1, 32)[:, None]
Y = jnp.sin(3 * X)
STEPS = 100
made = pytest.mark.parametrize("name", ["adam", "adamw"])


@pytest.mark.costly
@made
def test_nnx_optimizer(name):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(1, 16, rngs=rngs)
            self.drop = nnx.Dropout(0.0, rngs=rngs)  # its random state is no parameter
            self.out = nnx.Linear(16, 1, rngs=rngs)

        def __call__(self, x):
            return self.out(self.drop(jnp.tanh(self.hidden(x))))

    def train(module):
        model = Model(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, getattr(module, name)(1e-2), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            loss, gradient = nnx.value_and_grad(lambda m: jnp.mean((m(X) - Y) ** 2))(model)
            optimizer.update(model, gradient)
            return loss

        losses = [float(step(model, optimizer)) for _ in range(STEPS)]
        assert int(optimizer.step[...]) == STEPS
        return losses, nnx.to_pure_dict(nnx.state(model, nnx.Param))

    (losses, ours), (_, theirs) = map(train, (adam_jax, optax))
    assert losses[-1] < 0.2 * losses[0]
    assert_close(ours, theirs, atol=1e-5)


@pytest.mark.costly
@made
def test_train_state(name):
    model = linen.Sequential([linen.Dense(16), jnp.tanh, linen.Dense(1)])

    @jax.jit
    def step(state):
        def loss(params):
            return jnp.mean((state.apply_fn(params, X) - Y) ** 2)

        value, gradient = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=gradient), value

    def train(module):
        params = model.init(jax.random.key(0), X)
        tx = getattr(module, name)(1e-2)
        state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
        losses = []
        for _ in range(STEPS):
            state, loss = step(state)
            losses.append(float(loss))
        return losses, state

    (losses, ours), (_, theirs) = map(train, (adam_jax, optax))
    assert losses[-1] < 0.2 * losses[0]
    assert_close(ours.params, theirs.params, atol=1e-5)
    assert int(ours.step) == int(ours.opt_state[0].count) == STEPS
    assert jax.tree.structure(ours.opt_state) == jax.tree.structure(theirs.opt_state)
    assert not any(np.isnan(losses))
