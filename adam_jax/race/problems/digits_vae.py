"""Handwritten digits: a variational autoencoder that draws new ones, on scikit-learn's 1,797.

Layers, batches and likelihood are those of Kingma & Ba, "Adam" (2015), section 6.4, at the size of
these images; https://arxiv.org/abs/1412.6980.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from adam_jax.race import feed

Params = dict[str, jax.Array]
Batch = tuple[jax.Array, jax.Array]

epochs = 20
learning_rates = "1e-4:1e-1:7"
target = 25.5
seconds = 13

_images = (load_digits(return_X_y=True)[0] / 16).astype(np.float32)  # pixels are 0 to 16
_latent = 10
_shown = 10  # digits in a row of a picture


def batches(key: jax.Array) -> Iterable[Batch]:
    """Images, and a key for the draws from the encoder."""
    order, noise = jax.random.split(key)
    rows = feed.shuffled(order, len(_images), 100)
    return zip(_images[rows], jax.random.split(noise, len(rows)), strict=True)


def init(key: jax.Array) -> Params:
    """64 pixels, 100 softplus, means and log variances of 10, 100 softplus, 64 logits."""
    shapes = {"in": (64, 100), "code": (100, 2 * _latent), "hidden": (_latent, 100)}
    shapes["out"] = (100, 64)
    keys = jax.random.split(key, len(shapes))
    glorot = jax.nn.initializers.glorot_normal()
    weights = {
        name: glorot(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return weights | {f"{name}_bias": jnp.zeros(shape[1]) for name, shape in shapes.items()}


def loss(params: Params, batch: Batch) -> jax.Array:
    """Minus the evidence lower bound in nats an image, the mean over the batch."""
    reconstruction, divergence = _bound(params, *batch)
    return reconstruction + divergence


def evaluate(params: Params) -> dict[str, float]:
    """The loss's two parts, in nats an image: what reconstructions miss, and what codes hold."""
    reconstruction, divergence = _bound(params, jnp.asarray(_images), jax.random.key(0))
    return {"reconstruction": float(reconstruction), "divergence": float(divergence)}


def samples(params: Params) -> dict[str, np.ndarray]:
    """Ten digits above their reconstructions, and thirty that are drawn."""
    images = jnp.asarray(_images[:_shown])
    again = jax.nn.sigmoid(_decoded(params, _encoded(params, images)[0]))
    codes = jax.random.normal(jax.random.key(0), (3 * _shown, _latent))
    return {
        "digits, and below each its reconstruction": _tiled(jnp.concatenate([images, again])),
        "digits drawn from the model": _tiled(jax.nn.sigmoid(_decoded(params, codes))),
    }


def _bound(params: Params, images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean, log_variance = _encoded(params, images)
    code = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
    missed = optax.sigmoid_binary_cross_entropy(_decoded(params, code), images)
    # Of a Gaussian from the standard one.
    divergence = (mean**2 + jnp.exp(log_variance) - 1 - log_variance) / 2
    return jnp.mean(missed.sum(-1)), jnp.mean(divergence.sum(-1))


def _encoded(params: Params, images: jax.Array) -> list[jax.Array]:
    hidden = jax.nn.softplus(_dense(params, "in", images))
    return jnp.split(_dense(params, "code", hidden), 2, -1)


def _decoded(params: Params, code: jax.Array) -> jax.Array:
    return _dense(params, "out", jax.nn.softplus(_dense(params, "hidden", code)))


def _dense(params: Params, name: str, x: jax.Array) -> jax.Array:
    return x @ params[name] + params[f"{name}_bias"]


def _tiled(images: jax.Array) -> np.ndarray:
    rows = np.asarray(images).reshape(-1, _shown, 8, 8)
    return np.concatenate([np.concatenate(row, 1) for row in rows])
