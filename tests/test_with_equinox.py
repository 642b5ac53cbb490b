"""Training with Equinox, whose models have leaves that are no arrays, is what it is with Optax's.

Skipped where Equinox is not installed: it wants a recent JAX, so that the suite runs against the
oldest dependencies without it. The `test` extra brings it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("equinox", reason="Equinox wants a recent JAX; the `test` extra brings it")

import equinox
from checks import assert_same_bits
from services import STEPS as MANY
from services import around_adamw, assert_trained, poisoned
from training import assert_close

import adam_jax
from adam_jax.services.path_rules import Scale

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


@pytest.mark.costly
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


class Normalised(equinox.Module):
    first: equinox.nn.Linear
    norm: equinox.nn.BatchNorm
    last: equinox.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.first = equinox.nn.Linear(1, 16, key=keys[0])
        self.norm = equinox.nn.BatchNorm(16, "batch", mode="batch")
        self.last = equinox.nn.Linear(16, 1, key=keys[1])

    def __call__(self, x, statistics):
        x, statistics = self.norm(self.first(x), statistics)
        return self.last(jnp.tanh(x)), statistics


@pytest.mark.exhaustive
@pytest.mark.parametrize("stored", ["float32", "eight_bit"])
def test_all_services_around_a_frozen_layer_and_batch_statistics(stored):
    model, statistics = equinox.nn.make_with_state(Normalised)(jax.random.key(0))
    learns = jax.tree.map(equinox.is_inexact_array, model)
    learns = equinox.tree_at(lambda m: m.first.weight, learns, replace=False)
    params, frozen = equinox.partition(model, learns)
    # Stored as they are, or all in blocks of codes.
    kind = {"eight_bit": adam_jax.storage.eight_bit(min_size=0)}.get(stored)
    tx = around_adamw({"bias$": Scale(weight_decay=0.0), "^last/": Scale(0.5)}, kind)
    traces = []

    @equinox.filter_jit(donate="all-except-first")
    def step(frozen, params, state, statistics, i):
        traces.append(1)

        @equinox.filter_value_and_grad(has_aux=True)
        def loss(params):
            model = equinox.combine(params, frozen)
            batched = jax.vmap(model, (0, None), (0, None), axis_name="batch")
            y, new = batched(X, statistics)
            return jnp.mean((y - Y) ** 2), new

        (value, new), gradient = loss(params)
        updates, state = tx.update(poisoned(gradient, i), state, params, value=value)
        return equinox.apply_updates(params, updates), state, new, value

    first = jax.jit(tx.init)(params)
    state, before = jax.tree.map(jnp.copy, first), jax.tree.map(np.asarray, statistics)
    weight = np.asarray(frozen.first.weight)
    losses = []
    for i in range(MANY):
        params, state, statistics, loss = step(frozen, params, state, statistics, jnp.int32(i))
        losses.append(float(loss))
    assert_trained(first, state, losses, 0.3)
    assert traces == [1]
    assert params.first.weight is None
    assert_same_bits(equinox.combine(params, frozen).first.weight, weight)
    moved = jax.tree.map(lambda a, b: np.any(a != b), statistics, before)
    assert all(jax.tree.leaves(moved))
