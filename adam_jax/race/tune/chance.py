"""Whether one candidate's losses are lower than another's by more than chance."""

from collections.abc import Sequence
from functools import lru_cache

_LEVEL = 0.05


def ahead(losses: Sequence[float], others: Sequence[float]) -> bool:
    """The rank-sum test, one-sided, at 5%; of three seeds each, that the ranges do not meet.

    Of fewer seeds no outcome is that unlikely; there too it takes ranges that do not meet.

    Mann & Whitney 1947, "On a Test of Whether one of Two Random Variables is Stochastically Larger
    than the Other", https://doi.org/10.1214/aoms/1177730491.

    Args:
      losses: that may be lower, one a seed.
      others: than these.

    >>> ahead([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]), ahead([1.0, 2.0, 4.0], [3.0, 5.0, 6.0])
    (True, False)
    """
    wins = sum(one < other for one in losses for other in others)
    ways = _ways(len(losses), len(others))
    return sum(ways[wins:]) <= max(_LEVEL * sum(ways), 1)


@lru_cache
def _ways(first: int, second: int) -> list[int]:
    """In how many orders so many pairs are won: the coefficients of a Gaussian binomial.

    >>> _ways(2, 2)
    [1, 1, 2, 1, 1]
    """
    size = first * second + 1
    ways = [1] + [0] * (size - 1)
    for index in range(1, second + 1):
        for power in reversed(range(first + index, size)):  # times 1 - q ** (first + index)
            ways[power] -= ways[power - first - index]
        for power in range(index, size):  # over 1 - q ** index
            ways[power] += ways[power - index]
    return ways
