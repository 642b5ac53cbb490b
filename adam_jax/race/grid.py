"""Learning rates as the user writes them: `0.001,0.01`, or `1e-4:1:9` spaced evenly in log."""

import math
from collections.abc import Sequence
from itertools import islice

import numpy as np

from adam_jax.race.errors import UsageError

_MOST = 1000  # all are trained at once
_ROOM = _MOST + 1  # for what is too many to show
_FORM = "must be a list such as 0.001,0.01 or lowest:highest:count such as 1e-4:1:9"


def learning_rates(
    given: str | Sequence[float], source: str = "--learning-rates"
) -> tuple[float, ...]:
    """Reads learning rates, and sorts them.

    Args:
      given: the text of an argument, or a problem's own numbers.
      source: where they come from, for messages.

    Example:
      >>> learning_rates("1e-4:1:5")
      (0.0001, 0.001, 0.01, 0.1, 1.0)
      >>> learning_rates([0.3, 0.1])
      (0.1, 0.3)
    """
    try:
        rates = _parsed(given) if isinstance(given, str) else list(map(float, islice(given, _ROOM)))
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{source} {_FORM}, got {given!r}") from None
    if len(rates) > _MOST:
        raise UsageError(f"{source} must be at most {_MOST} of them, got more")
    with np.errstate(over="ignore"):
        trained = [float(np.float32(rate)) for rate in rates]  # they are raced in float32
    # XLA flushes what is below the smallest normal number to 0.
    if not rates or not all(np.finfo(np.float32).tiny <= rate < math.inf for rate in trained):
        raise UsageError(f"{source} must be positive and finite in float32, got {given!r}")
    if len(set(trained)) < len(trained):
        raise UsageError(f"{source} must differ from one another in float32, got {given!r}")
    return tuple(sorted(rates))


def _parsed(text: str) -> list[float]:
    if ":" not in text:
        return [float(part) for part in text.split(",")]
    lowest, highest, count = text.split(":")
    low, high, number = float(lowest), float(highest), int(count)
    if not (0 < low < high < math.inf and number >= 2):
        raise ValueError
    # Six digits, so that a rate read off the table can be typed in again.
    return [float(f"{rate:.6g}") for rate in np.geomspace(low, high, min(number, _ROOM))]
