"""English prose by letters: a transformer of two layers on Python's manual (PSF licence).

The text is that of `adam_jax.race.corpus`. The layers normalise first (Xiong et al. 2020,
https://arxiv.org/abs/2002.04745), and what embeds letters also tells the next one (Press & Wolf
2017, https://arxiv.org/abs/1608.05859).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.race import corpus
from adam_jax.race.layers import embedded

Params = dict[str, jax.Array]

batch_size = 16
epochs = 4
learning_rates = "1e-3:1:7"
target = 2.3
seconds = 50

_context, _width, _heads, _layers = 32, 32, 4, 2
data, _test = corpus.windows(_context)


def init(key: jax.Array) -> Params:
    """Normal weights of variance 1 / inputs, embeddings of 0.02."""
    shapes = {"embedding": (len(corpus.ALPHABET), _width), "position": (_context, _width)}
    for layer in range(_layers):
        shapes |= {
            f"{layer}.attend": (_width, 3 * _width),
            f"{layer}.join": (_width, _width),
            f"{layer}.up": (_width, 2 * _width),
            f"{layer}.down": (2 * _width, _width),
        }
    keys = jax.random.split(key, len(shapes))
    params = {
        name: jax.random.normal(key, shape) * (0.02 if "." not in name else shape[0] ** -0.5)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    norms = [f"{layer}.{part}" for layer in range(_layers) for part in ("norm1", "norm2")]
    return params | {name: jnp.ones(_width) for name in [*norms, "norm"]}


def loss(params: Params, batch: jax.Array) -> jax.Array:
    """Cross-entropy in nats a letter, the mean over windows of 32."""
    logits = _logits(params, batch[:, :-1])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]))


def evaluate(params: Params) -> dict[str, float]:
    """The loss on the last tenth of the text, which is not trained on, in bits."""
    return {"test_bits_a_letter": float(_loss(params, jnp.asarray(_test))) / float(np.log(2))}


def samples(params: Params) -> dict[str, str]:
    """Text that the model goes on with after a start as long as its context."""
    start = "The following example shows that"
    written = _written(params, jnp.asarray(corpus.encoded(start)))
    return {f'what it writes after "{start}"': start + corpus.decoded(np.asarray(written))}


_loss = jax.jit(loss)


def _logits(params: Params, letters: jax.Array) -> jax.Array:
    """Of what follows each letter."""
    x = embedded(params["embedding"], letters) + params["position"]
    for layer in range(_layers):
        part = {name[2:]: leaf for name, leaf in params.items() if name.startswith(f"{layer}.")}
        x = x + _attention(part, _normalised(x) * part["norm1"])
        hidden = jax.nn.gelu(_normalised(x) * part["norm2"] @ part["up"])
        x = x + hidden @ part["down"]
    return _normalised(x) * params["norm"] @ params["embedding"].T


def _attention(part: Params, x: jax.Array) -> jax.Array:
    batch, time, width = x.shape
    shape = (batch, time, 3, _heads, width // _heads)
    query, key, value = jnp.moveaxis((x @ part["attend"]).reshape(shape), 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / (width // _heads) ** 0.5
    past = jnp.tril(jnp.ones((time, time), bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape) @ part["join"]


def _normalised(x: jax.Array) -> jax.Array:
    return jax.nn.standardize(x, epsilon=1e-5)


@jax.jit
def _written(params: Params, start: jax.Array) -> jax.Array:
    """300 letters, drawn one after the other; it sees the last 32."""

    def write(seen: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        letter = jax.random.categorical(key, _logits(params, seen[None])[0, -1])
        return jnp.append(seen[1:], letter), letter

    return jax.lax.scan(write, start, jax.random.split(jax.random.key(0), 300))[1]
