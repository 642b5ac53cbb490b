"""A whole training step is lowered for every platform, and comes back from its bytes."""

import jax
import jax.export
import jax.numpy as jnp
import optax
import pytest
from training import assert_close, parameters

import adam_jax
from adam_jax import storage

PLATFORMS = ["cpu", "cuda", "rocm", "tpu"]
FORMATS = {"float32": None, "bfloat16": storage.bfloat16()}


@pytest.mark.costly
@pytest.mark.parametrize("dtype", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("of", [jnp.float32, jnp.bfloat16], ids=["", "bfloat16_parameters"])
def test_a_training_step_is_exported(dtype, of):
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 10)
    tx = adam_jax.adamw(schedule, mu_dtype=dtype, nu_dtype=dtype, nesterov=True)
    params = parameters(of)
    state = tx.init(params)
    structure = jax.tree.structure((params, state))

    # Of leaves, for JAX serializes no tree with classes that it was not told of.
    def step(leaves, batch):
        def loss(params):
            hidden = jnp.tanh(batch @ params["dense"]["w"] + params["dense"]["b"])
            return jnp.mean(params["scale"] * hidden**2)

        params, state = structure.unflatten(leaves)
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state, params)
        return jax.tree.leaves((optax.apply_updates(params, updates), state)), value

    jitted = jax.jit(step)
    leaves, batch = jax.tree.leaves((params, state)), jnp.ones((2, 3), of)
    exported = jax.export.export(jitted, platforms=PLATFORMS)(leaves, batch)
    assert exported.platforms == tuple(PLATFORMS)
    again = jax.export.deserialize(exported.serialize())
    for _ in range(3):
        expected = jitted(leaves, batch)
        assert_close(again.call(leaves, batch), expected)
        leaves = expected[0]
