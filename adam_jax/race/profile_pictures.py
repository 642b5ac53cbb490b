"""The performance profiles as pictures: the share of problems solved, against the time allowed.

As in the other pictures, of more than ten entrants the best and the first one named have colours
and names.
"""

from collections.abc import Callable, Sequence

from adam_jax.race.canvas import Label, canvas, name_lines, png, short
from adam_jax.race.pictures import _MOST_LINES, _foremost, _style
from adam_jax.race.profiles import LARGEST, Profile, Score, corners


def draw(scores: Sequence[Score], named: Sequence[str]) -> dict[str, bytes]:
    """Draws both profiles.

    Args:
      scores: the entrants.
      named: their names in the order in which they take their colours.

    Returns:
      PNG files by name.
    """
    return {
        "profile.png": _drawn(
            "Performance profile, learning rates tuned on each problem",
            scores,
            lambda score: score.tuned,
            named,
        ),
        "profile_default.png": _drawn(
            "Performance profile, one learning rate an entrant on all problems",
            scores,
            lambda score: score.default,
            named,
        ),
    }


def _drawn(
    title: str, scores: Sequence[Score], profile: Callable[[Score], Profile], named: Sequence[str]
) -> bytes:
    ranked = sorted(scores, key=lambda score: -profile(score).score)
    names = [score.entrant for score in ranked]
    chosen = [name for name in named if name in names]
    if len(chosen) > _MOST_LINES:
        chosen = _foremost(chosen[0], names)
    coloured = {name: _style(index) for index, name in enumerate(chosen)}
    others = len(ranked) - len(coloured)
    figure, axes = canvas(
        title,
        f"score: mean height of the line; {len(ranked[0].problems)} problems"
        + f"; grey: the {others} others" * bool(others),
    )
    labels = []
    for score in reversed(ranked):  # the best one on top
        own = profile(score)
        taus = corners([own])
        shares = [own.share(tau) for tau in taus]
        style = coloured.get(score.entrant)
        if style is None:
            axes.step(taus, shares, where="post", color="#c4c4c4", linewidth=1, zorder=1.5)
            continue
        axes.step(taus, shares, where="post", clip_on=False, **style)
        text = f"{short(score.entrant)} {own.score:.2f}"
        labels.append(Label(text, LARGEST, shares[-1], style["color"]))
    axes.set_xlabel("steps to the target, in those of the fastest entrant", fontsize=11)
    axes.set_ylabel("share of problems solved", fontsize=11)
    axes.set_xlim(1, LARGEST)
    axes.set_ylim(-0.02, 1.02)
    name_lines(axes, labels[::-1])
    return png(figure)
