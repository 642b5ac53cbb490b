"""Handwritten digits: a small classifier on scikit-learn's 1,797 images of 8 by 8 pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

_images, _labels = load_digits(return_X_y=True)
_train_images, test_images, _train_labels, test_labels = train_test_split(
    (_images / 16).astype(np.float32),  # pixels are 0 to 16
    _labels.astype(np.int32),
    test_size=0.25,
    stratify=_labels,
    random_state=0,
)

data = (_train_images, _train_labels)
batch_size = 32
epochs = 10
target = 0.04
seconds = 8


def init(key: jax.Array) -> dict[str, jax.Array]:
    """64 pixels, 128 hidden units, 10 classes; Glorot-uniform weights, zero biases."""
    glorot = jax.nn.initializers.glorot_uniform()
    hidden, output = jax.random.split(key)
    return {
        "w1": glorot(hidden, (64, 128)),
        "b1": jnp.zeros(128),
        "w2": glorot(output, (128, 10)),
        "b2": jnp.zeros(10),
    }


def loss(params: dict[str, jax.Array], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Cross-entropy in nats, the mean over the batch."""
    images, labels = batch
    logits = _logits(params, images)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def evaluate(params: dict[str, jax.Array]) -> dict[str, float]:
    """The share of the 450 test images that are classified right."""
    predicted = _predict(params, test_images)
    return {"test_accuracy": float(np.mean(np.asarray(predicted) == test_labels))}


def _logits(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(images @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


@jax.jit
def _predict(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    return jnp.argmax(_logits(params, images), -1)
