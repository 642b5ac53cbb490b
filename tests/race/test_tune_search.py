"""Which candidates train for how long, and the range of good values, on losses that are known."""

import math
from itertools import pairwise

import numpy as np
import pytest
from known_losses import searched

from adam_jax.race.tune.search import ladder
from adam_jax.race.tune.space import mirrored

RATES = "1e-6:10:22"


def valley(best=0.02, width=4.0):
    """One plus a parabola over the log of the rate, once trained; seeds differ a little."""

    def loss(rate, *others, epoch, seed):
        depth = (1 - 0.5**epoch) * (4 - math.log(rate / best) ** 2 / width**2 - 0.001 * seed)
        return 5 - depth

    return loss


@pytest.mark.parametrize("width", [3, 5, 6, 22, 100])
@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 64])
def test_ladder(width, epochs):
    rungs = ladder(width, epochs)
    widths, budgets = zip(*rungs, strict=True)
    assert widths == tuple(math.ceil(width / 2**k) for k in range(len(rungs)))
    assert budgets[-1] == epochs
    assert list(budgets) == sorted(set(budgets))
    assert widths[-1] >= 3
    if epochs >= 64:  # there is enough to divide
        assert math.ceil(widths[-1] / 2) < 3
        assert all(2 * a >= b for a, b in pairwise(budgets))


def test_halving_takes_what_its_rungs_say_and_the_scans_what_is_left():
    found, trainer = searched(valley(), RATES, epochs=10)
    cost = found.cost
    assert trainer.trained == cost.halving + cost.scans
    # 22 for 2 epochs, 11 for 1 more, 6 for 2 more, 3 for 5 more, from three seeds.
    assert cost.halving == 3 * (22 * 2 + 11 * 1 + 6 * 2 + 3 * 5) == 246
    assert cost.grid == 3 * 22 * 10
    assert trainer.widths[:4] == [22, 11, 6, 3]
    assert cost.scans == 3 * 10 * sum(trainer.widths[4:])


def test_the_better_half_goes_on_and_the_diverged_are_last():
    def loss(rate, *, epoch, seed):
        return math.nan if rate > 0.1 and epoch else valley()(rate, epoch=epoch, seed=seed)

    found, _ = searched(loss, RATES)
    for rung, following in pairwise(found.rungs):
        ranked = sorted(rung.losses, key=rung.losses.get)
        alive = [values for values in ranked if math.isfinite(rung.losses[values])]
        assert list(following.losses) == alive[: math.ceil(len(ranked) / 2)]
        assert not any(math.isinf(each) for each in following.losses.values())
    lost = [trial for trial in found.trials.values() if trial.values[0] > 0.1]
    assert len(lost) == 6
    assert {trial.epochs for trial in lost} == {found.rungs[0].epochs}


@pytest.mark.parametrize("best", [1e-4, 0.0033, 0.02, 0.9])
@pytest.mark.parametrize("epochs", [1, 10])
@pytest.mark.parametrize("tolerance", [0.05, 0.3])
def test_the_neighbourhood_of_a_parabola(best, epochs, tolerance):
    loss = valley(best)
    found, _ = searched(loss, RATES, epochs=epochs, tolerance=tolerance)
    (scan,) = found.scans
    # In closed form; a straight line between two values is above the parabola, so inside of it.
    lowest = loss(best, epoch=epochs, seed=1)
    reach = 4 * math.sqrt(tolerance * lowest / (1 - 0.5**epochs))
    low, high = max(1e-6, best / math.exp(reach)), min(10, best * math.exp(reach))
    half_a_step = 10 ** (1 / 6)
    assert best / half_a_step < scan.best < best * half_a_step
    assert scan.recommended == scan.best
    # At the ends the values may be as far apart as the user's.
    assert low / 1.01 <= scan.low <= low * half_a_step**2
    assert high * 1.01 >= scan.high >= high / half_a_step**2
    assert scan.indifferent == ((low, high) == (1e-6, 10))


def test_a_second_valley_is_no_part_of_the_neighbourhood():
    def loss(rate, *, epoch, seed):
        place = math.log10(rate)
        return 1 + min((place + 3) ** 2, (place + 1) ** 2 + 0.02) - 0.001 * epoch

    found, _ = searched(loss)
    (scan,) = found.scans
    assert scan.best == pytest.approx(1e-3)
    assert scan.high < 10**-2.5
    assert scan.losses[0.1] < 1.05 * scan.losses[scan.best]


def test_where_no_other_value_is_as_good_it_looks_closer():
    def loss(rate, *, epoch, seed):
        return 1 + abs(math.log(rate / 0.0123)) - 1e-4 * epoch

    found, _ = searched(loss)
    (scan,) = found.scans
    assert scan.recommended == pytest.approx(0.0123, rel=0.1)
    assert 0.0123 / 1.2 < scan.low < scan.high < 0.0123 * 1.2


def test_noise_is_not_looked_at_closer():
    rng = np.random.default_rng(0)
    found, _ = searched(lambda rate, *, epoch, seed: seed + rng.uniform(1, 2), epochs=4)
    assert set(found.scans[0].trials) <= set(found.scans[0].axis.fine)


def test_a_rate_that_now_and_then_diverges_is_not_recommended():
    def loss(rate, *, epoch, seed):
        if rate > 0.01 and seed == 2 and epoch:
            return math.inf
        return valley(0.1)(rate, epoch=epoch, seed=seed)

    found, _ = searched(loss)
    assert found.recommended.values[0] == pytest.approx(0.01, rel=0.01)
    assert found.scans[0].high == pytest.approx(0.01, rel=0.01)


class TestSeveral:
    """Others than the learning rate."""

    ALSO = "b2=0.9:0.9999,eps=1e-8:1e-2"

    @staticmethod
    def loss(rate, b2, eps, *, epoch, seed):
        length = math.log10(1 / (1 - b2))  # of the mean: best at 10 ** 2.5
        along = math.log10(rate) + 2 + 0.3 * (length - 2.5)
        return 1 + 0.1 * along**2 + 0.2 * (length - 2.5) ** 2 + 0.5**epoch + 1e-4 * seed

    def test_all_are_found(self):
        found, trainer = searched(self.loss, also=self.ALSO, epochs=10)
        assert trainer.widths[0] == 9 * 3
        assert [scan.axis.name for scan in found.scans] == ["eps", "b2", "learning_rate"]
        rate, b2, _ = found.recommended.values
        assert self.loss(*found.recommended.values, epoch=10, seed=1) < 1.03
        assert 10**-2.5 < rate < 10**-1.5
        assert 2 < math.log10(1 / (1 - b2)) < 3

    def test_the_neighbourhood_of_each_holds_the_others(self):
        found, _ = searched(self.loss, also=self.ALSO, epochs=10)
        for index, scan in zip((2, 1, 0), found.scans, strict=True):
            for value, trial in scan.trials.items():
                assert trial.values[index] == value
                others = [i for i in range(3) if i != index]
                assert [trial.values[i] for i in others] == [scan.held[i] for i in others]
        eps, b2, _ = found.scans
        assert eps.indifferent
        # The parabola over log10 of the mean's length, at the rate that was held.
        along = math.log10(b2.held[0]) + 2
        a, b = 0.2 + 0.1 * 0.09, 0.1 * 2 * 0.3 * along
        lowest = 1 + 0.5**10 + 1e-4 + 0.1 * along**2 - b**2 / (4 * a)
        reach = math.sqrt(0.05 * lowest / a)
        middle = 2.5 - b / (2 * a)
        ends = [math.log10(1 / (1 - value)) for value in (b2.low, b2.high)]
        assert ends == pytest.approx([middle - reach, middle + reach], abs=0.15)

    def test_candidates_are_spread(self):
        found, _ = searched(self.loss, also=self.ALSO, epochs=2)
        rates, b2s, epss = np.array([trial.values for trial in found.trials.values()]).T
        for places, low, high in (
            (np.log10(rates), -4, 0),
            (-np.log10(1 - b2s), 1, 4),
            (np.log10(epss), -8, -2),
        ):
            share = np.sort((places - low) / (high - low))
            assert len(np.unique(share)) == 27
            assert (share >= 0).all()
            assert (share <= 1).all()
            # No gap wider than three times the even one; by chance the widest is four times.
            assert np.diff([0, *share, 1]).max() < 3 / 27

    @pytest.mark.parametrize("base", [2, 3, 5, 7])
    def test_halton(self, base):
        for index in range(1, 100):
            digits = np.base_repr(index, base)[::-1]
            assert mirrored(index, base) == pytest.approx(int(digits, base) / base ** len(digits))
