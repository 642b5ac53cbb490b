"""Adam-mini, for one array: Adam with one mean square for a block of parameters.

    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * mean(g**2) over the block
    direction = mu / (1 - b1**t) / (sqrt(nu / (1 - b2**t)) + eps)

Zhang et al. 2024, "Adam-mini: Use Fewer Learning Rates To Gain More", Algorithm 1. Blocks should be
those of the Hessian's diagonal (its Algorithm 3): a head of queries or keys, an output of any other
matrix, a token of an embedding, all of a bias or norm. Inside ``shard_map`` a block is a shard's
own.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax

from adam_jax.hyperparameters import brief, optional_function
from adam_jax.rule import (
    Coefficients,
    Moment,
    divides,
    ema,
    mean_of_blocks,
    quotient,
    spread,
    square,
)
from adam_jax.rules.adam import AdamBase

Shape = tuple[int, ...]


_TOKENS = re.compile(r"\w*embed(ding|dings|der)?|wte|wpe")
_HEADS = re.compile(r"query|key|[qk]|[qk]_proj|w[qk]|to_[qk]")
_VALUES = re.compile(r"value|v|v_proj|wv|to_v")


def blocks_of_a_transformer(path: Any, leaf: Any) -> Shape:
    """The paper's blocks for JAX's usual shapes, by the names along a parameter's path.

    - a table, whose last name, or the last before "weight", ends in ``embed``, ``embedding``,
      ``embeddings`` or ``embedder``, or is ``wte`` or ``wpe``: a token, the last axis but one of
      (tokens, features);
    - ``query``, ``key``, ``q_proj``, ``wk``...: a head, the last axis but one of (features, heads,
      head_dim) and of a bias (heads, head_dim); but an output of (features, heads * head_dim),
      which does not tell its heads;
    - ``value``, ``v_proj``...: an output, the last two axes of (features, heads, head_dim);
    - any other array of two axes or more: an output, the last axis of (inputs, outputs);
    - arrays of one axis or none, such as most biases and norms: the whole array.

    Axes before these are one block: layers that are stacked into one array want their own rule.
    """
    names = re.findall(r"\w+", jax.tree_util.keystr(path).lower())
    table = [name for name in names if name != "weight"][-1:]
    axes, several = len(leaf.shape), len(leaf.shape) > 2 or "bias" in names
    if axes < 2:
        kept: tuple[int, ...] = ()
    elif any(map(_TOKENS.fullmatch, table)) or (any(map(_HEADS.fullmatch, names)) and several):
        kept = (axes - 2,)
    elif any(map(_VALUES.fullmatch, names)) and several:
        kept = (axes - 2, axes - 1)
    else:
        kept = (axes - 1,)
    return tuple(n if axis in kept else min(n, 1) for axis, n in enumerate(leaf.shape))


@dataclass(frozen=True)
class AdamMini(AdamBase):
    """Adam-mini, whose blocks a function chooses."""

    blocks: Annotated[Callable[[Any, Any], Shape] | None, optional_function] = None

    moments: ClassVar[Mapping[str, Moment]] = {
        "mu": Moment(),
        "nu": Moment(signed=False, blocked=True),
    }
    # A mean of many squares may round up.
    reach: ClassVar[float] = 2.0

    def shape(self, path: Any, leaf: Any) -> Shape:
        """An entry a block."""
        shape: Shape = (self.blocks or blocks_of_a_transformer)(path, leaf)
        whole = isinstance(shape, tuple) and all(isinstance(n, int) for n in shape)
        if not whole or not divides(shape, leaf.shape):
            name = f"params{jax.tree_util.keystr(path)}"
            raise ValueError(
                f"`blocks` must give a tuple of as many integers as {name} has axes, each a divisor"
                f" of its own, {leaf.shape}, got {brief(shape)}"
            )
        return shape

    def update(
        self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The mean over the root of the block's mean square."""
        mu = ema(self.b1, mu, g)
        nu = ema(self.b2, nu, mean_of_blocks(square(g), nu.shape))
        size = spread(self.size(c, nu), g.shape)
        return quotient(self.mean(c, g, mu), size, self.eps), mu, nu
