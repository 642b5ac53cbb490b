"""Translation: a recurrent encoder and decoder that say generated numbers in English and German.

Three digits and a language give up to five words: 347 is "three hundred and forty seven", or "drei
hundert sieben und vierzig", where the last two change places. It learns 1,600 of the 2,000 pairs.
Attention is that of Luong et al. (2015), https://arxiv.org/abs/1508.04025.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.race.layers import embedded, gated
from adam_jax.race.numerals import ENGLISH, GERMAN, LONGEST, english, german

Params = dict[str, jax.Array]

batch_size = 64
epochs = 12
learning_rates = "1e-3:1:7"
target = 0.1
seconds = 20

_WORDS = [".", *ENGLISH, *GERMAN]  # the full stop also begins, and fills up
_train = 1600
_width = 32


def _pairs() -> tuple[np.ndarray, np.ndarray]:
    """Three digits and a language (10 or 11), and their words, in random order."""
    asked, said = [], []
    for language, words in enumerate((english, german)):
        for number in range(1000):
            asked.append([*map(int, f"{number:03}"), 10 + language])
            said.append(np.zeros(LONGEST + 1, int))
            places = [*map(_WORDS.index, words(number))]
            said[-1][: len(places)] = places
    order = np.random.default_rng(0).permutation(len(said))
    return np.array(asked, np.int32)[order], np.array(said, np.int32)[order]


_asked, _said = _pairs()
data = _asked[:_train], _said[:_train]


def init(key: jax.Array) -> Params:
    """Embeddings and states of 32; Glorot-uniform weights, zero biases."""
    shapes = {"digits": (12, _width), "words": (len(_WORDS), _width)}
    for part in ("encode", "decode"):
        shapes |= {f"{part}_in": (_width, 3 * _width), f"{part}_state": (_width, 3 * _width)}
    shapes["out"] = (2 * _width, len(_WORDS))
    glorot = jax.nn.initializers.glorot_uniform()
    keys = jax.random.split(key, len(shapes))
    params = {
        name: glorot(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return params | {"encode_bias": jnp.zeros(3 * _width), "decode_bias": jnp.zeros(3 * _width)}


def loss(params: Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Cross-entropy in nats a word, each after the right ones before it."""
    asked, said = batch
    memory = _encoded(params, asked)
    before = jnp.pad(said[:, :-1], ((0, 0), (1, 0)))
    logits = _logits(params, memory, _decoded(params, memory[-1], before.T))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, said.T))


def evaluate(params: Params) -> dict[str, float]:
    """The share of the 400 other pairs of which all words are right."""
    exact = np.all(np.asarray(_translated(params, _asked[_train:])) == _said[_train:], 1)
    return {"exact_match": float(exact.mean())}


def samples(params: Params) -> dict[str, str]:
    """Ten numbers that it has not been taught."""
    asked = _asked[_train : _train + 10]
    lines = [
        f"{''.join(map(str, digits))}  " + " ".join(_WORDS[word] for word in words if word)
        for (*digits, _), words in zip(asked, np.asarray(_translated(params, asked)), strict=True)
    ]
    return {"numbers that it was not taught": "\n".join(lines)}


def _encoded(params: Params, asked: jax.Array) -> jax.Array:
    inputs = embedded(params["digits"], asked.T) @ params["encode_in"] + params["encode_bias"]
    return gated(params["encode_state"], jnp.zeros((len(asked), _width)), inputs)


def _decoded(params: Params, state: jax.Array, words: jax.Array) -> jax.Array:
    inputs = embedded(params["words"], words) @ params["decode_in"] + params["decode_bias"]
    return gated(params["decode_state"], state, inputs)


def _logits(params: Params, memory: jax.Array, states: jax.Array) -> jax.Array:
    weights = jax.nn.softmax(jnp.einsum("tbh,sbh->tbs", states, memory))
    seen = jnp.einsum("tbs,sbh->tbh", weights, memory)
    return jnp.concatenate([states, seen], -1) @ params["out"]


@jax.jit
def _translated(params: Params, asked: jax.Array) -> jax.Array:
    """The likeliest word each time, given those that it said before."""
    memory = _encoded(params, asked)

    def say(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[Any, jax.Array]:
        state, word = carry
        states = _decoded(params, state, word[None])
        word = jnp.argmax(_logits(params, memory, states)[0], -1)
        return (states[0], word), word

    start = (memory[-1], jnp.zeros(len(asked), int))
    return jax.lax.scan(say, start, None, LONGEST + 1)[1].T
