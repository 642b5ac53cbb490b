"""Trains every entrant at every learning rate and seed, all runs of an entrant at once.

Learning rates are mapped inside, seeds outside: the runs of a seed start from the same parameters
and see the same batches, of which the device holds one copy. Each entrant costs one compilation;
the measurement of the loss, which is the same for all, one a race.

The loss of a run is its mean over an epoch's batches with the parameters frozen at the epoch's
end, measured before the first epoch (on the first one's batches) and after each. A mean over the
epoch while it is being trained would lag behind, and lag most for the one that learns fastest.

The time a step is the median epoch's wall time, divided by its steps and by the runs that shared
it. It compares entrants within one race: a lone run, which has nobody to share with, takes longer.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.race import feed
from adam_jax.race.entrants import Entrant
from adam_jax.race.errors import UsageError, blaming, running
from adam_jax.race.feed import Tree
from adam_jax.race.problem import Problem
from adam_jax.race.results import Failure, Outcome, Run


@dataclass(frozen=True)
class Settings:
    """What is run: each of the learning rates from each of the seeds, for so many epochs."""

    learning_rates: tuple[float, ...]
    seeds: int
    epochs: int


@dataclass(frozen=True)
class Began:
    """An entrant that is about to be traced and run."""

    entrant: str


@dataclass(frozen=True)
class Progress:
    """What an entrant has just finished: an epoch, counted from 1, or (0) its compilation."""

    entrant: str
    epoch: int


def race(
    problem: Problem, entrants: Sequence[Entrant], settings: Settings
) -> Iterator[Progress | Outcome | Failure]:
    """Yields progress after each epoch, and an outcome or a failure as each entrant is done.

    All entrants are traced before the first one runs, so that one which cannot run says so at once.

    Raises:
      UsageError: if the problem's own code fails, or an entrant's while it is traced.
    """
    track = Track(problem, settings)
    lanes = [_Lane(entrant, track) for entrant in entrants]
    track.check_start()
    for lane in lanes:
        yield from lane.run()


def one_by_one(
    problem: Problem, entrants: Sequence[Entrant], settings: Settings
) -> Iterator[Began | Progress | Outcome | Failure]:
    """The same for who goes on whatever happens: each entrant is traced when it is about to run.

    Raises:
      UsageError: if the problem's own code fails before the first entrant.
    """
    track = Track(problem, settings)
    track.check_start()
    for entrant in entrants:
        yield Began(entrant.name)
        try:
            events = _Lane(entrant, track).run()
        except UsageError as error:
            events = iter([failure(entrant.name, error)])
        yield from events


def failure(entrant: str, error: UsageError) -> Failure:
    """What such an error says of an entrant."""
    return Failure(entrant, str(error).removeprefix(f"entrant {entrant!r} "))


class Track:
    """What all entrants share: first parameters, batches, and how the loss is measured."""

    def __init__(self, problem: Problem, settings: Settings):
        self.problem = problem
        self.settings = settings
        self.learning_rates = jnp.asarray(settings.learning_rates, jnp.float32)
        pairs = [jax.random.split(jax.random.key(seed)) for seed in range(settings.seeds)]
        first = [problem.init(init_key) for init_key, _ in pairs]
        with blaming(f"{problem.file.name}: `init` must return one shape for every key"):
            self.params = feed.stack(first)
        self._data_keys = [data_key for _, data_key in pairs]
        self._measure = jax.jit(over_runs(self._mean_loss, (0, None, None), (0, None, 0)))

    def check_start(self) -> None:
        """Makes sure that there is a loss to come down from, whoever races."""
        if not np.isfinite(self.first_losses).any():
            raise UsageError(
                f"{self.problem.file.name}: the loss is {self.first_losses.flat[0]} before the "
                "first step, from every seed"
            )

    @cached_property
    def first_losses(self) -> np.ndarray:
        """The loss of all runs before the first step, on the first epoch's batches."""
        runs = len(self.settings.learning_rates)
        # In numpy: XLA would compile a program for each shape.
        params = jax.tree.map(
            lambda leaf: jnp.asarray(np.repeat(np.asarray(leaf)[:, None], runs, 1)), self.params
        )
        with running(f"{self.problem.file.name}: `loss`"):
            return self.losses(params, self.items(0))

    def items(self, epoch: int) -> Tree:
        """The items of an epoch, stacked over seeds."""
        keys = [jax.random.fold_in(key, epoch) for key in self._data_keys]
        found = [self.problem.feed.epoch(key) for key in keys]
        for items in found:
            shape = feed.structure(items)
            if shape != self.problem.items:
                first, now = (feed.brief(each) for each in (self.problem.items, shape))
                raise UsageError(
                    f"{self.problem.file.name}: `batches` must yield as much for every key: "
                    f"{first} at first, {now} later"
                )
        return feed.stack(found)

    def losses(self, params: Tree, items: Tree) -> np.ndarray:
        """The loss of all runs, shaped (seeds, learning rates)."""
        return np.asarray(self._measure(params, self.problem.feed.data, items))

    def evaluate(self, params: Tree, losses: np.ndarray) -> dict[tuple[int, int], dict[str, float]]:
        """The problem's own figures for each run that has not diverged."""
        if self.problem.evaluate is None:
            return {}
        host = jax.tree.map(np.asarray, params)
        return {
            run: self.problem.evaluate(
                jax.tree.map(lambda leaf, run=run: jnp.asarray(leaf[run]), host)
            )
            for run in np.ndindex(losses.shape)
            if np.isfinite(losses[run])
        }

    def samples(self, params: Tree, run: Run) -> dict[str, str | np.ndarray]:
        """The problem's own samples of a run, unless it has diverged."""
        if self.problem.samples is None or run.diverged:
            return {}
        index = run.seed, self.settings.learning_rates.index(run.learning_rate)
        return self.problem.samples(jax.tree.map(lambda leaf: leaf[index], params))

    def _mean_loss(self, params: Tree, data: Tree, items: Tree) -> jax.Array:
        pick, loss = self.problem.feed.pick, self.problem.loss
        return jnp.mean(jax.lax.map(lambda item: loss(params, pick(data, item)), items))


class _Lane:
    """One entrant's compiled training, and the runs that it makes."""

    def __init__(self, entrant: Entrant, track: Track):
        self.name = entrant.name
        self._entrant = entrant
        self._track = track
        began = time.perf_counter()
        start = jax.jit(over_runs(self._start, (0, None), (None, 0)))
        train = jax.jit(
            over_runs(self._train, (0, 0, None, None), (None, 0, None, 0)), donate_argnums=1
        )
        problem = track.problem
        with blaming(f"entrant {self.name!r} failed", entrant.file or problem.file):
            carry = jax.eval_shape(start, track.learning_rates, track.params)
            self._lowered_start = start.lower(track.learning_rates, track.params)
            self._lowered_train = train.lower(
                track.learning_rates, carry, problem.feed.data, track.items(0)
            )
        self._trace_seconds = time.perf_counter() - began
        self._state_bytes = _bytes(carry[1]) / _size(carry[0])

    def run(self) -> Iterator[Progress | Outcome | Failure]:
        """Compiles, trains, measures; what goes wrong then is a failure of this entrant's alone."""
        try:
            with running(f"entrant {self.name!r}"):
                yield from self._run()
            return
        except UsageError as error:
            failed = failure(self.name, error)
        yield failed  # not inside of `except`, where the arrays of the run are still held

    def _run(self) -> Iterator[Progress | Outcome]:
        track = self._track
        began = time.perf_counter()
        start, train = self._lowered_start.compile(), self._lowered_train.compile()
        compile_seconds = self._trace_seconds + time.perf_counter() - began
        yield Progress(self.name, 0)
        params, state = start(track.learning_rates, track.params)
        losses = [track.first_losses]
        seconds: list[float] = []
        for epoch in range(track.settings.epochs):
            items = track.items(epoch)
            began = time.perf_counter()
            params, state = train(
                track.learning_rates, (params, state), track.problem.feed.data, items
            )
            jax.tree.leaves(params)[0].block_until_ready()  # all come out of one execution
            seconds.append(time.perf_counter() - began)
            losses.append(track.losses(params, items))
            yield Progress(self.name, epoch + 1)
        runs = self._runs(np.stack(losses, -1), track.evaluate(params, losses[-1]))
        outcome = Outcome(
            entrant=self.name,
            runs=runs,
            step_seconds=median(seconds) / track.problem.steps / losses[0].size,
            compile_seconds=compile_seconds,
            state_bytes=self._state_bytes,
            digest=self._entrant.digest,
        )
        yield replace(outcome, samples=track.samples(params, outcome.best_run))

    def _runs(
        self, losses: np.ndarray, evaluations: dict[tuple[int, int], dict[str, float]]
    ) -> tuple[Run, ...]:
        settings = self._track.settings
        return tuple(
            Run(
                entrant=self.name,
                learning_rate=rate,
                seed=seed,
                losses=tuple(losses[seed, index].tolist()),
                evaluation=evaluations.get((seed, index)),
            )
            for index, rate in enumerate(settings.learning_rates)
            for seed in range(settings.seeds)
        )

    def _start(self, learning_rate: jax.Array, params: Tree) -> tuple[Tree, Tree]:
        return params, self._entrant.build(learning_rate).init(params)

    def _train(
        self, learning_rate: jax.Array, carry: tuple[Tree, Tree], data: Tree, items: Tree
    ) -> tuple[Tree, Tree]:
        transformation = self._entrant.build(learning_rate)
        return trained(self._track.problem, transformation, carry, data, items)


def trained(
    problem: Problem,
    transformation: optax.GradientTransformation,
    carry: tuple[Tree, Tree],
    data: Tree,
    items: Tree,
) -> tuple[Tree, Tree]:
    """Parameters and state of one run after an epoch."""

    def step(carry: tuple[Tree, Tree], item: Tree) -> tuple[tuple[Tree, Tree], None]:
        params, state = carry
        gradients = jax.grad(problem.loss)(params, problem.feed.pick(data, item))
        updates, state = transformation.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, carry, items)[0]


def over_runs(
    function: Callable[..., Any], rates: tuple[int | None, ...], seeds: tuple[int | None, ...]
) -> Callable[..., Any]:
    """Maps over learning rates inside, over seeds outside."""
    return jax.vmap(jax.vmap(function, rates), seeds)


def _bytes(tree: Tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _size(tree: Tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
