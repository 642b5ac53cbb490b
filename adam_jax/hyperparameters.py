"""Hyperparameters: checked where they enter if static, taken as they are if traced.

A Python or NumPy number is static: its value is checked here, once, and it stays a double, so that
what is derived from it (``1 - b2``, ``log b2``) is exact to float32. A ``jax.Array`` is dynamic,
whether traced or not: only its shape and dtype are checked, and changing its value recompiles
nothing. Of the decay rate 0.999 float32 loses so much that 1 - b is 1.3e-5 off: `Exact` is a
dynamic number that has not lost it.
"""

import numbers
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

Scalar: TypeAlias = float | jax.Array
Schedule: TypeAlias = Callable[[jax.Array], Any]


@partial(jax.tree_util.register_dataclass, data_fields=["high", "low"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class Exact:
    """A dynamic number, as the sum of a float32 and of what that has rounded off.

    Taken from a number, as in ``1 - x``, it is all of it; anything else has it rounded. Operators
    take it as they take an array, and so does ``jnp.asarray``, which other functions may need.

    >>> x = Exact.of(0.999)
    >>> f"{1 - x:.8f} {1 - x.high:.8f}"
    '0.00100000 0.00099999'
    """

    high: jax.Array
    low: jax.Array

    @classmethod
    def of(cls, value: Any) -> "Exact":
        """A number in two float32 parts, neither of which is another's array."""
        value = value if isinstance(value, jax.Array) else np.float64(value)
        high = value.astype(np.float32)
        low = (value - high.astype(value.dtype)).astype(np.float32)
        return cls(jnp.array(high), jnp.array(low))

    def __rsub__(self, other: Any) -> Any:
        return (other - self.high) - self.low

    def __jax_array__(self) -> jax.Array:
        return self.high


def _rounded(operator: str) -> Callable[..., Any]:
    return lambda self, *others: getattr(self.high, operator)(*others)


for _operator in (
    *("__neg__", "__add__", "__radd__", "__sub__", "__mul__", "__rmul__", "__truediv__"),
    *("__rtruediv__", "__pow__", "__rpow__", "__lt__", "__le__", "__gt__", "__ge__"),
):
    setattr(Exact, _operator, _rounded(_operator))

#: Which types of numbers may change without recompilation.
DYNAMIC = (jax.Array, Exact)

_KNOWN: ContextVar[dict[int, Any]] = ContextVar("known")


@contextmanager
def known(values: Iterable[Exact]) -> Iterator[None]:
    """While it lasts, a check that is given one's ``high`` knows of the whole number.

    So functions of others see arrays, as they want, and nothing is lost where it matters to ours.
    """
    token = _KNOWN.set(_KNOWN.get({}) | {id(x.high): x for x in values})
    try:
        yield
    finally:
        _KNOWN.reset(token)


def brief(value: Any) -> str:
    """A value as an error shows it, on one line: an array by its dtype and shape."""
    if getattr(value, "shape", ()) or isinstance(value, jax.Array):
        return f"{value.dtype}{list(value.shape)}"
    lines = repr(value).splitlines()
    return lines[0] if len(lines) == 1 and len(lines[0]) <= 80 else f"{lines[0][:80]}..."


def _scalar(name: str, value: Any, rule: str, holds: Callable[[float], bool]) -> Scalar:
    """``value`` as a Python float that obeys ``rule``, or as the 0-d array that it is."""
    if isinstance(value, jax.Array):
        real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
        if value.shape != () or not real:
            raise TypeError(f"`{name}` must be a real scalar, got {brief(value)}")
        return value
    if isinstance(value, np.ndarray | np.generic) and value.shape == ():
        value = float(value) if jnp.issubdtype(value.dtype, jnp.floating) else value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        hint = ""
        if is_schedule(value) and "schedule" not in rule:
            hint = "; adam_jax.with_hyperparameters takes schedules"
        raise TypeError(f"`{name}` must be {rule}, got {brief(value)}{hint}")
    if not holds(value):  # type: ignore[arg-type]
        raise ValueError(f"`{name}` must be {rule}, got {brief(value)}")
    return float(value)


def is_schedule(value: Any) -> bool:
    """Whether it may be one: a class is called to be made, so `jnp.bfloat16` is none."""
    return callable(value) and not isinstance(value, type)


def _exact(name: str, value: Scalar) -> Scalar:
    """Refuse an array below float32: bfloat16(0.999) is 1, and float16(1e-8) is 0."""
    if (
        isinstance(value, jax.Array)
        and jnp.issubdtype(value.dtype, jnp.floating)
        and jnp.finfo(value.dtype).bits < 32
    ):
        raise TypeError(
            f"`{name}` must be float32 or wider, got {value.dtype}, which rounds it too far"
            " (optax.inject_hyperparams takes hyperparam_dtype=jnp.float32)"
        )
    return value


def nonnegative(name: str, value: Any) -> Scalar:
    """Check a finite number that is at least 0, such as ``eps``.

    >>> nonnegative("eps", -1e-8)
    Traceback (most recent call last):
    ValueError: `eps` must be a finite number >= 0, got -1e-08
    """
    return number("a finite number >= 0", _nonnegative)(name, value)


def optional_nonnegative(name: str, value: Any) -> Scalar | None:
    """Check ``None`` or a finite number that is at least 0."""
    rule = "None or a finite number >= 0"
    return None if value is None else number(rule, _nonnegative)(name, value)


def number(rule: str, holds: Callable[[float], bool]) -> Callable[[str, Any], Scalar]:
    """A check of a number that obeys ``rule``.

    >>> number(">= 4", lambda x: x >= 4)("threshold", 3)
    Traceback (most recent call last):
    ValueError: `threshold` must be >= 4, got 3
    """
    return lambda name, value: _exact(name, _scalar(name, value, rule, holds))


def decay_rate(name: str, value: Any) -> Scalar:
    """Check the decay rate of a moving average, such as ``b2``.

    >>> decay_rate("b2", 1.5)
    Traceback (most recent call last):
    ValueError: `b2` must be in [0, 1), got 1.5
    """
    return _decay_rate(name, value, "in [0, 1)")


def _decay_rate(name: str, value: Any, rule: str) -> Scalar:
    if not isinstance(value, Exact):
        value = number(rule, lambda x: 0 <= x < 1)(name, value)
    whole: Scalar = _KNOWN.get({}).get(id(value), value)
    return whole


def flag(name: str, value: Any) -> bool:
    """Check a switch, which must be static.

    >>> flag("nesterov", "yes")
    Traceback (most recent call last):
    TypeError: `nesterov` must be True or False, got 'yes'
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False, got {brief(value)}")
    return bool(value)


def whole(name: str, value: Any, rule: str, holds: Callable[[int], bool]) -> int:
    """Check a static integer that obeys ``rule``.

    >>> whole("block_size", 7, "a positive even number", lambda n: n > 0 == n % 2)
    Traceback (most recent call last):
    ValueError: `block_size` must be a positive even number, got 7
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be {rule}, got {brief(value)}")
    if not holds(int(value)):
        raise ValueError(f"`{name}` must be {rule}, got {value}")
    return int(value)


def function(name: str, value: Any) -> Callable[..., Any]:
    """Check a function.

    >>> function("clip_value_fn", 1.0)
    Traceback (most recent call last):
    TypeError: `clip_value_fn` must be a function, got 1.0
    """
    if not callable(value):
        raise TypeError(f"`{name}` must be a function, got {brief(value)}")
    return value  # type: ignore[no-any-return]


def optional_function(name: str, value: Any) -> Callable[..., Any] | None:
    """Check ``None`` or a function."""
    return None if value is None else function(name, value)


def one_of(name: str, value: Any, names: tuple[str, ...]) -> str:
    """Check a choice.

    >>> one_of("rounding", "up", ("nearest", "stochastic"))
    Traceback (most recent call last):
    ValueError: `rounding` must be 'nearest' or 'stochastic', got 'up'
    """
    if not isinstance(value, str) or value not in names:
        rule = " or ".join(map(repr, names))
        raise ValueError(f"`{name}` must be {rule}, got {brief(value)}")
    return str(value)


def transformation(name: str, value: Any) -> optax.GradientTransformation:
    """Check an Optax transformation, by the two functions that it has.

    >>> transformation("inner", 1)
    Traceback (most recent call last):
    TypeError: `inner` must be an Optax transformation, got 1
    """
    if not all(callable(getattr(value, method, None)) for method in ("init", "update")):
        raise TypeError(f"`{name}` must be an Optax transformation, got {brief(value)}")
    return value


def seed_word(name: str, value: Any) -> np.uint32 | jax.Array:
    """Check a seed: an integer that fits 32 bits, or a scalar array of integers.

    >>> seed_word("seed", -1)
    Traceback (most recent call last):
    ValueError: `seed` must be an integer in [0, 2**32), got -1
    """
    if isinstance(value, jax.Array) and value.shape == () and jnp.isdtype(value.dtype, "integral"):
        return value
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    return np.uint32(whole(name, value, "an integer in [0, 2**32)", lambda n: 0 <= n < 2**32))


def scalar_or_schedule(name: str, value: Any) -> Scalar | Schedule:
    """Check a finite number that is at least 0, or pass a schedule ``count -> number`` on.

    >>> scalar_or_schedule("learning_rate", "fast")
    Traceback (most recent call last):
    TypeError: `learning_rate` must be a finite number >= 0 or a schedule, got 'fast'
    """
    if callable(value):
        return value  # type: ignore[no-any-return]
    return number("a finite number >= 0 or a schedule", _nonnegative)(name, value)


def _nonnegative(x: float) -> bool:
    return 0 <= x <= sys.float_info.max


def decay_rate_or_schedule(name: str, value: Any) -> Scalar | Schedule:
    """Check a number in [0, 1), or pass a schedule on."""
    if callable(value):
        return value  # type: ignore[no-any-return]
    return _decay_rate(name, value, "in [0, 1) or a schedule")


def optional_steps(name: str, value: Any) -> int | None:
    """Check ``None`` or a static number of steps.

    >>> optional_steps("warmup_steps", 0)
    Traceback (most recent call last):
    ValueError: `warmup_steps` must be None or a positive integer, got 0
    """
    rule = "None or a positive integer"
    return None if value is None else whole(name, value, rule, lambda n: n > 0)


def is_zero(value: Scalar | Schedule) -> bool:
    """Whether it is known to be 0, so that what it adds can be left out of the program."""
    return not isinstance(value, DYNAMIC) and value == 0


def is_positive(value: Scalar) -> bool:
    """Whether it is known to be above 0, and far enough for float32 not to lose it when scaled."""
    return not isinstance(value, DYNAMIC) and value > 1e-30


DecayRate: TypeAlias = Annotated[Scalar, decay_rate]
NonNegative: TypeAlias = Annotated[Scalar, nonnegative]
Flag: TypeAlias = Annotated[bool, flag]
