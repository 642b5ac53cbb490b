"""Keras 3's optimizer states: moved in, moved out. Keras itself is not needed.

What ``optimizer.variables`` of `keras.optimizers` `Adam`, `AdamW`, `Nadam`, `Adamax`, `Lion` and
`Lamb` holds is, by another name, what ours keep:

    iteration            count
    ..._momentum         mu
    ..._velocity         nu; of Adamax ..._norm
    ..._velocity_hat     nu_max

Hyperparameters do not travel, nor does the learning rate among the variables: build the
transformation by `like_keras`. A run then goes on as it would have there: over the next 100 steps
parameters are within 1e-13 of Keras's in float64, and in float32 within 1e-6, but for those that
come near zero.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import chex
import jax
import numpy as np
import optax

from adam_jax.hyperparameters import brief, decay_rate, optional_function
from adam_jax.interop.arrays import array_of
from adam_jax.interop.moments import (
    Arrival,
    Layout,
    Name,
    count_of,
    laid_out,
    named,
    put,
    require_sound,
    take,
)
from adam_jax.ownership import Path
from adam_jax.parts import shape_of

_FIELDS = {"momentum": "mu", "velocity": "nu", "norm": "nu", "velocity_hat": "nu_max"}
_COUNT, _RATE = "iteration", "learning_rate"
# Nadam's product of momenta: the only variable without a name of its own.
_PRODUCT = re.compile(r"variable(_\d+)?")
_keystr = jax.tree_util.keystr


def from_keras(
    variables: Iterable[Any] | Mapping[str, Any],
    tx: optax.GradientTransformation,
    params: optax.Params,
    names: Any,
    layout: Layout | None = None,
) -> chex.ArrayTree:
    """A state of ``tx`` that goes on where an optimizer of Keras stopped.

    Moments take the storage formats of ``tx``, rounded to nearest where these have fewer bits; a
    float64 is never rounded. What ``tx`` has besides, such as an average of parameters, is as new;
    schedules go on from the same step.

    Args:
      variables: ``optimizer.variables``, or a mapping from their paths to arrays.
      tx: the same optimizer here (whether it is the same cannot be seen from its state), also in a
        chain, under `optax.partition` or in a wrapper.
      params: the parameters, laid out as they are here.
      names: a tree like ``params`` of what Keras calls each: its ``path``, such as
        ``"sequential/dense/kernel"``, or its position in ``model.trainable_variables``, from 0.
      layout: ``(name, array) -> array``, which lays out an array of Keras as its parameter is here.
        It must only move entries. By default nothing is moved; kernels are as in Flax.

    Returns:
      The state.

    Raises:
      ValueError: variables or their shapes or values do not fit; the message names one.
      TypeError: an argument is of the wrong kind.

    References:
      https://keras.io/api/optimizers/

    Example:
      >>> import jax.numpy as jnp
      >>> from adam_jax import like_keras
      >>> variables = {
      ...     "adam/iteration": 7,
      ...     "adam/learning_rate": 1e-3,
      ...     "adam/dense_kernel_momentum": np.ones((3, 2), np.float32),
      ...     "adam/dense_kernel_velocity": np.ones((3, 2), np.float32),
      ... }
      >>> params, names = {"kernel": jnp.ones((3, 2))}, {"kernel": "dense/kernel"}
      >>> state = from_keras(variables, like_keras.Adam(1e-3), params, names)
      >>> int(state[0].count)
      7
    """
    optional_function("layout", layout)
    found = _Variables("`variables`", variables)
    arrivals: dict[Path, dict[str, Arrival]] = {}
    for path, p, name in named(params, names):
        for there, (title, x) in found.of(name, path).items():
            require_sound(repr(title), x, magnitude=there != "momentum")
            y = laid_out(layout, name, x, f"{title!r}, as params{_keystr(path)},", shape_of(p))
            arrivals.setdefault(path, {})[_FIELDS[there]] = Arrival(repr(title), y)
    found.require_all_taken()
    return put(tx, params, found.count, arrivals)


def to_keras(
    state: chex.ArrayTree,
    params: optax.Params,
    names: Any,
    like: Iterable[Any] | Mapping[str, Any],
    layout: Layout | None = None,
    beta_1: float | None = None,
) -> dict[str, np.ndarray]:
    """The values with which an optimizer of Keras goes on where one of ours stopped.

    After ``optimizer.build(model.trainable_variables)`` they are assigned by::

        for variable, value in zip(optimizer.variables, to_keras(...).values()):
            variable.assign(value)

    Args:
      state: of the same optimizer here.
      params: the parameters that it belongs to.
      names: see `from_keras`.
      like: ``optimizer.variables`` of the optimizer: their paths, dtypes and order, and the value
        of the learning rate, are taken.
      layout: the inverse of that of `from_keras`.
      beta_1: Nadam's, which it needs for the product of its momenta; others ignore it.

    Returns:
      The values by the variables' paths, in their order; moments of fewer bits are decoded.

    Raises:
      ValueError: variables, shapes or moments do not fit, or one is not finite, or Nadam's
        ``beta_1`` is missing, or rows of `lazy_adam` have to catch up first.
      TypeError: an argument is of the wrong kind, or a variable would round a float64.

    Example:
      >>> import jax.numpy as jnp
      >>> from adam_jax import like_keras
      >>> params, tx = jnp.ones(2), like_keras.Lion(1e-3)
      >>> _, state = tx.update(jnp.array([1.0, -2.0]), tx.init(params), params)
      >>> like = {"lion/iteration": np.int32(0), "lion/w_momentum": np.zeros(2, np.float32)}
      >>> moved = to_keras(state, params, "w", like)
      >>> print(moved["lion/iteration"], moved["lion/w_momentum"].round(4))
      1 [ 0.01 -0.02]
    """
    optional_function("layout", layout)
    found = _Variables("`like`", like)
    count, rows = take(state, params)
    values = dict(found.values)
    for path, _, name in named(params, names):
        moments = found.of(name, path)
        row = dict(rows.get(path, {}))
        for there, (title, old) in moments.items():
            if _FIELDS[there] not in row:
                raise ValueError(f"{title!r} needs {_FIELDS[there]} of params{_keystr(path)}")
            x = row.pop(_FIELDS[there])
            if x.dtype == np.float64 != old.dtype:
                raise TypeError(
                    f"{title!r} is {old.dtype}, which would round params{_keystr(path)}"
                )
            y = x if layout is None else np.asarray(layout(name, x))
            values[title] = laid_out(None, name, y, repr(title), old.shape).astype(old.dtype)
        if row:
            raise ValueError(f"Keras has no variable for {min(row)} of params{_keystr(path)}")
    found.require_all_taken()
    for title, old in found.scalars.items():
        if title == found.counter:
            values[title] = np.array(count, old.dtype)
        elif not title.endswith(_RATE):
            values[title] = np.array(_momenta(beta_1, count), old.dtype)
    return values


class _Variables:
    """An optimizer's variables, looked up by their parameter."""

    def __init__(self, name: str, variables: Any) -> None:
        named = isinstance(variables, Mapping)
        pairs = list(variables.items() if named else _pairs(name, variables))
        strange = [title for title, _ in pairs if not isinstance(title, str)]
        if strange:
            raise TypeError(f"{name} must have paths for keys, got {brief(strange[0])}")
        self.values = {title: array_of(x, repr(title)) for title, x in pairs}
        tails = {title: title.rpartition("/")[2] for title in self.values}
        self.scalars = {
            title: self.values[title]
            for title, tail in tails.items()
            if tail in (_COUNT, _RATE) or _PRODUCT.fullmatch(tail)
        }
        counters = [title for title in self.scalars if title.endswith(_COUNT)]
        if len(counters) != 1:
            raise ValueError(f"{name} must have one {_COUNT}, got {brief(list(self.values))}")
        self.counter = counters[0]
        self._left = {title: tail for title, tail in tails.items() if title not in self.scalars}
        # In the order of the parameters, however the variables of one are mixed with others'.
        self._columns = {
            there: [title for title, tail in self._left.items() if tail.endswith(f"_{there}")]
            for there in _FIELDS
        }
        self._known = dict(self._left)

    @property
    def count(self) -> int:
        """The steps done."""
        x = self.values[self.counter]
        return count_of(repr(self.counter), x, least=0)

    def of(self, name: Name, path: Path) -> dict[str, tuple[str, np.ndarray]]:
        """A parameter's variables by what they are, each with its path."""
        found = {}
        for there, column in self._columns.items():
            if isinstance(name, int):
                titles = column[name : name + 1] if name >= 0 else []
            else:
                tail = f"{name.replace('/', '_')}_{there}"
                titles = [title for title in column if self._known[title] == tail]
            for title in titles[:1]:
                found[there] = title, self.values[title]
                self._left.pop(title, None)
        if not found:
            has = brief(list(self._known))
            raise ValueError(f"`names` has {name!r} for params{_keystr(path)}; there are {has}")
        return found

    def require_all_taken(self) -> None:
        """Check that each variable was somebody's."""
        for title in self._left:
            raise ValueError(f"{title!r} is no moment of Adam's family of a parameter in `names`")


def _pairs(name: str, variables: Any) -> Iterator[tuple[str, Any]]:
    """Variables by their paths."""
    if not isinstance(variables, Iterable):
        raise TypeError(f"{name} must be an optimizer's variables, got {brief(variables)}")
    for index, x in enumerate(variables):
        if not isinstance(getattr(x, "path", None), str):
            raise TypeError(f"{name}[{index}] must have a path, got {brief(x)}")
        yield x.path, getattr(x, "value", x)


def _momenta(beta_1: Any, step: int) -> float:
    """The product of Nadam's momenta until a step."""
    if beta_1 is None:
        raise ValueError("`beta_1` must be given for Nadam, whose product of momenta it makes")
    t = np.arange(1, step + 1)
    return float(np.prod(float(decay_rate("beta_1", beta_1)) * (1 - 0.5 * 0.96**t)))
