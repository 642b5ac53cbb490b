"""Cautious: no entry moves against what its own gradient asks for now.

    mask = u * g < 0, of an update u that is to be added
    u = u * mask / max(mean(mask), 1e-3), the mean over each array

Liang et al. 2024, "Cautious Optimizers: Improving Training with One Line of Code"; the bound
1e-3 is its own code's.
"""

import jax
import jax.numpy as jnp
import optax

from adam_jax.rule import inner_product
from adam_jax.wrappers.by_gradient import by_gradient


def cautious(
    inner: optax.GradientTransformation, *, descends: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Leave out what an update moves against its gradient, and lengthen the rest by as much.

    Args:
      inner: any optimizer, or a direction. Weight decay in it is left out where the update is; to
        keep it, as the paper does, wrap the direction and add the decay behind it.
      descends: whether updates of ``inner`` are to be added to parameters, as an optimizer's are,
        and not a direction such as `scale_by_adam`'s, against which a step goes.

    Returns:
      An Optax transformation with the state of ``inner``. The mean of the mask is an array's, and
      inside ``shard_map`` a shard's.

    Raises:
      TypeError: ``inner`` is no transformation.

    References:
      Liang et al. 2024, "Cautious Optimizers: Improving Training with One Line of Code",
      https://arxiv.org/abs/2411.16085.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = cautious(adam_jax.adam(0.1))
      >>> params = jnp.array([1.0, -2.0])
      >>> _, state = tx.update(jnp.array([1.0, 1.0]), tx.init(params), params)
      >>> updates, state = tx.update(jnp.array([1.0, -0.5]), state, params)
      >>> [f"{abs(x):.4f}" for x in updates]  # the second entry's mean still points the other way
      ['0.2000', '0.0000']
    """
    return by_gradient(inner, descends, _masked)


@jax.jit
def _masked(sign: float, u: jax.Array, g: jax.Array) -> jax.Array:
    # Of signs, for the product of two small numbers is 0.
    kept = inner_product(jnp.sign(u), sign * jnp.sign(g)) > 0
    # The sum, for the mean of no entries is NaN.
    share = jnp.sum(kept, dtype=u.real.dtype) / max(u.size, 1)
    # Multiplied and not chosen, so that what is not finite stays loud.
    return u * (kept / jnp.maximum(share, 1e-3))
