"""What a race has kept is there for the next one, whatever ended it: nothing lost or doubled."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_problem import LINE

from adam_jax.race import entrants, problem, records
from adam_jax.race.cli import main
from adam_jax.race.course import Course, course
from adam_jax.race.entrants import Entrant
from adam_jax.race.errors import UsageError
from adam_jax.race.journal import NAME, Journal
from adam_jax.race.results import Outcome, Run
from adam_jax.race.runner import Settings
from adam_jax.race.sources import digest

TIMES = {"microseconds_per_step", "compile_seconds"}
ON = Course("line", "d", "A line.", (0.01, 0.1), 2, 1, 5, None, "cpu")
RACING = [Entrant(name, None) for name in ("adam", "sgd", "lion")]
SAMPLES = {"text": "once\nupon", "picture": np.float32([[0.12345, np.nan], [1.0, 0.0]])}


def outcome(name, seeds=2, samples=SAMPLES):
    runs = [
        Run(name, rate, seed, (2.0, rate + seed if seed else float("nan")), {"score": rate})
        for rate in ON.learning_rates
        for seed in range(seeds)
    ]
    return Outcome(name, tuple(runs), 1e-6, 1.0, 8.0, samples=samples)


def lines(folder):
    """The lines of a folder's file without what differs from one race to another, in any order."""
    found = [json.loads(line) for line in (folder / NAME).read_text().splitlines()]
    return sorted(
        json.dumps({name: each[name] for name in each if name not in TIMES}) for each in found
    )


def go_on(folder, **options):
    """Keeps the outcomes that are not there yet, and tells whose they are."""
    journal = Journal(folder, **options)
    missing = [entrant.name for entrant in RACING if not journal.taken(ON, entrant)]
    for name in missing:
        journal.keep(ON, outcome(name))
    journal.close()
    return missing


def test_what_is_kept_comes_back(tmp_path):
    go_on(tmp_path)
    journal = Journal(tmp_path)
    found = journal.taken(ON, RACING[0])
    journal.close()
    expected = outcome("adam")
    assert found.runs[1:3] != expected.runs[1:3]  # NaN is not itself
    for run, like in zip(found.runs, expected.runs, strict=True):
        np.testing.assert_equal(run.losses, like.losses)
        assert (run.learning_rate, run.seed, run.evaluation) == (
            like.learning_rate,
            like.seed,
            like.evaluation,
        )
    assert (found.step_seconds, found.compile_seconds, found.state_bytes) == (1e-6, 1.0, 8.0)
    assert found.samples["text"] == SAMPLES["text"]
    np.testing.assert_allclose(found.samples["picture"], [[0.123, 0], [1, 0]], rtol=1e-6)


def test_a_file_that_ends_anywhere(tmp_path):
    whole = tmp_path / "whole"
    assert go_on(whole) == ["adam", "sgd", "lion"]
    content = (whole / NAME).read_bytes()
    seen = set()
    for end in range(0, len(content), 173):
        torn = tmp_path / str(end)
        torn.mkdir()
        (torn / NAME).write_bytes(content[:end])
        missing = go_on(torn)
        seen.add(len(missing))
        assert missing == ["adam", "sgd", "lion"][3 - len(missing) :]
        assert lines(torn) == lines(whole)
        assert go_on(torn) == []
    assert seen == {1, 2, 3}


def test_a_group_that_lacks_a_line_in_its_middle(tmp_path):
    go_on(tmp_path)
    expected = lines(tmp_path)
    content = (tmp_path / NAME).read_text().splitlines(keepends=True)
    (tmp_path / NAME).write_text("".join(content[:1] + content[2:] + content[-1:]))
    assert go_on(tmp_path) == ["adam"]  # of lion a line is there twice, and counts once
    assert lines(tmp_path) == expected


def test_fresh_replaces_and_does_not_double(tmp_path):
    go_on(tmp_path)
    expected = lines(tmp_path)
    assert go_on(tmp_path, fresh=True) == ["adam", "sgd", "lion"]
    assert lines(tmp_path) == expected


def test_a_fresh_race_that_ends_early_has_lost_nothing(tmp_path):
    go_on(tmp_path)
    journal = Journal(tmp_path, fresh=True)
    journal.keep(ON, outcome("sgd", samples={}))
    journal.close()
    assert go_on(tmp_path) == []
    assert (tmp_path / NAME).read_text().count("samples") == 2


@pytest.mark.parametrize(
    "content",
    [
        b"old",
        b"\n",
        b"{}\n",
        b"[]\n",
        b'{"problem": "digits", "loss": 1}\n',
        b'{"problem": "digits", "loss": 1}\n{"problem": "digi',
        b"\xff\xfe\n",
        b"\0\0\0",
        100_000 * b"[" + b"\n",
    ],
    ids=lambda content: repr(content[:40]),
)
def test_another_file_of_that_name_is_left_alone(capsys, write, tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    for fresh in ((), ("--fresh",)):
        assert main(["race", write(), "--entrants", "sgd", "--out", str(tmp_path), *fresh]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "--out must be a folder without a results.jsonl of anything but races" in error
        assert (tmp_path / NAME).read_bytes() == content


@pytest.mark.parametrize(
    ("name", "number"),
    [("initial_loss", 10**400), ("seeds", 10**400), ("seeds", 10**15)],
    ids=["loss", "seeds", "fewer seeds"],
)
def test_numbers_that_no_race_writes(tmp_path, name, number):
    go_on(tmp_path)
    first, *others = (tmp_path / NAME).read_text().splitlines()
    changed = json.dumps(json.loads(first) | {name: number})
    (tmp_path / NAME).write_text("".join(f"{line}\n" for line in (changed, *others)))
    if number < 10**20:  # a line of another race, which has many more
        Journal(tmp_path).close()
        return
    with pytest.raises(UsageError, match="line 1 is not a run as this version writes it"):
        Journal(tmp_path)


def test_a_folder_of_that_name(tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(UsageError, match="anything but races"):
        Journal(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs locks of folders")
def test_two_races_do_not_write_to_one_folder(tmp_path):
    first, second = Journal(tmp_path / "out"), Journal(tmp_path / "out")
    first.keep(ON, outcome("adam"))
    with pytest.raises(UsageError, match="another race is writing"):
        second.keep(ON, outcome("sgd"))
    with pytest.raises(UsageError, match="another race is writing"):
        Journal(tmp_path / "out")
    first.close()
    Journal(tmp_path / "out").close()


@pytest.mark.parametrize(
    "changed",
    [
        {"problem": "other"},
        {"digest": "e"},
        {"learning_rates": (0.1, 0.2)},
        {"seeds": 3},
        {"epochs": 3},
        {"device": "another"},
    ],
)
def test_what_is_asked_differently_is_raced(tmp_path, changed):
    go_on(tmp_path)
    journal = Journal(tmp_path)
    other = replace(ON, **changed)
    assert not journal.taken(other, RACING[0])
    assert not journal.taken(ON, replace(RACING[0], digest="e"))
    assert journal.taken(replace(ON, about="another line"), RACING[0])
    assert journal.others(ON, ["sgd"]) == ["adam", "lion"]
    assert journal.others(other, ["sgd"]) == []
    journal.close()


def test_what_another_version_has_raced_is_raced_again(tmp_path, monkeypatch):
    go_on(tmp_path)
    monkeypatch.setattr(records, "version", lambda package: "99")
    journal = Journal(tmp_path)
    assert not journal.taken(ON, RACING[0])
    journal.close()


def test_what_is_there_twice_counts_once(tmp_path):
    go_on(tmp_path)
    path = tmp_path / NAME
    path.write_bytes(2 * path.read_bytes())
    journal = Journal(tmp_path)
    assert journal.taken(ON, RACING[0])
    journal.close()


def test_what_another_has_written_since_is_kept(tmp_path):
    first, second = Journal(tmp_path / "out"), Journal(tmp_path / "out")
    first.keep(ON, outcome("adam"))
    first.close()
    second.keep(ON, outcome("adam"))  # in place of the other's
    second.close()
    assert len((tmp_path / "out" / NAME).read_text().splitlines()) == len(outcome("adam").runs)


def test_the_digest_is_of_what_is_written(write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    source, settings = "import optax\nmake = optax.sgd\n", Settings((0.1,), 1, 1)
    digests = []
    for more in ("", "# other\n"):
        write(source + more, "own_sgd.py")
        path = write(LINE + more)
        sys.modules.pop("own_sgd", None)
        own = entrants.load("own_sgd.py:make,own_sgd:make,sgd")
        digests.append([course(problem.load(path), settings).digest, *(e.digest for e in own)])
    first, second = digests
    assert first[3] == second[3] == ""
    assert first[1] == first[2]
    assert all(a != b for a, b in zip(first[:3], second[:3], strict=True))


def test_the_digest_is_of_what_is_imported_from_beside_it_too(tmp_path):
    """Whatever the form of the import, and from how deep; twin: what is not imported."""
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    files = {
        "first.py": "import beside, parts.whole\nfrom parts import part\nimport jax\n",
        "beside.py": "def later():\n    import late\n",
        "late.py": "import first\n",
        "parts/__init__.py": "",
        "parts/whole.py": "from . import near\n",
        "parts/part.py": "from .deep.down import *\n",
        "parts/near.py": f"try: from {'.' * 40} import missing\nexcept ImportError: pass\n",
        "parts/deep/down.py": "from ..up import up\n",
        "parts/up.py": "SIZE = 3\n",
        "parts/broken.py": "not Python",
        "other.py": "SIZE = 3\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = digest(tmp_path / "first.py")
    unread = {"parts/broken.py", "other.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}# changed\n")
        assert (digest(tmp_path / "first.py") == before) == (name in unread), name
        (tmp_path / name).write_text(text)
    assert digest(tmp_path / "parts" / "part.py") != digest(tmp_path / "parts" / "up.py")


@pytest.mark.parametrize("form", ["import pk.whole", "from pk.whole import x"])
def test_the_digest_is_of_the_packages_above_a_module_too(form, tmp_path):
    (tmp_path / "pk").mkdir()
    (tmp_path / "pk" / "whole.py").write_text("x = 1\n")
    (tmp_path / "first.py").write_text(form)
    digests = set()
    for text in ("RATE = 1\n", "RATE = 2\n"):
        (tmp_path / "pk" / "__init__.py").write_text(text)
        digests.add(digest(tmp_path / "first.py"))
    assert len(digests) == 2


def test_the_digest_of_a_built_in_problem(monkeypatch):
    """What it shares with others counts, and the whole package does not."""
    read, whole = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or whole(path))
    digest(problem.read("digits-cnn").file)
    assert {"digits_cnn.py", "digits.py", "feed.py"} <= set(read)
    assert "transform.py" not in read


def test_an_entrant_more(capsys, write, tmp_path):
    path, out = write(), tmp_path / "out"
    for names in ("sgd", "adam,sgd"):
        assert main(["race", path, "--entrants", names, "--out", str(out)]) == 0
    assert "also has" not in (out / "report.html").read_text()
    printed = capsys.readouterr()
    assert f"sgd on {path}: taken from {out / NAME}\n" in printed.err
    assert [line.split(": done")[0] for line in printed.err.splitlines() if "done" in line] == [
        "sgd",
        "adam",
    ]
    names = [json.loads(each)["entrant"] for each in (out / NAME).read_text().splitlines()]
    assert names == ["sgd"] * 6 + ["adam"] * 6
    assert "Lowest loss: sgd" in printed.out
    assert main(["race", path, "--entrants", "sgd", "--out", str(out)]) == 0
    said = "results.jsonl also has the runs of adam with these settings"
    assert said in (out / "report.html").read_text()
