"""What the wrappers share: an update changed by its gradient, array by array, in float32."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.transform import full_precision


def by_gradient(
    inner: optax.GradientTransformation, change: Callable[[jax.Array, jax.Array], jax.Array]
) -> optax.GradientTransformationExtraArgs:
    """``inner``, whose every update ``u`` of a gradient ``g`` becomes ``change(u, g)``."""
    wrapped = optax.with_extra_args_support(inner)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        steps, new = wrapped.update(updates, state, params, **extra_args)
        # Others' states may take the dtype of what they are given.
        new = jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), new, state)
        return jax.tree.map(change, steps, updates), new

    both = optax.GradientTransformationExtraArgs(wrapped.init, update)
    return full_precision(lambda _: both)
