"""States of several members in several formats, after some steps, for tests of surgery."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
from family import FORMATS

import adam_jax
from adam_jax.storage.at_rest import decoded, is_stored

SHAPE = (5, 37)  # rows are no multiple of a block
MAGNITUDES = ("nu", "nu_max", "n")
KINDS = [name for name, row in FORMATS.items() if not row.variant]


def by_name(moment):
    """The choice of the format that a parameter's path begins with."""
    return lambda path, leaf: FORMATS[path[0].key].arguments.get(moment)


STORED = {"mu_dtype": by_name("mu_dtype"), "nu_dtype": by_name("nu_dtype")}
# Each with the formats that it is tested in: the first in all, others in one of blocks by turns.
MEMBERS = {
    "adam": (adam_jax.adamw(0.1, **STORED), KINDS),
    "amsgrad": (adam_jax.amsgrad(0.1, **STORED), ["default", "eight_bit"]),
    "adan": (adam_jax.adan(0.1, **STORED), ["default", "four_bit"]),
    "adam_mini": (adam_jax.adam_mini(0.1, **STORED), ["default", "float8"]),
    "lion": (adam_jax.lion(0.1, mu_dtype=STORED["mu_dtype"]), ["bfloat16", "eight_bit"]),
    "momentum": (optax.sgd(0.1, momentum=0.9), ["default"]),
    "optax": (optax.amsgrad(0.1), ["default"]),
}


def tree(member, seed=0, shape=SHAPE):
    """For each format a leaf of this shape, and for the first one another."""
    rng = np.random.default_rng(seed)
    first, *others = MEMBERS[member][1]
    shapes = {first: {"embed": shape, "out": SHAPE}} | {name: {"embed": shape} for name in others}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


@cache
def trained(member):
    """A jitted update, and the state after three."""
    tx, params = MEMBERS[member][0], tree(member)
    update, state = jax.jit(tx.update), tx.init(params)
    for seed in (1, 2, 3):
        _, state = update(tree(member, seed), state, params)
    return update, state


def values(state):
    """Moments' values by field, format and leaf; counts by their path."""
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_stored):
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        at = next((i for i, name in enumerate(names) if name in KINDS), 1)
        found[tuple(names[at - 1 :])] = np.asarray(decoded(x))
    return found


def both_values(state):
    """The value of Adam's two moments of one array."""
    return [np.asarray(decoded(x)) for x in (state[0].mu, state[0].nu)]
