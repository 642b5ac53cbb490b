"""A noisy quadratic bowl: 100 dimensions, a thousand times steeper in some than in others.

As in DeepOBS's (Schneider et al. 2019, https://arxiv.org/abs/1903.05499), each batch has a lowest
point of its own. The axes of the bowl are turned, so that no learning rate for each coordinate
makes it round.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

epochs = 20
learning_rates = "1e-4:1:9"
target = 0.9
seconds = 3

_size = 100
_random = np.random.default_rng(0)
_axes, _ = np.linalg.qr(_random.standard_normal((_size, _size)))
_hessian = np.asarray((_axes * np.logspace(-2, 1, _size)) @ _axes.T, np.float32)
_noise = 0.1  # standard deviation of a batch's lowest point, in each coordinate


def batches(key: jax.Array) -> Iterable[np.ndarray]:
    """A hundred lowest points around 0."""
    return _noise * np.asarray(jax.random.normal(key, (100, _size)))


def init(key: jax.Array) -> jax.Array:
    """Normal, of standard deviation 1."""
    return jax.random.normal(key, (_size,))


def loss(params: jax.Array, batch: jax.Array) -> jax.Array:
    """The bowl around the batch's lowest point."""
    away = params - batch
    return away @ _hessian @ away / 2


def evaluate(params: jax.Array) -> dict[str, float]:
    """The loss without noise."""
    return {"noiseless_loss": float(loss(params, jnp.zeros(_size)))}
