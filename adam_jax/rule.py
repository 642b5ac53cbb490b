"""What a member of the family is, and the few formulas that all of them share.

A member is a `Rule`: the moments that it remembers, the coefficients that depend on the step alone,
and one update written for one array. It knows nothing of trees, dtypes or storage: `transform`
lifts it over a pytree, and the storage formats keep its moments between two steps.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adam_jax.hyperparameters import DYNAMIC, Exact, Scalar, is_positive

Coefficients: TypeAlias = tuple[Scalar, ...]


class Moment(NamedTuple):
    """One array that a member remembers for each parameter.

    Attributes:
      signed: whether it takes the gradient's sign, as the mean does, or is a magnitude, as the mean
        square is. A magnitude is real where the parameter is complex.
      initial: its value before the first step.
      blocked: whether it may have one entry for each block of the parameter's, and so a smaller
        shape; see `Rule.shape`.
      gradient: whether it is the gradient of the step before. `Rule.update` takes it, and does not
        return it: `transform` keeps the gradient.
      average: whether it is right to round it by chance, which is right on average. A maximum would
        rise.
    """

    signed: bool = True
    initial: Scalar = 0.0
    blocked: bool = False
    gradient: bool = False
    average: bool = True


class Terms(NamedTuple):
    """A direction as terms that stay apart; `decay_stages.changing_in_place` adds them."""

    terms: tuple[jax.Array, ...]


class Rule(ABC):
    """A member of the family, for one array; subclasses are frozen dataclasses.

    Fields are the hyperparameters. Those annotated with a check of `hyperparameters` are validated
    on construction. A rule is a pytree: its dynamic hyperparameters (``jax.Array`` or `Exact`) are
    its children, the static ones belong to its structure, so that it passes through ``jit``.
    """

    #: The state, a NamedTuple: a field a moment, and one or more that count the steps.
    State: ClassVar[Any]
    #: How many times its gradient a member may square; a finite gradient is held below what
    #: overflows then.
    reach: ClassVar[float] = 1.0

    @property
    @abstractmethod
    def moments(self) -> Mapping[str, Moment]:
        """The moments by their fields in the state, in the order of `update`'s arguments."""

    def shape(self, path: Any, leaf: Any) -> tuple[int, ...]:  # noqa: ARG002 - for who overrides it
        """The shape of the blocked moments of a parameter, given by its path and its own shape.

        It has as many axes as the parameter, and each divides the parameter's.
        """
        shape: tuple[int, ...] = leaf.shape
        return shape

    @abstractmethod
    def coefficients(self, t: jax.Array) -> Coefficients:
        """What depends on the step alone; taken once a step, not once an array.

        Args:
          t: the step, from 1; a scalar of the dtype that the arithmetic has.
        """

    #: ``update(c, g, *moments) -> (direction, *moments)``: `coefficients` of the step, the gradient
    #: and the moments in; the direction, in which a step of minus the learning rate goes, and the
    #: new moments out, but for the gradient. All have one shape, but for blocked moments; they are
    #: float32 or wider. The direction may be `Terms` of it.
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
    dynamic = {k: v for k, v in vars(rule).items() if isinstance(v, DYNAMIC)}
    static = {k: v for k, v in vars(rule).items() if k not in dynamic}
    return tuple(dynamic.values()), (tuple(dynamic), tuple(static.items()))


def _unflatten(cls: type[Rule], names: Any, values: Any) -> Rule:
    # Not through the constructor: JAX also unflattens with placeholders, which no check would pass.
    rule = object.__new__(cls)
    dynamic, static = names
    vars(rule).update(static, **dict(zip(dynamic, values, strict=True)))
    return rule


def divides(blocks: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an array of the first shape can hold an entry a block of one of the second."""
    return len(blocks) == len(shape) and all(
        m >= 1 and n % m == 0 if n else m == 0 for m, n in zip(blocks, shape, strict=True)
    )


def mean_of_blocks(x: jax.Array, blocks: tuple[int, ...]) -> jax.Array:
    """The mean over each block of an array, which has as many entries a block along each axis."""
    parts = [size // count if count else 1 for size, count in zip(x.shape, blocks, strict=True)]
    split = x.reshape([n for pair in zip(blocks, parts, strict=True) for n in pair])
    # Divided first, for the sum could overflow.
    return jnp.sum(split * (1 / math.prod(parts)), axis=tuple(range(1, 2 * x.ndim, 2)))


def spread(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """An entry a block, for each entry of an array of this shape."""
    parts = [size // count if count else 1 for size, count in zip(shape, x.shape, strict=True)]
    pairs = [n for pair in zip(x.shape, parts, strict=True) for n in pair]
    wide = jnp.expand_dims(x, tuple(range(1, 2 * x.ndim, 2)))
    return jnp.broadcast_to(wide, pairs).reshape(shape)


def ema(b: Scalar, average: jax.Array, new: jax.Array) -> jax.Array:
    """The exponential moving average ``b * average + (1 - b) * new``, without that form's bias.

    In float32 the two products settle on (1 - b) / (1 - fl(b)) times the truth, 1.3e-5 off at
    b = 0.999. An increment from the nearer end does not, and ``1 - b`` of a double, or of an
    `Exact`, is right. What no float32 average can do is to move by less than half a unit in the
    last place: towards a value that never changes it stops 3e-8 / (1 - b) short.
    """
    if isinstance(b, DYNAMIC):
        slow = b >= 0.5
        start, end = jnp.where(slow, average, new), jnp.where(slow, new, average)
        rate = jnp.where(slow, 1 - b, jnp.asarray(b)).astype(average.real.dtype)
        return start + rate * (end - start)
    if b < 0.5:
        return new + b * (average - new)
    return average + (1 - b) * (new - average)


def debias(b: Scalar, t: jax.Array, rounds: bool = False) -> jax.Array:
    """``1 - b**t``, by which an average that began at zero falls short (Kingma & Ba 2015, sec. 3).

    Through expm1 and a double logarithm: in float32 ``1 - b**t`` itself is wrong by 1.3e-5 at
    b = 0.999 and by 1.3e-2 at 1 - 1e-6. With ``rounds`` it is of the b that the dtype of t has.
    """
    b = rounded(b, t.dtype) if rounds else b
    if isinstance(b, DYNAMIC):
        # The plain form is exact enough where b is small, and has a derivative at 0.
        return jnp.where(b < 0.5, 1 - b**t, -jnp.expm1(t * log(b)))
    return -jnp.expm1(t * log(b))


def rounded(b: Scalar, dtype: Any) -> Scalar:
    """A hyperparameter as an array of this dtype has it."""
    if isinstance(b, Exact):
        return b.high.astype(dtype) + b.low.astype(dtype)
    return b.astype(dtype) if isinstance(b, jax.Array) else float(np.asarray(b, dtype))


def log(b: Scalar) -> Scalar:
    """The logarithm of a decay rate; of 0 a number so low that what decays by it is gone."""
    if isinstance(b, DYNAMIC):
        small = b < 0.5
        low = jnp.log(jnp.where(small, jnp.maximum(jnp.asarray(b), 1e-30), 1))
        return jnp.where(small, low, jnp.log1p(-jnp.where(small, 0.5, 1 - b)))
    return math.log(max(b, 1e-300))


def square(x: jax.Array) -> jax.Array:
    """``|x|**2``, real also where ``x`` is complex."""
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


@jax.custom_jvp
def safe_divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x / y``, and 0 where ``y`` is 0: without an ``eps``, what was never seen does not move."""
    zero = y == 0
    return jnp.where(zero, 0, x / jnp.where(zero, 1, y))  # both, for the derivative divides too


def inner_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """The product of each two entries, of complex ones as of two vectors in the plane."""
    return (x * y.conj()).real if jnp.iscomplexobj(x) else x * y


def with_magnitude(x: jax.Array, change: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """``x`` with ``change`` of its magnitude, and its own sign or phase; 0 where ``x`` is."""
    size = jnp.abs(x)
    return safe_divide(x, size) * change(size)


def quotient(x: jax.Array, y: jax.Array, eps: Scalar) -> jax.Array:
    """``x / y``, where ``y`` is at least ``eps``; if that may be 0, safely."""
    return x / y if is_positive(eps) else safe_divide(x, y)


def norm(x: jax.Array) -> jax.Array:
    """The Euclidean norm of all entries, whose squares may overflow or underflow; 0 of none.

    If it is itself too large it is held where there is room to the largest number.
    """
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), initial=0))
    unit = jnp.where(largest == 0, 1, largest)
    enough = float(jnp.finfo(x.dtype).max) / 4
    return jnp.minimum(unit * root(jnp.sum(square(x / unit))), enough)


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
