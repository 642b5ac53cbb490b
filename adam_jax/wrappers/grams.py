"""Grams: the gradient says where to, the optimizer how far.

    u = -sign(g) * |u|, of an update u that is to be added

Cao, Li & Song 2024, "Grams: Gradient Descent with Adaptive Momentum Scaling", Algorithm 1.
"""

import jax
import jax.numpy as jnp
import optax

from adam_jax.wrappers.by_gradient import by_gradient


def grams(
    inner: optax.GradientTransformation, *, descends: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Give each entry of an update the sign of its gradient's descent.

    Args:
      inner: any optimizer, or a direction. Weight decay in it changes lengths only; to keep it,
        wrap the direction and add the decay behind it.
      descends: whether updates of ``inner`` are to be added to parameters, as an optimizer's are,
        and not a direction such as `scale_by_adam`'s, against which a step goes.

    Returns:
      An Optax transformation with the state of ``inner``. Complex updates get the gradient's phase.

    Raises:
      TypeError: ``inner`` is no transformation.

    References:
      Cao, Li & Song 2024, "Grams: Gradient Descent with Adaptive Momentum Scaling", Algorithm 1,
      https://arxiv.org/abs/2412.17107.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = grams(adam_jax.adam(0.1))
      >>> params = jnp.array([1.0, -2.0])
      >>> _, state = tx.update(jnp.array([1.0, 1.0]), tx.init(params), params)
      >>> updates, state = tx.update(jnp.array([1.0, -0.5]), state, params)
      >>> [f"{x:.4f}" for x in updates]  # the mean of the second entry is still positive
      ['-0.1000', '0.0266']
    """
    return by_gradient(inner, descends, _turned)


@jax.jit
def _turned(sign: float, u: jax.Array, g: jax.Array) -> jax.Array:
    return sign * jnp.sign(g) * jnp.abs(u)
