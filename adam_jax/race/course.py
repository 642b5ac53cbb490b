"""What is asked of all races alike, and what all entrants of one have in common."""

from dataclasses import dataclass

import jax

from adam_jax.race.problem import Problem
from adam_jax.race.runner import Settings
from adam_jax.race.sources import digest


@dataclass(frozen=True)
class Asked:
    """What the user asks of every problem; `None` leaves it to the problem.

    Attributes:
      learning_rates: those to try.
      seeds: how many.
      epochs: passes through the data.
    """

    learning_rates: tuple[float, ...] | None
    seeds: int
    epochs: int | None

    def of(self, problem: Problem) -> Settings:
        """What is run on a problem."""
        return Settings(
            learning_rates=self.learning_rates or problem.learning_rates,
            seeds=self.seeds,
            epochs=self.epochs or problem.epochs,
        )


@dataclass(frozen=True)
class Course:
    """A problem as it is raced.

    Attributes:
      problem: its name.
      digest: of its file, and of the modules beside it that it imports.
      about: what it is, in a line; may be empty.
      learning_rates: those tried.
      seeds: how many.
      epochs: passes through the data.
      steps: optimizer steps an epoch.
      target: the training loss that counts as solved; `None` for a tenth above the lowest.
      device: what kind of device it is raced on.
    """

    problem: str
    digest: str
    about: str
    learning_rates: tuple[float, ...]
    seeds: int
    epochs: int
    steps: int
    target: float | None
    device: str


def course(problem: Problem, settings: Settings) -> Course:
    """A problem that was read, and what is run on it."""
    return Course(
        problem=problem.name,
        digest=digest(problem.file),
        about=problem.about,
        learning_rates=settings.learning_rates,
        seeds=settings.seeds,
        epochs=settings.epochs,
        steps=problem.steps,
        target=problem.target,
        device=jax.devices()[0].device_kind,
    )
