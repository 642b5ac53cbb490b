"""Trains groups of candidates, every one from every seed, all at once; a group may lose members.

As in the race, candidates are mapped inside and seeds outside. Hyperparameters are traced float32
scalars, so a group costs a compilation for its width, whatever the values.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax.race.entrants import Entrant
from adam_jax.race.errors import blaming, running
from adam_jax.race.feed import Tree
from adam_jax.race.problem import Problem
from adam_jax.race.runner import Settings, Track, over_runs, trained
from adam_jax.race.tune.results import Trial
from adam_jax.race.tune.space import Axis, Values


class Group:
    """Candidates that train together.

    Attributes:
      members: their values.
      losses: before the first epoch and after each so far, shaped (seeds, members).
    """

    def __init__(self, members: Sequence[Values], given: dict[str, jax.Array], carry: Any):
        self.members = list(members)
        self.given = given
        self.carry = carry
        self.losses: list[np.ndarray] = []

    @property
    def epochs(self) -> int:
        """How many they have been given."""
        return max(0, len(self.losses) - 1)

    def trials(self) -> dict[Values, Trial]:
        """What is known of them."""
        rows = np.stack(self.losses, -1).tolist()
        return {
            values: Trial(values, tuple(tuple(seed[index]) for seed in rows))
            for index, values in enumerate(self.members)
        }


class Trainer:
    """One entrant on one problem.

    Raises:
      UsageError: if the problem's or the entrant's own code fails.
    """

    def __init__(self, problem: Problem, entrant: Entrant, axes: Sequence[Axis], seeds: int):
        self._problem = problem
        self._entrant = entrant
        self._names = [axis.name for axis in axes]
        self._track = Track(problem, Settings((1.0,), seeds, 1))
        self._start = jax.jit(over_runs(self._begin, (0, None), (None, 0)))
        self._train = jax.jit(
            over_runs(self._epoch, (0, 0, None, None), (None, 0, None, 0)), donate_argnums=1
        )
        self._take = jax.jit(
            lambda tree, kept: jax.tree.map(lambda leaf: jnp.take(leaf, kept, 1), tree)
        )
        self._check(axes)

    def start(self, members: Sequence[Values]) -> Group:
        """A group that has not been trained."""
        given = self._given(members)
        with running(f"entrant {self._entrant.name!r}"):
            return Group(members, given, self._start(given, self._track.params))

    def train(self, group: Group, epochs: int) -> Iterator[int]:
        """Trains until the group has been given so many epochs, and yields each one's number."""
        while group.epochs < epochs:
            items = self._track.items(group.epochs)
            with running(f"entrant {self._entrant.name!r}"):
                if not group.losses:
                    group.losses.append(self._track.losses(group.carry[0], items))
                carry, group.carry = group.carry, None  # donated
                group.carry = self._train(group.given, carry, self._problem.feed.data, items)
                group.losses.append(self._track.losses(group.carry[0], items))
            yield group.epochs

    def keep(self, group: Group, members: Sequence[Values]) -> Group:
        """Those of a group that go on, with what they have learnt."""
        kept = [group.members.index(values) for values in members]
        with running(f"entrant {self._entrant.name!r}"):
            carry = self._take(group.carry, jnp.asarray(kept))
        smaller = Group(members, self._given(members), carry)
        smaller.losses = [losses[:, kept] for losses in group.losses]
        return smaller

    def _check(self, axes: Sequence[Axis]) -> None:
        """Traces what is to be compiled, so that what cannot run says so at once."""
        given = self._given([tuple(axis.low for axis in axes)])
        also = ", ".join(f"`{name}`" for name in self._names[1:])
        what = f"entrant {self._entrant.name!r} failed" + f" with traced {also}" * bool(also)
        with blaming(what, self._entrant.file or self._problem.file):
            carry = jax.eval_shape(self._start, given, self._track.params)
            items = self._track.items(0)
            jax.eval_shape(self._train, given, carry, self._problem.feed.data, items)

    def _given(self, members: Sequence[Values]) -> dict[str, jax.Array]:
        columns = zip(*members, strict=True)
        return {
            name: jnp.asarray(column, jnp.float32)
            for name, column in zip(self._names, columns, strict=True)
        }

    def _begin(self, given: dict[str, jax.Array], params: Tree) -> tuple[Tree, Tree]:
        return params, self._made(given).init(params)

    def _epoch(
        self, given: dict[str, jax.Array], carry: tuple[Tree, Tree], data: Tree, items: Tree
    ) -> tuple[Tree, Tree]:
        return trained(self._problem, self._made(given), carry, data, items)

    def _made(self, given: dict[str, jax.Array]) -> Any:
        rate, *others = self._names
        return self._entrant.build(given[rate], **{name: given[name] for name in others})
