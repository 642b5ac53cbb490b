"""What the wrappers share: an update changed by its gradient, array by array, in float32."""

from collections.abc import Callable
from typing import Any

import jax
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
        steps, state = wrapped.update(updates, state, params, **extra_args)
        return jax.tree.map(jax.jit(change), steps, updates), state

    both = optax.GradientTransformationExtraArgs(wrapped.init, update)
    return full_precision(lambda _: both)
