"""English prose by letters: two layers of gated recurrent units on Python's manual (PSF licence).

The text is that of `adam_jax.race.corpus`, and `adam_jax.race.layers` has the units.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.race import corpus
from adam_jax.race.layers import embedded, gated

Params = dict[str, jax.Array]

batch_size = 16
epochs = 3
learning_rates = "3e-3:1:6"
target = 1.8
seconds = 35

_width = 48
data, _test = corpus.windows(32)


def init(key: jax.Array) -> Params:
    """Embeddings of 32, two layers of 48 units, a logit for each letter; Glorot-uniform."""
    letters = len(corpus.ALPHABET)
    shapes = {
        "embedding": (letters, 32),
        "in0": (32, 3 * _width),
        "state0": (_width, 3 * _width),
        "in1": (_width, 3 * _width),
        "state1": (_width, 3 * _width),
        "out": (_width, letters),
    }
    glorot = jax.nn.initializers.glorot_uniform()
    keys = jax.random.split(key, len(shapes))
    weights = {
        name: glorot(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    biases = {"bias0": 3 * _width, "bias1": 3 * _width, "out_bias": letters}
    return weights | {name: jnp.zeros(size) for name, size in biases.items()}


def loss(params: Params, batch: jax.Array) -> jax.Array:
    """Cross-entropy in nats a letter, the mean over windows of 32."""
    seen, following = batch[:, :-1], batch[:, 1:]
    states = jnp.zeros((2, len(batch), _width))
    logits, _ = _read(params, states, seen)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, following))


def evaluate(params: Params) -> dict[str, float]:
    """The loss on the last tenth of the text, which is not trained on, in bits."""
    return {"test_bits_a_letter": float(_loss(params, jnp.asarray(_test))) / float(np.log(2))}


def samples(params: Params) -> dict[str, str]:
    """Text that the model goes on with after "The "."""
    start = "The "
    written = _written(params, jnp.asarray(corpus.encoded(start)))
    return {f'what it writes after "{start}"': start + corpus.decoded(np.asarray(written))}


_loss = jax.jit(loss)


def _read(params: Params, states: jax.Array, letters: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logits of what follows each letter, and the states after the last."""
    x = embedded(params["embedding"], letters.T)
    last = []
    for layer, state in enumerate(states):
        inputs = x @ params[f"in{layer}"] + params[f"bias{layer}"]
        x = gated(params[f"state{layer}"], state, inputs)
        last.append(x[-1])
    return jnp.swapaxes(x @ params["out"] + params["out_bias"], 0, 1), jnp.stack(last)


@jax.jit
def _written(params: Params, start: jax.Array) -> jax.Array:
    """300 letters, drawn one after the other."""

    def write(carry: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[Any, jax.Array]:
        states, letter = carry
        logits, states = _read(params, states, letter[None, None])
        letter = jax.random.categorical(key, logits[0, -1])
        return (states, letter), letter

    _, states = _read(params, jnp.zeros((2, 1, _width)), start[None, :-1])
    keys = jax.random.split(jax.random.key(0), 300)
    return jax.lax.scan(write, (states, start[-1]), keys)[1]
