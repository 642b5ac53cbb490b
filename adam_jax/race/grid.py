"""Learning rates as the user writes them: `0.001,0.01`, or `1e-4:1:9` spaced evenly in log."""

import math
from collections.abc import Sequence

import numpy as np

from adam_jax.race.errors import UsageError

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
        rates = _parsed(given) if isinstance(given, str) else [float(rate) for rate in given]
    except (TypeError, ValueError):
        raise UsageError(f"{source} {_FORM}, got {given!r}") from None
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise UsageError(f"{source} must be positive and finite, got {given!r}")
    if len(set(rates)) < len(rates):
        raise UsageError(f"{source} must differ from one another, got {given!r}")
    return tuple(sorted(rates))


def _parsed(text: str) -> list[float]:
    if ":" not in text:
        return [float(part) for part in text.split(",")]
    lowest, highest, count = text.split(":")
    low, high, number = float(lowest), float(highest), int(count)
    if not (0 < low < high < math.inf and number >= 2):
        raise ValueError
    # Six digits, so that a rate read off the table can be typed in again.
    return [float(f"{rate:.6g}") for rate in np.geomspace(low, high, number)]
