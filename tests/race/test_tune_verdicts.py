"""Each thing that a search says of itself, on losses that call for it, and on some that do not."""

import math
import struct
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from known_losses import searched

from adam_jax.race.tune.chance import ahead
from adam_jax.race.tune.picture import draw
from adam_jax.race.tune.show import cost, headline, show
from adam_jax.race.tune.space import Axis
from adam_jax.race.tune.verdict import verdicts

AXES = (Axis("learning_rate", (1e-4, 1.0)),)


def trained(epoch):
    """How far training is, from 0 to 1: it has settled long before the end of eight epochs."""
    return 1 - 0.01**epoch


def valley(rate, best=0.01):
    return math.log10(rate / best) ** 2


def sound(rate, *, epoch, seed):
    """Nothing to complain of."""
    return 5 - trained(epoch) * (4 - valley(rate)) + 1e-3 * seed


def said(loss, **settings):
    found, _ = searched(loss, **settings)
    return {verdict.code: verdict.text for verdict in verdicts(found)}, found


def test_nothing_is_said_without_need():
    assert said(sound)[0] == {}


@pytest.mark.parametrize(
    ("rates", "code", "text"),
    [
        ("1e-4:1e-2:5", "larger-may-be-better", "largest learning rate tried, 0.01: widen"),
        ("1e-2:10:5", "smaller-may-be-better", "smallest learning rate tried, 0.01: widen"),
    ],
)
def test_the_best_at_an_end(rates, code, text):
    found, _ = said(sound, rates=rates)
    assert list(found) == [code]
    assert text in found[code]
    assert found[code].endswith({"l": "upwards.", "s": "downwards."}[code[0]])


class TestNoise:
    @staticmethod
    def loss(spread):
        def loss(rate, *, epoch, seed):
            return sound(rate, epoch=epoch, seed=0) + spread * (seed - 1)

        return loss

    def test_ranges_of_distant_rates_meet(self):
        # The loss at three times the best rate is 1.23 to the best one's 1.
        texts, found = said(self.loss(0.2))
        assert list(texts) == ["noise"]
        assert "Too small a budget to tell" in texts["noise"]
        assert "for all that 3 seeds say" in texts["noise"]
        (scan,) = found.scans
        # By hand: the ranges meet where the parabola has risen by twice the spread.
        reach = 10 ** math.sqrt(0.4)
        tried = [value for value in scan.axis.fine if 0.01 / reach <= value <= 0.01 * reach]
        assert scan.alike == tried

    def test_ranges_of_near_rates_may_meet(self):
        # At 10 ** 0.25, next to the best, the parabola is 0.06 high, and 0.25 at 10 ** 0.5.
        texts, found = said(self.loss(0.06))
        assert texts == {}
        assert len(found.scans[0].alike) == 3
        assert list(headline("it", AXES, found))[1].endswith(
            "; nothing in 0.0056..0.018 is certainly worse"
        )

    def test_what_is_within_the_tolerance_is_no_doubt(self):
        texts, found = said(self.loss(0.06), tolerance=0.3)
        assert texts == {}
        assert len(found.scans[0].good) == 5

    def test_the_lowest_is_recommended_and_said_to_be_in_doubt(self):
        def loss(rate, *, epoch, seed):
            lucky = 0.05 if math.isclose(rate, 0.0562, rel_tol=0.01) else 0.0
            slope = max(0.02 * valley(rate), valley(rate) - 0.6)
            return 5 - trained(epoch) * (4 - slope + lucky) + 0.4 * (seed - 1)

        _, found = said(loss, tolerance=0.01)
        (scan,) = found.scans
        assert scan.recommended == scan.best == 0.0562
        assert found.recommended.values == (scan.recommended,)
        first = next(iter(headline("it", AXES, found)))
        assert (
            first == "it: learning_rate 0.0562 ends at loss 0.961; the budget is too small to tell"
        )

    @pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 2), (3, 3), (2, 4), (5, 5)])
    def test_ahead_is_a_test_at_a_twentieth(self, n, m):
        """Of all orders that chance may give, the unlikeliest twentieth, or the one if it is."""
        orders = list(combinations(range(n + m), n))
        wins = {}
        for order in orders:
            rest = [rank for rank in range(n + m) if rank not in order]
            wins[order] = sum(a < b for a in order for b in rest)
        for order in orders:
            rest = [rank for rank in range(n + m) if rank not in order]
            share = sum(each >= wins[order] for each in wins.values()) / len(orders)
            assert ahead(order, rest) == (share <= max(0.05, 1 / len(orders)))

    def test_more_seeds_tell_more(self):
        def loss(rate, *, epoch, seed):
            return sound(rate, epoch=epoch, seed=0) + 0.3 * (seed % 3 - 1)

        reach = []
        for seeds in (3, 9, 27):
            _, found = said(loss, seeds=seeds)
            reach.append(found.scans[0].alike[-1])
        assert reach[0] > reach[1] > reach[2]

    def test_one_seed(self):
        assert list(said(sound, seeds=1)[0]) == ["few-seeds"]

    def test_the_order_of_few_seeds_is_no_news(self):
        loss = TestOrder.crossing(at=6)
        assert "order" in said(loss)[0]
        assert next(iter(said(loss, seeds=2)[0])) == "few-seeds"
        assert "order" not in said(loss, seeds=2)[0]


class TestOrder:
    """Large rates ahead at first, smaller ones in the end."""

    @staticmethod
    def crossing(at, spread=0.0):
        def loss(rate, *, epoch, seed):
            # The best rate is 0.1 at first, and 0.03 in the end.
            best = 10**-1 if epoch < at else 10**-1.5
            noise = spread * (seed - 1) * (-1 if rate > 0.05 else 1)
            return 5 - trained(epoch) * (4 - valley(rate, best)) + noise

        return loss

    def test_turned(self):
        texts, _ = said(self.crossing(7))
        assert list(texts) == ["order"]
        assert "after 4 of 8 epochs learning rate 0.1 was ahead of 0.0316" in texts["order"]

    def test_turned_by_chance(self):
        assert "order" not in said(self.crossing(7, spread=0.3))[0]

    @pytest.mark.parametrize("at", [0, 3])
    def test_not_turned_since_the_last_that_went(self, at):
        assert said(self.crossing(at))[0] == {}

    def test_the_best_was_given_up(self):
        def loss(rate, *, epoch, seed):
            best = 1e-1 if epoch < 6 else 10**-2.5
            return 5 - trained(epoch) * (4 - valley(rate, best)) + 1e-3 * seed

        texts, found = said(loss)
        assert found.recommended.values[0] == pytest.approx(10**-2.5, rel=0.01)
        assert "order" in texts
        assert "was given up after" in texts["order"] or "was ahead of" in texts["order"]


class TestFalling:
    @pytest.mark.parametrize("epochs", [1, 3, 10, 25])
    @pytest.mark.parametrize("rate_of_fall", [0.01, 0.2, 1.0])
    def test_by_how_much(self, epochs, rate_of_fall):
        def loss(rate, *, epoch, seed):
            return (1 + valley(rate)) * math.exp(-rate_of_fall * epoch) + 1e-3 * seed

        texts, _ = said(loss, epochs=epochs)
        curve = np.exp(-rate_of_fall * np.arange(epochs + 1)) + 1e-3
        last, before = curve[-1], curve[-2]
        part = 0.1 * epochs  # epochs, in the last tenth
        if part <= 1:
            tenth = last + part * (before - last)
        else:
            whole, rest = int(part), part - int(part)
            tenth = curve[-1 - whole] + rest * (curve[-2 - whole] - curve[-1 - whole])
        share = (tenth - last) / tenth
        assert ("falling" in texts) == (share > 0.05)
        if share > 0.05:
            assert f"still fell by {share:.0%} in the last tenth" in texts["falling"]
            assert "may be smaller" in texts["falling"]


class TestDiverged:
    def test_all(self):
        texts, found = said(lambda rate, *, epoch, seed: math.nan if epoch else 1.0)
        assert list(texts) == ["all-diverged"]
        assert "from 0.0001 on" in texts["all-diverged"]
        assert found.recommended is None
        assert found.complete
        assert found.cost.halving == 9 * 3 * 2  # and none for those that diverged

    def test_all_that_were_good_at_first(self):
        def loss(rate, *, epoch, seed):
            return math.inf if epoch > 6 else sound(rate, epoch=epoch, seed=seed)

        texts, found = said(loss)
        assert list(texts) == ["all-diverged"]
        assert "diverged later" in texts["all-diverged"]
        assert found.recommended is None

    @pytest.mark.parametrize("first", [math.nan, math.inf, -math.inf])
    def test_from_the_start(self, first):
        texts, found = said(lambda rate, *, epoch, seed: first)
        assert list(texts) == ["nan-from-the-start"]
        assert found.recommended is None

    def test_one_seed_from_the_start(self):
        def loss(rate, *, epoch, seed):
            return math.nan if seed == 1 else sound(rate, epoch=epoch, seed=seed)

        texts, found = said(loss)
        assert next(iter(texts)) == "nan-from-the-start"
        assert found.recommended.values[0] == pytest.approx(0.01)

    def test_above_a_rate(self):
        def loss(rate, *, epoch, seed):
            return math.nan if rate > 0.02 and epoch else sound(rate, epoch=epoch, seed=seed)

        texts, found = said(loss)
        assert list(texts) == ["cliff"]
        assert "from learning rate 0.0316 on" in texts["cliff"]
        assert found.scans[0].high < 0.0316


class TestFlat:
    def test_all_alike(self):
        texts, found = said(lambda rate, *, epoch, seed: 2 - trained(epoch) + 1e-3 * valley(rate))
        assert list(texts) == ["indifferent"]
        assert "does not matter here: all of 0.0001..1 " in texts["indifferent"]
        assert found.scans[0].trials.keys() >= set(found.scans[0].axis.grid)

    def test_a_slope_within_the_tolerance_does_not_ask_for_a_wider_range(self):
        texts, found = said(lambda rate, *, epoch, seed: 2 - trained(epoch) - 1e-3 * math.log(rate))
        assert list(texts) == ["indifferent"]
        assert found.recommended.values == (0.01,)  # the middle, though the largest ended lowest
        assert found.scans[0].best == 1.0

    @pytest.mark.parametrize("loss", [1.0, 0.0, -1.0])
    def test_nothing_learnt(self, loss):
        texts, _ = said(lambda rate, *, epoch, seed: loss)
        assert list(texts) == ["nothing-learnt", "indifferent"]


def test_negative_losses():
    texts, found = said(lambda rate, **at: sound(rate, **at) - 10)
    assert texts == {}
    # A twentieth of 9 above -9.
    assert found.scans[0].high == pytest.approx(10 ** (-2 + math.sqrt(0.45)), rel=0.2)


@pytest.mark.parametrize("width", [60, 80])
def test_what_is_printed(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    found, _ = searched(sound)
    show("adam on line", AXES, found)
    text = capsys.readouterr().out
    (scan,) = found.scans
    ends = f"{scan.low:.2g}..{scan.high:.2g}"
    assert list(headline("adam on line", AXES, found)) == [
        "adam on line: learning_rate 0.01 ends at loss 1",
        f"  learning_rate: anything in {ends} is within 5%",
    ]
    assert f"anything in {ends}" in " ".join(text.split())
    assert sum("recommended" in line for line in text.splitlines()) == 1
    assert " ".join(cost(found).split()) in " ".join(text.split())


@pytest.mark.parametrize("loss", [1.0, math.nan, math.inf])
def test_nothing_is_recommended_without_a_loss(capsys, loss):
    found, _ = searched(lambda rate, *, epoch, seed: loss if epoch else 1.0)
    show("adam on line", AXES, found)
    assert ("no recommendation" in capsys.readouterr().out) == (not math.isfinite(loss))
    assert isinstance(found.initial_loss, float)


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        (sound, {}),
        (sound, {"epochs": 1}),
        (lambda rate, *, epoch, seed: sound(rate, epoch=epoch, seed=seed) - 3, {}),
        (lambda rate, *, epoch, seed: math.nan, {}),
        (lambda rate, *, epoch, seed: math.nan if epoch else 1.0, {}),
        (lambda rate, *, epoch, seed: 0.0, {}),
        (lambda rate, *, epoch, seed: 1e30 if rate > 0.05 and epoch else 2 - trained(epoch), {}),
        (
            lambda rate, b2, *, epoch, seed: (
                math.inf if rate > 0.05 and epoch else sound(rate, epoch=epoch, seed=seed) + b2
            ),
            {"also": "b2=0:0.9999"},
        ),
    ],
    ids=["sound", "one rung", "negative", "nan", "diverged", "zero", "huge", "several"],
)
def test_pictures(loss, settings):
    found, _ = searched(loss, **settings)
    content = draw("adam on line", found)
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width == 1350
    assert height == pytest.approx(150 * (0.65 + 5 * max(1, len(found.scans))), abs=1)


def test_an_interrupted_search_is_drawn():
    whole, _ = searched(sound)
    content = draw("adam on line", replace(whole, scans=(), complete=False))
    assert content[:4] == b"\x89PNG"
    assert [verdict.code for verdict in verdicts(replace(whole, complete=False))] == ["incomplete"]
