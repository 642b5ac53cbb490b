"""How a problem's batches reach the compiled loop: once a seed, whatever the number of runs.

An epoch is a tree of *items* with a leading axis of steps. Where the problem gave arrays, an item
is a row of indices and the arrays themselves stay on the device, one copy for all seeds; where it
gave `batches(key)`, an item is the batch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax.race.errors import UsageError, blaming

Tree = Any  # a pytree of arrays

# An endless generator would fill the memory before anyone learnt why.
_MOST_BATCHES = 100_000


@dataclass(frozen=True)
class Feed:
    """A source of batches.

    Attributes:
      data: what every step may look into; `None` where items are batches already.
      epoch: `key -> items`, one epoch of them, stacked along a leading axis.
      pick: `(data, item) -> batch`, traceable.
    """

    data: Tree
    epoch: Callable[[jax.Array], Tree]
    pick: Callable[[Tree, Tree], Tree]


def from_arrays(data: Tree, batch_size: int, where: str) -> Feed:
    """Shuffles arrays anew for every epoch, and leaves out the last, smaller batch."""
    leaves = jax.tree.leaves(data)
    if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves):
        raise UsageError(f"{where}: `data` must be arrays, got {type(data).__name__}")
    with blaming(f"{where}: `data` must be arrays"):
        arrays = jax.tree.map(jnp.asarray, data)
    lengths = sorted({leaf.shape[0] if leaf.shape else 0 for leaf in jax.tree.leaves(arrays)})
    if len(lengths) > 1:
        raise UsageError(f"{where}: `data` must share their first axis, got lengths {lengths}")
    batch_size = positive_integer(batch_size, f"{where}: `batch_size`")
    length = lengths[0]
    if batch_size > length:
        raise UsageError(
            f"{where}: `batch_size` must be at most the length of `data`, {length}, "
            f"got {batch_size}"
        )

    def epoch(key: jax.Array) -> Tree:
        return shuffled(key, length, batch_size)

    def pick(data: Tree, item: jax.Array) -> Tree:
        return jax.tree.map(lambda array: array[item], data)

    return Feed(arrays, epoch, pick)


@partial(jax.jit, static_argnums=(1, 2))
def shuffled(key: jax.Array, length: int, batch_size: int) -> jax.Array:
    """The indices from 0 to `length` in random order, a row a batch."""
    steps = length // batch_size
    order = jax.random.permutation(key, length)[: steps * batch_size]
    return jnp.reshape(order, (steps, batch_size))


def from_batches(batches: Callable[[jax.Array], Iterable[Tree]], where: str, file: Path) -> Feed:
    """Takes each epoch from the problem's own iterable."""

    def epoch(key: jax.Array) -> Tree:
        with blaming(f"{where}: `batches` failed", file):
            found = list(islice(batches(key), _MOST_BATCHES + 1))
        if not 0 < len(found) <= _MOST_BATCHES:
            number = "none" if not found else f"more than {_MOST_BATCHES}"
            raise UsageError(
                f"{where}: `batches` must yield the batches of one epoch, got {number}"
            )
        shapes = [structure(batch) for batch in found]
        for index, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise UsageError(
                    f"{where}: `batches` must all have one shape (leave out a last, smaller one): "
                    f"batch 0 is {brief(shapes[0])}, batch {index} is {brief(shape)}"
                )
        with blaming(f"{where}: `batches` must yield trees of arrays"):
            return stack(found)

    return Feed(None, epoch, lambda _, item: item)


def positive_integer(value: Any, what: str) -> int:
    """Reads an integer of Python's or of numpy's, but no `True`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise UsageError(f"{what} must be a positive integer, got {value!r}")
    return int(value)


def structure(tree: Tree) -> Tree:
    """The shapes and dtypes of a tree, comparable with `==`."""
    leaves, treedef = jax.tree.flatten(tree)
    return tuple(jax.tree.map(_shape, leaves)), treedef


def brief(shape: Tree) -> str:
    """A structure's shapes, as a message shows them."""
    return ", ".join(f"{dtype}{list(size)}" for size, dtype in shape[0])


def stack(trees: list[Tree]) -> Tree:
    """Stacks trees of one shape along a new leading axis."""
    return jax.tree.map(_stack, *trees)


def _shape(leaf: Any) -> tuple[tuple[int, ...], str]:
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return tuple(array.shape), str(array.dtype)


def _stack(*leaves: Any) -> jax.Array:
    if isinstance(leaves[0], jax.Array) and jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
        bits = jnp.asarray(np.stack([jax.random.key_data(leaf) for leaf in leaves]))
        keys: jax.Array = jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaves[0]))
        return keys
    # In numpy: XLA would compile a concatenation with as many operands as there are batches.
    return jnp.asarray(np.stack(leaves))
