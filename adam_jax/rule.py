"""What a member of the family is, and the few formulas that all of them share.

A member is a `Rule`: the moments that it remembers, the coefficients that depend on the step alone,
and one update written for one array. It knows nothing of trees, dtypes or storage: `transform`
lifts it over a pytree, and the storage formats keep its moments between two steps.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias, get_type_hints

import jax
import jax.numpy as jnp

from adam_jax.hyperparameters import Scalar

Coefficients: TypeAlias = tuple[jax.Array, ...]


class Moment(NamedTuple):
    """One array that a member remembers for each parameter.

    Attributes:
      signed: whether it takes the gradient's sign, as the mean does, or is a magnitude, as the mean
        square is. A magnitude is real where the parameter is complex.
      initial: its value before the first step.
    """

    signed: bool = True
    initial: float = 0.0


class Rule(ABC):
    """A member of the family, for one array; subclasses are frozen dataclasses.

    Fields are the hyperparameters. Those annotated with a check of `hyperparameters` are validated
    on construction. A rule is a pytree: its dynamic hyperparameters (``jax.Array``) are the leaves,
    the static ones belong to its structure, so that it passes through ``jit`` as an argument.
    """

    #: The state, a NamedTuple: ``count`` and then one field a moment.
    State: ClassVar[Any]
    #: One a moment, in the order of the state's fields and of `update`'s arguments.
    moments: ClassVar[tuple[Moment, ...]]

    @abstractmethod
    def coefficients(self, t: jax.Array) -> Coefficients:
        """What depends on the step alone; taken once a step, not once an array.

        Args:
          t: the step, from 1; a scalar of the dtype that the arithmetic has.
        """

    #: ``update(c, g, *moments) -> (direction, *moments)``: `coefficients` of the step, the gradient
    #: and the moments in; the direction, in which a step of minus the learning rate goes, and the
    #: new moments out. All have one shape; they are float32 or wider, and a finite gradient's
    #: square is finite.
    update: ClassVar[Callable[..., tuple[jax.Array, ...]]]

    def astype(self, dtype: Any) -> Self:
        """The same rule with its dynamic hyperparameters in ``dtype``, or wider where they are."""
        cast: Self = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, dtype)), self)
        return cast

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_node(cls, _flatten, lambda *parts: _unflatten(cls, *parts))

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            for check in getattr(hint, "__metadata__", ()):
                object.__setattr__(self, name, check(name, getattr(self, name)))


def _flatten(rule: Rule) -> tuple[tuple[Any, ...], Any]:
    dynamic = {k: v for k, v in vars(rule).items() if isinstance(v, jax.Array)}
    static = {k: v for k, v in vars(rule).items() if k not in dynamic}
    return tuple(dynamic.values()), (tuple(dynamic), tuple(static.items()))


def _unflatten(cls: type[Rule], names: Any, values: Any) -> Rule:
    # Not through the constructor: JAX also unflattens with placeholders, which no check would pass.
    rule = object.__new__(cls)
    dynamic, static = names
    vars(rule).update(static, **dict(zip(dynamic, values, strict=True)))
    return rule


def ema(b: Scalar, average: jax.Array, new: jax.Array) -> jax.Array:
    """The exponential moving average ``b * average + (1 - b) * new``, without that form's bias.

    In float32 the two products settle on (1 - b) / (1 - fl(b)) times the truth, 1.3e-5 off at
    b = 0.999. An increment from the nearer end does not, and a static ``1 - b`` is a double. What
    no float32 average can do is to move by less than half a unit in the last place: towards a value
    that never changes it stops 3e-8 / (1 - b) short.
    """
    if isinstance(b, jax.Array):
        slow = b >= 0.5
        start, end = jnp.where(slow, average, new), jnp.where(slow, new, average)
        rate = jnp.where(slow, 1 - b, b).astype(average.real.dtype)
        return start + rate * (end - start)
    if b < 0.5:
        return new + b * (average - new)
    return average + (1 - b) * (new - average)


def debias(b: Scalar, t: jax.Array) -> jax.Array:
    """``1 - b**t``, by which an average that began at zero falls short (Kingma & Ba 2015, sec. 3).

    Through expm1 and a double logarithm: in float32 ``1 - b**t`` itself is wrong by 1.3e-5 at
    b = 0.999 and by 1.3e-2 at 1 - 1e-6.
    """
    if isinstance(b, jax.Array):
        small = b < 0.5  # where log(b) may be infinite, and the plain form is exact enough
        log_b = jnp.log1p(jnp.where(small, 0.5, b) - 1)
        return jnp.where(small, 1 - b**t, -jnp.expm1(t * log_b))
    return -jnp.expm1(t * (math.log(b) if b > 0 else -math.inf))


def square(x: jax.Array) -> jax.Array:
    """``|x|**2``, real also where ``x`` is complex."""
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


@jax.custom_jvp
def safe_divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x / y``, and 0 where ``y`` is 0: without an ``eps``, what was never seen does not move."""
    zero = y == 0
    return jnp.where(zero, 0, x / jnp.where(zero, 1, y))  # both, for the derivative divides too


@jax.custom_jvp
def root(x: jax.Array) -> jax.Array:
    """The square root, whose derivative at 0 is taken as 0 and not as infinity."""
    return jnp.sqrt(x)


# So that one can differentiate through a step of any order also where a gradient is zero.
@safe_divide.defjvp
def _safe_divide_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, y), (dx, dy) = primals, tangents
    quotient = safe_divide(x, y)
    return quotient, safe_divide(dx - quotient * dy, y)


@root.defjvp
def _root_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    r = root(*primals)
    return r, safe_divide(*tangents, 2 * r)
