"""How Adam steps on touched rows alone: what `adam_jax.lazy_adam` is made of.

    rows of the state -> as of the last step -> Adam -> back into the state

The step between is that of `adam_jax.adam`, or `adamw`, on what is taken out of the tables.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from adam_jax.decay import NO_DECAY, Mask, descent
from adam_jax.mismatch import require_float, require_mask
from adam_jax.rows import gathered, is_rows, one_a_row, require_takeable
from adam_jax.rule import Coefficients
from adam_jax.rules.adam import Adam
from adam_jax.skipped import Rates, column, drift, left
from adam_jax.states import choose, only
from adam_jax.storage import Choice
from adam_jax.storage.at_rest import decoded, is_writable, scaled
from adam_jax.tables import (
    Shapes,
    Touched,
    beside,
    by_rows,
    requested,
    require_stored_by_rows,
    touched,
    within,
)
from adam_jax.transform import full_beside, lift

_keystr = jax.tree_util.keystr


class LazyAdamState(NamedTuple):
    """The state of `lazy_adam`.

    Attributes:
      inner_state: Adam's own, of whole tables.
      last: for each table the last step of each of its rows, int32; ``None`` for what is no table.
    """

    inner_state: Any
    last: Any


class LazyAdam(optax.GradientTransformationExtraArgs):  # type: ignore[misc]
    """What `lazy_adam` returns: an Optax transformation that can also catch up.

    Attributes:
      catch_up: ``catch_up(params, state, indices=None) -> (params, state)``: as if the steps that
        these rows have skipped had been taken. ``state`` is its own, or one that has it inside, as
        that of a chain. ``indices`` is a tree like the parameters, of integers of any shape for a
        table and ``None`` for the rest; ``None`` for all rows of all tables.
    """

    catch_up: Callable[..., tuple[Any, Any]]

    @classmethod
    def of(cls, lazy: "Lazy") -> Self:
        """The transformation that steps so."""
        tx: Self = cls(lazy.init, lazy.update)
        tx.catch_up = lazy.catch_up
        return tx


@dataclass(frozen=True)
class AdamOfRows(Adam):
    """Adam that has the new moments of rows in memory before it takes a direction from them.

    XLA would make them once more for it, of what it gathers, and a step take half as long again.

    Attributes:
      rows: the shapes of what is taken out of tables.
    """

    rows: frozenset[tuple[int, ...]] = frozenset()

    def direction(self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array) -> jax.Array:
        """The direction, from this step's moments."""
        if mu.shape in self.rows:
            mu, nu = lax.optimization_barrier((mu, nu))
        return super().direction(c, g, mu, nu)


@dataclass(frozen=True)
class Lazy:
    """The arguments of `lazy_adam`, checked."""

    rule: Adam
    rates: Rates
    mask: Mask
    choices: tuple[Choice, Choice]
    seed: Any
    mode: str
    is_table: Callable[[Any, Any], bool]

    def __post_init__(self) -> None:
        self._adam({}, self.mask)  # for its checks

    def init(self, params: optax.Params) -> LazyAdamState:
        """Adam's state, and a counter for each row."""
        require_float(params)
        last = jax.tree_util.tree_map_with_path(partial(_never, self.is_table), params)
        leaves, treedef = _flatten(params)
        tables = treedef.flatten_up_to(last)
        shapes = {
            _keystr(path): jnp.shape(leaf)
            for (path, leaf), counts in zip(leaves, tables, strict=True)
            if counts is not None
        }
        inner_state = self._adam(shapes, self.mask).init(params)
        for moments in _moments(inner_state):
            pairs = zip(leaves, treedef.flatten_up_to(moments), strict=True)
            for (path, _), each in pairs:
                if _keystr(path) in shapes:
                    scales = self.mode == "none" or is_writable(each)
                    require_stored_by_rows(path, shapes[_keystr(path)], each, scales)
        return LazyAdamState(inner_state, last)

    def update(
        self, updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, LazyAdamState]:
        """Adam's step on what is touched, after it has caught up."""
        if getattr(state, "_fields", None) != LazyAdamState._fields:
            raise TypeError(f"state must be LazyAdamState, got {type(state).__name__}")
        tables: Sequence[Any] = _moments(state.inner_state)
        part = touched(updates, tables[0], state.last)
        if params is None and self.rates.weight_decay is not None:
            raise ValueError("lazy_adam needs `params` to decay: update(updates, state, params)")
        # A function is asked about whole parameters, and once.
        mask = self._mask(part, params)
        last, steps = state.last, []
        # A schedule that the rows share is computed for all of them at once.
        shared = self.mode == "exact" and self.rates.vary
        for piece in [part] if shared else part.pieces(*tables):
            before = LazyAdamState(_with_moments(state.inner_state, tables), last)
            step, inner_state = self._step(piece, before, params, mask, **extra_args)
            steps.append(step)
            pairs = zip(tables, _moments(inner_state), strict=True)
            tables = [piece.put(x, part.treedef.flatten_up_to(new)) for x, new in pairs]
            last = piece.put(last, _all_at(piece, _count(inner_state)))
        # With decay at once, for a step then reads the tables that it is added to.
        updates = part.like_given(steps, in_pieces=self.rates.weight_decay is None)
        return updates, LazyAdamState(_with_moments(inner_state, tables), last)

    def catch_up(
        self, params: optax.Params, state: Any, indices: Any = None
    ) -> tuple[optax.Params, Any]:
        """As if the steps that these rows have skipped had been taken."""
        lazy = only(state, LazyAdamState, "lazy_adam")
        own = within("params", params, lazy.last)
        wanted = None if indices is None else within("indices", indices, lazy.last)
        tables = _moments(lazy.inner_state)
        part = requested(own, tables[0], lazy.last, wanted)
        last = part.put(lazy.last, _all_at(part, _count(lazy.inner_state)))
        if self.mode == "none":
            return params, _replaced(state, LazyAdamState, lazy._replace(last=last))
        leaves = part.take(own)
        new, ways = self._caught_up(part, leaves, lazy, self._mask(part))
        with jax.numpy_dtype_promotion("standard"):
            moved = [_sum(p, way) for p, way in zip(leaves, ways, strict=True)]
        pairs = zip(leaves, moved, strict=True)
        moved = [None if p is None else x.astype(p.dtype) for p, x in pairs]
        whole = [part.put(*pair) for pair in zip(tables, new, strict=True)]
        caught_up = LazyAdamState(_with_moments(lazy.inner_state, whole), last)
        moved = beside(params, part.put(own, moved), lazy.last)
        return moved, _replaced(state, LazyAdamState, caught_up)

    def _step(
        self,
        part: Touched,
        state: LazyAdamState,
        params: Any,
        mask: Any,
        **extra_args: Any,
    ) -> tuple[list[Any], Any]:
        """The updates of what is touched, and Adam's state of it."""
        leaves = [None] * len(part.leaves)
        if params is not None:
            leaves = part.take(params, "the parameters")
        moments, ways = self._caught_up(part, leaves, state, mask)
        with jax.numpy_dtype_promotion("standard"):
            now = [_sum(p, way) for p, way in zip(leaves, ways, strict=True)]
            small = None if params is None else part.treedef.unflatten(now)
            own = _with_moments(state.inner_state, map(part.treedef.unflatten, moments))
            adam = self._adam(part.shapes, mask, part)
            updates, inner_state = adam.update(part.values(), own, small, **extra_args)
            pairs = zip(part.treedef.flatten_up_to(updates), ways, strict=True)
            return [u if way is None else u + way for u, way in pairs], inner_state

    def _caught_up(
        self,
        part: Touched,
        leaves: Sequence[Any],
        state: LazyAdamState,
        mask: Any,
    ) -> tuple[list[list[Any]], list[Any]]:
        """The moments of what is touched as of the last step, and how far parameters have moved."""
        mus, nus = [part.take(x) for x in _moments(state.inner_state)]
        ways: list[Any] = [None] * len(mus)
        if self.mode == "none":
            return [mus, nus], ways
        count, lasts = _count(state.inner_state), part.treedef.flatten_up_to(state.last)
        masked = _masked(mask, part)
        for i, rows in enumerate(part.gradients):
            if not is_rows(rows):
                continue
            # Read before it is overwritten, or XLA would copy all of it.
            last = lax.optimization_barrier(gathered(lasts[i], rows))
            skipped = jnp.where(rows.indices < rows.size, count - last, 0)
            if self.mode == "exact":
                p = None if leaves[i] is None else decoded(leaves[i])
                rates = self.rates if masked[i] else Rates(self.rates.learning_rate, None)
                both = decoded(mus[i]), decoded(nus[i])
                ways[i] = drift(self.rule, rates, p, *both, last, skipped)
            mus[i] = _decayed(mus[i], self.rule.b1, skipped)
            nus[i] = _decayed(nus[i], self.rule.b2, skipped)
        return [mus, nus], ways

    def _mask(self, part: Touched, params: optax.Params | None = None) -> Any:
        """Which leaves decay: a tree; ``None`` for all."""
        return self.mask(part.described(params)) if callable(self.mask) else self.mask

    def _adam(
        self, shapes: Shapes, mask: Mask, part: Touched | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """Adam on tables of these shapes, or on a part of them."""
        rows = [] if part is None else [g.values.shape for g in part.gradients if is_rows(g)]
        rule = AdamOfRows(**vars(self.rule), rows=frozenset(rows))
        direction = lift(rule, *[by_rows(x, shapes) for x in self.choices], seed=self.seed)
        decay = self.rates.weight_decay
        return descent(
            direction, self.rates.learning_rate, NO_DECAY if decay is None else decay, mask
        )


def own_states(state: chex.ArrayTree) -> list[LazyAdamState]:
    """The states of `lazy_adam` in another, wherever they are nested."""
    return [x for x in jax.tree.leaves(state, is_leaf=_is_own) if _is_own(x)]


def chosen(takes: jax.Array, new: chex.ArrayTree, old: chex.ArrayTree, updates: Any) -> Any:
    """``new`` where a scalar is true, else ``old``; of tables with `Rows` as updates ``new``.

    Where it is false these must be padding alone. Then both are the same, and the choice, which
    would read and write whole tables, is left out.
    """
    flat = jax.tree_util.tree_leaves_with_path(updates, is_leaf=is_rows)
    stay = {_keystr(path) for path, u in flat if is_rows(u)}

    def one(new: Any, old: Any) -> Any:
        either = choose(takes, new, old)
        if not _is_own(new):
            return either

        def with_tables(tree: Any, of_new: Any) -> Any:
            def pick(path: Any, counts: Any, x: Any, y: Any) -> Any:
                return y if counts is not None and _keystr(path) in stay else x

            return jax.tree_util.tree_map_with_path(
                pick, new.last, tree, of_new, is_leaf=lambda x: x is None
            )

        pairs = zip(_moments(either), _moments(new), strict=True)
        inner_state = _with_moments(either.inner_state, [with_tables(*pair) for pair in pairs])
        return LazyAdamState(inner_state, with_tables(either.last, new.last))

    return jax.tree.map(one, new, old, is_leaf=_is_own)


def begun_now(fresh: chex.ArrayTree, state: chex.ArrayTree) -> Any:
    """A new state whose rows have skipped no step of another's: each begins at its step."""
    flat: tuple[Any, Any] = jax.tree.flatten(fresh, is_leaf=_is_own)
    leaves, treedef = flat
    places = [i for i, x in enumerate(leaves) if _is_own(x)]
    # Who takes both compares their structures.
    for i, old in zip(places, own_states(state), strict=False):
        count = _count(old.inner_state)
        last = jax.tree.map(partial(full_beside, value=count), leaves[i].last)
        leaves[i] = leaves[i]._replace(last=last)
    return treedef.unflatten(leaves)


def _is_own(x: Any) -> bool:
    return isinstance(x, LazyAdamState)


def _never(is_table: Callable[[Any, Any], bool], path: Any, p: Any) -> jax.Array | None:
    """A counter for each row of a table; ``None`` for what is none."""
    leaf = jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p))
    if not is_table(path, leaf):
        return None
    if not leaf.shape:
        raise ValueError(f"params{_keystr(path)} has no rows; `tables` takes it for a table")
    require_takeable(f"params{_keystr(path)}", p)
    if 0 in leaf.shape:
        return jnp.zeros(leaf.shape[0], jnp.int32)
    counter: jax.Array = full_beside(one_a_row(p), 0, jnp.int32)
    return counter


def _decayed(stored: Any, b: Any, skipped: jax.Array) -> Any:
    """A moment's rows after the steps that they have skipped."""
    factor = left(b, skipped, jnp.result_type(decoded(stored).real))
    return scaled(stored, column(factor, len(stored.shape)))


def _sum(p: Any, way: Any) -> Any:
    """Parameters, moved; in float32 or wider where they have."""
    return p if p is None or way is None else decoded(p) + way


def _all_at(part: Touched, count: jax.Array) -> list[Any]:
    """The counters of what is touched, at this step."""
    return [
        jnp.broadcast_to(count, g.indices.shape) if is_rows(g) else None for g in part.gradients
    ]


def _masked(mask: Any, part: Touched) -> list[bool]:
    """Whether each leaf decays."""
    if mask is None:
        return [True] * len(part.leaves)
    tree = part.described()
    require_mask(mask, tree)
    flat, treedef = _flatten(mask)
    pairs = zip(flat, treedef.flatten_up_to(tree), strict=True)
    return [x for (_, x), sub in pairs for _ in jax.tree.leaves(sub)]


def _flatten(tree: chex.ArrayTree) -> tuple[list[tuple[Any, Any]], Any]:
    flat: tuple[Any, Any] = jax.tree_util.tree_flatten_with_path(tree)
    return flat


def _moments(state: chex.ArrayTree) -> tuple[Any, Any]:
    adam = only(state, optax.ScaleByAdamState, "scale_by_adam")
    return adam.mu, adam.nu


def _count(state: chex.ArrayTree) -> jax.Array:
    count: jax.Array = only(state, optax.ScaleByAdamState, "scale_by_adam").count
    return count


def _with_moments(state: chex.ArrayTree, moments: Any) -> Any:
    mu, nu = moments
    adam = only(state, optax.ScaleByAdamState, "scale_by_adam")
    return _replaced(state, optax.ScaleByAdamState, adam._replace(mu=mu, nu=nu))


def _replaced(state: chex.ArrayTree, kind: type[Any], new: Any) -> Any:
    """A state with another one in the place of the only one of its kind."""
    return jax.tree.map(
        lambda x: new if isinstance(x, kind) else x, state, is_leaf=lambda x: isinstance(x, kind)
    )
