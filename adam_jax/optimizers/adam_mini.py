"""Adam-mini."""

from collections.abc import Callable
from typing import Any

import optax

from adam_jax.decay import Decay, Mask, Rate, descent
from adam_jax.hyperparameters import Scalar
from adam_jax.rules.adam_mini import AdamMini, Shape
from adam_jax.transform import lift


def adam_mini(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Decay | Rate = 0.0,
    mask: Mask = None,
    *,
    blocks: Callable[[Any, Any], Shape] | None = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adam-mini: one mean square for a block of parameters, which halves the state.

    By default a block is, by the names in a parameter's path: a token of an embedding (``embed``,
    ``wte``, ``wpe``), a head of attention's queries and keys (``query``, ``k_proj``, ``wq``... of
    shape (features, heads, head_dim)), an output of its values and of any other matrix (the last
    axis, as in (inputs, outputs)), and the whole of a bias or a norm of one axis. Queries and keys
    of two axes do not tell their heads, and have a block an output; stacked layers want their own
    ``blocks``.
    ``jax.tree.map(jnp.shape, tx.init(params)[0].nu)`` shows what was chosen.

    Args:
      learning_rate: see `adam`, as for what is not told here.
      b1: decay rate of the mean gradient.
      b2: decay rate of the blocks' mean square.
      eps: added to the root.
      weight_decay: see `adamw`.
      mask: see `adamw`.
      blocks: ``None``, or a function ``(path, leaf)`` to the shape of a parameter's mean square: as
        many axes as the parameter has, each a divisor of its own. A block is contiguous along each
        axis: queries of shape (64, 128) in 4 heads have blocks (1, 4), and matrices whose outputs
        come first (n, 1).
      mu_dtype: how the mean gradient rests.
      nu_dtype: how the blocks' mean square rests.
      seed: the seed of formats that round by chance.

    Raises:
      ValueError: as `adam`, and where ``blocks`` gives a shape that does not fit.

    References:
      Zhang et al. 2024, "Adam-mini: Use Fewer Learning Rates To Gain More", Algorithms 1 and 3,
      https://arxiv.org/abs/2406.16793.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adam_mini(0.1)
      >>> params = {"query": jnp.ones((6, 4, 8)), "mlp": jnp.ones((6, 5)), "bias": jnp.ones(5)}
      >>> {name: nu.shape for name, nu in tx.init(params)[0].nu.items()}
      {'bias': (1,), 'mlp': (1, 5), 'query': (1, 4, 1)}
    """
    rule = AdamMini(b1, b2, eps, blocks=blocks)
    return descent(lift(rule, mu_dtype, nu_dtype, seed=seed), learning_rate, weight_decay, mask)
