"""What it takes to run a race again: the command, and what it ran on."""

import platform
import shlex
from collections.abc import Sequence

from adam_jax.race import records
from adam_jax.race.results import Race


def command(given: Sequence[str]) -> str:
    """What was typed, as a shell takes it.

    Example:
      >>> command(["race", "my problem.py", "--seeds", "5"])
      "adam-jax race 'my problem.py' --seeds 5"
    """
    return shlex.join(["adam-jax", *given])


def versions(races: Sequence[Race]) -> dict[str, str]:
    """Of the packages that results depend on, of Python, and what was raced on, by name."""
    packages = {name: found or "not installed" for name, found in records.versions().items()}
    return packages | {
        "Python": platform.python_version(),
        "device": ", ".join(dict.fromkeys(race.device for race in races if race.device)),
        "system": platform.platform(),
    }
