"""Adam-mini, for one array: Adam with one mean square for a block of parameters.

    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * mean(g**2) over the block
    direction = mu / (1 - b1**t) / (sqrt(nu / (1 - b2**t)) + eps)

Zhang et al. 2024, "Adam-mini: Use Fewer Learning Rates To Gain More", Algorithm 1. Blocks should be
those of the Hessian's diagonal (its Algorithm 3): a head of queries or keys, an output of any other
matrix, a token of an embedding, all of a bias or norm. Inside ``shard_map`` a block is a shard's
own.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from adam_jax.rule import Coefficients, Moment, divides, ema, quotient, square
from adam_jax.rules.adam import AdamBase

Shape = tuple[int, ...]


_HEADS = re.compile(r"\b(q|k|wq|wk|query|key)(_?proj|_?kernel)?\b")
_TOKENS = re.compile(r"embed|\bw[tp]e\b|lm_?head")


def blocks_of_a_transformer(path: Any, leaf: Any) -> Shape:
    """The paper's blocks for parameters with JAX's usual names and shapes.

    By the names in the path, in this order:

    - ``embed``, ``wte``, ``wpe``, ``lm_head``: a token, which is the longest axis;
    - ``query``, ``key``, ``q_proj``, ``wq``...: a head, where the array has one: an axis before the
      last, as in (features, heads, head_dim); else, as (features, heads * head_dim) does not tell
      its heads, an output;
    - any other array of two axes or more: an output, which is the last axis, as in (inputs,
      outputs);
    - arrays of one axis or none, such as biases and norms: the whole array.
    """
    name = jax.tree_util.keystr(path).lower()
    shape: Shape = leaf.shape
    if len(shape) < 2:
        return tuple(min(n, 1) for n in shape)
    if _TOKENS.search(name):
        kept = shape.index(max(shape))
    elif _HEADS.search(name) and len(shape) > 2:
        kept = len(shape) - 2
    else:
        kept = len(shape) - 1
    return tuple(n if axis == kept else min(n, 1) for axis, n in enumerate(shape))


@dataclass(frozen=True)
class AdamMini(AdamBase):
    """Adam-mini, whose blocks a function chooses."""

    blocks: Callable[[Any, Any], Shape] = blocks_of_a_transformer

    moments: ClassVar[Mapping[str, Moment]] = {
        "mu": Moment(),
        "nu": Moment(signed=False, blocked=True),
    }
    # A mean of many squares may round up.
    reach: ClassVar[float] = 2.0

    def shape(self, path: Any, leaf: Any) -> Shape:
        """An entry a block."""
        blocks = tuple(self.blocks(path, leaf))
        if not divides(blocks, leaf.shape):
            name = f"params{jax.tree_util.keystr(path)}"
            raise ValueError(
                f"`blocks` must give as many axes as {name} has, each a divisor of its own:"
                f" {leaf.shape}, got {blocks}"
            )
        return blocks

    def update(
        self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The mean over the root of the block's mean square."""
        mu = ema(self.b1, mu, g)
        nu = ema(self.b2, nu, _mean_of_blocks(square(g), nu.shape))
        size = _spread(self.size(c, nu), g.shape)
        return quotient(self.mean(c, g, mu), size, self.eps), mu, nu


def _mean_of_blocks(x: jax.Array, blocks: Shape) -> jax.Array:
    parts = [size // count if count else 1 for size, count in zip(x.shape, blocks, strict=True)]
    split = x.reshape([n for pair in zip(blocks, parts, strict=True) for n in pair])
    # Divided first, for the sum could overflow.
    return jnp.sum(split * (1 / math.prod(parts)), axis=tuple(range(1, 2 * x.ndim, 2)))


def _spread(x: jax.Array, shape: Shape) -> jax.Array:
    parts = [size // count if count else 1 for size, count in zip(shape, x.shape, strict=True)]
    pairs = [n for pair in zip(x.shape, parts, strict=True) for n in pair]
    wide = jnp.expand_dims(x, tuple(range(1, 2 * x.ndim, 2)))
    return jnp.broadcast_to(wide, pairs).reshape(shape)
