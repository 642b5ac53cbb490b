"""What is left of a race, told from what is over."""

import io
import sys

import pytest

from adam_jax.race.course import Course
from adam_jax.race.meeting import Taken
from adam_jax.race.progress import Clock, display
from adam_jax.race.results import Failure, Outcome
from adam_jax.race.runner import Progress


def course(problem, epochs=3):
    return Course(problem, "", "", (0.1,), 1, epochs, 5, None, "cpu")


def done(entrant):
    return Outcome(entrant, (), 1.0, 1.0, 1.0)


class Told:
    """A clock of two problems and four entrants, whose time the test says."""

    def __init__(self, problems=2, entrants=4):
        self.time = 100.0
        self.clock = Clock(problems, entrants, now=lambda: self.time)

    def after(self, seconds, problem, event):
        self.time += seconds
        self.clock.see(problem, event)
        return self.clock.done, self.clock.remaining()


def test_nothing_to_go_by():
    told = Told()
    assert told.clock.remaining() is None
    assert told.after(5, "a", course("a")) == (0, None)


def test_entrants_take_as_long_as_those_before():
    told = Told()
    told.after(0, "a", course("a"))
    assert told.after(2, "a", done("adam")) == (1, 2 * 3 + 2 * 4)
    assert told.after(4, "a", done("sgd")) == (2, 3 * 2 + 3 * 4)


def test_a_part_of_an_entrant_counts():
    told = Told()
    told.after(0, "a", course("a", epochs=3))
    assert told.after(1, "a", Progress("adam", 0)) == (0.25, pytest.approx(4 * 8 - 1))
    assert told.after(2, "a", Progress("adam", 2)) == (0.75, pytest.approx(4 * 8 - 3))


def test_a_problem_goes_by_itself_and_those_that_come_by_all():
    told = Told(problems=3, entrants=2)
    told.after(0, "a", course("a"))
    told.after(1, "a", done("adam"))
    told.after(1, "a", done("sgd"))
    told.after(0, "b", course("b"))
    # Of b one more at 10 s; of c two at (1 + 1 + 10) / 3.
    assert told.after(10, "b", done("adam")) == (3, pytest.approx(10 + 2 * 4))


def test_what_is_taken_costs_nothing_and_failures_have_their_turn():
    told = Told()
    told.after(0, "a", course("a"))
    assert told.after(0, "a", Taken("adam", None)) == (1, None)
    assert told.after(3, "a", Failure("sgd", "failed")) == (2, 3 * 2 + 3 * 4)
    assert told.after(3, "a", Failure(None, "failed"))[0] == 4
    assert told.clock.remaining() == pytest.approx(6 * 4)


def test_lines(capsys, tmp_path):
    with display(2, 2) as show:
        show("a", course("a"))
        show("a", Taken("adam", tmp_path))
        show("a", done("sgd"))
        show("b", Failure(None, "is missing"))
        show("b", Failure("sgd", "was killed"))
    first, second, third, fourth = capsys.readouterr().err.splitlines()
    assert first == f"adam on a: taken from {tmp_path}"
    assert second.startswith("sgd on a: done, 2 of 4 after ")
    assert second.endswith(" s left")
    assert third == "adam-jax: error: b: is missing"
    assert fourth == "adam-jax: error: entrant 'sgd' on b was killed"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar(monkeypatch, tmp_path):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal)
    with display(1, 2) as show:
        show("a", course("a"))
        show("a", Taken("adam", tmp_path))
        show("a", Progress("sgd", 1))
        show("a", Failure("sgd", "was [killed]"))
    shown = terminal.getvalue()
    assert f"adam on a: taken from {tmp_path}\n" in shown.replace("\r", "")
    assert "adam-jax: error: entrant 'sgd' was [killed]\n" in shown.replace("\r", "")
    assert "100%" in shown
