"""The pictures of a page, each with what it shows in words, in two widths of which one is seen."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

from adam_jax.race import bars, pictures
from adam_jax.race.canvas import Paper, drawing
from adam_jax.race.colours import SERIES, style
from adam_jax.race.report import profiles, tables, words
from adam_jax.race.report.markup import Markup, element, joined
from adam_jax.race.report.profiles import Lines
from adam_jax.race.report.svg import inline
from adam_jax.race.report.words import Result
from adam_jax.race.results import Race

# A picture shrunk to a telephone could not be read, so it is drawn for one.
_WIDE, _NARROW = Paper(9.0, 4.9, titled=False), Paper(4.6, 4.1, titled=False)
_SPREAD = "Line: median over seeds; band: lowest to highest."


class Charts:
    """Draws a page's pictures; an entrant has the same colour in all."""

    def __init__(self, races: Sequence[Race]):
        self._drawn = 0
        self._places: dict[str, int] = {}
        self.entrants = list(dict.fromkeys(name for race in races for name in _entrants(race)))
        if not pictures.are_many(self.entrants):
            self._styles(self.entrants)

    def race(self, result: Result) -> Markup:
        """The curves, the learning rates, and the costs."""
        race, rows = result.race, result.rows
        named = [outcome.entrant for outcome in race.outcomes]
        styles = self._styles(pictures.foremost(named, [row.entrant for row in rows]))
        grey = [row for row in rows if not row.diverged and row.entrant not in styles]

        def figure(name: str, paper: Paper) -> Any:
            outcomes, steps = race.outcomes, race.steps
            return pictures.figures(paper, race.problem, outcomes, rows, steps, styles)[name]()

        curves = self._figure(
            partial(figure, "curves"),
            "Training loss at each entrant's best learning rate",
            _SPREAD + _grey(len(grey)),
            words.curves(result),
        )
        if pictures.are_many(named):  # the table beneath is the picture
            rates = Markup()
        else:
            rates = self._figure(
                partial(figure, "learning_rates"),
                "How much the learning rate matters",
                "Training loss after the last epoch, median over seeds.",
                words.learning_rates(result),
            )
        return joined([curves, rates, tables.learning_rates(result), self._costs(race)])

    def profile(self, profile: Lines) -> Markup:
        """A performance profile."""
        named, ranked = list(profile.shares), profile.ranked
        styles = self._styles(pictures.foremost(named, ranked))
        grey = _grey(len(named) - len(styles))
        return self._figure(
            lambda paper: profiles.figure(paper, profile, styles),
            f"Problems solved in a given time, {profile.name}",
            "At the lines' ends: the score, the mean height of the line. Lines that "
            f"coincide are drawn side by side.{grey}",
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
        papers: Sequence[Paper] = (_WIDE, _NARROW),
    ) -> Markup:
        self._drawn += 1
        content = []
        for paper in papers:
            kind = {_WIDE: "wide", _NARROW: "narrow"}[paper] if len(papers) > 1 else "only"
            with drawing():
                prefix = f"c{self._drawn}{kind[0]}-"
                alternative = f"{title}. {finding}"
                content.append(inline(draw(paper), prefix, alternative, f"chart {kind}"))
        caption = element("figcaption", element("strong", f"{title}."), f" {note}".rstrip())
        return element("figure", caption, *content)

    def _styles(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Looks of their own for names in one picture, those of earlier pictures where they can."""
        taken: dict[str, int] = {}
        colours = len(SERIES)
        for name in sorted(names, key=lambda name: name not in self._places):
            used = set(taken.values())
            worn = {place % colours for place in used}
            kept = self._places.get(name)
            if kept is None or (kept % colours in worn and len(names) <= colours):
                # One that nobody has worn yet, so that a colour means another only if it must.
                free = (place for place in count(len(self._places)) if place not in used)
                kept = next(p for p in free if len(worn) == colours or p % colours not in worn)
            taken[name] = kept
            self._places.setdefault(name, kept)
        return {name: style(taken[name]) for name in names}


def _grey(others: int) -> str:
    return f" Grey: the {others} others." if others else ""


def _entrants(race: Race) -> list[str]:
    finished = [outcome.entrant for outcome in race.outcomes]
    return finished + [failure.entrant for failure in race.failures if failure.entrant is not None]
