"""A trainer whose losses are a formula: what a search makes of them is worked out by hand."""

import numpy as np

from adam_jax.race import entrants, grid
from adam_jax.race.tune.search import Search
from adam_jax.race.tune.space import axes, candidates
from adam_jax.race.tune.trainer import Group


class Known:
    """In the place of `Trainer`; counts what it is asked to train."""

    def __init__(self, loss, seeds):
        self.loss, self.seeds = loss, seeds
        self.trained = 0
        self.widths = []

    def start(self, members):
        self.widths.append(len(members))
        return Group(members, {}, None)

    def keep(self, group, members):
        kept = [group.members.index(values) for values in members]
        smaller = self.start(members)
        smaller.losses = [losses[:, kept] for losses in group.losses]
        return smaller

    def train(self, group, epochs):
        if not group.losses:
            self._append(group, 0)
        while group.epochs < epochs:
            self._append(group, group.epochs + 1)
            self.trained += self.seeds * len(group.members)
            yield group.epochs

    def _append(self, group, epoch):
        losses = [
            [self.loss(*values, epoch=epoch, seed=seed) for values in group.members]
            for seed in range(self.seeds)
        ]
        group.losses.append(np.array(losses))


def searched(loss, rates="1e-4:1:9", epochs=8, seeds=3, tolerance=0.05, also=None, entrant="adam"):
    """The findings of a search, and the trainer that it had."""
    (chosen,) = entrants.load(entrant)
    space = axes(grid.learning_rates(rates), also, chosen)
    trainer = Known(loss, seeds)
    search = Search(trainer, space, candidates(space), seeds, epochs, tolerance)
    list(search.run())
    return search.findings, trainer
