"""Gradients scaled down, all by one factor, where their norm is above a limit.

    g = g * max_norm / norm where norm > max_norm, the norm over all entries of all arrays

Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", Algorithm 1.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from adam_jax.hyperparameters import Scalar, nonnegative
from adam_jax.norms import given_norm, precision
from adam_jax.rows import map_values, summed
from adam_jax.storage.native import narrow


class ClipByGlobalNormState(NamedTuple):
    """The norm that the last step's gradients had before they were clipped; 0 before the first."""

    norm: Any


def clip_by_global_norm(max_norm: Scalar) -> optax.GradientTransformationExtraArgs:
    """Scale gradients so that their norm, over the whole tree, is at most ``max_norm``.

    As `optax.clip_by_global_norm`, but the norm and the scaling are float32 (float64 where a leaf
    is) whatever the gradients' dtypes, and the norm is kept in the state, to be read: see
    `adam_jax.norms.global_norm`. Where it is at most ``max_norm`` no bit of a gradient changes.

    What is not finite stays loud, as in Optax and PyTorch: of an infinite norm finite entries
    become 0, and infinite ones NaN; of a NaN one all become NaN. `adam_jax.services.skip_unstable`
    leaves such steps out.

    Args:
      max_norm: a number >= 0, or a scalar array.

    Returns:
      An Optax transformation. Its ``update`` takes ``grad_norm``, the norm of what it is given
      where that is known already; all in a chain get it, so give it where it is the norm for all.
      Inside ``shard_map`` the norm is a shard's own unless it is given, as a scan of steps there
      needs: JAX's types tell what varies over shards.

    Raises:
      ValueError: ``max_norm`` is below 0, or not finite.
      TypeError: it, or ``grad_norm``, is no real scalar.

    References:
      Pascanu et al. 2013, "On the difficulty of training recurrent neural networks",
      https://arxiv.org/abs/1211.5063.

    Example:
      >>> import adam_jax, jax.numpy as jnp, optax
      >>> tx = optax.chain(clip_by_global_norm(1.0), adam_jax.adam(1e-3))
      >>> params = jnp.zeros(2)
      >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)
      >>> f"{state[0].norm:.4f}"
      '5.0000'
    """
    limit = nonnegative("max_norm", max_norm)

    def init(params: optax.Params) -> ClipByGlobalNormState:
        return ClipByGlobalNormState(jnp.zeros([], precision(params)))

    def update(
        updates: optax.Updates,
        state: ClipByGlobalNormState,
        params: optax.Params | None = None,
        *,
        grad_norm: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ClipByGlobalNormState]:
        del params, extra_args
        norm = given_norm(grad_norm, updates, precision([state.norm, updates]))
        clip = partial(_clip, norm, jnp.asarray(limit, norm.dtype))
        clipped = map_values(clip, summed(updates))
        return clipped, ClipByGlobalNormState(narrow(norm, state.norm.dtype))

    return optax.GradientTransformationExtraArgs(init, update)


# Jitted by itself, so that leaves of one shape are traced once.
@jax.jit
def _clip(norm: jax.Array, limit: jax.Array, g: jax.Array) -> jax.Array:
    # So that a norm that is NaN scales too.
    within = norm <= limit
    dtype = precision([norm, g])
    # XLA multiplies by the inverse of a divisor, and that of a huge one may be flushed to zero. A
    # divisor that is not wanted is 1, for the derivative divides too.
    shift = jnp.where(norm > 2.0**64, 2.0**-64, 1).astype(dtype)
    divisor, limit = jnp.where(within, 1, norm * shift).astype(dtype), limit.astype(dtype)

    def scaled(x: jax.Array) -> jax.Array:
        return x.astype(dtype) * shift / divisor * limit

    # In parts, for a complex quotient squares its divisor.
    parts = lax.complex(scaled(g.real), scaled(g.imag)) if jnp.iscomplexobj(g) else scaled(g)
    return jnp.where(within, g, parts.astype(g.dtype))
