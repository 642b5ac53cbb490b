"""One of several processes that train together: the child of `test_distributed`.

    python distributed_training.py PORT PROCESS PROCESSES CHECKPOINTS

Parameters are on each process, and of the optimizer's state a part (`adam_jax.sharding.zero`). They
go on from the last whole checkpoint, save one after every second step, take a step for each line
that they read, and say ``begun`` once they have met, and after a step ``step STEP DIGEST BYTES``:
the digest is of every bit of parameters and state, and the bytes are of the state on this process.
"""

import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import sharding, storage

EVERY = 2  # steps from one checkpoint to the next
BATCH = 8  # rows, which processes share
SHAPES = {"w": (8, 64), "scale": ()}


def optimizer():
    formats = {"mu_dtype": storage.eight_bit(32, min_size=64), "nu_dtype": storage.bfloat16()}
    return adam_jax.adamw(1e-2, b1=0.5, b2=0.75, **formats)


def beginning():
    return {name: np.full(shape, 0.5, np.float32) for name, shape in SHAPES.items()}


def batch(step):
    """Numbers of so few digits that their sums are exact, however they are divided."""
    rng = np.random.default_rng(step)
    return {
        name: (rng.integers(-63, 64, (BATCH, *shape)) / 64).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def loss(params, rows):
    """Its gradient is the sum of the rows: what differs between processes is only who adds up."""
    return sum(jnp.sum(params[name] * rows[name]) for name in params)


def take_of(tx):
    def take(params, state, rows):
        updates, state = tx.update(jax.grad(loss)(params, rows), state, params)
        return optax.apply_updates(params, updates), state

    return take


def digest(tree, whole=lambda x: x):
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.asarray(whole(leaf)).tobytes())
    return found.hexdigest()


def run(checkpoints):
    import orbax.checkpoint as ocp

    mesh = Mesh(np.array(jax.devices()), ("data",))
    everywhere, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    tx = sharding.zero(optimizer(), mesh, "data")

    def spread(tree, lying):
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, lying, lambda i: x[i]), tree
        )

    params = spread(beginning(), everywhere)
    shapes = {"params": params, "state": sharding.abstract_state(tx, params)}
    lying = jax.tree.map(lambda x: x.sharding, shapes)
    take = jax.jit(take_of(tx), donate_argnums=(0, 1), out_shardings=tuple(lying.values()))
    whole = jax.jit(lambda tree: tree, out_shardings=everywhere)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    with ocp.CheckpointManager(checkpoints, options=options) as manager:
        done = manager.latest_step() or 0
        if done:
            carry = manager.restore(done, args=ocp.args.StandardRestore(shapes))
        else:
            carry = {"params": params, "state": tx.init(params)}
        for step, _ in enumerate(sys.stdin, done):
            rows = spread(batch(step), divided)
            carry = dict(zip(carry, take(*carry.values(), rows), strict=True))
            held = sum(x.addressable_data(0).nbytes for x in jax.tree.leaves(carry["state"]))
            print("step", step + 1, digest(whole(carry)), held, flush=True)
            if (step + 1) % EVERY == 0:
                manager.save(step + 1, args=ocp.args.StandardSave(carry))


if __name__ == "__main__":
    port, process, processes, checkpoints = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{port}", int(processes), int(process), initialization_timeout=60
    )
    print("begun", flush=True)
    run(checkpoints)
