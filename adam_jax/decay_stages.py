"""The stages that the forms of weight decay are made of."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.hyperparameters import Scalar, Schedule, brief
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


def changing_in_place(
    step: Sequence[optax.GradientTransformation],
    weights: optax.GradientTransformationExtraArgs | None = None,
    lost: Sequence[optax.GradientTransformationExtraArgs] = (),
    factor: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """The updates by which parameters become what they would in place, as in PyTorch and Keras.

        p = (1 - learning_rate * weight_decay) * p    in PyTorch
        p = p - learning_rate * weight_decay * p      in Keras
        p = p + term                                  for every term of the step, which sees this p

    Elsewhere in this package all that a step adds is added up before it meets the parameter, which
    is then rounded once. In float32 the two ways part by up to 6e-6 of a parameter in 100 steps,
    for what is rounded off is much the same in each of them. Without parameters: the sums of terms.

    Args:
      step: the stages that give the terms; the last scales by the learning rate.
      weights: adds the decayed weights, if parameters decay; its state is the second of all.
      lost: add what parameters lose, in parts; if none, that is ``weights``, scaled as terms are.
      factor: whether the factor on parameters is rounded too, as in PyTorch.
    """
    stages = optax.chain(*step)
    scale = optax.with_extra_args_support(step[-1])

    def init(params: Any) -> Any:
        first, *others = stages.init(params)
        return first, *((weights.init(params),) if weights else ()), *others

    def shrunk(params: Any, state: Any, of_scale: Any, **extra_args: Any) -> tuple[Any, Any]:
        ones, zeros = (_alike(params, x) for x in (1.0, 0.0))
        decayed = ones if factor else params
        if lost:
            parts = [part.update(zeros, state, decayed, **extra_args)[0] for part in lost]
        else:
            assert weights is not None
            part, state = weights.update(zeros, state, decayed, **extra_args)
            parts = [scale.update(part, of_scale)[0]]
        return jax.tree.map(lambda p, *x: _shrunk(factor, p, *x), params, *parts), state

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        count = len(step) + bool(weights)
        if not isinstance(state, tuple) or len(state) != count:
            raise ValueError(f"`state` must be a tuple of {count} states, got {brief(state)}")
        first, *others = state
        of_weights = [others.pop(0)] if weights else []
        left = params = None if params is None else with_gradient(updates, params)
        if weights and params is None:
            weights.update(updates, of_weights[0])  # which raises
        elif weights:
            left, of_weights[0] = shrunk(params, of_weights[0], others[-1], **extra_args)
        terms, (first, *others) = stages.update(updates, (first, *others), left, **extra_args)
        new = (first, *of_weights, *others)
        if params is None:
            return jax.tree.map(_sum, terms, is_leaf=lambda x: isinstance(x, Terms)), new
        return jax.tree.map(_moved, params, left, terms), new

    return optax.GradientTransformationExtraArgs(init, update)


def in_two(x: float) -> tuple[float, float]:
    """A number as the sum of a float32 and of what that has rounded off."""
    high = float(np.float32(x))
    return high, x - high


def _alike(params: Any, x: float) -> Any:
    """A scalar in the place of each parameter, real, and of its precision."""
    return jax.tree.map(lambda p: jnp.array(x, p.real.dtype), params)


# Jitted by themselves, so that a step outside of a jit is one loop too, with the same bits.
@partial(jax.jit, static_argnums=0)
def _shrunk(factor: bool, p: jax.Array, lost: jax.Array, rest: Any = 0) -> jax.Array:
    """A parameter without what it loses; with a factor that is its share, in one part or two."""
    if not factor:
        return p + _rounded(lost.astype(p.dtype))
    share, rest = (jnp.asarray(x, p.real.dtype) for x in (lost, rest))
    left = _rounded(1 + share)
    # What that has rounded off joins the rest, so that the factor is rounded once.
    rest = _rounded(_rounded(share - _rounded(left - 1)) + rest)
    return _rounded(_rounded(left + rest) * p)


@jax.jit
def _moved(p: jax.Array, left: jax.Array, terms: Any) -> Any:
    return _sum(jax.tree.map(lambda u: u.astype(p.dtype), terms), left) - p


def _sum(terms: Any, start: Any = 0) -> Any:
    """From the first to the last; an array is one."""
    return sum(terms.terms if isinstance(terms, Terms) else (terms,), start)


def _rounded(x: jax.Array) -> jax.Array:
    """A product or a sum, rounded by itself, if it is real.

    XLA adds to a product before it rounds, and adds numbers in the order that it likes. Neither
    `jax.lax.reduce_precision` nor a barrier keeps it from that; a clamp does.
    """
    return x if jnp.iscomplexobj(x) else hold(x, float(jnp.finfo(x.dtype).max))


def _masked(mask: Any, tree: Any) -> Any:
    """The tree with ``None`` for leaves that a mask, a prefix of it, leaves out."""

    def one(keep: bool, part: Any) -> Any:
        return part if keep else jax.tree.map(lambda _: None, part)

    return jax.tree.map(one, mask, tree)
