"""A page that holds all it shows: its style, its script, and its pictures are in it."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template

from adam_jax.race.profiles import LARGEST, Score
from adam_jax.race.report import profiles, tables, words
from adam_jax.race.report.charts import Charts
from adam_jax.race.report.markup import Markup, element, escaped, joined
from adam_jax.race.report.samples import samples
from adam_jax.race.report.words import Result
from adam_jax.race.results import Failure, Race

_INCOMPLETE = (
    "Interrupted: this is what was finished by then. The same command with the same folder goes on."
)
_MOST_VERDICTS = 10  # before the others are folded away


def page(
    races: Sequence[Race],
    command: str,
    versions: Mapping[str, str],
    scores: Sequence[Score] = (),
    complete: bool = True,
) -> str:
    """Writes a race as HTML.

    Args:
      races: one a problem, at least one.
      command: what was typed to run them.
      versions: of what has had a part in them, by name.
      scores: the entrants' over all problems, if there are several, the best one first.
      complete: whether all that was asked for was raced.

    Returns:
      The page. It asks for nothing: no script, style, font or picture from elsewhere.
    """
    results = [Result(race) for race in races]
    charts = Charts(races)
    style, script = _file("style.css"), _file("sort.js")
    several = len(results) > 1
    named = f"{len(results)} problems" if several else races[0].problem
    body = [
        "" if complete else element("p", _INCOMPLETE, class_="failures"),
        _overview(results) if several else "",
        _over_all(scores, races, charts) if scores else "",
        *(_problem(place, result, charts, several) for place, result in enumerate(results, 1)),
        _reproduce(command, versions),
    ]
    return Template(_file("page.html")).substitute(
        policy=escaped(_policy(style, script)),
        title=escaped(f"Race: {named}"),
        style=style,
        script=script,
        content=joined(part for part in body if part),
    )


def _overview(results: Sequence[Result]) -> Markup:
    lines = (
        element(
            "li",
            element("a", result.race.problem, href=f"#problem-{number}"),
            f": {words.summary(result)}",
            f"; {len(result.race.failures)} failed" if result.race.failures else "",
        )
        for number, result in enumerate(results, 1)
    )
    return element("nav", element("ul", *lines), aria_label="Problems")


def _over_all(scores: Sequence[Score], races: Sequence[Race], charts: Charts) -> Markup:
    drawn = profiles.lines(scores, charts.entrants)
    return element(
        "section",
        element("h2", "Over all problems", id="over-all"),
        _ranked([(score.entrant, words.scored(score)) for score in scores]),
        tables.scores(scores, [each.name for each in drawn]),
        element(
            "p",
            "A problem is solved when the training loss is down to its target. The score is the "
            "share of problems solved within tau times the steps of the fastest, mean over tau "
            f"from 1 to {LARGEST:g}; {words.counted(scores, races)}.",
            class_="note",
        ),
        *map(charts.profile, drawn),
        aria_labelledby="over-all",
    )


def _problem(place: int, result: Result, charts: Charts, several: bool) -> Markup:
    race, name = result.race, f"problem-{place}"
    # Alone it is what the page is about, and its heading the page's.
    heading = "h3" if several else "h2"
    parts = [
        element("h2", race.problem, id=name) if several else "",
        element("p", race.about) if race.about else "",
        element("p", _settings(race)),
        element("p", words.others(race), class_="note") if race.others else "",
        _failures(race.failures, heading) if race.failures else "",
    ]
    if race.outcomes:
        parts += [
            element(heading, "Verdict"),
            _ranked(words.verdicts(result)),
            element(heading, "Figures"),
            tables.standings(result),
            element("p", _legend(result), class_="note"),
            element(heading, "Pictures"),
            charts.race(result),
        ]
    if race.samples and result.rows:
        parts += [element(heading, f"Samples of {result.rows[0].entrant}"), samples(race.samples)]
    named = {"aria_labelledby": name} if several else {"aria_label": race.problem}
    return element("section", *filter(None, parts), **named)


def _settings(race: Race) -> str:
    rates = [f"{rate:.3g}" for rate in sorted(race.learning_rates)]
    seeds = f"{race.seeds} seed{'s' * (race.seeds > 1)}"
    steps = f"{race.epochs} epoch{'s' * (race.epochs > 1)} of {race.steps} steps"
    return f"Learning rates {', '.join(rates)}; {seeds}; {steps}."


def _failures(failures: Sequence[Failure], heading: str) -> Markup:
    lines = (
        element("li", element("b", failure.entrant or "The problem itself"), f": {failure.reason}")
        for failure in failures
    )
    return element("div", element(heading, "Failed"), element("ul", *lines), class_="failures")


def _ranked(told: Sequence[tuple[str, str]]) -> Markup:
    """A sentence an entrant, the best one first."""
    lines = [element("li", element("b", entrant), f": {sentence}") for entrant, sentence in told]
    if len(lines) <= _MOST_VERDICTS:
        return element("ol", *lines)
    first, rest = lines[:_MOST_VERDICTS], lines[_MOST_VERDICTS:]
    return joined(
        [
            element("ol", *first),
            element(
                "details",
                element("summary", f"the {len(rest)} others"),
                element("ol", *rest, start=_MOST_VERDICTS + 1),
            ),
        ]
    )


def _legend(result: Result) -> str:
    race = result.race
    level = "10% above the lowest" if race.target is None else "the target"
    figures = [name.replace("_", " ") for name in result.figures]
    return (
        f"{words.several(['Loss', *figures])}: medians of the seeds. The loss is the mean "
        f"over an epoch's batches after epoch {race.epochs}. Steps to: where its median has come "
        f"down to {level}, a straight line drawn between epochs. Time a step: a run's share of all "
        "that ran at once. Forgiving: share of the learning rates that end within 10% of the "
        "entrant's own best."
    )


def _reproduce(command: str, versions: Mapping[str, str]) -> Markup:
    found = (part for item in versions.items() for part in map(element, ("dt", "dd"), item))
    return element(
        "section",
        element("h2", "Run it again", id="again"),
        element("pre", element("code", command), class_="command"),
        element("dl", *found),
        aria_labelledby="again",
    )


def _policy(style: str, script: str) -> str:
    """Allows nothing but the page's own style and script, and the pictures written into it."""

    def allowed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {allowed(style)}; script-src {allowed(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
