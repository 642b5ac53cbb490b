"""The figures of the table, worked out by hand."""

import math
from itertools import pairwise

import pytest

from adam_jax.race.pictures import _apart
from adam_jax.race.results import Outcome, Run, standings, target_loss


def outcome(losses, entrant="adam"):
    """An entrant from its losses by learning rate, by seed and by epoch."""
    runs = tuple(
        Run(entrant, rate, seed, tuple(of_seed), {"score": of_seed[-1]})
        for rate, seeds in losses.items()
        for seed, of_seed in enumerate(seeds)
    )
    return Outcome(entrant, runs, step_seconds=1e-6, compile_seconds=1.0, state_bytes=8.0)


def standing(losses, target=1.0):
    (row,) = standings([outcome(losses)], target, steps=10)
    return row


def test_final_loss_is_the_median_at_the_best_learning_rate():
    row = standing({0.1: [[9, 5], [9, 3], [9, 4]], 1.0: [[9, 1], [9, 6], [9, 7]]})
    assert (row.learning_rate, row.final_loss, row.lowest, row.highest) == (0.1, 4, 3, 5)
    assert row.evaluation == {"score": 4}


def test_a_learning_rate_where_most_seeds_diverge_is_not_the_best():
    row = standing({0.1: [[9, 5], [9, 5], [9, 5]], 1.0: [[9, 1], [9, math.nan], [9, math.inf]]})
    assert row.learning_rate == 0.1
    assert math.isinf(row.outcome.final_loss(1.0))


@pytest.mark.parametrize(
    ("curve", "steps"),
    [
        ([5, 3, 1], 20),
        ([5, 3, 0.5], 18),
        ([5, 0.5, 3, 0.1], 10 * 4 / 4.5),  # the first time counts
        ([1, 3, 5], 0),
        ([5, 3, 1.01], None),
        ([math.nan, 0.5, 0.4], 10),
        ([5, math.nan, math.nan], None),
    ],
)
def test_steps_to_target(curve, steps):
    assert standing({0.1: [curve]}).steps_to_target == pytest.approx(steps)


def test_target_is_a_tenth_above_the_lowest_loss():
    better, worse = outcome({0.1: [[9, 2]]}), outcome({0.1: [[9, 3]]})
    assert target_loss([worse, better]) == pytest.approx(2.2)
    assert target_loss([outcome({0.1: [[9, -2]]})]) == pytest.approx(-1.8)


def test_the_best_entrant_always_reaches_its_own_level():
    for seeds in ([[9, 5], [9, 3]], [[9, 5, 4], [9, 3, 2], [9, 1, 0.1]]):
        best = outcome({0.1: seeds})
        (row,) = standings([best], target_loss([best]), steps=10)
        assert row.steps_to_target is not None


def test_forgiving_is_the_share_of_rates_near_the_best():
    losses = {0.1: [[9, 2.2]], 0.2: [[9, 2]], 0.3: [[9, 2.21]], 0.4: [[9, math.nan]]}
    assert standing(losses).forgiving == 0.5
    assert standing({0.1: [[9, math.nan]]}).forgiving == 0


@pytest.mark.parametrize(
    ("finals", "edge"),
    [([1, 2, 3], "smallest"), ([3, 2, 1], "largest"), ([3, 1, 2], None), ([1], None)],
)
def test_edge(finals, edge):
    row = standing({0.1 * (i + 1): [[9, final]] for i, final in enumerate(finals)})
    assert row.edge == edge


def test_rows_are_sorted_with_the_diverged_last():
    made = [outcome({0.1: [[9, loss]]}, str(loss)) for loss in (3, math.nan, 1)]
    assert [row.entrant for row in standings(made, 1, steps=10)] == ["1", "3", "nan"]
    assert [row.diverged for row in standings(made, 1, steps=10)] == [False, False, True]


@pytest.mark.parametrize(
    "heights", [[], [0.3], [0.5] * 7, [0, 0, 1, 1], [0.99, 0.98, 0.1], [1.0] * 40, [0.5, -3, 4]]
)
def test_names_stay_apart_and_in_order(heights):
    placed = _apart(heights, gap=0.05)
    gap = min(0.05, 1 / max(1, len(heights) - 1))
    ranked = sorted(placed)
    assert all(b - a > gap - 1e-9 for a, b in pairwise(ranked))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in placed)
    for a, b in pairwise(heights):
        first, second = placed[heights.index(a)], placed[heights.index(b)]
        assert (a < b) <= (first < second)
