"""The score over problems, against the definition, and where it can be worked out by hand."""

import math

import numpy as np
import pytest

from adam_jax.race.entrants import BUILT_IN, default_rate
from adam_jax.race.profiles import Profile, scores
from adam_jax.race.report import lines
from adam_jax.race.results import Failure, Outcome, Race, Run

INF = math.inf


def outcome(entrant, by_rate):
    """From the loss after each of its epochs, a seed, by learning rate."""
    runs = [Run(entrant, rate, 0, (9.0, *losses), None) for rate, losses in by_rate.items()]
    return Outcome(entrant, tuple(runs), step_seconds=1e-6, compile_seconds=1.0, state_bytes=8.0)


def raced(problem, entrants, failures=(), target=1.0, steps=10):
    outcomes = tuple(outcome(name, by_rate) for name, by_rate in entrants.items())
    failures = tuple(Failure(name, "failed") for name in failures)
    return Race(problem, "", (), 1, 2, steps, target, outcomes, failures, {})


def after(epochs):
    """The losses of who comes down from 9 to 1 in a straight line, in so many of eight epochs."""
    return [9.0 - 8.0 * (epoch + 1) / epochs for epoch in range(8)]


def ratios(problems, kind):
    return {each.entrant: getattr(each, kind).ratios for each in scores(problems)}


def oracle(steps, fastest=lambda steps: np.min(steps, axis=0)):
    """The definition, over a fine grid of tau: `steps` is shaped (entrants, problems)."""
    tau = np.linspace(1.0, 4.0, 30_001)
    tau = (tau[1:] + tau[:-1]) / 2
    with np.errstate(invalid="ignore"):
        ratio = steps / fastest(steps)
    solved = np.isfinite(steps)[..., None] & (ratio[..., None] <= tau)
    return solved.mean(axis=1).mean(axis=-1)


def random_steps():
    rng = np.random.default_rng(0)
    steps = np.exp2(rng.uniform(0, 3, (4, 6)))
    steps[rng.random((4, 6)) < 0.2] = np.inf
    steps[:, 5] = np.inf  # nobody
    steps[1, 0] = steps[0, 0] = steps[:, 0].min()  # a tie
    return steps


def scored(steps):
    """What the package makes of such steps, where the loss falls in a straight line."""
    names = [f"entrant_{index}" for index in range(len(steps))]
    problems = []
    for column in range(steps.shape[1]):
        losses = {
            name: {0.1: after(count) if np.isfinite(count) else [9.0] * 8}
            for name, count in zip(names, steps[:, column], strict=True)
        }
        problems.append(raced(str(column), losses))
    found = {each.entrant: each.tuned.score for each in scores(problems)}
    return np.array([found[name] for name in names])


def test_against_the_definition():
    np.testing.assert_allclose(scored(random_steps()), oracle(random_steps()), atol=1e-4)


def test_a_broken_definition_is_found():
    broken = oracle(random_steps(), fastest=lambda steps: np.median(steps, axis=0))
    assert np.abs(scored(random_steps()) - broken).max() > 0.1


@pytest.mark.parametrize(
    ("found", "score", "solved"),
    [
        ((1.0, 1.0), 1.0, 2),
        ((4.0, 5.0), 0.0, 2),
        ((INF, INF), 0.0, 0),
        ((1.0, INF), 0.5, 1),
        ((2.5, 2.5), 0.5, 2),
    ],
)
def test_scores_by_hand(found, score, solved):
    profile = Profile(found)
    assert (profile.score, profile.solved) == (score, solved)


def test_the_profile_climbs_where_a_problem_is_solved():
    profile = Profile((1.0, 2.0, INF))
    assert [profile.share(tau) for tau in (1.0, 1.99, 2.0, 4.0)] == [1 / 3, 1 / 3, 2 / 3, 2 / 3]


def test_tuned_takes_the_fastest_rate_which_need_not_end_lowest():
    fast, low = [0.5, 0.9], [5.0, 0.1]
    found = ratios([raced("p", {"a": {0.1: low, 1.0: fast}, "b": {0.1: low}})], "tuned")
    assert found["a"] == (1.0,)
    assert found["b"][0] == pytest.approx((1 + 4 / 4.9) / (8 / 8.5))


def test_default_takes_the_rate_nearest_in_log():
    losses = {2e-4: after(8), 3e-3: after(2), 1e-2: after(1)}
    found = ratios([raced("p", {"adam": losses, "sgd": losses, "lion": losses})], "default")
    assert found == {"sgd": (1.0,), "adam": (2.0,), "lion": (8.0,)}


def test_ties_are_all_the_fastest_and_so_are_those_that_need_no_step():
    same = {0.1: after(2)}
    assert ratios([raced("p", {"a": same, "b": same})], "tuned") == {"a": (1.0,), "b": (1.0,)}
    at_once = raced("p", {"a": same, "b": {0.1: after(8)}}, target=10.0)
    assert ratios([at_once], "tuned") == {"a": (1.0,), "b": (1.0,)}


def test_nobody_solves():
    found = scores([raced("p", {"a": {0.1: [5.0]}, "b": {0.1: [math.nan]}})])
    assert [(each.tuned.ratios, each.tuned.score) for each in found] == [((INF,), 0.0)] * 2


def test_the_target_is_a_tenth_above_the_lowest_where_the_problem_has_none():
    found = ratios([raced("p", {"a": {0.1: [1.0]}, "b": {0.1: [1.05]}}, target=None)], "tuned")
    assert found["a"] == (1.0,)
    assert found["b"][0] == pytest.approx(8.0 / 7.95)
    assert ratios([raced("p", {"a": {0.1: [math.nan]}}, target=None)], "tuned") == {"a": (INF,)}


def test_who_fails_has_not_solved_it_and_a_problem_that_fails_does_not_count():
    one = raced("one", {"a": {0.1: after(2)}, "b": {0.1: after(1)}})
    two = raced("two", {"a": {0.1: after(2)}}, failures=["b"])
    none = raced("none", {}, failures=[None])
    found = scores([one, two, none])
    assert {each.entrant: each.tuned.ratios for each in found} == {"a": (2.0, 1.0), "b": (1.0, INF)}
    assert [each.entrant for each in found] == ["a", "b"]  # 5 / 6 and 1 / 2
    assert found[0].problems == ("one", "two")
    assert scores([none]) == []


def test_default_rates():
    rates = {name: default_rate(name) for name in BUILT_IN}
    assert rates["adam"] == default_rate("adamw:four_bit") == default_rate("mine.py:make") == 1e-3
    assert default_rate("lion:bfloat16") == rates["lion"] == 1e-4
    assert rates["adadelta"] == 1.0


def test_who_has_diverged_has_not_solved():
    (good, lost) = scores([raced("p", {"a": {0.1: [1.0, 1.0]}, "b": {0.1: [0.5, math.nan]}})])
    assert (good.entrant, good.tuned.score) == ("a", 1.0)
    assert (lost.entrant, lost.tuned.score) == ("b", 0.0)


def test_nobody_loses_where_somebody_has_not_had_a_turn():
    whole = raced("whole", {"a": {0.1: after(2)}, "b": {0.1: after(2)}})
    interrupted = raced("interrupted", {"a": {0.1: after(2)}})
    assert [each.problems for each in scores([whole, interrupted])] == [("whole",)] * 2
    failed = raced("failed", {"a": {0.1: after(2)}}, failures=["b"])
    assert {s.entrant: s.tuned.score for s in scores([whole, failed])} == {"a": 1.0, "b": 0.5}
    assert scores([raced("alone", {}, failures=["a"])]) == []


def test_the_pictures_lines_are_the_profiles():
    easy, hard = (
        raced("easy", {"a": {0.1: after(2)}, "b": {0.1: after(4)}}),
        raced("hard", {"a": {0.1: after(4)}, "b": {0.1: [9.0]}}),
    )
    found = scores([easy, hard])
    tuned, usual = lines(found, ["b", "a", "nobody"])
    assert tuned.taus == (1.0, 2.0, 4.0)
    assert tuned.shares == {"b": (0.0, 0.5, 0.5), "a": (1.0, 1.0, 1.0)}
    assert tuned.scores == {each.entrant: each.tuned.score for each in found}
    assert tuned.ranked == ["a", "b"]
    assert usual.name != tuned.name
