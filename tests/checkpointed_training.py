"""A training run that can be killed at any time: the child process of `test_checkpoints`.

    python checkpointed_training.py DIGITS CHECKPOINTS [params] [state]

It goes on from the last whole checkpoint, which has of parameters and state what is named; if that
is nothing it saves nothing. It takes a step for each line that it reads, and says what it does:
before a checkpoint ``saving STEP``, after a step ``STEP DIGEST``, where the digest is of every bit
of the parameters and the optimizer's state.
"""

import hashlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import adam_jax
from adam_jax.services.skip_unstable import skip_unstable

EVERY = 2  # steps from one checkpoint to the next
BAD = 5  # steps from one batch that is not a number to the next


def start():
    """Parameters and state before the first step."""
    first, second = jax.random.split(jax.random.key(0))
    params = {
        "w1": 0.1 * jax.random.normal(first, (64, 32)),
        "b1": jnp.zeros(32),
        "w2": 0.1 * jax.random.normal(second, (32, 10)),
        "b2": jnp.zeros(10),
    }
    return {"params": params, "state": optimizer().init(params)}


def optimizer():
    stored = adam_jax.storage.eight_bit(min_size=0)
    rate = optax.cosine_decay_schedule(1e-2, 200)
    return skip_unstable(adam_jax.adamw(rate, mu_dtype=stored, nu_dtype=stored), threshold=6.0)


def loss(params, images, labels):
    hidden = jax.nn.relu(images @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def train(step, carry, images, labels):
    """One step, whose batch follows from its number alone."""
    chosen = jax.random.randint(jax.random.fold_in(jax.random.key(1), step), (32,), 0, len(labels))
    bad = jnp.where(step % BAD == BAD - 2, jnp.nan, 0.0)
    value, gradient = jax.value_and_grad(loss)(
        carry["params"], images[chosen] + bad, labels[chosen]
    )
    updates, state = optimizer().update(gradient, carry["state"], carry["params"], value=value)
    return {"params": optax.apply_updates(carry["params"], updates), "state": state}


def digest(tree):
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def run(digits, checkpoints, names):
    data = np.load(digits)
    jitted = jax.jit(train, donate_argnums=1)
    # On a device by choice, as what is restored is, for one and the same program.
    carry = jax.device_put(jax.jit(start)(), jax.devices()[0])
    # Not asynchronous, for then steps could overtake the checkpoint before them.
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    with ocp.CheckpointManager(checkpoints, options=options) as manager:
        done = manager.latest_step() or 0
        if done:
            kept = {name: carry[name] for name in names}
            carry |= manager.restore(done, args=ocp.args.StandardRestore(kept))
        for step, _ in enumerate(sys.stdin, done):
            carry = jitted(jnp.int32(step), carry, data["images"], data["labels"])
            print(step + 1, digest(carry), flush=True)
            if names and (step + 1) % EVERY == 0:
                print("saving", step + 1, flush=True)
                kept = {name: carry[name] for name in names}
                manager.save(step + 1, args=ocp.args.StandardSave(kept))


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
