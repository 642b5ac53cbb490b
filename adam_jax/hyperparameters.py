"""Hyperparameters: checked where they enter if static, taken as they are if traced.

A Python or NumPy number is static: its value is checked here, once, and it stays a double, so that
what is derived from it (``1 - b2``, ``log b2``) is exact to float32. A ``jax.Array`` is dynamic,
whether traced or not: only its shape and dtype are checked, and changing its value recompiles
nothing.
"""

import math
import numbers
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Scalar: TypeAlias = float | jax.Array
Schedule: TypeAlias = Callable[[jax.Array], Any]


def _scalar(name: str, value: Any, rule: str, holds: Callable[[float], bool]) -> Scalar:
    """``value`` as a Python float that obeys ``rule``, or as the 0-d array that it is."""
    if isinstance(value, jax.Array):
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.number):
            raise TypeError(f"`{name}` must be a scalar, got {value.dtype}{list(value.shape)}")
        return value
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be {rule}, got {value!r}")
    if not holds(float(value)):
        raise ValueError(f"`{name}` must be {rule}, got {value}")
    return float(value)


def nonnegative(name: str, value: Any) -> Scalar:
    """Check a finite number that is at least 0, such as ``eps``.

    >>> nonnegative("eps", -1e-8)
    Traceback (most recent call last):
    ValueError: `eps` must be a finite number >= 0, got -1e-08
    """
    return _scalar(name, value, "a finite number >= 0", lambda x: 0 <= x < math.inf)


def decay_rate(name: str, value: Any) -> Scalar:
    """Check the decay rate of a moving average, such as ``b2``.

    An array below float32 is refused: ``bfloat16(0.999)`` is 1, an average that never moves.

    >>> decay_rate("b2", 1.5)
    Traceback (most recent call last):
    ValueError: `b2` must be in [0, 1), got 1.5
    """
    b = _scalar(name, value, "in [0, 1)", lambda x: 0 <= x < 1)
    if (
        isinstance(b, jax.Array)
        and jnp.issubdtype(b.dtype, jnp.floating)
        and jnp.finfo(b.dtype).bits < 32
    ):
        raise TypeError(
            f"`{name}` must be float32 or wider, got {b.dtype}, in which 0.999 is 1"
            " (optax.inject_hyperparams takes hyperparam_dtype=jnp.float32)"
        )
    return b


def flag(name: str, value: Any) -> bool:
    """Check a switch, which must be static.

    >>> flag("nesterov", "yes")
    Traceback (most recent call last):
    TypeError: `nesterov` must be True or False, got 'yes'
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False, got {value!r}")
    return bool(value)


def seed_word(name: str, value: Any) -> np.uint32 | jax.Array:
    """Check a seed: an integer that fits 32 bits, or a scalar array of integers.

    >>> seed_word("seed", -1)
    Traceback (most recent call last):
    ValueError: `seed` must be an integer in [0, 2**32), got -1
    """
    if isinstance(value, jax.Array) and value.shape == () and jnp.isdtype(value.dtype, "integral"):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be an integer in [0, 2**32), got {value!r}")
    if not 0 <= int(value) < 2**32:
        raise ValueError(f"`{name}` must be an integer in [0, 2**32), got {value}")
    return np.uint32(int(value))


def scalar_or_schedule(name: str, value: Any) -> Scalar | Schedule:
    """Check a finite number that is at least 0, or pass a schedule ``count -> number`` on.

    >>> scalar_or_schedule("learning_rate", "fast")
    Traceback (most recent call last):
    TypeError: `learning_rate` must be a finite number >= 0 or a schedule, got 'fast'
    """
    if callable(value):
        return value  # type: ignore[no-any-return]
    return _scalar(name, value, "a finite number >= 0 or a schedule", lambda x: 0 <= x < math.inf)


def is_zero(value: Scalar) -> bool:
    """Whether it is known to be 0, so that what it adds can be left out of the program."""
    return not isinstance(value, jax.Array) and value == 0


def is_positive(value: Scalar) -> bool:
    """Whether it is known to be above 0, and far enough for float32 not to lose it when scaled."""
    return not isinstance(value, jax.Array) and value > 1e-30


DecayRate: TypeAlias = Annotated[Scalar, decay_rate]
NonNegative: TypeAlias = Annotated[Scalar, nonnegative]
Flag: TypeAlias = Annotated[bool, flag]
