"""Weight decay: the places in a step where people put it, and the end of every optimizer's chain.

A number given as ``weight_decay`` means `by_learning_rate`, as in Optax, PyTorch's AdamW and Keras.
The others are asked for by name:

    u = -learning_rate * direction(g)

    l2                              u from the gradient g + rate * p
    by_learning_rate                u - learning_rate * rate * p
    by_learning_rate, after=True    u - learning_rate * rate * (p + u)
    proximal                        (p + u) / (1 + learning_rate * rate) - p
    by_schedule                     u - schedule(count) * rate * p
    independent                     u - rate * p
    in_place                        u - learning_rate * rate * p, rounded as in PyTorch or Keras

Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101,
tell l2 (their equation 1 and Algorithm 2's first line) from decoupled decay, which in their
Algorithm 2 is `by_schedule`: the schedule multiplies it, the base learning rate does not.

Each takes the extra argument ``weight_decay_scale`` of ``update``: a function from the updates to a
tree like them, of factors on each leaf's rate. `by_path` gives it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import optax

from adam_jax import decay_stages
from adam_jax.hyperparameters import DYNAMIC, Scalar, Schedule, flag, scalar_or_schedule
from adam_jax.mismatch import require_mask
from adam_jax.transform import full_precision

Rate: TypeAlias = Scalar | Schedule
Mask: TypeAlias = Any | Callable[[optax.Params], Any] | None
Stages: TypeAlias = Sequence[optax.GradientTransformation]


@dataclass(frozen=True)
class Decay(ABC):
    """A weight decay: its rate, and where in the step it is."""

    rate: Rate

    def __post_init__(self) -> None:
        forms = (l2, by_learning_rate, proximal, by_schedule, independent, in_place)
        if any(self.rate is form for form in forms):
            made = getattr(self.rate, "__name__", "")
            raise TypeError(
                "`weight_decay` must be a finite number >= 0 or a schedule, got the function"
                f" {made}; call it: {made}(...)"
            )
        object.__setattr__(self, "rate", scalar_or_schedule("weight_decay", self.rate))

    @abstractmethod
    def stages(self, direction: Stages, learning_rate: Rate, mask: Any) -> Stages:
        """The stages of an optimizer, from the gradient to the update.

        Args:
          direction: its first stages, to the direction.
          learning_rate: what its direction is multiplied by.
          mask: which parameters decay; ``None`` for all.
        """

    def optimizer(
        self, direction: Stages, learning_rate: Rate, mask: Any
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer of these stages, and with a state for each."""
        return optax.chain(*self.stages(direction, learning_rate, mask))


@dataclass(frozen=True)
class _NoDecay(Decay):
    def stages(self, direction: Stages, learning_rate: Rate, mask: Any) -> Stages:
        del mask
        return *direction, optax.scale_by_learning_rate(learning_rate)


@dataclass(frozen=True)
class _L2(Decay):
    def stages(self, direction: Stages, learning_rate: Rate, mask: Any) -> Stages:
        added = decay_stages.added(self.rate, mask)
        return added, *direction, optax.scale_by_learning_rate(learning_rate)


@dataclass(frozen=True)
class _ByLearningRate(Decay):
    def stages(self, direction: Stages, learning_rate: Rate, mask: Any) -> Stages:
        added = decay_stages.added(self.rate, mask)
        first, *others = direction
        return first, added, *others, optax.scale_by_learning_rate(learning_rate)


@dataclass(frozen=True)
class _OfStepped(Decay):
    """Parameters decay after they have moved, by ``x / divisor(x)`` of both rates' product x."""

    divisor: Callable[[Any], Any]

    def stages(self, direction: Stages, learning_rate: Rate, mask: Any) -> Stages:
        lost = decay_stages.product(lambda x: -x / self.divisor(x), learning_rate, self.rate)
        both = decay_stages.product(lambda x: x, learning_rate, self.rate)

        def growth(factor: Any, count: Any) -> Any:
            x = both(count) if callable(both) else both
            return factor * self.divisor(x) / self.divisor(factor * x)

        step = optax.scale_by_learning_rate(learning_rate)
        return *direction, step, decay_stages.of_stepped(decay_stages.added(lost, mask, growth))


@dataclass(frozen=True)
class _Independent(Decay):
    schedule: Rate

    def stages(self, direction: Stages, learning_rate: Rate, mask: Any) -> Stages:
        lost = decay_stages.added(
            decay_stages.product(lambda x: -x, self.rate, self.schedule), mask
        )
        return *direction, optax.scale_by_learning_rate(learning_rate), lost


@dataclass(frozen=True)
class _InPlace(_ByLearningRate):
    """Parameters shrink before the step, which sees them so; each result is rounded."""

    factor: bool

    def optimizer(
        self, direction: Stages, learning_rate: Rate, mask: Any
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer; of two numbers it multiplies the double-precision ones."""
        first, weights, *others = self.stages(direction, learning_rate, mask)
        both = decay_stages.product(lambda x: -x, learning_rate, self.rate)
        parts: tuple[Scalar, ...] = ()
        if not callable(both) and not isinstance(both, DYNAMIC):
            parts = decay_stages.in_two(both) if self.factor else (both,)
        lost = [decay_stages.added(part, mask) for part in parts]
        return decay_stages.changing_in_place((first, *others), weights, lost, self.factor)


@dataclass(frozen=True)
class TermByTerm(Decay):
    """`NO_DECAY` or `l2`, and a step's terms are added to parameters one after the other."""

    form: Decay

    def stages(self, direction: Stages, learning_rate: Rate, mask: Any) -> Stages:
        """Those of the form."""
        return self.form.stages(direction, learning_rate, mask)

    def optimizer(
        self, direction: Stages, learning_rate: Rate, mask: Any
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer, with the form's states."""
        return decay_stages.changing_in_place(self.stages(direction, learning_rate, mask))


def adds_terms(form: Decay) -> bool:
    """Whether an optimizer of this form takes a direction whose terms stay apart."""
    return isinstance(form, _InPlace | TermByTerm)


def l2(rate: Rate) -> Decay:
    """A penalty of ``rate / 2 * |p|**2`` in the loss: ``rate * p`` is added to the gradient.

    PyTorch's ``Adam(weight_decay=rate)``. Where gradients are large, parameters then decay less.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = adam_jax.adamw(0.1, weight_decay=l2(0.5))
      >>> p, g = jnp.array(2.0), jnp.array(-1.0)
      >>> print(tx.update(g, tx.init(p), p)[0])  # the gradient is -1 + 0.5 * 2 = 0
      -0.0
    """
    return _L2(rate)


def by_learning_rate(rate: Rate, after: bool = False) -> Decay:
    """The share of a parameter that a step takes off it, in units of the learning rate.

    Args:
      rate: a number >= 0, a schedule of the count of steps done, or a scalar array.
      after: whether of the parameter after its step, as some fused kernels do, and not before.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = adam_jax.adamw(0.1, weight_decay=by_learning_rate(0.5))
      >>> p, g = jnp.array(2.0), jnp.array(0.0)
      >>> print(f"{tx.update(g, tx.init(p), p)[0]:.4f}")
      -0.1000
    """
    return _OfStepped(rate, _one) if flag("after", after) else _ByLearningRate(rate)


def proximal(rate: Rate) -> Decay:
    """A penalty's proximal step: ``(p + u) / (1 + learning_rate * rate)``, as in Adan's paper.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = adam_jax.adan(0.1, weight_decay=proximal(10.0))
      >>> p, g = jnp.array(2.0), jnp.array(0.0)
      >>> print(f"{tx.update(g, tx.init(p), p)[0]:.4f}")
      -1.0000
    """
    return _OfStepped(rate, _one_plus)


def by_schedule(rate: Rate, schedule: Schedule) -> Decay:
    """``schedule(count) * rate`` of a parameter a step, whatever the base learning rate.

    That of the paper, whose learning rate is ``base * schedule(count)``.

    Example:
      >>> import adam_jax, jax.numpy as jnp, optax
      >>> schedule = optax.linear_schedule(1.0, 0.0, 100)
      >>> decay = by_schedule(0.01, schedule)
      >>> tx = adam_jax.adamw(lambda count: 1e-3 * schedule(count), weight_decay=decay)
      >>> p, g = jnp.array(2.0), jnp.array(0.0)
      >>> print(f"{tx.update(g, tx.init(p), p)[0]:.4f}")
      -0.0200
    """
    return _Independent(rate, scalar_or_schedule("schedule", schedule))


def independent(rate: Rate) -> Decay:
    """The share of a parameter that a step takes off it, whatever the learning rate.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = adam_jax.adamw(0.1, weight_decay=independent(0.01))
      >>> p, g = jnp.array(2.0), jnp.array(0.0)
      >>> print(f"{tx.update(g, tx.init(p), p)[0]:.4f}")
      -0.0200
    """
    return _Independent(rate, 1.0)


def in_place(rate: Rate, factor: bool = True) -> Decay:
    """As in PyTorch and Keras, which change parameters in place and round them each time.

    ``factor * p + u``, where the factor ``1 - learning_rate * rate``, the product and the sum are
    rounded to the precision of the arithmetic. So in float32 a run that moves from PyTorch goes on
    as there, mostly to the last digit; with `by_learning_rate`, which is nearer to exact, it parts
    by up to 6e-6 of a parameter in 100 steps. That is of numbers, whose product is in double
    precision as there: schedules and arrays are float32. In `lamb` the decay is outside of what is
    rescaled.

    Args:
      rate: as of `by_learning_rate`. In float32, of a ``learning_rate * rate`` below 3e-8 nothing
        is left.
      factor: whether there is one, as in PyTorch; else ``p - learning_rate * rate * p`` is rounded,
        as in Keras.

    Returns:
      A decay, for ``weight_decay`` of any optimizer here.

    Raises:
      ValueError: ``rate`` is negative.
      TypeError: it is no number, or ``factor`` no boolean.

    References:
      https://github.com/pytorch/pytorch/blob/v2.13.0/torch/optim/adam.py, ``_single_tensor_adam``;
      https://github.com/keras-team/keras/blob/v3.15.1/keras/src/optimizers/base_optimizer.py,
      ``_apply_weight_decay``.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> p, g = jnp.array(2.0), jnp.array(0.0)
      >>> for rate in (0.5, 2e-7):
      ...     tx = adam_jax.adamw(0.1, weight_decay=in_place(rate))
      ...     print(f"{tx.update(g, tx.init(p), p)[0]:.4f}")
      -0.1000
      0.0000
    """
    return _InPlace(rate, flag("factor", factor))


#: For who has none: its optimizers want no parameters, and their state is Optax's.
NO_DECAY = _NoDecay(0.0)


def descent(
    direction: optax.GradientTransformation,
    learning_rate: Rate,
    weight_decay: Decay | Rate = NO_DECAY,
    mask: Mask = None,
    *,
    rescale: Stages = (),
) -> optax.GradientTransformationExtraArgs:
    """An optimizer: steps against a direction, with weight decay, in float32 from end to end.

    Args:
      direction: gives the direction.
      learning_rate: what it is multiplied by; a number >= 0, a schedule, or a scalar array.
      weight_decay: a rate, which means `by_learning_rate`, or one of this module.
      mask: which parameters decay: a tree of booleans that is a prefix of the parameters, or a
        function from these to one; ``None`` for all.
      rescale: stages between decay and learning rate.

    Raises:
      ValueError: a rate is negative, or the mask no prefix of the parameters.
      TypeError: a rate is no number, or an entry of the mask no boolean.
    """
    rate = scalar_or_schedule("learning_rate", learning_rate)
    decay = weight_decay if isinstance(weight_decay, Decay) else _ByLearningRate(weight_decay)

    def chain(tree: optax.Params) -> optax.GradientTransformationExtraArgs:
        # A mask that is a function is asked about the parameters as they are, not widened.
        chosen = mask(tree) if callable(mask) else mask
        if chosen is not None:
            require_mask(chosen, tree)
        return decay.optimizer((direction, *rescale), rate, chosen)

    return full_precision(chain)


def _one(x: Any) -> Any:
    del x
    return 1


def _one_plus(x: Any) -> Any:
    return 1 + x
