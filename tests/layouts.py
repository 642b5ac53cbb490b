"""Meshes of 8 devices, a small tree, and the steps that it takes on one device."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import FORMATS
from jax.sharding import Mesh

import adam_jax

COLLECTIVES = ["all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"]
KINDS = {"auto": None}
if hasattr(jax.sharding, "AxisType"):
    KINDS["explicit"] = jax.sharding.AxisType.Explicit
SHAPES = {"w": (16, 64), "b": (64,), "scale": ()}

# For a scan in `shard_map`, which the older one cannot check.
SCANNED = {}
if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:  # its older place
    from jax.experimental.shard_map import shard_map  # noqa: F401

    SCANNED = {"check_rep": False}


def mesh_of(shape, kind="auto"):
    assert jax.device_count() == 8
    if kind not in KINDS:
        pytest.skip("this JAX has automatic axes only")
    axes = {} if KINDS[kind] is None else {"axis_types": (KINDS[kind],) * len(shape)}
    return Mesh(np.array(jax.devices()).reshape(shape), ("x", "y")[: len(shape)], **axes)


# XLA contracts a product and a sum, or does not, as the loop is long. With these decay rates and
# gradients of few digits the products in an average are exact, and it is the same either way.
@cache
def optimizer(name):
    return adam_jax.adamw(1e-2, b1=0.5, b2=0.75, nesterov=True, **FORMATS[name].arguments)


def arrays(count, shapes):
    """Trees of no symmetry, 4 decades and 9 binary digits."""
    rng = np.random.default_rng(0)

    def noise(shape):
        digits = rng.integers(-511, 512, shape)
        return (digits * 2.0 ** rng.integers(-13, 0, shape)).astype(np.float32)

    return [{name: noise(shape) for name, shape in shapes.items()} for _ in range(count)]


def step(tx, params, state, gradient):
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), updates, state


def descend(stepped, params, state, stream):
    for gradient in stream:
        params, updates, state = stepped(params, state, gradient)
    return params, updates, state


@cache
def alone(name):
    """Parameters, updates and state after 4 steps on one device."""
    tx = optimizer(name)
    params, *stream = jax.tree.map(jnp.asarray, arrays(5, SHAPES))
    result = descend(jax.jit(partial(step, tx)), params, jax.jit(tx.init)(params), stream)
    assert len(result[0]["w"].devices()) == 1
    return result


def collectives(program):
    """How often each is in a compiled program, by name; of those merged into one, each operand."""
    found = dict.fromkeys(COLLECTIVES, 0)
    for shapes, name in re.findall(r"= (.*?) ([a-z-]+?)(?:-start)?\(", program.as_text()):
        if name in found:
            found[name] += len(re.findall(r"[a-z]+[0-9]+\[", shapes))
    return {name: count for name, count in found.items() if count}


def device_bytes(tree):
    """What a tree takes on each device."""
    found = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            found[shard.device] = found.get(shard.device, 0) + shard.data.nbytes
    return found
