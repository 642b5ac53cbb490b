"""A state as what each of the small states in it holds, wherever these are nested.

Chains, masks and groups are of no account here: what counts is which class of state it is, what it
calls its parts, and of which parameters they are. Where Optax and this package have other names for
the same, both are under ours.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from adam_jax.ownership import Path, level, walk

_KINDS = {
    "MultiStepsState": "AccumulateState",
    "ApplyIfFiniteState": "SkipUnstableState",
    "InjectHyperparamsState": "HyperparametersState",
    "InjectStatefulHyperparamsState": "HyperparametersState",
}
_FIELDS = {
    ("AccumulateState", ".mini_step"): ".micro_step",
    ("AccumulateState", ".gradient_step"): ".full_steps",
    ("AccumulateState", ".acc_grads"): ".accumulator",
    ("SkipUnstableState", ".notfinite_count"): ".skipped_in_row",
    ("SkipUnstableState", ".total_notfinite"): ".skipped_total",
}

_keystr = jax.tree_util.keystr


@dataclass(eq=False)
class Holder:
    """A state of a class, and what it holds itself.

    Attributes:
      path: where it is.
      name: its class.
      numbers: what belongs to no parameter, such as counts, by its name.
      moments: what does, by its name and then by the parameter's path.
      places: the parameters of which it, or a state in it, holds moments; where there are none,
        those of the nearest state around it that has some.
      is_around: whether there are such moments in it.
    """

    path: Path
    name: str
    numbers: dict[str, Any] = field(default_factory=dict)
    moments: dict[str, dict[Path, Any]] = field(default_factory=dict)
    places: set[Path] = field(default_factory=set)
    is_around: bool = False

    @property
    def kind(self) -> str:
        """The class, by this package's name."""
        return _KINDS.get(self.name, self.name)

    def key(self, path: Path) -> str:
        """What is called by a path from here on."""
        name = _keystr(path)
        return _FIELDS.get((self.kind, name), name)

    def where(self, name: str) -> str:
        """Where that is in the state, by its own names."""
        own = {(kind, ours): theirs for (kind, theirs), ours in _FIELDS.items()}
        called = own.get((self.kind, name), name) if self.name in _KINDS else name
        return f"state{_keystr(self.path)}{called}"

    def derive(self) -> None:
        """What the other package's state of this kind also has, where it follows from this one."""
        if self.name == "MultiStepsState":
            self.numbers[".weight"] = jnp.asarray(self.numbers[".micro_step"], jnp.float32)
        if self.name == "SkipUnstableState":
            self.numbers[".last_finite"] = self.numbers[".skipped_in_row"] == 0


class Holders:
    """All of a state."""

    def __init__(self, state: Any, params: Any) -> None:
        self._found: dict[Path, Holder] = {(): Holder((), "")}
        self._found |= {path: Holder(path, name) for path, name in _classes(state)}
        for path, node, owned in walk(state, params):
            holder = self.of(path)
            below = path[len(holder.path) :]
            if owned is None:
                holder.numbers[holder.key(below)] = node
            elif owned:
                holder.moments[holder.key(below)] = dict(owned)
        self._place()

    def __iter__(self) -> Iterator[Holder]:
        return iter(self._found.values())

    def _place(self) -> None:
        """Note of each which parameters it is for."""
        for path, holder in self._found.items():
            own = {place for moment in holder.moments.values() for place in moment}
            for n in range(len(path) + 1):
                if path[:n] in self._found:
                    self._found[path[:n]].places |= own
        for holder in self:
            holder.is_around = bool(holder.places)
        for holder in self:  # from the outermost on
            holder.places = holder.places or self.of(holder.path).places

    def of(self, path: Path) -> Holder:
        """The innermost one that holds what is at a path."""
        lengths = reversed(range(len(path)))
        return next(
            (self._found[path[:n]] for n in lengths if path[:n] in self._found), self._found[()]
        )


def _classes(node: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Where states with named fields are, from the outermost on."""
    if getattr(node, "_fields", ()):  # not what masks leave
        yield path, type(node).__name__
    children, structure = level(node)
    if not jax.tree_util.treedef_is_leaf(structure):
        for key, child in children:
            yield from _classes(child, path + key)
