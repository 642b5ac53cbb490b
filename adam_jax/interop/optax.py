"""Training begun with Optax goes on here, and back.

A float32 state of a member that both have is the same in both, leaf for leaf: `optax.adam`'s can be
given to `adam` as it is. This is for the rest: states in other formats, and inside of other chains,
groups and wrappers than those that go on with it.

What is moved is found by the class of the state and by parameter: moments, counts, schedules,
hyperparameters; `optax.MultiSteps` and `accumulate`, `optax.apply_if_finite` and `skip_unstable`,
`optax.inject_hyperparams` and `with_hyperparameters` are taken for each other.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from adam_jax.convert import in_format
from adam_jax.diagnostics import require_arrays
from adam_jax.hyperparameters import transformation
from adam_jax.interop.holders import Holder, Holders
from adam_jax.ownership import Path
from adam_jax.parts import Part, mapped, shape_of

# States of which a part that the other package does not know may begin anew, or be left behind.
_SERVICES = {
    "AccumulateState",
    "AverageParamsState",
    "ClipByGlobalNormState",
    "HyperparametersState",
    "KahanSummationState",
    "MasterWeightsState",
    "MetricsState",
    "SkipUnstableState",
    "StochasticRoundingState",
}
# Those whose count is of steps done, as a member's is.
_CLOCKS = {"HyperparametersState", "ScaleByScheduleState", "WrappedScheduleState"}

_NEW = object()
_keystr = jax.tree_util.keystr


def from_optax(
    state: chex.ArrayTree, tx: optax.GradientTransformation, params: optax.Params
) -> chex.ArrayTree:
    """The state of a transformation of Optax as one of ``tx``, which goes on with it.

    The two may be nested differently: chains, `optax.masked`, `optax.partition` and `by_path`
    around the same members. Each moment goes to its own parameter. Arrays that are right as they
    are stay the same arrays; others are converted as by `convert_state`, to the nearest.

    A schedule that begins here takes up at the member's count. Of hyperparameters that are in both
    states the values move, as Optax's float32 has them; others are those of ``tx``. Those of groups
    go where the moments do that they are for, whatever the groups are called. What Optax has
    nothing for begins anew: averages of parameters, master weights, metrics, windows of norms.

    Optax's Adan multiplies by 1 - b2 what ours, and the paper, multiply by b2: its state moves, and
    the steps from there on are ours. `optax.MultiSteps` is to take means, its default.

    Args:
      state: of an Optax transformation.
      tx: the optimizer to go on with.
      params: the parameters, which both have.

    Returns:
      A state of ``tx``.

    Raises:
      ValueError: ``tx`` needs what is not in the state, or there is a moment in it that ``tx`` has
        no place for, or two where it has one; the leaf is named.
      TypeError: ``tx`` is no transformation, or a leaf of ``params`` no array, or a moment has a
        format that cannot be written.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> params = {"w": jnp.ones((64, 64))}
      >>> theirs = optax.MultiSteps(optax.adamw(1e-3), 4)
      >>> state = theirs.init(params)
      >>> small = adam_jax.storage.eight_bit()
      >>> ours = optax.chain(
      ...     adam_jax.clip_by_global_norm(1.0),
      ...     adam_jax.adamw(1e-3, mu_dtype=small, nu_dtype=small),
      ... )
      >>> state = from_optax(state, adam_jax.accumulate(ours, 4), params)
      >>> print(state.inner_state[1][0].nu["w"])
      eight_bit(block_size=256)
    """
    return _moved(state, tx, params)


def to_optax(
    state: chex.ArrayTree, tx: optax.GradientTransformation, params: optax.Params
) -> chex.ArrayTree:
    """The state of an optimizer of this package as one of ``tx``, of Optax, which goes on with it.

    As `from_optax`, in the other direction: moments in blocks become arrays, and what Optax has
    nothing for is left behind. In the middle of a step of `accumulate` only weights of 1 can move.

    Args:
      state: of an optimizer of this package.
      tx: the Optax transformation to go on with.
      params: the parameters, which both have.

    Returns:
      A state of ``tx``.

    Raises:
      ValueError: as from `from_optax`; or gradients were accumulated with other weights than 1.
      TypeError: ``tx`` is no transformation.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> small, params = adam_jax.storage.eight_bit(), {"w": jnp.ones((64, 64))}
      >>> state = adam_jax.adam(1e-3, mu_dtype=small, nu_dtype=small).init(params)
      >>> to_optax(state, optax.adam(1e-3), params)[0].nu["w"].dtype
      dtype('float32')
    """
    return _moved(state, tx, params)


def _moved(state: Any, tx: Any, params: Any) -> Any:
    require_arrays(params)
    template = jax.eval_shape(transformation("tx", tx).init, params)
    move = _Move(Holders(state, params), Holders(template, params))
    values: dict[Path, Any] = {}

    def choose(part: Part) -> Any:
        values[part.path] = move.value(part)
        return part.new

    mapped(choose, template, template, params)
    move.require_all_taken()
    new = {path for path, value in values.items() if value is _NEW}
    values |= _begun(tx, params, new) if new else {}

    def convert(part: Part) -> Any:
        part = replace(part, old=values[part.path])
        if shape_of(part.old) != shape_of(part.new):
            raise ValueError(f"{part}; in the state that it is to come from")
        return in_format(part)

    return mapped(convert, template, template, params)


def _begun(tx: Any, params: Any, paths: set[Path]) -> dict[Path, Any]:
    """Some parts of a new state; of the others none is allocated."""
    order: list[Path] = []

    def some(params: Any) -> list[Any]:
        found: dict[Path, Any] = {}
        state = tx.init(params)
        mapped(lambda part: found.setdefault(part.path, part.new), state, state, params)
        order[:] = [path for path in found if path in paths]
        return [found[path] for path in order]

    values = jax.jit(some)(params)
    return dict(zip(order, values, strict=True))


class _Move:
    """From the holders of one state to those of another."""

    def __init__(self, sources: Holders, targets: Holders) -> None:
        self._sources, self._targets = list(sources), list(targets)
        self._target_of = targets.of
        self._taken: set[tuple[int, str, Path]] = set()
        self._given: set[int] = set()
        for source in self._sources:
            source.derive()

    def value(self, part: Part) -> Any:
        """What is at a place of the new state: from the old one, or ``_NEW``."""
        target = self._target_of(part.path)
        below = part.path[len(target.path) :]
        if part.owner is None:
            value = self._number(target, target.key(below))
        else:
            name = target.key(below[: len(below) - len(part.owner)])
            value = self._moment(target, name, part.owner)
        if value is not _NEW and id(value) in self._given:
            value = jnp.array(value)  # a copy, for donation wants no array twice
        self._given.add(id(value))
        return value

    def require_all_taken(self) -> None:
        """Check that no moment is lost."""
        for source in self._sources:
            for name, moment in source.moments.items():
                for place in moment:
                    taken = (id(source), name, place) in self._taken
                    if not taken and not _may_be_left(source):
                        where = f"{source.where(name)}{_keystr(place)}"
                        raise ValueError(f"{where} is a moment that `tx` has no place for")

    def _moment(self, target: Holder, name: str, place: Path) -> Any:
        def has(holder: Holder) -> bool:
            return holder.kind == target.kind and place in holder.moments.get(name, ())

        found = [source for source in self._sources if has(source)]
        rivals = [other for other in self._targets if has(other)]
        if not found and target.kind in _SERVICES:
            return _NEW
        if len(found) != len(rivals):
            what = f"{target.name}{name} for params{_keystr(place)}"
            raise ValueError(f"`tx` has {len(rivals)} of {what}, and `state` {len(found)}")
        source = found[rivals.index(target)]
        self._taken.add((id(source), name, place))
        value = source.moments[name][place]
        if (source.name, target.name) == ("AccumulateState", "MultiStepsState"):
            return _mean_of_ones(source, value)
        return value

    def _number(self, target: Holder, name: str) -> Any:
        found, rivals = self._with_number(target, name)
        if found and _in_one_order(found, rivals):
            return found[rivals.index(target)].numbers[name]
        if not found and target.kind in _CLOCKS and name == ".count":
            near = [s for s in self._sources if name in s.numbers and _share(s, target)]
            found = [s for s in near if s.kind in _CLOCKS] or [s for s in near if s.moments]
        if not found and name in self._float32_only(target):
            return jnp.zeros([], jnp.float32)
        if not found and target.kind in _SERVICES:
            return _NEW
        if not found:
            raise ValueError(f"`tx` has a {target.name}{name}, and `state` none")
        several = f"`state` has several {target.name}{name}"
        one = (
            "`tx` one" if len(rivals) == 1 else f"none that can be told to be {target.where(name)}"
        )
        return _agreed([source.numbers[name] for source in found], several, one)

    def _float32_only(self, target: Holder) -> list[str]:
        """The remainders of hyperparameters that come from where these have none."""
        names = [name for name in target.numbers if name.startswith(".hyperparams[")]
        coming = [bool(self._with_number(target, name)[0]) for name in sorted(names)]
        return [f".remainders[{index}]" for index, comes in enumerate(coming) if comes]

    def _with_number(self, target: Holder, name: str) -> tuple[list[Holder], list[Holder]]:
        """Who has it in either state, of those of the same kind that share a parameter."""

        def has(each: Holder) -> bool:
            return each.kind == target.kind and name in each.numbers and _share(each, target)

        def alike(holder: Holder) -> bool:
            return holder.is_around == target.is_around or not holder.places

        found, rivals = ([h for h in state if has(h)] for state in (self._sources, self._targets))
        if not target.is_around and not any(map(alike, found)):  # as for a label of no parameter
            return found, rivals
        return list(filter(alike, found)), list(filter(alike, rivals))


def _may_be_left(source: Holder) -> bool:
    """Whether what is not taken of it is no loss: a service's own, or a mean of no gradients."""
    if source.kind == "AccumulateState":
        count = source.numbers[".micro_step"]
        return not isinstance(count, jax.core.Tracer) and int(count) == 0
    return source.kind in _SERVICES


def _mean_of_ones(source: Holder, mean: Any) -> Any:
    """The mean that `accumulate` holds, for who counts gradients and not their weights."""
    weight, count = source.numbers[".weight"], source.numbers[".micro_step"]
    if not isinstance(weight, jax.core.Tracer) and float(weight) != int(count):
        raise ValueError(
            f"{source.where('.weight')} is {float(weight):g} after {int(count)} gradients;"
            f" MultiSteps takes each with a weight of 1"
        )
    return jnp.where(weight == 0, 0, mean)


def _share(one: Holder, other: Holder) -> bool:
    """Whether there is a parameter that both are for, as far as there are moments to tell."""
    return not (one.places and other.places) or bool(one.places & other.places)


def _in_one_order(found: list[Holder], rivals: list[Holder]) -> bool:
    """Whether of those that share a parameter the first is the first, and so on.

    In chains they are, as their moments are. But groups are in the order of their labels, which may
    differ: those that have no moments in them are known by their paths alone.
    """
    if len(found) != len(rivals):
        return False
    pairs = list(zip(found, rivals, strict=True))
    if len(pairs) == 1 or all(a.path == b.path for a, b in pairs):
        return True
    return all(a.is_around and b.is_around and a.places == b.places for a, b in pairs)


def _agreed(values: Iterable[Any], several: str, one: str) -> Any:
    """The one value of all."""
    first, *others = values
    for other in others:
        if isinstance(first, jax.core.Tracer) or isinstance(other, jax.core.Tracer):
            raise ValueError(f"{several}, and under `jit` they cannot be compared")
        if not jnp.array_equal(first, other):
            raise ValueError(f"{several}, {first} and {other}, and {one}")
    return first
