"""The built-in problems: what they promise, and that Adam solves each."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from racing import raced

from adam_jax.race import corpus, listing, numerals, problem
from adam_jax.race.cli import main
from adam_jax.race.problems import cartpole, moving_target

NAMES = problem.names()
# Where Adam is best, and so the rate at which it is tested.
BEST = {
    "cartpole": 0.03,
    "copy-translation": 0.03,
    "digits": 0.01,
    "digits-cnn": 0.01,
    "digits-vae": 0.01,
    "heavy-tail": 0.03,
    "moving-target": 0.1,
    "quadratic": 0.02,
    "rosenbrock": 0.1,
    "sparse-words": 0.03,
    "text-rnn": 0.01,
    "text-transformer": 0.003,
}
QUICK = {"quadratic", "rosenbrock"}  # the orderings train some more
# What its worst run shows where it is solved, by what it is solved for and is no loss.
SHOWS = {"cartpole": ("mean_return", 190), "copy-translation": ("exact_match", 0.9)}
NO_DATA = {"heavy-tail", "rosenbrock"}


@pytest.fixture(scope="module")
def read():
    return {name: problem.read(name) for name in NAMES}


@pytest.fixture(scope="module")
def params(read):
    """First parameters; one compilation a problem, where eager `init` has one an array."""
    return {name: jax.jit(found.init)(jax.random.key(0)) for name, found in read.items()}


@pytest.fixture
def listed(capsys):
    assert main(["problems", "--json"]) == 0
    return {each.pop("name"): each for each in json.loads(capsys.readouterr().out)["problems"]}


def test_each_is_tested():
    assert list(BEST) == NAMES


@pytest.mark.costly
@pytest.mark.parametrize("name", NAMES)
def test_each_is_short(read, name):
    assert len(read[name].file.read_text().splitlines()) < 120


@pytest.mark.parametrize("name", NAMES)
def test_its_data_is_the_same_each_time(read, name):
    epoch = read[name].feed.epoch
    first, again, other = (jax.tree.leaves(epoch(jax.random.key(seed))) for seed in (0, 0, 1))
    assert all(map(same, first, again))
    assert all(map(same, first, other)) == (name in NO_DATA)


def same(x, y):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x, y = jax.random.key_data(x), jax.random.key_data(y)
    return np.array_equal(x, y)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in NAMES if name not in QUICK])
def test_it_begins_above_its_target(read, params, name):
    found = read[name]
    items = found.feed.epoch(jax.random.key(0))
    batch = found.feed.pick(found.feed.data, jax.tree.map(lambda item: item[0], items))
    first = float(jax.jit(found.loss)(params[name], batch))
    assert found.target < first < math.inf


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_its_samples(read, params, name):
    found = read[name]
    if found.samples is None:
        assert name not in {
            "digits-vae",
            "text-rnn",
            "text-transformer",
            "copy-translation",
            "cartpole",
        }
        return
    for caption, sample in found.samples(params[name]).items():
        assert caption
        if isinstance(sample, str):
            assert 20 < len(sample) < 1000
        else:
            assert min(sample.shape) >= 8
            assert 0 <= sample.min() < sample.max() <= 1


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.exhaustive) for name in NAMES],
)
def test_adam_solves_it_from_every_seed(name):
    found = problem.read(name)
    (outcome,) = raced(name, "adam", [BEST[name]])
    assert len(outcome.runs) == 3
    assert max(run.final_loss for run in outcome.runs) <= found.target
    assert found.target < min(run.losses[0] for run in outcome.runs)
    if name in SHOWS:
        figure, least = SHOWS[name]
        assert min(run.evaluation[figure] for run in outcome.runs) >= least


def test_the_list(listed):
    assert list(listed) == NAMES
    for name, each in listed.items():
        assert each["about"].count(":") == 1  # the task, and what with
        assert each["about"].endswith(".")
        assert each["parameters"] > 0
        assert each["epochs"] * each["steps_per_epoch"] >= 50
        assert min(each["learning_rates"]) <= BEST[name] <= max(each["learning_rates"])
        assert each["target"] > 0
        assert 0 < each["seconds"] < 120
    assert listed["digits"]["parameters"] == 64 * 128 + 128 + 128 * 10 + 10
    assert listed["rosenbrock"]["parameters"] == 2
    assert listed["digits"]["steps_per_epoch"] == 1347 // 32


def test_a_line_each(capsys, read):
    assert main(["problems"]) == 0
    header, *lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert header.split()[:4] == ["problem", "parameters", "budget", "rates"]
    assert [line.split()[0] for line in lines] == NAMES
    for line, name in zip(lines, NAMES, strict=True):
        assert line.endswith(read[name].about)


@pytest.mark.parametrize("width", [100, 120, 1])
def test_on_a_terminal_it_is_folded(read, width):
    lines = listing.table(list(read.values()), width).splitlines()
    assert width == 1 or max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[1:] if line[0] != " "] == NAMES


def test_the_text_is_english():
    text = corpus.text()
    assert text.count(" the ") > 500
    assert corpus.decoded(corpus.encoded(text[:200])) == text[:200]
    train, test = corpus.windows(32)
    assert train.shape[1] == test.shape[1] == 33
    assert np.array_equal(train[0, -1:], train[1, :1])
    assert corpus.decoded(train[0]) == text[:33]


def test_numbers_in_words():
    for speak, words in ((numerals.english, numerals.ENGLISH), (numerals.german, numerals.GERMAN)):
        said = [" ".join(speak(number)) for number in range(1000)]
        assert len(set(said)) == 1000
        assert max(len(each.split()) for each in said) == numerals.LONGEST
        assert {word for each in said for word in each.split()} == set(words)
    assert numerals.english(900) == ["nine", "hundred"]
    assert " ".join(numerals.german(801)) == "acht hundert eins"


def falling(state, force, **changed):
    """Barto, Sutton & Anderson's equations without friction, as they write them, in float64."""
    x, dx, angle, turning = np.asarray(state, float)
    g, m, half, mass = 9.8, changed.get("m", 0.1), 0.5, 1.0 + changed.get("m", 0.1)
    inner = (-force - m * half * turning**2 * np.sin(angle)) / mass
    turn = (g * np.sin(angle) + np.cos(angle) * inner) / (
        half * (4 / 3 - m * np.cos(angle) ** 2 / mass)
    )
    pull = (force + m * half * (turning**2 * np.sin(angle) - turn * np.cos(angle))) / mass
    return np.array([x, dx, angle, turning]) + 0.02 * np.array([dx, pull, turning, turn])


def test_the_cart_moves_as_published():
    states = np.random.default_rng(0).uniform(-0.2, 0.2, (20, 4)).astype(np.float32)
    force = np.where(np.arange(20) % 2, 10.0, -10.0).astype(np.float32)
    moved = cartpole._moved(states, force)
    expected = np.stack(list(map(falling, states, force)))
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-6)
    heavier = np.stack([falling(*each, m=0.2) for each in zip(states, force, strict=True)])
    assert np.abs(heavier - expected).max() > 1e-3


def test_a_moving_target_pulls_from_where_it_seems_to_be():
    x, seen, end = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    value, pull = jax.value_and_grad(moving_target.loss)(x, (seen, end))
    assert value == pytest.approx(np.mean((x - end) ** 2) / 2, rel=1e-5)
    np.testing.assert_allclose(pull, x - seen, rtol=1e-5)
    assert np.abs(pull - (x - end)).max() > 1  # which its value alone would give


@pytest.mark.exhaustive
def test_a_policy_learns_from_what_outlives_the_others():
    """The gradient, in float64 from the formula; and the value is the share of time down."""
    params, key = cartpole.init(jax.random.key(1)), jax.random.key(2)
    states, right, up = (np.asarray(x) for x in cartpole._rollout(params, key))
    value, gradients = jax.value_and_grad(cartpole.loss)(params, key)
    assert value == pytest.approx(1 - up.mean(), abs=1e-6)
    to_go = np.stack([up[t:].sum(0) for t in range(len(up))]).astype(float)
    baseline = [
        np.mean(now[alive]) if alive.any() else 0 for now, alive in zip(to_go, up, strict=True)
    ]
    hidden = np.tanh(states.astype(float) @ np.asarray(params["w1"], float))
    chance = 1 / (1 + np.exp(-(hidden @ np.asarray(params["w2"], float))[..., 0]))

    def of_b2(baseline):  # the last bias moves a logit as much: d log p / d logit is done - chance
        return -np.sum(up * (to_go - np.array(baseline)[:, None]) * (right - chance)) / up.size

    assert float(gradients["b2"][0]) == pytest.approx(of_b2(baseline), rel=1e-3)
    assert float(gradients["b2"][0]) != pytest.approx(of_b2(np.zeros(len(up))), rel=1e-3)


def test_bad_values(capsys, write):
    source = Path(write()).read_text()
    for line, rule in [
        ("target = 'low'", "`target` must be a finite number: ValueError"),
        ("target = float('nan')", "`target` must be a finite number, got nan"),
        ("seconds = 0", "`seconds` must be positive, got 0"),
        ("seconds = float('inf')", "`seconds` must be a finite number, got inf"),
        ("seconds = 'long'", "`seconds` must be a finite number: ValueError"),
        ("samples = 3", "must be a function: `samples`"),
    ]:
        assert main(["race", write(f"{source}\n{line}\n"), "--entrants", "sgd"]) == 2
        error = capsys.readouterr().err
        assert rule in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("return 3", "must return a dict of captions and of texts or pictures, got int"),
        ("return {'a': [1.0]}", "of two dimensions, got [1] for 'a'"),
        ("return {'a': params}", "of texts or pictures"),
        ("raise KeyError('lost')", "`samples` failed: line.py:"),
    ],
)
def test_bad_samples(write, body, rule):
    found = problem.read(write(Path(write()).read_text() + f"\ndef samples(params): {body}\n"))
    with pytest.raises(problem.UsageError) as error:
        found.samples({"w": np.zeros(3)})
    assert rule in str(error.value)


@pytest.mark.parametrize("arguments", [["digits"], ["--jsn"]])
def test_bad_arguments(capsys, arguments):
    assert main(["problems", *arguments]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
