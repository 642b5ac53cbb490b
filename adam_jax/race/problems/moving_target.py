"""A moving target: 32 points on sine waves to follow through noise; the loss is how far off it is.

Adam's and RMSProp's promise is to cope with what changes. An epoch is a period of 1,000 steps. The
gradient of a step is that of the distance to where the target is now, seen through noise; its value
has no noise, and is half the mean squared distance to where the target is at the epoch's end. So
the loss after an epoch, when the race measures it, says how well the points are followed just then.

Following costs a learning rate of its own, and steps that stay as long: AdaGrad's shrink with the
root of their number, and whatever its rate, it lags at last; ten times the rate is enough for a
hundred times as long.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

Batch = tuple[np.ndarray, np.ndarray]

epochs = 40
learning_rates = "1e-3:1:7"
target = 0.03
seconds = 5

_period, _points, _noise = 1000, 32, 0.5
_turns = np.arange(1, _period + 1)[:, None] / _period + np.arange(_points) / _points
_places = (5 * np.sin(2 * np.pi * _turns)).astype(np.float32)


def batches(key: jax.Array) -> Iterable[Batch]:
    """Where the target seems to be at each step, and where it is at the end."""
    seen = _places + _noise * np.asarray(jax.random.normal(key, _places.shape))
    return ((each, _places[-1]) for each in seen)


def init(key: jax.Array) -> jax.Array:
    """Normal, of standard deviation 1."""
    return jax.random.normal(key, (_points,))


def loss(params: jax.Array, batch: Batch) -> jax.Array:
    """Half the mean squared distance to the end; its gradient is the noisy present's."""
    seen, end = batch
    present = jnp.sum((params - seen) ** 2) / 2
    return jax.lax.stop_gradient(jnp.mean((params - end) ** 2) / 2 - present) + present


def evaluate(params: jax.Array) -> dict[str, float]:
    """The root mean square distance at the end, where a wave's height is 5."""
    return {"distance": float(np.sqrt(np.mean((np.asarray(params) - _places[-1]) ** 2)))}
