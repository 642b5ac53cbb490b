"""Handwritten digits: a convolutional classifier with dropout on scikit-learn's 1,797 images."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.race import feed
from adam_jax.race.problems import digits

Batch = tuple[jax.Array, jax.Array, jax.Array]

epochs = 15
learning_rates = "1e-3:1:7"
target = 0.1
seconds = 15

_images, _labels = digits.data
_images = _images.reshape(-1, 8, 8, 1)
_dropout = 0.2


def batches(key: jax.Array) -> Iterable[Batch]:
    """Images, labels, and a key for dropout."""
    order, dropout = jax.random.split(key)
    rows = feed.shuffled(order, len(_labels), 32)
    return zip(_images[rows], _labels[rows], jax.random.split(dropout, len(rows)), strict=True)


def init(key: jax.Array) -> dict[str, jax.Array]:
    """Two layers of 3 by 3 filters, 8 and 16 of them, and 10 classes; He-normal, zero biases."""
    he = jax.nn.initializers.he_normal()
    first, second, output = jax.random.split(key, 3)
    return {
        "w1": he(first, (9 * 1, 8)),
        "b1": jnp.zeros(8),
        "w2": he(second, (9 * 8, 16)),
        "b2": jnp.zeros(16),
        "w3": he(output, (2 * 2 * 16, 10)),
        "b3": jnp.zeros(10),
    }


def loss(params: dict[str, jax.Array], batch: Batch) -> jax.Array:
    """Cross-entropy in nats with dropout, the mean over the batch."""
    images, labels, key = batch
    features = _features(params, images)
    kept = jax.random.bernoulli(key, 1 - _dropout, features.shape)
    logits = _logits(params, jnp.where(kept, features / (1 - _dropout), 0.0))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def evaluate(params: dict[str, jax.Array]) -> dict[str, float]:
    """The share of the 450 test images that are classified right."""
    predicted = _predict(params, digits.test_images.reshape(-1, 8, 8, 1))
    return {"test_accuracy": float(np.mean(np.asarray(predicted) == digits.test_labels))}


def _features(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    once = _pooled(jax.nn.relu(_patches(images) @ params["w1"] + params["b1"]))
    twice = _pooled(jax.nn.relu(_patches(once) @ params["w2"] + params["b2"]))
    return twice.reshape(len(images), -1)


def _patches(x: jax.Array) -> jax.Array:
    """The 3 by 3 neighbours of each pixel, of all channels.

    A convolution is their product with a matrix. XLA's own, mapped over the runs of a race, each
    with its own filters, takes far longer on a CPU.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, -1)


def _pooled(x: jax.Array) -> jax.Array:
    """The largest of each 2 by 2 pixels."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


def _logits(params: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    return features @ params["w3"] + params["b3"]


@jax.jit
def _predict(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    return jnp.argmax(_logits(params, _features(params, images)), -1)
