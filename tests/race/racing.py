"""Races of the built-in problems, as tests run them: without the command line."""

from collections.abc import Sequence

from adam_jax.race import entrants, problem
from adam_jax.race.results import Outcome
from adam_jax.race.runner import Settings, race


def raced(
    name: str,
    names: str,
    learning_rates: Sequence[float],
    seeds: int = 3,
    epochs: int | None = None,
) -> list[Outcome]:
    """The outcomes of a comma list of entrants on a problem, in its own budget unless told."""
    found = problem.load(name)
    settings = Settings(tuple(learning_rates), seeds, epochs or found.epochs)
    events = race(found, entrants.load(names), settings)
    return [event for event in events if isinstance(event, Outcome)]
