"""Training with Equinox, whose models have leaves that are no arrays, is what it is with Optax's.

Skipped where Equinox is not installed: it wants a recent JAX, so that the suite runs against the
oldest dependencies without it. The `test` extra brings it.
"""

import jax
import jax.numpy as jnp
import optax
import pytest

pytest.importorskip("equinox", reason="Equinox wants a recent JAX; the `test` extra brings it")

import equinox
from training import assert_close

import adam_jax

X = jnp.linspace(-1, 1, 32)[:, None]
Y = jnp.sin(3 * X)
STEPS = 100


class Model(equinox.Module):
    layers: equinox.nn.MLP
    calls: jax.Array
    name: str

    def __init__(self):
        self.layers = equinox.nn.MLP(1, 1, 16, 1, jnp.tanh, key=jax.random.key(0))
        self.calls = jnp.array(0)  # integers have no gradient
        self.name = "a leaf that is no array"

    def __call__(self, x):
        return jax.vmap(self.layers)(x)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("whole", [False, True], ids=["filtered", "whole_model"])
def test_filter_jit_step(name, whole):
    def train(module):
        tx = getattr(module, name)(1e-2)
        model = Model()
        state = tx.init(equinox.filter(model, equinox.is_inexact_array))

        @equinox.filter_jit
        def step(model, state):
            loss, gradient = equinox.filter_value_and_grad(lambda m: jnp.mean((m(X) - Y) ** 2))(
                model
            )
            params = model if whole else equinox.filter(model, equinox.is_inexact_array)
            updates, state = tx.update(gradient, state, params)
            return equinox.apply_updates(model, updates), state, loss

        losses = []
        for _ in range(STEPS):
            model, state, loss = step(model, state)
            losses.append(float(loss))
        return losses, model, state

    (losses, ours, state), (_, theirs, _) = map(train, (adam_jax, optax))
    assert losses[-1] < 0.5 * losses[0]
    arrays = [equinox.filter(model, equinox.is_array) for model in (ours, theirs)]
    assert_close(*arrays, atol=1e-5)
    assert ours.name == Model().name
    assert int(state[0].count) == STEPS
