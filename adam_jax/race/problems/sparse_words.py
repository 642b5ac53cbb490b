"""Sparse features: logistic regression with dropout on bags of generated words, most of them rare.

After Kingma & Ba, "Adam" (2015), section 6.1 (https://arxiv.org/abs/1412.6980): reviews as bags of
words, of which dropout leaves out half. Here 6,400 reviews are drawn from 2,000 words; the i-th
comes i**-1.5 as often as the first. The first twenty say nothing, as "the" and "of" do; each of the
others is for or against.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.race import feed

Params = dict[str, jax.Array]
Batch = tuple[jax.Array, jax.Array, jax.Array]

epochs = 10
learning_rates = "1e-2:10:7"
target = 0.52
seconds = 6

_words, _silent, _dropout = 2000, 20, 0.5


def reviews(exponent: float) -> tuple[np.ndarray, np.ndarray]:
    """Twenty words each, as numbers; -1 for one that was there before. And whether it is good."""
    random = np.random.default_rng(0)
    often = np.arange(1, _words + 1) ** -exponent
    words = random.choice(_words, (6400, 20), p=often / often.sum())
    words.sort(1)
    words[:, 1:][words[:, 1:] == words[:, :-1]] = -1
    worth = np.where(np.arange(_words) < _silent, 0, random.choice([-3, 3], _words))
    sums = np.where(words < 0, 0, worth[words]).sum(1)
    good = random.random(len(sums)) < 1 / (1 + np.exp(-sums))
    return words.astype(np.int32), good.astype(np.float32)


_data = reviews(exponent=1.5)


def batches(key: jax.Array) -> Iterable[Batch]:
    """Reviews, whether they are good, and a key for dropout."""
    words, good = _data
    order, dropout = jax.random.split(key)
    rows = feed.shuffled(order, len(words), 128)
    return zip(words[rows], good[rows], jax.random.split(dropout, len(rows)), strict=True)


def init(key: jax.Array) -> Params:  # noqa: ARG001  there is nothing to draw
    """Zero, as is usual for what has one lowest point."""
    return {"w": jnp.zeros(_words), "b": jnp.zeros(())}


def loss(params: Params, batch: Batch) -> jax.Array:
    """Cross-entropy in nats with dropout, the mean over the batch."""
    words, good, key = batch
    kept = jax.random.bernoulli(key, 1 - _dropout, words.shape) / (1 - _dropout)
    logits = _logits(params, words, kept)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, good))


def evaluate(params: Params) -> dict[str, float]:
    """The share of reviews that are judged right, without dropout."""
    words, good = _data
    judged = _logits(params, jnp.asarray(words), jnp.ones(words.shape)) > 0
    return {"accuracy": float(np.mean(np.asarray(judged) == good))}


def _logits(params: Params, words: jax.Array, kept: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(words < 0, 0, params["w"][words] * kept), 1) + params["b"]
