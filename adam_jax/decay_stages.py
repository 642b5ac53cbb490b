"""The stages that the forms of weight decay are made of."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.hyperparameters import Scalar, Schedule
from adam_jax.rule import Terms
from adam_jax.states import where_moving, with_gradient
from adam_jax.storage.native import hold


def product(
    then: Callable[[Any], Any], a: Scalar | Schedule, b: Scalar | Schedule
) -> Scalar | Schedule:
    """``then(a * b)``, a schedule if one of them is."""
    if not callable(a) and not callable(b):
        return then(a * b)  # type: ignore[no-any-return]
    return lambda count: then((a(count) if callable(a) else a) * (b(count) if callable(b) else b))


def added(
    rate: Scalar | Schedule, mask: Any, growth: Callable[[Any, Any], Any] = lambda factor, _: factor
) -> optax.GradientTransformationExtraArgs:
    """`optax.add_decayed_weights` with factors, of a leaf's rate, in ``weight_decay_scale``.

    Args:
      rate: what parameters are multiplied by.
      mask: which ones.
      growth: of a factor and the count of steps: what ``rate`` is then multiplied by.
    """
    inner = optax.with_extra_args_support(optax.add_decayed_weights(rate, mask))

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        weight_decay_scale: Callable[..., Any] | None = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        del extra_args
        if params is not None:
            params = with_gradient(updates, params)
        if weight_decay_scale is not None and params is not None:
            count = optax.tree_utils.tree_get(state, "count")
            taken = updates if mask is None else _masked(mask, updates)
            scale = weight_decay_scale(taken, updates)

            # The parameter is multiplied, so that the rate and the state are as without.
            def grown(_: Any, p: Any, k: Any) -> Any:
                return p if k is None else p * growth(k, count)

            params = where_moving(grown, updates, params, scale)
        steps, state = inner.update(updates, state, params)
        return steps, state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def of_stepped(
    inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """A transformation that is shown the parameters as the updates will make them."""

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if params is not None:
            params = where_moving(lambda u, p: p + u, updates, params)
        steps, state = inner.update(updates, state, params, **extra_args)
        return steps, state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def in_place(
    step: optax.GradientTransformationExtraArgs,
    shrink: optax.GradientTransformationExtraArgs,
    factor: bool,
) -> optax.GradientTransformationExtraArgs:
    """The updates by which parameters become what they would in place, as in PyTorch and Keras.

        p = (1 - learning_rate * weight_decay) * p    in PyTorch
        p = p - learning_rate * weight_decay * p      in Keras
        p = p + term                                  for every term of the step, which sees this p

    Elsewhere in this package all that a step adds is added up before it meets the parameter, which
    is then rounded once. In float32 the two ways part by up to 4e-6 of a parameter in 100 steps,
    for what is rounded off is much the same in each of them. Without parameters: the sums of terms.

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
        # Of 1 a decay makes its factor; to 0 it adds what a parameter loses.
        start = jax.tree.map(lambda p: jnp.array(float(factor), p.real.dtype), params)
        decayed = start if factor else params
        found, of_shrink = shrink.update(start, of_shrink, decayed, **extra_args)
        shrunk = jax.tree.map(
            lambda p, x: _rounded(x * p) if factor else p + _rounded(x), params, found
        )
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


def _masked(mask: Any, tree: Any) -> Any:
    """The tree with ``None`` for leaves that a mask, a prefix of it, leaves out."""

    def one(keep: bool, part: Any) -> Any:
        return part if keep else jax.tree.map(lambda _: None, part)

    return jax.tree.map(one, mask, tree)
