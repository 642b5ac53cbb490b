"""What the race trains is what a plain Optax loop trains, and what it reports is what happened."""

import html
import json
import os
import shlex
import signal
import struct
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from small_problem import LINE

from adam_jax.race import entrants, problem
from adam_jax.race.cli import main
from adam_jax.race.results import Outcome
from adam_jax.race.runner import Progress, Settings, one_by_one, race

ALL = "adam,adamw,sgd,momentum,adagrad,rmsprop,adadelta"
HEADERS = (
    "entrant best learning rate final loss range over seeds bias error steps to "
    "\N{MICRO SIGN}s a step com- pile s state bytes/ param. for- giving"
)
OWN_BATCHES = LINE.replace("data = ", "_data = ").replace(
    "batch_size = 8",
    """
def batches(key):
    for start in jax.random.randint(key, (4,), 0, 30):
        yield {"key": key, "xy": jax.tree.map(lambda a: a[start:start + 8], _data)}
""",
)
OWN_BATCHES = OWN_BATCHES.replace(
    "x, y = batch",
    """x, y = batch["xy"]
    x = x + 0.1 * jax.random.normal(batch["key"], x.shape)  # a loss with noise of its own""",
)


def raced(path, names, settings):
    events = list(race(problem.load(path), entrants.load(names), settings))
    return [event for event in events if isinstance(event, Outcome)]


@pytest.fixture
def documented(capsys):
    """Runs a race for machines and returns its document."""

    def documented(*arguments, status=0):
        assert main(["race", *arguments, "--json"]) == status
        return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)

    return documented


def reference(own, transformation, seed, epochs):
    """The losses of one run, trained alone, step by step."""

    def batches(number):
        key = jax.random.fold_in(data_key, number)
        if own.feed.data is None:
            items = own.feed.epoch(key)
        else:
            rows = jax.random.permutation(key, 40).reshape(5, 8)
            items = jax.tree.map(lambda array: array[rows], own.feed.data)
        return [jax.tree.map(lambda leaf, i=i: leaf[i], items) for i in range(own.steps)]

    init_key, data_key = jax.random.split(jax.random.key(seed))
    params = own.init(init_key)
    state = transformation.init(params)
    losses = [np.mean([own.loss(params, batch) for batch in batches(0)])]
    for number in range(epochs):
        for batch in batches(number):
            gradients = jax.grad(own.loss)(params, batch)
            updates, state = transformation.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        losses.append(np.mean([own.loss(params, batch) for batch in batches(number)]))
    return losses, params


@pytest.mark.costly
@pytest.mark.parametrize("source", [LINE, OWN_BATCHES], ids=["data", "batches"])
@pytest.mark.parametrize(
    ("name", "made"),
    [("adam", optax.adam), ("momentum", lambda rate: optax.sgd(rate, 0.9, nesterov=True))],
)
def test_each_run_is_a_plain_loop(write, source, name, made):
    path = write(source)
    (outcome,) = raced(path, name, Settings((0.01, 0.1), 2, 2))
    assert len(outcome.runs) == 4
    for run in outcome.runs:
        losses, params = reference(problem.load(path), made(run.learning_rate), run.seed, 2)
        np.testing.assert_allclose(run.losses, losses, rtol=2e-5)
        error = abs(float(params["b"]) - 0.5)
        assert run.evaluation == {"bias_error": pytest.approx(error, abs=1e-5)}
    assert len({run.losses for run in outcome.runs}) == 4


def test_samples_are_of_the_run_in_the_middle_at_the_best_rate(write):
    source = (
        LINE
        + "\ndef samples(params): return {'b': str(float(params['b'])), 'w': params['w'][None]}"
    )
    (outcome,) = raced(write(source), "sgd", Settings((0.01, 0.1, 1e30), 3, 2))
    best = outcome.best_run
    assert best.learning_rate == 0.1
    assert sorted(run.final_loss for run in outcome.at(0.1))[1] == best.final_loss
    assert abs(float(outcome.samples["b"]) - 0.5) == best.evaluation["bias_error"]
    assert outcome.samples["w"].shape == (1, 3)
    (lost,) = raced(write(source), "sgd", Settings((1e30,), 1, 2))
    assert lost.samples == {}


def test_what_a_problem_need_not_have_may_be_none(write):
    found = problem.load(write(LINE.split("def evaluate")[0] + "evaluate = samples = None\n"))
    assert found.evaluate is None
    assert found.samples is None


def test_an_epoch_of_arrays_visits_each_row_once_in_a_new_order(write):
    own = problem.load(write())
    epochs = [np.asarray(own.feed.epoch(jax.random.key(seed))) for seed in range(2)]
    for epoch in epochs:
        assert epoch.shape == (5, 8)
        assert sorted(epoch.ravel()) == list(range(40))
    assert (epochs[0] != epochs[1]).any()


def test_progress_counts_every_epoch(write):
    settings = Settings((0.1,), 1, 3)
    events = list(race(problem.load(write()), entrants.load("sgd,adam"), settings))
    counts = [(e.entrant, e.epoch) for e in events if isinstance(e, Progress)]
    assert counts == [(name, epoch) for name in ("sgd", "adam") for epoch in range(4)]


def test_state_bytes_and_times(write):
    found = {o.entrant: o for o in raced(write(), "sgd,momentum,adam", Settings((0.1,), 1, 2))}
    # The problem has four parameters; adam's step count is 4 bytes more.
    sizes = {name: outcome.state_bytes for name, outcome in found.items()}
    assert sizes == {"sgd": 0, "momentum": 4, "adam": 9}
    assert all(0 < o.step_seconds < 0.1 and 0 < o.compile_seconds < 60 for o in found.values())


@pytest.mark.parametrize("raced", [race, one_by_one])
def test_one_compilation_of_the_training_an_entrant(write, raced):
    traces = []
    own = problem.load(write())
    counted = entrants.Entrant("counted", lambda rate: (traces.append(rate), optax.sgd(rate))[1])
    list(raced(own, [counted], Settings((0.01, 0.1, 1.0), 3, 4)))
    assert len(traces) <= 3  # init, seen abstractly and compiled, and the training


@pytest.fixture
def compiled():
    """What XLA compiles, an element a program."""
    seen, over = [], []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration" and not over:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    over.append(True)  # no public function takes a listener away


def test_programs_an_entrant_whatever_the_runs(write, compiled):
    """Its first state and its training; the loss is measured by one program for all."""
    own = problem.load(write())
    runs = Settings((0.1,), 1, 1), Settings((0.01, 0.1), 2, 5)
    counts = {}
    for names in ("sgd", "sgd", "sgd,adam"):  # once more, without what is compiled once a process
        for settings in runs:
            before = len(compiled)
            list(race(own, entrants.load(names), settings))
            counts[names, settings] = len(compiled) - before
    assert list(counts.values()) == [3, 3, 5, 5]


def test_divergence_is_a_result(documented, write):
    found = documented(write(), "--entrants", "sgd,adam", "--learning-rates", "0.1,1e30")
    lost = [run for run in found["runs"] if run["diverged"]]
    assert {(run["entrant"], run["learning_rate"]) for run in lost} >= {("sgd", 1e30)}
    for run in lost:
        assert run["final_loss"] is run["epoch_losses"][-1] is run["evaluation"] is None
        assert run["initial_loss"] > 0
    (sgd,) = (row for row in found["standings"] if row["entrant"] == "sgd")
    assert sgd["best_learning_rate"] == 0.1
    assert sgd["forgiving"] == 0.5


def test_all_diverged_is_a_result(documented, write, tmp_path):
    rates = ("--learning-rates", "1e30,1e31")
    found = documented(write(), "--entrants", "sgd,adam", *rates, "--out", str(tmp_path / "out"))
    assert all(run["diverged"] for run in found["runs"])
    assert found["target_loss"] is None
    assert all(row["best_learning_rate"] is None for row in found["standings"])
    assert all(row["steps_to_target"] is None for row in found["standings"])
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_document(documented, write):
    found = documented(write(), "--entrants", ALL, "--seeds", "2")
    assert found["complete"] is True
    assert found["learning_rates"] == [0.01, 0.1]
    assert (found["epochs"], found["seeds"], found["steps_per_epoch"]) == (3, 2, 5)
    assert len(found["runs"]) == 7 * 2 * 2
    losses = [row["final_loss"] for row in found["standings"]]
    assert losses == sorted(losses)
    assert found["target_loss"] == pytest.approx(1.1 * losses[0])
    assert found["standings"][0]["steps_to_target"] <= 15
    assert found["versions"]["jax"] == jax.__version__


def test_options_override_the_problem(documented, write):
    path, choice = write(), ("--seeds", "1", "--epochs", "1", "--learning-rates", "1e-3:0.1:3")
    found = documented(path, "--entrants", "sgd", *choice, "--target", "1e9")
    assert found["learning_rates"] == [0.001, 0.01, 0.1]
    assert [len(run["epoch_losses"]) for run in found["runs"]] == [1, 1, 1]
    assert found["target_loss"] == 1e9
    assert found["standings"][0]["steps_to_target"] == 0


@pytest.mark.exhaustive
def test_table(capsys, write):
    assert main(["race", write(), "--entrants", ALL]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert max(map(len, lines)) <= 80
    header = " ".join(lines[: next(i for i, line in enumerate(lines) if "─" in line)])
    assert set(HEADERS.split()) <= set(header.split())
    body = lines[next(i for i, line in enumerate(lines) if "─" in line) + 1 : lines.index("")]
    rows = {line.split()[0]: line.split() for line in body}
    assert set(rows) == set(ALL.split(","))
    assert all(len(row) == 10 for row in rows.values())
    assert "Lowest loss: " in printed.out
    assert "try larger: " in printed.out
    assert [line.partition(":")[0] for line in printed.err.splitlines()] == ALL.split(",")


@pytest.mark.parametrize("names", [["x" * 60], [f"figure_{i}" for i in range(9)]])
def test_numbers_are_never_cut(capsys, write, names):
    figures = dict.fromkeys(names, -1.23e-05)
    source = LINE.replace('return {"bias_error"', f'return {figures} or {{"bias_error"')
    assert main(["race", write(source), "--entrants", "sgd,adam"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith(("sgd", "adam"))]
    assert len(rows) == 2
    for row in rows:
        assert len(row) == 9 + len(names)
        assert row.count("-1.23e-05") == len(names)
        assert row[-1].endswith("%")
    assert len(names) > 1 or max(map(len, lines)) <= 80


def test_what_the_problem_prints_is_not_in_the_document(capsys, write):
    source = LINE.replace("    return {", "    print('hello')\n    return {") + "\nprint('hello')\n"
    assert main(["race", write(source), "--entrants", "sgd", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["complete"] is True
    assert printed.err.count("hello") > 2


def test_integers_of_numpy(documented, write):
    source = LINE.replace("batch_size = 8", "import numpy as np; batch_size = np.int64(8)")
    found = documented(write(source.replace("epochs = 3", "epochs = np.int64(2)")))
    assert (found["steps_per_epoch"], found["epochs"]) == (5, 2)


def test_files(capsys, write, tmp_path):
    folder = tmp_path / "new" / "out"
    # sgd diverges at 1e30, so that both pictures have all that they can have.
    rates = ("--learning-rates", "0.01,0.1,1e30")
    arguments = ["race", write(), "--entrants", ALL, *rates, "--out", str(folder)]
    assert main(arguments) == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {"results.jsonl", "report.html", "curves.png", "learning_rates.png"}
    page = (folder / "report.html").read_text()
    assert shlex.join(["adam-jax", *arguments]) in html.unescape(page)
    assert all(f"<b>{name}</b>" in page for name in ALL.split(","))
    lines = (folder / "results.jsonl").read_text().splitlines()
    runs = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    keys = {(run["entrant"], run["learning_rate"], run["seed"]) for run in runs}
    assert len(runs) == len(keys) == 7 * 3 * 3
    for name in ("curves.png", "learning_rates.png"):
        content = (folder / name).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", content[16:24])
        assert 1000 <= width <= 2000
        assert 600 <= height <= 1500
        assert len(content) > 20_000


def test_entrants_of_the_users_own(documented, write, monkeypatch, tmp_path):
    source = "import optax\ndef clipped(rate):\n"
    source += "    return optax.chain(optax.clip(1.0), optax.sgd(rate))\n"
    path = write(source, "own_entrants.py")
    monkeypatch.chdir(tmp_path)
    names = f"own_entrants:clipped,{path}:clipped,optax:lion"
    found = documented(write(), "--entrants", names, "--seeds", "1")
    by_name = {
        name: [run["epoch_losses"] for run in found["runs"] if run["entrant"] == name]
        for name in names.split(",")
    }
    assert by_name["own_entrants:clipped"] == by_name[f"{path}:clipped"] != by_name["optax:lion"]


def test_the_documented_example_runs(documented, write):
    example = problem.__doc__.partition("Example:")[2].partition("\n\n")[2]
    source = "\n".join(line.removeprefix("    ") for line in example.splitlines())
    found = documented(write(source), "--entrants", "adam", "--seeds", "1")
    assert found["standings"][0]["final_loss"] < 1e-2


class TestInterrupted:
    def test_keeps_what_is_finished(self, capsys, write, tmp_path):
        # Called once when the file is read, and once for each of sgd's two runs.
        source = LINE + "\nasked = iter(range(4))\n"
        source = source.replace(
            'return {"bias', 'next(asked, None) == 3 and interrupt()\n    return {"bias'
        )
        source += "def interrupt(): raise KeyboardInterrupt\n"
        path, out = write(source), tmp_path / "out"
        arguments = ["--entrants", "sgd,adam", "--seeds", "1", "--out", str(out)]
        assert main(["race", path, *arguments]) == 130
        printed = capsys.readouterr()
        assert printed.err.splitlines()[-1] == (
            "adam-jax: interrupted; finished entrants are kept, 1 of 2: sgd"
        )
        assert "Lowest loss: sgd" in printed.out
        assert {path.name for path in out.iterdir()} == {
            "results.jsonl",
            "report.html",
            "curves.png",
            "learning_rates.png",
        }
        assert len((out / "results.jsonl").read_text().splitlines()) == 2

    def test_before_anything_is_finished(self, capsys, write, tmp_path):
        path = write(LINE + "\nraise KeyboardInterrupt\n")
        assert main(["race", path, "--out", str(tmp_path / "out")]) == 130
        assert capsys.readouterr().err.count("\n") == 1
        assert not (tmp_path / "out").exists()

    def test_where_python_ignores_it(self, capsys, write):
        """As it does where the garbage collector calls back."""
        source = LINE.replace("    return {", "    press()\n    return {").replace(
            "import jax\n",
            "import jax, signal\n"
            "def press():\n"
            "    try:\n"
            "        signal.raise_signal(signal.SIGINT)\n"
            "    except KeyboardInterrupt:\n"
            "        pass\n",
            1,
        )
        handler = signal.getsignal(signal.SIGINT)
        assert main(["race", write(source), "--entrants", "sgd", "--seeds", "1"]) == 130
        assert "interrupted" in capsys.readouterr().err
        assert signal.getsignal(signal.SIGINT) is handler

    def test_by_a_real_signal(self, write, tmp_path):
        command = [sys.executable, "-m", "adam_jax", "race", write(), "--json"]
        command += ["--entrants", "sgd,adam", "--epochs", "1000", "--out", str(tmp_path / "out")]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr.readline().startswith("sgd: done, 1 of 2")
            os.kill(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert err == "adam-jax: interrupted; finished entrants are kept, 1 of 2: sgd\n"
        found = json.loads(out)
        assert found["complete"] is False
        assert len(found["runs"]) == 6
        assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 6
