"""The figures of the table, worked out by hand."""

import math
import struct
from itertools import pairwise

import pytest

from adam_jax.race import pictures
from adam_jax.race.canvas import apart
from adam_jax.race.heat_map import shades
from adam_jax.race.results import Outcome, Run, standings, target_loss
from adam_jax.race.runner import Settings
from adam_jax.race.table import _within, show, verdict


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
def test_names_stayapart_and_in_order(heights):
    placed = apart(heights, gap=0.05)
    gap = min(0.05, 1 / max(1, len(heights) - 1))
    ranked = sorted(placed)
    assert all(b - a > gap - 1e-9 for a, b in pairwise(ranked))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in placed)
    for a, b in pairwise(heights):
        first, second = placed[heights.index(a)], placed[heights.index(b)]
        assert (a < b) <= (first < second)


class TestMany:
    """More entrants than a picture of lines can hold, or a sentence."""

    def many(self, losses, count=30):
        return [outcome(losses(index), f"entrant_{index}") for index in range(count)]

    @pytest.mark.costly
    @pytest.mark.parametrize(
        "losses",
        [
            lambda index: {0.1: [[9, 1 + index]], 1.0: [[9, math.nan]]},
            lambda index: {0.1: [[-9, -1 - index]], 1.0: [[-9, 1e30]]},
            lambda index: {0.1: [[math.nan, math.nan]]},
            lambda index: {0.1: [[2, 1]]},
            lambda index: {0.01 * (rate + 1): [[9, 1 + index]] for rate in range(60)},
        ],
        ids=["diverging", "negative", "all diverged", "all alike", "many rates"],
    )
    def test_pictures(self, losses):
        made = self.many(losses)
        files = pictures.draw("line", made, standings(made, 1.0, 10), 10)
        for content in files.values():
            width, height = struct.unpack(">II", content[16:24])
            assert 1000 <= width <= 2000
            assert 600 <= height <= 1500

    def test_few_have_a_picture_of_another_shape(self):
        sizes = []
        for count in (10, 11):
            made = self.many(lambda index: {0.1: [[9, 1 + index]]}, count)
            content = pictures.draw("line", made, standings(made, 1.0, 10), 10)
            sizes.append(struct.unpack(">II", content["learning_rates.png"][16:24]))
        assert sizes[0] != sizes[1]

    @pytest.mark.parametrize("first", ["a", "c", "j"])
    def test_the_best_and_the_first_one_have_colours(self, first):
        ranked = list("abcdefghij")
        found = pictures._foremost(first, ranked)
        assert found == [each for each in ranked if each in {first, *found}]
        assert len(found) == 6
        assert set("abcde") - {first} < set(found)

    def test_a_sentence_names_the_first_few(self):
        rows = standings(self.many(lambda index: {0.1: [[9, 1]], 1.0: [[9, 2]]}), 1.0, 10)
        (line,) = (line for line in verdict(rows, Settings((0.1, 1.0), 1, 1)) if "smaller" in line)
        assert line.endswith("entrant_0, entrant_1, entrant_2, entrant_3, entrant_4 and 25 more.")

    def test_a_long_name_is_folded_between_words(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        rows = standings(
            [outcome({0.001: [[9, 1.2345]]}, "a_stabilised_adamw_of_mine_for_vision")], 1.0, 10
        )
        show(Settings((0.001,), 1, 1), rows, 1.0)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        assert {"a_stabilised_", "adamw_of_mine_"} <= {line.split(" ")[0] for line in lines}
        assert _within("stable_adamw", 12) == "stable_adamw"
        assert _within("x" * 60, 10) == "x" * 60


def test_shades():
    shade = shades([0.01, 0.1, 1.0])
    assert [shade(loss) for loss in (0.01, 0.1, 1.0, math.inf)] == pytest.approx([0, 0.5, 1, 1])
    assert shades([-1.0, 0.0, 1.0])(0.0) == 0.5
    assert shades([2.0])(2.0) == 0.0
    assert shades([])(math.inf) == 1.0
