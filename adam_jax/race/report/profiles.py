"""How the entrants do over all problems: the share that each has solved in a given time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from adam_jax.race.canvas import PRINT, Label, Paper, canvas, drawing, name_lines, png, short
from adam_jax.race.colours import OTHERS, style
from adam_jax.race.pictures import Styles, foremost
from adam_jax.race.profiles import Profile, Score, corners

_FEW = 5  # told of in words
_GAP = 2.2  # points between lines that coincide, which are 2 wide
_ROOM = 3  # percent, for those at the top and at the bottom


@dataclass(frozen=True)
class Lines:
    """The performance profiles of all entrants (Dahl et al. 2023, AlgoPerf, section 4).

    Attributes:
      name: under what rules, such as "tuned".
      taus: times the steps of a problem's fastest entrant, from 1 on.
      shares: of the problems, those solved within each of the `taus`, by entrant.
      scores: the mean of an entrant's shares over tau, by entrant.
    """

    name: str
    taus: tuple[float, ...]
    shares: dict[str, tuple[float, ...]]
    scores: dict[str, float]

    @property
    def ranked(self) -> list[str]:
        """The entrants, the highest score first."""
        return sorted(self.scores, key=lambda entrant: -self.scores[entrant])


def lines(scores: Sequence[Score], named: Sequence[str]) -> tuple[Lines, Lines]:
    """The profiles of tuned learning rates and of usual ones, of entrants in the order `named`."""
    inside = {score.entrant: score for score in scores}
    ordered = [inside[name] for name in named if name in inside]
    return (
        _lines("learning rate tuned on each problem", ordered, lambda score: score.tuned),
        _lines("learning rate nearest to the usual one", ordered, lambda score: score.default),
    )


def _lines(name: str, scores: Sequence[Score], kind: Callable[[Score], Profile]) -> Lines:
    found = {score.entrant: kind(score) for score in scores}
    taus = tuple(corners(list(found.values())))
    return Lines(
        name,
        taus,
        {entrant: tuple(map(profile.share, taus)) for entrant, profile in found.items()},
        {entrant: profile.score for entrant, profile in found.items()},
    )


def draw(profile: Lines) -> bytes:
    """Draws a profile as a PNG file."""
    names = foremost(list(profile.shares), profile.ranked)
    with drawing():
        styles = {entrant: style(index) for index, entrant in enumerate(names)}
        return png(figure(PRINT, profile, styles))


def figure(paper: Paper, profile: Lines, styles: Styles) -> Any:
    """Draws a profile; those that have no style are grey and have no name."""
    figure, axes = canvas(
        paper,
        f"{profile.name.capitalize()}: share of problems solved",
        "at the lines' ends: score, the mean share over tau",
    )
    labels: list[Label] = []
    named = {entrant: profile.shares[entrant] for entrant in profile.ranked if entrant in styles}
    gap = _GAP / 72 / (axes.get_position().height * paper.height) * (100 + 2 * _ROOM)
    heights = side_by_side(named, gap)
    for entrant in reversed(profile.ranked):
        shares = heights.get(entrant) or [100 * share for share in profile.shares[entrant]]
        look = styles.get(entrant)
        steps: dict[str, Any] = {"drawstyle": "steps-post", "clip_on": False}
        if look is None:
            axes.plot(profile.taus, shares, color=OTHERS, linewidth=0.8, zorder=1.5, **steps)
            continue
        axes.plot(profile.taus, shares, **look, markevery=max(1, len(shares) // 8), **steps)
        score = f" {profile.scores[entrant]:.2f}"
        name = short(entrant, paper.letters - len(score)) + score
        labels.append(Label(name, profile.taus[-1], shares[-1], look["color"]))
    axes.set(xlim=(profile.taus[0], profile.taus[-1]), ylim=(-_ROOM, 100 + _ROOM))
    axes.set_xlabel("steps / steps of the fastest (tau)", fontsize=11)
    axes.set_ylabel("problems solved (%)", fontsize=11)
    name_lines(paper, axes, labels)
    return figure


def side_by_side(shares: Mapping[str, Sequence[float]], gap: float) -> dict[str, list[float]]:
    """The heights of lines in percent, each so far above the next, lest one hide another.

    All the way, so that a line is level where its share is; and less far if one would else come
    to lie above another that has more.

    Example:
      >>> side_by_side({"a": (0.0, 1.0), "b": (0.0, 0.5)}, gap=2.0)
      {'a': [1.0, 101.0], 'b': [-1.0, 49.0]}
    """
    different = sorted({share for line in shares.values() for share in line})
    least = min((100 * (b - a) for a, b in pairwise(different)), default=100.0)
    gap = min(gap, least / (len(shares) + 1))
    middle = (len(shares) - 1) / 2
    return {
        name: [100 * share + gap * (middle - place) for share in line]
        for place, (name, line) in enumerate(shares.items())
    }


def finding(profile: Lines) -> str:
    """What the figure shows, in words."""
    return "; ".join(
        f"{entrant} has solved {profile.shares[entrant][0]:.0%} as fast as the fastest and "
        f"{profile.shares[entrant][-1]:.0%} within {profile.taus[-1]:g} times its steps"
        for entrant in profile.ranked[:_FEW]
    )
