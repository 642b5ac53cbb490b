"""Lifts a rule and its storage formats over a pytree: the one place that knows trees and dtypes.

Every gradient is widened to float32 (float64 where it or the state is), every moment is decoded to
the same, the rule runs, the direction is cast to the gradient's dtype, and the moments are stored
exactly as `init` made them. So gradients, parameters and state may differ in dtype, and the state
never changes its own.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from adam_jax.hyperparameters import Scalar, brief, seed_word
from adam_jax.mismatch import (
    require_float,
    require_gradients,
    require_like_state,
    require_storable,
)
from adam_jax.norms import precision
from adam_jax.rule import Coefficients, Rule, mean_of_blocks
from adam_jax.states import with_gradient
from adam_jax.storage import Format, choice_of
from adam_jax.storage.native import cast, hold, narrow
from adam_jax.storage.random_bits import fold, leaf_words, random_bits


def lift(
    rule: Rule, mu_dtype: Any = None, nu_dtype: Any = None, *, seed: Any = 0
) -> optax.GradientTransformationExtraArgs:
    """The rule as an Optax transformation, whose updates are the rule's directions.

    Args:
      rule: a member of the family.
      mu_dtype: how the signed moments rest between two steps: a dtype, a storage format, a
        function ``(path, leaf)`` to one of these, or ``None`` for float32, or the parameter's dtype
        where that is wider.
      nu_dtype: the same for the magnitudes.
      seed: an integer, static or traced, for the formats that round by chance.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"`rule` must be a Rule, got {brief(rule)}")
    seed = seed_word("seed", seed)
    signed, magnitude = choice_of("mu_dtype", mu_dtype), choice_of("nu_dtype", nu_dtype)
    slots = rule.moments
    choices = [signed if moment.signed else magnitude for moment in slots.values()]
    counts = [field for field in rule.State._fields if field not in slots]

    def state_of(columns: Sequence[Any], steps: Sequence[Any]) -> Any:
        return rule.State(
            **dict(zip(slots, columns, strict=True)), **dict(zip(counts, steps, strict=True))
        )

    def formats_of(tree: chex.ArrayTree) -> list[tuple[Format, ...]]:
        shapes = [
            (path, jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)))
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        ]
        return [tuple(choose(path, leaf) for choose in choices) for path, leaf in shapes]

    def shapes_of(path: Any, leaf: jax.Array) -> tuple[tuple[int, ...], ...]:
        return tuple(
            rule.shape(path, leaf) if moment.blocked else leaf.shape for moment in slots.values()
        )

    def init(params: optax.Params) -> Any:
        require_float(params)
        leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
        leaves = [(path, jnp.asarray(leaf)) for path, leaf in leaves]
        shapes = [shapes_of(path, leaf) for path, leaf in leaves]
        formats = [
            tuple(storage.fit(shape) for storage, shape in zip(each, row, strict=True))
            for each, row in zip(formats_of(params), shapes, strict=True)
        ]
        require_storable(params, rule, formats)
        stored = [
            _init_leaf(each, row, rule, leaf)
            for each, row, (_, leaf) in zip(formats, shapes, leaves, strict=True)
        ]
        # An array each, for donation wants no array twice.
        steps = [jnp.zeros([], jnp.int32) for _ in counts]
        return state_of(columns(treedef, stored, len(slots)), steps)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        require_float(updates, "gradient for params")
        formats, stored = require_like_state(updates, state, rule, formats_of(updates))
        leaves, treedef = jax.tree.flatten(updates)
        steps = [optax.safe_increment(getattr(state, field)) for field in counts]
        count = steps[0]
        stochastic = any(storage.stochastic for each in formats for storage in each)
        words = leaf_words(fold(seed, count), len(leaves)) if stochastic else [None] * len(leaves)

        @cache
        def at_step(dtype: Any) -> tuple[Rule, Coefficients]:
            exact = rule.astype(dtype)
            return exact, _coefficients(dtype, exact, count)

        new: list[Any] = []
        queue = _Queue()
        for each, leaf, old, word in zip(formats, leaves, stored, words, strict=True):
            g = jnp.asarray(leaf)
            dtype = precision([g, old])
            sequential = any(storage.sequential for storage in each)
            ready = queue.turn(old) if sequential else old
            new.append(_update_leaf(each, dtype, *at_step(dtype), word, g, ready))
            if sequential:
                queue.done(new[-1][1:])
        directions, *moments = columns(treedef, new, 1 + len(slots))
        return directions, state_of(moments, steps)

    return optax.GradientTransformationExtraArgs(init, update)


def full_precision(
    build: Callable[[optax.Params], optax.GradientTransformationExtraArgs],
) -> optax.GradientTransformationExtraArgs:
    """A transformation on gradients and parameters widened to float32, its updates cast back, once.

    A chain of direction, weight decay and learning rate is then rounded to bfloat16 at its end
    only, and no hyperparameter takes the gradients' dtype.

    Args:
      build: gives the transformation, from the parameters as they are before they are widened, or
        from the gradients where ``update`` is given no parameters.
    """

    def init(params: optax.Params) -> Any:
        return build(params).init(params)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        inner = build(updates if params is None else with_gradient(updates, params))
        wide = jax.tree.map(_widen, params)
        return inner.update(updates, state, wide, **extra_args)  # type: ignore[no-any-return]

    return wide_gradients(optax.GradientTransformationExtraArgs(init, update))


def wide_gradients(
    inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """``inner`` on gradients widened to float32, its updates cast back, once.

    It is given the parameters as they are, for what it decides by their dtypes.
    """

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        require_gradients(updates, params)
        # All dtypes are explicit here: the user's strictness is for the user's code. (It forbids
        # to scale a complex array by a real one, and float32 by a float64 learning rate.)
        with jax.numpy_dtype_promotion("standard"):
            wide = jax.tree.map(_widen, updates)
            wide, state = inner.update(wide, state, params, **extra_args)
        return jax.tree.map(lambda u, g: narrow(u, jnp.result_type(g)), wide, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


@partial(jax.jit, static_argnums=(0, 1))
def _init_leaf(
    formats: tuple[Format, ...], shapes: tuple[tuple[int, ...], ...], rule: Rule, p: jax.Array
) -> tuple[Any, ...]:
    """The moments of one parameter before the first step."""
    wide = _widen(p)
    stored = []
    for storage, shape, moment in zip(formats, shapes, rule.moments.values(), strict=True):
        part = wide if shape == p.shape else mean_of_blocks(wide, shape)
        start = full_beside(part if moment.signed else part.real, moment.initial)
        stored.append(storage.encode(start, moment, None))
    return tuple(stored)


@partial(jax.jit, static_argnums=2)
def full_beside(x: jax.Array, value: Scalar, dtype: Any = None) -> jax.Array:
    """``value`` in the shape of ``x``, by default in its dtype, and on its devices."""
    # Never true, for a NaN is not negative. Under jit a constant has no sharding of its own: this
    # ties it to the parameter, whose sharding XLA then gives to it too. (On an Explicit mesh the
    # type has it from `x` itself: what is like `x` need not have its sharding.)
    never = jnp.isnan(x.real) & (x.real < 0)
    alike = x if dtype is None else x.real.astype(dtype)
    return jnp.where(never, alike, jnp.asarray(value, alike.dtype))


# Jitted by itself too, so that a sum of products is rounded as often in a step outside of a jit.
@partial(jax.jit, static_argnums=0)
def _coefficients(dtype: Any, rule: Rule, count: jax.Array) -> Coefficients:
    """What depends on the step alone, in ``dtype``."""
    with jax.numpy_dtype_promotion("standard"):
        return tuple(jnp.asarray(c, dtype) for c in rule.coefficients(count.astype(dtype)))


# Jitted by itself, so that leaves of one shape are traced once, and a step outside of the user's
# own jit is one fused loop a leaf too, with the same bits.
@partial(jax.jit, static_argnums=(0, 1))
def _update_leaf(
    formats: tuple[Format, ...],
    dtype: Any,
    rule: Rule,
    coefficients: Coefficients,
    word: jax.Array | None,
    g: jax.Array,
    stored: tuple[Any, ...],
) -> tuple[Any, ...]:
    """The direction and the stored moments of one parameter after one step, in ``dtype``."""
    # Standard promotion, for strict forbids to scale a complex array by a real coefficient.
    with jax.numpy_dtype_promotion("standard"):
        wide, kept = _widen(g, dtype), [moment.gradient for moment in rule.moments.values()]
        decoded = [_widen(f.decode(s), dtype) for f, s in zip(formats, stored, strict=True)]
        before = [
            _saturate(x, rule.reach) if is_gradient else x
            for x, is_gradient in zip(decoded, kept, strict=True)
        ]
        direction, *after = rule.update(coefficients, _saturate(wide, rule.reach), *before)
        moments = [wide if is_gradient else after.pop(0) for is_gradient in kept]
    encoded = []
    for slot, (storage, moment, x) in enumerate(
        zip(formats, rule.moments.values(), moments, strict=True)
    ):
        by_chance = storage.stochastic and moment.average
        bits = random_bits(fold(word, slot), x.shape) if by_chance else None
        encoded.append(storage.encode(x, moment, bits))
    as_before = jax.tree.map(lambda new, old: new.astype(old.dtype), tuple(encoded), stored)
    return jax.tree.map(lambda u: narrow(u, g.dtype), direction), *as_before


def columns(treedef: Any, rows: Sequence[tuple[Any, ...]], width: int) -> list[Any]:
    """Rows of one entry a leaf each, as ``width`` trees."""
    return [treedef.unflatten([row[i] for row in rows]) for i in range(width)]


class _Queue:
    """Leaves one after another, so that what they write to memory is not there at once.

    To JAX all that a barrier returns varies over devices as any of it does. So inside ``shard_map``
    those that vary alike have a queue of their own.
    """

    def __init__(self) -> None:
        self._last: dict[frozenset[str], Any] = {}

    def turn(self, stored: Any) -> Any:
        """The stored moments, once those of the leaf before are there."""
        before = self._last.get(_variation(stored))
        return stored if before is None else lax.optimization_barrier((stored, before))[0]

    def done(self, stored: Any) -> None:
        """The new moments of the leaf whose turn it was."""
        self._last[_variation(stored)] = stored


def _variation(tree: chex.ArrayTree) -> frozenset[str]:
    """How shards may differ inside ``shard_map``, by JAX's types.

    These have one name from JAX 0.10 on, one from 0.6 on, and one before.
    """
    leaves = [(getattr(x, "aval", None), x) for x in jax.tree.leaves(tree)]
    names = ("manual_axis_type", "vma", "rep")
    return frozenset(
        str([getattr(x, name, None) for name in names for x in pair]) for pair in leaves
    )


def _widen(x: Any, dtype: Any = None) -> Any:
    """A floating or complex array in ``dtype``, by default float32 or its own where wider.

    Other leaves pass: what may not be one is refused with its name, or, as a parameter that has no
    gradient, never looked at.
    """
    if not jnp.issubdtype(getattr(x, "dtype", type(x)), jnp.inexact):
        return x
    x = jnp.asarray(x)
    return cast(x, precision(x) if dtype is None else dtype)


def _saturate(g: jax.Array, reach: float) -> jax.Array:
    """Hold a finite gradient just below where the square of ``reach`` times it overflows.

    In float32 that is 1.84e19. An infinite mean square would never be finite again.
    """
    limit = math.sqrt(float(jnp.finfo(g.dtype).max)) * (1 - 2**-10) / reach
    if jnp.iscomplexobj(g):
        # Half of it for either part, so that the sum of their squares does not overflow.
        parts: jax.Array = lax.complex(hold(g.real, limit / 2), hold(g.imag, limit / 2))
        return parts
    return hold(g, limit)
