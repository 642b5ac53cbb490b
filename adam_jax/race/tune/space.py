"""What is searched: each hyperparameter's range, on the scale that its effect is even on.

Learning rates, epsilons and weight decays matter by their ratios. A decay rate of a running mean
matters by the mean's length, 1 / (1 - rate): 0.99 is as far from 0.9 as 0.999 is from 0.99.
"""

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat

import numpy as np

from adam_jax.race.entrants import Entrant
from adam_jax.race.errors import UsageError

LEARNING_RATE = "learning_rate"
DEFAULT_LEARNING_RATES = "1e-6:10:22"
_FEWEST = 3  # learning rates: fewer have no inside
_PRIMES = (2, 3, 5, 7, 11, 13)
_STOPS = 9  # of the others, from end to end

# Those without a default that tells.
_DECAY_RATE = re.compile(r"b\d|beta\d?|momentum|decay|rho")

Values = tuple[float, ...]  # of a candidate, in the order of the axes


@dataclass(frozen=True)
class Axis:
    """One hyperparameter.

    Attributes:
      name: of the argument.
      grid: values from one end to the other, increasing.
      of_complement: whether its scale is the log of 1 - value, and not of the value.
    """

    name: str
    grid: tuple[float, ...]
    of_complement: bool = False

    @property
    def low(self) -> float:
        """The smallest value."""
        return self.grid[0]

    @property
    def high(self) -> float:
        """The largest value."""
        return self.grid[-1]

    def place(self, value: float) -> float:
        """Where a value is on the scale: increasing, and e-fold steps are 1 apart."""
        return -math.log1p(-value) if self.of_complement else math.log(value)

    def at(self, place: float) -> float:
        """The value there, to three digits, for it to be the number that is printed.

        >>> Axis("b2", (), of_complement=True).at(7.0), Axis("eps", ()).at(-1.0)
        (0.999088, 0.368)
        """
        if self.of_complement:
            return float(self.text(-math.expm1(-place)))
        return float(self.text(math.exp(place)))

    def text(self, value: float, digits: int = 3) -> str:
        """A value as it is shown, with so many digits of what matters.

        >>> Axis("b2", (), of_complement=True).text(0.99684, 2), Axis("eps", ()).text(1 / 3)
        ('0.9968', '0.333')
        """
        if self.of_complement:
            return f"{1 - float(f'{1 - value:.{digits}g}'):.12g}"
        return f"{value:.{digits}g}"

    @property
    def fine(self) -> tuple[float, ...]:
        """The grid and the middles between its values."""
        middles = [(self.place(a) + self.place(b)) / 2 for a, b in pairwise(self.grid)]
        return tuple(sorted({*self.grid, *map(self.at, middles)}))


def axes(rates: Sequence[float], also: str | None, entrant: Entrant) -> tuple[Axis, ...]:
    """The learning rate's axis, and those that `--also` names.

    Args:
      rates: the learning rates, increasing.
      also: such as ``"b2=0.9:0.9999,eps=1e-10:1e-3"``.
      entrant: whose hyperparameters they are.

    Raises:
      UsageError: if one cannot be searched.
    """
    if len(rates) < _FEWEST:
        raise UsageError(f"--learning-rates must be at least {_FEWEST}, got {len(rates)}")
    found = [Axis(LEARNING_RATE, tuple(rates))]
    for part in also.split(",") if also is not None else ():
        axis = _axis(part.strip(), entrant)
        if axis.name in [each.name for each in found]:
            raise UsageError(f"--also must name each once, got {axis.name!r} twice")
        found.append(axis)
    if len(found) > len(_PRIMES):
        raise UsageError(f"--also must name at most {len(_PRIMES) - 1}, got {len(found) - 1}")
    return tuple(found)


def candidates(searched: Sequence[Axis]) -> list[Values]:
    """Where the search begins: the grid of a lone axis, or else points spread evenly over all.

    There are as many as learning rates for each axis, by Halton's sequence. Unlike a product of
    grids they try as many values of each hyperparameter as there are candidates.
    """
    first, *others = searched
    if not others:
        return [(rate,) for rate in first.grid]
    number = len(first.grid) * len(searched)
    return [tuple(map(_share, searched, _PRIMES, repeat(index + 1))) for index in range(number)]


def _share(axis: Axis, base: int, index: int) -> float:
    """The value at the share of the range that Halton's sequence has there."""
    low, high = axis.place(axis.low), axis.place(axis.high)
    return axis.at(low + mirrored(index, base) * (high - low))


def mirrored(index: int, base: int) -> float:
    """A number's digits behind the point, the last one first: even over 0 to 1.

    Halton 1964, "Algorithm 247: Radical-inverse Quasi-random Point Sequence",
    https://doi.org/10.1145/355588.365104.

    >>> [mirrored(index, 2) for index in (1, 2, 3, 4)]
    [0.5, 0.25, 0.75, 0.125]
    """
    share, digit = 0.0, 1.0
    while index:
        index, rest = divmod(index, base)
        digit /= base
        share += rest * digit
    return share


def _axis(text: str, entrant: Entrant) -> Axis:
    name, _, ends = text.partition("=")
    try:
        low, high = map(float, ends.split(":"))
    except ValueError:
        form = "name=lowest:highest such as b2=0.9:0.9999"
        raise UsageError(f"--also must be a list of {form}, got {text!r}") from None
    rate, *others = inspect.signature(entrant.build).parameters.values()
    if name in (rate.name, LEARNING_RATE):
        raise UsageError(f"--also must not name {name!r}: --learning-rates does")
    named = {each.name: each.default for each in others if each.kind not in _ANY}
    if name not in named:
        numbers = (float, type(inspect.Parameter.empty))
        known = ", ".join(key for key in named if isinstance(named[key], numbers)) or "no numbers"
        raise UsageError(f"--also must name what {entrant.name!r} takes ({known}), got {name!r}")
    of_complement = _is_decay_rate(name, named[name])
    _check(text, low, high, of_complement)
    axis = Axis(name, (low, high), of_complement)
    stops = np.linspace(axis.place(low), axis.place(high), _STOPS)[1:-1]
    return Axis(name, (low, *map(axis.at, stops), high), of_complement)


_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _is_decay_rate(name: str, default: object) -> bool:
    if isinstance(default, float):
        return 0.5 <= default < 1
    return _DECAY_RATE.fullmatch(name) is not None


def _check(text: str, low: float, high: float, of_complement: bool) -> None:
    with np.errstate(over="ignore"):
        lowest, highest = np.float32(low), np.float32(high)  # as they are trained
    if of_complement:
        rule, holds = "0 <= lowest < highest < 1", 0 <= lowest < highest < 1
    else:
        # XLA flushes what is below the smallest normal number to 0.
        rule, holds = "0 < lowest < highest", np.finfo(np.float32).tiny <= lowest < highest < np.inf
    if not holds:
        raise UsageError(f"--also must have {rule} in float32, got {text!r}")
