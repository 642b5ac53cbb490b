"""An average of the parameters along the way, which lies nearer to the optimum than the last.

    average = (1 - b) * sum of b**(t - s) * p_s over s = 1, ..., t, over 1 - b**t

Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", section 7.2. Under noise parameters
wander about the optimum at a distance that the learning rate sets; their average does not. Here the
quotient itself is kept, and not the sum:

    average += (1 - b) / (1 - b**t) * (p_t - average)

so that it needs no correction when it is read, and a storage format meets numbers of the
parameters' own scale from the first step on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from adam_jax.hyperparameters import DecayRate, Scalar, seed_word
from adam_jax.mismatch import require_gradients, same_structure
from adam_jax.rule import Coefficients, Moment, Rule, debias
from adam_jax.states import only, where_moving
from adam_jax.storage import choice_of
from adam_jax.storage.at_rest import decoded, is_stored
from adam_jax.storage.native import narrow
from adam_jax.transform import lift

_DOMAIN = np.uint32(0x61766572)  # other bits than those of moments with the same seed


class AverageParamsState(NamedTuple):
    """How many steps are done, and the average of the parameters after each of them."""

    count: Any
    average: Any


def average_params(
    b: Scalar, dtype: Any = None, *, seed: Any = 0
) -> optax.GradientTransformationExtraArgs:
    """Average the parameters that each step leads to; its updates pass as they are.

    The last member of a chain, for it takes what it sees as the step that is made; inside of
    wrappers that may skip a step or make one in several, and outside of those that change it, such
    as `by_path` with factors of the learning rate, `cautious` and `grams`. Inside of
    `adam_jax.master_weights` it averages the float32 parameters.

    Args:
      b: decay rate, in [0, 1): about the last ``1 / (1 - b)`` steps count.
      dtype: how the average rests between two steps: what ``mu_dtype`` of `adam_jax.adam` takes.
        Formats that round by chance add noise, where parameters are about d from their average
        some ``sqrt(u * d / 2)``, u being the distance of two stored numbers there. Rounded to
        nearest, slow averages stop.
      seed: for these formats.

    Returns:
      An Optax transformation. Before its first step the average is the parameters of ``init``, and
      these do not count from then on. Parameters are held below 1.7e38.

    Raises:
      ValueError: a number is out of its range, ``update`` has no parameters, or they do not match.
      TypeError: an argument is of the wrong kind, or a parameter neither float nor complex.

    References:
      Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", section 7.2,
      https://arxiv.org/abs/1412.6980.

    Example:
      >>> import adam_jax, jax.numpy as jnp, optax
      >>> tx = optax.chain(adam_jax.adam(0.1), average_params(0.99))
      >>> params = jnp.array([1.0, -1.0])
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.array([1.0, 1.0]), state, params)
      ...     params = optax.apply_updates(params, updates)  # by -0.1
      >>> [f"{x:.4f}" for x in averaged_params(state)]
      ['0.8497', '-1.1503']
    """
    word = seed_word("seed", seed).astype(np.uint32) ^ _DOMAIN
    lifted = lift(_Average(b), choice_of("dtype", dtype), seed=word)

    def init(params: optax.Params) -> AverageParamsState:
        # The first step's rate is 1.
        _, state = lifted.update(params, lifted.init(params))
        return AverageParamsState(jnp.zeros([], jnp.int32), state.average)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, AverageParamsState]:
        del extra_args
        if params is None:
            raise ValueError("average_params needs `params`: update(updates, state, params)")
        require_gradients(updates, params)
        _, state = lifted.update(where_moving(_landing, updates, params), state)
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


def averaged_params(state: chex.ArrayTree, like: optax.Params | None = None) -> optax.Params:
    """The average that `average_params` keeps, wherever it is nested in a state.

    Args:
      state: of a transformation with one `average_params` in it.
      like: the parameters, for an average in their dtypes. Those that have none, for they are
        masked or have no gradient, are then their own.

    Returns:
      A tree like the parameters; without ``like`` in float32, or wider where they are.

    Raises:
      ValueError: there is no such state or more than one, or ``like`` is another tree.
    """
    average = only(state, AverageParamsState, "average_params").average
    values = jax.tree.map(decoded, average, is_leaf=is_stored)
    if like is None:
        return values
    with same_structure("`like` must be a tree like the parameters"):
        return jax.tree.map(_cast, values, like, is_leaf=_is_empty)


@dataclass(frozen=True)
class _Average(Rule):
    """An average of "gradients", each of which is a parameter after a step."""

    b: DecayRate

    State: ClassVar = AverageParamsState
    moments: ClassVar[Mapping[str, Moment]] = {"average": Moment()}
    # Nothing is squared: only the difference of two parameters must not overflow.
    reach: ClassVar[float] = 2.0**-63

    def coefficients(self, t: jax.Array) -> Coefficients:
        """The newest parameters' part."""
        return (jnp.where(t > 1, (1 - self.b) / debias(self.b, t), 1),)

    def update(self, c: Coefficients, g: jax.Array, average: jax.Array) -> tuple[jax.Array, ...]:
        """The average, from the nearer end, as in `adam_jax.rule.ema`."""
        (rate,) = c
        slow = rate < 0.5
        start, end = jnp.where(slow, average, g), jnp.where(slow, g, average)
        return g, start + jnp.where(slow, rate, 1 - rate) * (end - start)


@jax.jit
def _landing(update: jax.Array, p: jax.Array) -> jax.Array:
    """Where `optax.apply_updates` takes a parameter, in its precision."""
    with jax.numpy_dtype_promotion("standard"):
        total = _rounded(p, p.dtype) + _rounded(update, update.dtype)
        return _rounded(total, p.dtype)


def _rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """``x`` rounded as a cast to ``dtype`` would, but as none that XLA leaves out."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return x.astype(dtype)
    x, info = x.astype(jnp.float32), jnp.finfo(dtype)
    rounded = lax.reduce_precision(x, info.nexp, info.nmant)
    if dtype == jnp.bfloat16:
        return rounded
    # Of float16 that takes subnormals as 0.
    small = lax.round(x * 2.0**24, lax.RoundingMethod.TO_NEAREST_EVEN) * 2.0**-24
    return jnp.where(jnp.abs(x) < 2.0**-14, small, rounded)


def _cast(value: Any, p: Any) -> Any:
    return p if _is_empty(value) else narrow(value, jnp.result_type(p))


def _is_empty(x: Any) -> bool:
    return x is None or isinstance(x, optax.MaskedNode)
