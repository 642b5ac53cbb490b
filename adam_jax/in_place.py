"""Steps as PyTorch and Keras take them: parameters change in place, and are rounded each time.

    p = (1 - learning_rate * weight_decay) * p       in PyTorch
    p = p - learning_rate * weight_decay * p         in Keras
    p = p + term                                     for every term of the step, which sees this p

Elsewhere in this package all that a step adds is added up before it meets the parameter, which is
then rounded once. In float32 the two ways part by up to 4e-6 of a parameter in 100 steps, for what
is rounded off is much the same in each of them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.rule import Terms
from adam_jax.states import with_gradient
from adam_jax.storage.native import hold


def in_place(
    step: optax.GradientTransformationExtraArgs,
    shrink: optax.GradientTransformationExtraArgs,
    factor: bool,
) -> optax.GradientTransformationExtraArgs:
    """The updates by which parameters become what they would in place.

    Without parameters, they are the sums of the terms.

    Args:
      step: gives the terms.
      shrink: decays parameters.
      factor: whether the factor on parameters is rounded too, as in PyTorch.
    """

    def init(params: Any) -> Any:
        return step.init(params), shrink.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        of_step, of_shrink = state
        if params is None:
            _, of_shrink = shrink.update(updates, of_shrink)  # which raises, if it decays
            terms, of_step = step.update(updates, of_step, **extra_args)
            total = jax.tree.map(_sum, terms, is_leaf=lambda x: isinstance(x, Terms))
            return total, (of_step, of_shrink)

        params = with_gradient(updates, params)
        ones, zeros = (
            jax.tree.map(lambda p, x=x: jnp.array(x, p.real.dtype), params) for x in (1.0, 0.0)
        )
        if factor:  # which is what a decay makes of 1
            factors, of_shrink = shrink.update(ones, of_shrink, ones, **extra_args)
            shrunk = jax.tree.map(lambda p, k: _rounded(k * p), params, factors)
        else:
            lost, of_shrink = shrink.update(zeros, of_shrink, params, **extra_args)
            shrunk = jax.tree.map(lambda p, x: p + _rounded(x), params, lost)
        terms, of_step = step.update(updates, of_step, shrunk, **extra_args)
        moved = jax.tree.map(lambda p, before, u: _sum(u, before) - p, params, shrunk, terms)
        return moved, (of_step, of_shrink)

    return optax.GradientTransformationExtraArgs(init, update)


def _sum(terms: Any, start: Any = 0) -> Any:
    """From the first to the last; an array is one."""
    return sum(terms.terms if isinstance(terms, Terms) else (terms,), start)


def _rounded(x: jax.Array) -> jax.Array:
    """A product, rounded by itself, if it is real.

    XLA adds to a product before it rounds, and neither `jax.lax.reduce_precision` nor a barrier
    keeps it from that; a clamp does.
    """
    return x if jnp.iscomplexobj(x) else hold(x, float(jnp.finfo(x.dtype).max))
