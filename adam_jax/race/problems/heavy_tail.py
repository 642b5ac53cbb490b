"""Classes with a heavy tail: softmax regression, half of whose classes have one sample each.

From Kunstner et al., "Heavy-tailed class imbalance and why Adam outperforms gradient descent on
language models" (2024), https://arxiv.org/abs/2402.19449: groups of 1, 2, 4, ... classes with 64,
32, 16, ... samples of uniform noise each, and steps on all of them at once. Fifty steps are few:
there are as many features as samples, so that in some hundreds anyone brings the loss near to 0.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

epochs = 10
learning_rates = "1e-3:1:7"
target = 0.4
seconds = 5

_groups = 7
_per_group = 2 ** (_groups - 1)
_group = np.repeat(np.arange(_groups), _per_group)
# The classes of group k, 2**k of them, come after the 2**k - 1 of the groups before.
_labels = 2**_group - 1 + np.tile(np.arange(_per_group), _groups) % 2**_group
_x = np.random.default_rng(0).uniform(size=(len(_labels), len(_labels))).astype(np.float32)


def batches(key: jax.Array) -> Iterable[np.ndarray]:  # noqa: ARG001  there is nothing to draw
    """Five steps, each on all of the data."""
    return np.zeros((5, 0), np.float32)


def init(key: jax.Array) -> dict[str, jax.Array]:
    """Nearly zero, where all classes are as likely."""
    classes = 2**_groups - 1
    return {"w": 1e-3 * jax.random.normal(key, (_x.shape[1], classes)), "b": jnp.zeros(classes)}


def loss(params: dict[str, jax.Array], batch: jax.Array) -> jax.Array:  # noqa: ARG001
    """Cross-entropy in nats, the mean over all samples."""
    return jnp.mean(_losses(params))


def evaluate(params: dict[str, jax.Array]) -> dict[str, float]:
    """The loss on the one most frequent class, and on those with a sample each."""
    losses = np.asarray(_losses(params))
    return {
        "frequent": float(losses[_group == 0].mean()),
        "rare": float(losses[_group == _groups - 1].mean()),
    }


def _losses(params: dict[str, jax.Array]) -> jax.Array:
    logits = _x @ params["w"] + params["b"]
    losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, _labels)
    return losses
