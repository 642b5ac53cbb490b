"""What the report says of each entrant, worked out by hand."""

import math

from raced import outcome, race

from adam_jax.race.profiles import Profile, Score
from adam_jax.race.report.words import Result, counted, scored, several, summary, verdicts


def sentences(outcomes, **changed):
    return dict(verdicts(Result(race(outcomes, **changed))))


class TestVerdicts:
    def test_ranges_that_meet_are_not_settled(self):
        told = sentences(
            [
                outcome("a", {0.01: [0.5] * 3, 0.1: [1.0, 1.1, 1.4], 1.0: [9.0] * 3}),
                outcome("b", {0.01: [9.0] * 3, 0.1: [0.4, 0.45, 0.6], 1.0: [9.0] * 3}),
                outcome("c", {0.01: [9.0] * 3, 0.1: [3.0] * 3, 1.0: [1.5] * 3}),
            ]
        )
        assert told == {
            "b": "lowest loss, 0.45 at learning rate 0.1; not settled: its range over 3 seeds "
            "meets that of a; reached 0.495, 10% above the lowest, after 19 steps.",
            "a": "loss 0.5 at 0.01, 1.1 times the lowest; its range over seeds meets b's; "
            "never reached 0.495; best at the smallest rate tried, so try smaller.",
            "c": "loss 1.5 at 1, 3.3 times the lowest; never reached 0.495; best at the largest "
            "rate tried, so try larger.",
        }

    def test_ranges_apart(self):
        best, other = outcome("a", {0.1: [0.1, 0.2, 0.3]}), outcome("b", {0.1: [0.4, 0.5, 0.6]})
        told = sentences([best, other], target=1.2)
        assert "no other's range over 3 seeds meets its; reached 1.2, the target," in told["a"]
        assert told["b"] == "loss 0.5 at 0.1, 2.5 times the lowest; reached 1.2 after 11 steps."

    def test_one_seed_has_no_range(self):
        told = sentences([outcome("a", {0.1: [0.2]}), outcome("b", {0.1: [0.2]})])
        assert "range" not in " ".join(told.values())

    def test_returns_have_no_ratio(self):
        told = sentences([outcome("a", {0.1: [-9.0]}), outcome("b", {0.1: [-3.0]})])
        assert told["b"].startswith("loss -3 at 0.1; never reached -8.1")

    def test_divergence(self):
        lost = outcome("lost", {0.1: [math.nan]})
        told = sentences([outcome("a", {0.1: [0.2]}), lost])
        assert told["lost"] == "diverged at every learning rate, so try smaller."
        assert summary(Result(race([lost]))) == "every run diverged"
        assert summary(Result(race([]))) == "nobody finished"

    def test_many_names(self):
        assert several(["a"]) == "a"
        assert several([]) == ""
        assert several(list("abcdefg")) == "a, b, c, d and 3 more"


class TestScores:
    def score(self, tuned, problems=("a", "b", "c")):
        default = Profile((2.5, math.inf, math.inf))
        return Score("adam", problems, Profile(tuned), default, 1e-3)

    def test_a_sentence(self):
        assert scored(self.score((1.0, 2.5, math.inf))) == (
            "score 0.50 with learning rates tuned on each problem, 0.17 near its usual 0.001; "
            "solved 2 of 3, 1 of them in the fewest steps."
        )
        assert scored(self.score((4.0, 9.0, 9.0))).endswith("; solved 3 of 3.")
        assert scored(self.score((math.inf,) * 3)).endswith("; solved none of 3.")

    def test_what_is_left_out(self):
        races = [race([], problem) for problem in "abcd"]
        found = [self.score((1.0, 1.0, 1.0))]
        assert counted(found, races[:3]) == "it is over all 3"
        assert counted(found, races).startswith("it is over 3 of 4, without d, where nobody ")
