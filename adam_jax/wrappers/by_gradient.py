"""What the wrappers share: an update changed by its gradient, array by array, in float32."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

from adam_jax.hyperparameters import flag, transformation
from adam_jax.states import like
from adam_jax.transform import wide_gradients


def by_gradient(
    inner: optax.GradientTransformation,
    descends: bool,
    change: Callable[[float, jax.Array, jax.Array], jax.Array],
) -> optax.GradientTransformationExtraArgs:
    """``inner``, whose every update ``u`` of a gradient ``g`` becomes ``change(sign, u, g)``.

    The sign is that of an update along the gradient: -1 for one that is to be added.
    """
    sign = -1.0 if flag("descends", descends) else 1.0
    wrapped = optax.with_extra_args_support(transformation("inner", inner))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        steps, new = wrapped.update(updates, state, params, **extra_args)
        return jax.tree.map(partial(change, sign), steps, updates), like(new, state)

    return wide_gradients(optax.GradientTransformationExtraArgs(wrapped.init, update))
