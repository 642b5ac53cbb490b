"""Hyperparameters that change during training, kept in the state, and as exact as static ones.

Of 0.999 float32 loses so much that 1 - b2, and the mean square with it, is 1.3e-5 off. So a number
is kept as two: a float32, and what that has rounded off. The checks of this package's decay rates
ask for both; everybody else sees the float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from adam_jax.hyperparameters import Exact, function, is_schedule, known, number, transformation
from adam_jax.states import like, only
from adam_jax.transform import full_beside


class HyperparametersState(NamedTuple):
    """The state of `with_hyperparameters`.

    Attributes:
      count: how many steps are done.
      hyperparams: the values in the last step, before it those for the first: float32, by name.
      remainders: what float32 has rounded off each, in the order of the names; ``None`` for those
        that follow a schedule.
      inner_state: the state of what ``make`` makes.
    """

    count: Any
    hyperparams: dict[str, Any]
    remainders: tuple[Any, ...]
    inner_state: Any


def with_hyperparameters(
    make: Callable[..., optax.GradientTransformation], /, **hyperparameters: Any
) -> optax.GradientTransformationExtraArgs:
    """A transformation whose hyperparameters may change, by a schedule or by hand.

    Unlike in `optax.inject_hyperparams`, nothing is guessed: what is named here may change, and
    what may not is bound in ``make``. The numbers are float32 whatever the parameters' dtype. In
    the state they are read, ``optax.tree_utils.tree_get(state, "b2")``, and changed, by
    `set_hyperparameters`, without recompilation. Under ``vmap`` each member of an ensemble has its
    own, and one can differentiate through them.

    An optimizer of this package does what it does with the same static number: mean gradients are
    the same to the bit, and updates to 6 units in the last place of the largest that their entry
    has in a run, as measured of every member over 200 steps. A
    schedule's values are float32, unless they are static; so are those that are put into
    ``hyperparams`` by hand, and what ``make`` computes of them. Optax's optimizers see float32
    arrays.

    Args:
      make: takes the hyperparameters by their names and gives a transformation: an optimizer, or a
        function or ``partial`` that calls one.
      **hyperparameters: each a finite number, a scalar array, or a schedule from the count of steps
        done to one of these.

    Returns:
      An Optax transformation, whose state is a `HyperparametersState`.

    Raises:
      ValueError: a number is not finite, or not in the range that ``make`` checks; from ``update``,
        the state has other hyperparameters.
      TypeError: a value is no number, or an array of less than 32 bits; ``make`` takes no argument
        of that name, or makes no transformation.

    Example:
      >>> import adam_jax, jax.numpy as jnp, optax
      >>> from functools import partial
      >>> decayed = partial(adam_jax.adamw, mask={"w": True, "b": False})  # what does not change
      >>> schedule = optax.linear_schedule(0.25, 0.0, 2)
      >>> tx = with_hyperparameters(decayed, learning_rate=schedule, b2=0.99)
      >>> params = {"w": jnp.ones(2), "b": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> state = set_hyperparameters(state, b2=0.999)
      >>> for _ in range(2):
      ...     updates, state = tx.update(params, state, params)
      >>> print(state.hyperparams["learning_rate"], state.hyperparams["b2"])
      0.125 0.999
    """
    function("make", make)
    given = {name: _changing(name, hyperparameters[name]) for name in sorted(hyperparameters)}

    def made(values: dict[str, Any]) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(transformation("make(...)", make(**values)))

    def inner(exact: dict[str, Exact]) -> optax.GradientTransformationExtraArgs:
        def knowing(call: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **kwargs: Any) -> Any:
                with known(exact.values()):
                    return call(*args, **kwargs)

            return called

        tx = knowing(made)({name: x.high for name, x in exact.items()})
        # Then too, for what is made may make others of the same numbers only there.
        return optax.GradientTransformationExtraArgs(knowing(tx.init), knowing(tx.update))

    def state_of(count: Any, exact: dict[str, Exact], inner_state: Any) -> HyperparametersState:
        # Copies, for `make` may have put the arrays in its state, and donation wants none twice.
        numbers = {name: jnp.array(x.high) for name, x in exact.items()}
        lows = [None if callable(given[name]) else x.low for name, x in exact.items()]
        return HyperparametersState(count, numbers, tuple(lows), inner_state)

    def init(params: optax.Params) -> HyperparametersState:
        count = jnp.zeros([], jnp.int32)
        exact = {name: Exact.of(_at(count, name, value)) for name, value in given.items()}
        return state_of(count, exact, inner(exact).init(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, HyperparametersState]:
        _require_state_of(given, state)
        kept = zip(given, state.remainders, strict=True)
        exact = {
            name: Exact.of(_at(state.count, name, given[name]))
            if low is None
            else Exact(jnp.asarray(_number(name, state.hyperparams[name]), jnp.float32), low)
            for name, low in kept
        }
        updates, inner_state = inner(exact).update(updates, state.inner_state, params, **extra_args)
        inner_state = like(inner_state, state.inner_state)
        return updates, state_of(optax.safe_increment(state.count), exact, inner_state)

    def check(count: jax.Array) -> None:
        made({name: _at(count, name, value) for name, value in given.items()})

    # With the numbers as they are given, so that `make` refuses now what it can refuse.
    jax.eval_shape(check, jax.ShapeDtypeStruct((), jnp.int32))
    return optax.GradientTransformationExtraArgs(init, update)


def set_hyperparameters(state: chex.ArrayTree, /, **values: Any) -> Any:
    """A state with other hyperparameters, whatever it is nested in.

    Numbers are then as exact as those given to `with_hyperparameters`; that they are in the range
    of what they are for is not checked here, where it is not known. In the state of an ensemble a
    number is set for each member.

    Args:
      state: of a transformation with one `with_hyperparameters` in it.
      **values: finite numbers or scalar arrays, by their names.

    Raises:
      ValueError: a name is unknown or follows a schedule, a number is not finite, or there is not
        one such state.
      TypeError: a value is no number, or an array of less than 32 bits.

    Example:
      >>> import adam_jax, optax
      >>> tx = with_hyperparameters(adam_jax.adam, learning_rate=1e-3, b2=0.999)
      >>> state = optax.chain(optax.clip_by_global_norm(1.0), tx).init(1.0)
      >>> state = set_hyperparameters(state, learning_rate=3e-4)
      >>> print(optax.tree_utils.tree_get(state, "learning_rate"))
      0.0003
      >>> set_hyperparameters(state, lr=3e-4)
      Traceback (most recent call last):
      ValueError: `lr` is none of the state's hyperparameters, b2 and learning_rate
    """
    old = only(state, HyperparametersState, "with_hyperparameters")
    names = sorted(old.hyperparams)
    numbers, lows = dict(old.hyperparams), dict(zip(names, old.remainders, strict=True))
    for name, value in values.items():
        if name not in names:
            known_names = " and ".join(names)
            raise ValueError(f"`{name}` is none of the state's hyperparameters, {known_names}")
        if lows[name] is None:
            raise ValueError(f"`{name}` follows a schedule, which would not see a number")
        exact = Exact.of(_number(name, value))
        # In the shape of the old one, and on its devices.
        numbers[name] = full_beside(numbers[name], exact.high, jnp.float32)
        lows[name] = full_beside(lows[name], exact.low)
    new = old._replace(hyperparams=numbers, remainders=tuple(lows.values()))
    return jax.tree.map(
        lambda part: new if part is old else part, state, is_leaf=lambda x: x is old
    )


def _is_finite(x: float) -> bool:
    return abs(x) <= float(jnp.finfo(jnp.float32).max)


_number = number("a finite number", _is_finite)
_number_or_schedule = number("a finite number or a schedule", _is_finite)


def _changing(name: str, value: Any) -> Any:
    return value if is_schedule(value) else _number_or_schedule(name, value)


def _at(count: jax.Array, name: str, value: Any) -> Any:
    """A number, or the schedule's at a count."""
    return _number(name, value(count)) if callable(value) else value


def _require_state_of(given: dict[str, Any], state: Any) -> None:
    """Check that a state has these hyperparameters, and schedules where they are."""
    if not isinstance(state, HyperparametersState):
        raise TypeError(f"state must be HyperparametersState, got {type(state).__name__}")

    def names(scheduled: dict[str, bool]) -> str:
        return ", ".join(f"{k} (a schedule)" if by else k for k, by in scheduled.items())

    remainders = zip(sorted(state.hyperparams), state.remainders, strict=True)
    has = names({name: low is None for name, low in remainders})
    wanted = names({name: callable(value) for name, value in given.items()})
    if has != wanted:
        raise ValueError(f"the state has the hyperparameters {has}, and not {wanted}")
