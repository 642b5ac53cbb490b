"""The pictures of a page, each with what it shows in words, in two widths of which one is seen."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from adam_jax.race import bars, pictures
from adam_jax.race.canvas import Paper, drawing
from adam_jax.race.colours import style
from adam_jax.race.report import profiles, words
from adam_jax.race.report.markup import Markup, element, joined
from adam_jax.race.report.profiles import Profile
from adam_jax.race.report.svg import inline
from adam_jax.race.report.words import Result
from adam_jax.race.results import Race

# A picture shrunk to a telephone could not be read, so it is drawn for one.
_WIDE, _NARROW = Paper(9.0, 4.9, titled=False), Paper(4.6, 4.1, titled=False)
_SPREAD = "Line: median over seeds; band: lowest to highest."
_CELLS = "Framed: each entrant's best; \N{MULTIPLICATION SIGN}: diverged."


class Charts:
    """Draws a page's pictures; an entrant has the same colour in all."""

    def __init__(self, races: Sequence[Race]):
        self._races = races
        self._drawn = 0
        self._places: dict[str, int] = {}
        names = list(dict.fromkeys(name for race in races for name in _entrants(race)))
        if not pictures.are_many(names):
            self._place(names)

    def race(self, result: Result) -> Markup:
        """The curves, the learning rates, and the costs."""
        race, rows = result.race, result.rows
        named = [outcome.entrant for outcome in race.outcomes]
        styles = self._place(pictures.foremost(named, [row.entrant for row in rows]))
        many = pictures.are_many(named)

        def drawn(name: str) -> Callable[[Paper], Any]:
            return lambda paper: pictures.figures(
                paper, race.problem, race.outcomes, rows, race.steps, styles
            )[name]()

        others = len(named) - len(styles)
        grey = f" Grey: the {others} others." if many else ""
        return joined(
            [
                self._figure(
                    drawn("curves"),
                    "Training loss at each entrant's best learning rate",
                    _SPREAD + grey,
                    words.curves(result),
                ),
                self._figure(
                    drawn("learning_rates"),
                    "How much the learning rate matters",
                    "Training loss after the last epoch, median over seeds. " + _CELLS * many,
                    words.learning_rates(result),
                    scrolls=many,
                ),
                self._costs(race),
            ]
        )

    def profile(self, profile: Profile) -> Markup:
        """A performance profile."""
        named, ranked = list(profile.shares), profile.ranked
        styles = self._place(pictures.foremost(named, ranked))
        return self._figure(
            lambda paper: profiles.figure(paper, profile, styles),
            f"Problems solved in a given time, {profile.name}",
            "At the lines' ends: the score, the mean height of the line.",
            f"Performance profile. {profiles.finding(profile)}.",
        )

    def _costs(self, race: Race) -> Markup:
        time = {each.entrant: each.step_seconds * 1e6 for each in race.outcomes}
        state = {each.entrant: each.state_bytes for each in race.outcomes}
        shown = [
            ("Time a step", "\N{MICRO SIGN}s a step, a run's share", "microseconds a step", time),
            ("Memory of the state", "bytes a parameter", "bytes of state a parameter", state),
        ]
        return element(
            "div",
            *(
                self._figure(
                    partial(bars.bars, values=values, label=label),
                    title,
                    "",
                    words.costs(what, values),
                    papers=[_NARROW],
                )
                for title, label, what, values in shown
            ),
            class_="pair",
        )

    def _figure(
        self,
        draw: Callable[[Paper], Any],
        title: str,
        note: str,
        finding: str,
        scrolls: bool = False,
        papers: Sequence[Paper] = (_WIDE, _NARROW),
    ) -> Markup:
        """A figure with its caption; one that scrolls has the wide picture only."""
        self._drawn += 1
        kinds = {_WIDE: "wide", _NARROW: "narrow"}
        shown = [_WIDE] if scrolls else papers
        content = []
        for paper in shown:
            kind = kinds[paper] if len(shown) > 1 else "only"
            with drawing():
                figure = draw(paper)
                prefix = f"c{self._drawn}{kind[0]}-"
                content.append(inline(figure, prefix, f"{title}. {finding}", f"chart {kind}"))
        caption = element("figcaption", element("strong", f"{title}."), f" {note}".rstrip())
        picture = joined(content)
        if scrolls:
            picture = element(
                "div", picture, class_="scroll", role="region", aria_label=title, tabindex=0
            )
        return element("figure", caption, picture)

    def _place(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        for name in names:
            self._places.setdefault(name, len(self._places))
        return {name: style(self._places[name]) for name in names}


def _entrants(race: Race) -> list[str]:
    finished = [outcome.entrant for outcome in race.outcomes]
    return finished + [failure.entrant for failure in race.failures if failure.entrant is not None]
