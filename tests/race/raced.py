"""Races that nobody ran, for the report; and what WCAG 2.2 asks of colours."""

import math
import re
from pathlib import Path

import numpy as np

from adam_jax.race.profiles import Profile, Score
from adam_jax.race.results import Failure, Outcome, Race, Run

RATES = (0.001, 0.01, 0.1, 1.0)
HOSTILE = "<script>alert(1)</script>'\"&$x$</pre>\x00\udcff"
STYLE = Path(__file__).parents[2] / "adam_jax/race/report/style.css"


def outcome(name, finals, start=2.0, figures=None):
    """An entrant from the final losses of its seeds by learning rate; half way at half time."""
    runs = tuple(
        Run(name, rate, seed, (start, (start + final) / 2, final), figures)
        for rate, seeds in finals.items()
        for seed, final in enumerate(seeds)
    )
    return Outcome(name, runs, step_seconds=2e-6, compile_seconds=1.0, state_bytes=8.0)


def race(outcomes, problem="line", about="A line through points.", **changed):
    """A race of these outcomes."""
    rates = outcomes[0].learning_rates if outcomes else RATES
    seeds = len(outcomes[0].at(rates[0])) if outcomes else 3
    given = {"target": None, "failures": (), "samples": {}} | changed
    return Race(problem, about, tuple(rates), seeds, 2, 10, outcomes=tuple(outcomes), **given)


def full(name=str, entrants=3):
    """A race with all that a race can have, its names and other texts each `name` of a word."""
    raced = [
        outcome(
            name(f"entrant_{index}"),
            {
                rate: [
                    0.1 + 0.01 * index + 0.1 * (math.log10(rate) + 2) ** 2 + 0.004 * seed
                    if rate < 1 or index % 2
                    else math.nan
                    for seed in range(3)
                ]
                for rate in RATES
            },
            figures={name("test_accuracy"): 0.9},
        )
        for index in range(entrants)
    ]
    failures = (Failure(name("failed"), name("out of memory")), Failure(None, name("took long")))
    picture = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    samples = {name("a text"): name("once upon\n a time"), name("a picture"): picture}
    return race(
        raced, name("problem"), name("About it."), target=0.12, failures=failures, samples=samples
    )


def scored(entrants, problems=("one", "two")):
    """Scores over two problems, the first entrant's best."""
    return [
        Score(
            each,
            problems,
            Profile((1.0 + place / 10, 2.0 + place / 5)),
            Profile((1.5 + place / 10, math.inf)),
            1e-3,
        )
        for place, each in enumerate(entrants)
    ]


def themes(style):
    """The colours of a style sheet by theme and name."""
    parts = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in parts)
    return {"light": light, "dark": light | dark}


def linear(colour):
    """Red, green and blue of "#rrggbb" as light."""
    parts = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """The contrast ratio of two colours, from 1 to 21 (WCAG 2.2)."""
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)
