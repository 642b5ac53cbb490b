"""What more than one of the built-in problems is made of."""

import jax
import jax.numpy as jnp


def embedded(table: jax.Array, ids: jax.Array) -> jax.Array:
    """The rows of a table, by a product: on CPUs the gradient of a look-up is a slow scatter."""
    return jax.nn.one_hot(ids, len(table)) @ table


def gated(weights: jax.Array, state: jax.Array, inputs: jax.Array) -> jax.Array:
    """The states of a layer of gated recurrent units, one after each input.

    They are those of Cho et al. (2014), https://arxiv.org/abs/1406.1078v1, which forget after the
    product with the state.

    Args:
      weights: of the state, shaped (width, 3 width): reset, update and new, side by side.
      state: the first, shaped (batch, width).
      inputs: after their own product, shaped (time, batch, 3 width).
    """

    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_reset, x_update, x_new = jnp.split(x, 3, -1)
        h_reset, h_update, h_new = jnp.split(h @ weights, 3, -1)
        update = jax.nn.sigmoid(x_update + h_update)
        new = jnp.tanh(x_new + jax.nn.sigmoid(x_reset + h_reset) * h_new)
        h = update * h + (1 - update) * new
        return h, h

    return jax.lax.scan(step, state, inputs)[1]
