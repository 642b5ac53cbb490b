"""Rosenbrock's banana: a curved, narrow valley in two dimensions, without noise.

Its lowest point, where the loss is 0, is (1, 1): H. H. Rosenbrock, "An automatic method for finding
the greatest or least value of a function" (1960), https://doi.org/10.1093/comjnl/3.3.175.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

epochs = 15
learning_rates = "1e-4:1:9"
target = 1e-3
seconds = 2


def batches(key: jax.Array) -> Iterable[np.ndarray]:  # noqa: ARG001  there is nothing to draw
    """A hundred steps, which need no data."""
    return np.zeros((100, 0), np.float32)


def init(key: jax.Array) -> jax.Array:
    """Within half of (-1.2, 1), where the valley is on the other side of the hill."""
    return jnp.array([-1.2, 1.0]) + jax.random.uniform(key, (2,), minval=-0.5, maxval=0.5)


def loss(params: jax.Array, batch: jax.Array) -> jax.Array:  # noqa: ARG001
    """The function itself, at one point."""
    x, y = params
    height: jax.Array = (1 - x) ** 2 + 100 * (y - x**2) ** 2
    return height


def evaluate(params: jax.Array) -> dict[str, float]:
    """How far it is to the lowest point."""
    return {"distance": float(jnp.linalg.norm(params - 1))}
