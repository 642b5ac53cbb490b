"""The built-in problem's known outcomes, which were measured elsewhere with other seeds."""

import pytest
from racing import raced


@pytest.mark.exhaustive
def test_order_at_a_small_learning_rate():
    known = {
        "rmsprop": 0.142,
        "adam": 0.162,
        "momentum": 1.21,
        "adagrad": 2.00,
        "sgd": 2.19,
        "adadelta": 2.33,
    }
    outcomes = raced("digits", ",".join(known), (1e-3,))
    found = {outcome.entrant: outcome.final_loss(1e-3) for outcome in outcomes}
    assert sorted(found, key=found.get) == list(known)
    # They come from one seed; ten of ours lie within 8% of their median.
    assert found == pytest.approx(known, rel=0.1)
    accuracy = [run.evaluation["test_accuracy"] for run in outcomes[1].runs]
    assert 0.94 < min(accuracy) <= max(accuracy) < 0.98


def test_adam_at_its_best():
    (outcome,) = raced("digits", "adam", (1e-3, 1e-2, 1e-1, 1.0))
    assert outcome.best_learning_rate == 1e-2
    assert outcome.final_loss(1e-2) == pytest.approx(0.0164, rel=0.3)
