"""Who is ahead of whom on the built-in problems, each at its best of a few rates.

The orderings are the literature's; beside each is a case in which it does not hold, or a figure
that it would have to reach, so that a test of nothing is found out.
"""

import numpy as np
import pytest
from racing import raced

from adam_jax.race.problems import sparse_words

ADAPTIVE = ("adam", "adagrad")


def best(outcomes):
    """The final loss of each entrant at its best rate, median over seeds."""
    return {each.entrant: each.final_loss(each.best_learning_rate) for each in outcomes}


def on_sparse_words():
    return best(raced("sparse-words", "adam,adagrad,momentum,sgd", (0.03, 0.3, 1.0, 3.0), seeds=2))


def gap(found):
    """How far the adaptive ones are ahead of the others; below 0 if not all of them are."""
    fixed = min(found[name] for name in ("momentum", "sgd"))
    return fixed - max(found[name] for name in ADAPTIVE)


@pytest.mark.exhaustive
def test_rare_words_are_for_adaptive_rates():
    found = on_sparse_words()
    assert gap(found) > 0.01
    assert found["adam"] < found["momentum"] < found["sgd"] < np.log(2)


@pytest.mark.exhaustive
def test_equally_frequent_words_are_for_all(monkeypatch):
    monkeypatch.setattr(sparse_words, "_data", sparse_words.reviews(exponent=0.0))
    assert gap(on_sparse_words()) < 0.005


def test_a_heavy_tail_is_for_adam():
    adam, sgd = raced("heavy-tail", "adam,sgd", (0.03, 0.1, 0.3), seeds=1)
    found = best([adam, sgd])
    assert found["adam"] < 0.1 * found["sgd"]
    rare, frequent = (
        {each.entrant: each.at(each.best_learning_rate)[0].evaluation[name] for each in (adam, sgd)}
        for name in ("rare", "frequent")
    )
    assert rare["adam"] < frequent["adam"]
    assert rare["sgd"] > 3 * frequent["sgd"]


def test_adam_follows_and_adagrad_lags_at_last():
    adam, adagrad = raced("moving-target", "adam,adagrad", (0.1, 1.0, 3.0), seeds=1)
    found = best([adam, adagrad])
    assert found["adam"] < 0.1 * found["adagrad"]
    # From its second period to its last it follows as well.
    (run,) = adam.at(adam.best_learning_rate)
    assert max(run.losses[2:]) < 3 * min(run.losses[2:])
    # AdaGrad follows at first, and then not: the higher its rate, the longer.
    lost = []
    for rate in adagrad.learning_rates[1:]:
        (run,) = adagrad.at(rate)
        assert min(run.losses) < 0.2
        lost.append(next(epoch for epoch, loss in enumerate(run.losses[2:]) if loss > 0.2))
    assert 0 <= lost[0] < lost[1]


@pytest.mark.exhaustive
def test_adagrad_follows_where_its_rate_is_for_the_end():
    """The counter-test: a rate far beyond the grid makes up for steps that shrink."""
    (adagrad,) = raced("moving-target", "adagrad", (10.0, 30.0), seeds=1)
    assert best([adagrad])["adagrad"] < 0.05


@pytest.mark.exhaustive
def test_a_transformer_is_for_adam():
    found = best(raced("text-transformer", "adam,sgd", (0.003, 0.1, 0.3, 1.0), seeds=1))
    assert found["adam"] < found["sgd"] - 0.2
