"""Rules for some leaves of a tree: what matches a leaf, what is done to it, and who took which."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from adam_jax.diagnostics import aligned
from adam_jax.hyperparameters import Scalar, brief, flag, nonnegative, transformation
from adam_jax.leaves import Predicate, path_name

_MOST_NAMES = 3


@dataclass(frozen=True)
class Scale:
    """Factors for some leaves; 1 changes nothing, to the bit. See `by_path`.

    Attributes:
      learning_rate: on the whole update, all that decays in it included: a number >= 0, or a scalar
        array, traced or not, whose value may change without recompilation.
      weight_decay: on the rate of weight decay; the same.
    """

    learning_rate: Scalar = 1.0
    weight_decay: Scalar = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = nonnegative(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    def __str__(self) -> str:
        factors = {field.name: getattr(self, field.name) for field in fields(self)}
        texts = [f"{k} * {_factor(v)}" for k, v in factors.items() if not is_one(v)]
        return ", ".join(texts) or "as it is"


def _stay(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
    del params, extra_args
    # -0 is what leaves every number as it is: -0 + 0 is 0.
    return jax.tree.map(lambda u: -jnp.zeros_like(u), updates), state


#: For leaves that stay as they are, bit for bit: a transformation without state.
FREEZE = optax.GradientTransformationExtraArgs(optax.set_to_zero().init, _stay)

Action: TypeAlias = Scale | optax.GradientTransformation
# A mapping's keys are of one type only to a type checker, and so here of any.
Rules: TypeAlias = Mapping[Any, Action] | Sequence[tuple[Any, Action]]


@dataclass(frozen=True)
class Rule:
    """A pattern, by its name and what it matches, and what is done to a leaf that it takes."""

    name: str
    matches: Predicate
    action: Action


@dataclass(frozen=True)
class Row:
    """The leaves of one rule.

    Attributes:
      rule: its pattern, or its function's name; empty for the leaves that no rule takes.
      action: what it does.
      names: of the leaves.
      parameters: how many entries these have.
    """

    rule: str
    action: str
    names: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class Assignment:
    """Which rule takes which leaf, a row a rule; ``print`` shows it as a table."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        cells = [["rule", "action", "leaves", "parameters", "names"]]
        for row in self.rows:
            counts = [f"{len(row.names):,}", f"{row.parameters:,}"]
            cells.append([row.rule or "(none)", row.action, *counts, _shortened(row.names)])
        return aligned(cells, "<<>><")


def parse(rules: Any) -> tuple[Rule, ...]:
    """Check rules, which are told in `by_path`.

    >>> parse({"(": Scale()})
    Traceback (most recent call last):
    ValueError: rule '(' is no regular expression: missing ), unterminated subpattern at position 0
    """
    pairs = list(rules.items()) if isinstance(rules, Mapping) else rules
    if not isinstance(pairs, list | tuple):
        raise TypeError(f"`rules` must be pairs of pattern and action, got {brief(rules)}")
    return tuple(map(_rule, pairs))


def taken(rules: Sequence[Rule], tree: Any) -> Iterator[tuple[int | None, Any, Any]]:
    """For each leaf the index of the rule that takes it, the first to match; its path; its shape.

    Values are not shown to rules, for these may be traced, and decide nothing.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shape = _shape(path, leaf)
        matching = (index for index, rule in enumerate(rules) if rule.matches(path, shape))
        yield next(matching, None), path, shape


def require_used(rules: Sequence[Rule], params: optax.Params) -> None:
    """Check that each rule takes a leaf, if there are any.

    Raises:
      ValueError: one takes none.
    """
    leaves = list(taken(rules, params))
    used = {index for index, _, _ in leaves}
    for index, rule in enumerate(rules):
        if leaves and index not in used:
            some = any(rule.matches(path, shape) for _, path, shape in leaves)
            why = "rules before it take what it matches" if some else "it matches none"
            raise ValueError(f"rule {rule.name!r} takes no leaf: {why} (see `allow_unused`)")


def describe(rules: Sequence[Rule], params: optax.Params) -> Assignment:
    """A row a rule, and one for the rest."""
    held: dict[int | None, list[Any]] = {index: [] for index in (*range(len(rules)), None)}
    for index, path, shape in taken(rules, params):
        held[index].append((path_name(path), math.prod(shape.shape)))
    rows = []
    for index, leaves in held.items():
        name, action = ("", "as it is") if index is None else _text(rules[index])
        names = tuple(name for name, _ in leaves)
        rows.append(Row(name, action, names, sum(size for _, size in leaves)))
    return Assignment(tuple(rows))


def is_one(factor: Scalar) -> bool:
    """Whether it is known to change nothing."""
    return not isinstance(factor, jax.Array) and factor == 1


def _rule(pair: Any) -> Rule:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise TypeError(f"`rules` must be pairs of pattern and action, got {brief(pair)}")
    pattern, action = pair
    name, matches = predicate("a pattern in `rules`", pattern)
    if not isinstance(action, Scale):
        try:
            transformation("action", action)
        except TypeError:
            raise TypeError(
                f"the action of rule {name!r} must be a Scale, FREEZE or an Optax transformation,"
                f" got {brief(action)}"
            ) from None
    return Rule(name, matches, action)


def predicate(what: str, pattern: Any) -> tuple[str, Predicate]:
    """A pattern's name, and what it matches.

    Args:
      what: it is, for the error.
      pattern: a regular expression, or a function ``(path, leaf) -> bool``.

    Raises:
      TypeError: it is neither.
      ValueError: it is no regular expression.
    """
    if callable(pattern):
        name = getattr(pattern, "__name__", brief(pattern))
        return name, lambda path, leaf: flag(f"{name}(path, leaf)", pattern(path, leaf))
    try:
        regex = re.compile(pattern)
        regex.search("")
    except TypeError:  # also of a pattern of bytes
        raise TypeError(
            f"{what} must be a regular expression or a function (path, leaf) -> bool,"
            f" got {brief(pattern)}"
        ) from None
    except re.error as error:
        raise ValueError(f"rule {pattern!r} is no regular expression: {error}") from None
    return regex.pattern, lambda path, _: regex.search(path_name(path)) is not None


def _shape(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
    try:
        dtype = jnp.result_type(leaf)
    except (TypeError, ValueError):
        name = jax.tree_util.keystr(path)
        raise TypeError(f"params{name} must be an array, got {brief(leaf)}") from None
    return jax.ShapeDtypeStruct(getattr(leaf, "shape", ()), dtype)  # a Python number has none


def _text(rule: Rule) -> tuple[str, str]:
    if isinstance(rule.action, Scale):
        return rule.name, str(rule.action)
    return rule.name, "frozen" if rule.action == FREEZE else "its own optimizer"


def _factor(value: Scalar) -> str:
    return brief(value) if isinstance(value, jax.Array) else f"{value:g}"


def _shortened(names: Sequence[str]) -> str:
    """The first names; those that differ in their numbers alone are one."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"(?<![^/_.])\d+(?![^/_.])", "*", name), []).append(name)
    groups = [(held[0] if len(held) == 1 else name, len(held)) for name, held in alike.items()]
    hidden = sum(size for _, size in groups[_MOST_NAMES:])
    more = [f"and {hidden:,} more"] if hidden else []
    return ", ".join([*(name for name, _ in groups[:_MOST_NAMES]), *more])
