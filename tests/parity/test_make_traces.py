"""The check of the golden traces finds what has changed; here without the frameworks."""

import dataclasses

import make_traces
import numpy as np
import pytest
from traces import FOLDER, load, save, split

PARTS = ("fields", "numbers", "rest")


@pytest.fixture
def golden(monkeypatch):
    """Traces of PyTorch, and in its place a framework that repeats them."""
    golden = load(FOLDER / "torch.npz")

    def run(case, dtype, params, gradients):
        rows = np.ones(golden.gradients.shape, dtype)
        name = next(name for name, other in golden.cases.items() if other == case)
        rows[np.array(golden.about["steps"]) - 1] = golden.parameters[name, dtype]
        return ((split(row, golden.about["shapes"]), lambda: state(name, dtype)) for row in rows)

    def state(name, dtype):
        fields, numbers, rest = (golden.about["states"][key][name] for key in PARTS)
        trees = [split(row, golden.about["shapes"]) for row in golden.states[name, dtype]]
        return dict(zip(fields, trees, strict=True)), numbers[dtype], rest

    def fake(cases):
        monkeypatch.setattr(make_traces, "signature", golden.about["signatures"].get)
        module = type("optim", (), {name: name for name in golden.about["signatures"]})
        entry = (cases, lambda: ({"torch": "0"}, module), run)
        monkeypatch.setitem(make_traces.FRAMEWORKS, "torch", entry)

    fake(golden.cases)
    return golden


def check(folder):
    return make_traces.main(["--torch", "--check", "--out", str(folder)])


def test_unchanged_traces_pass(golden, capsys):
    assert check(FOLDER) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * len(golden.cases)
    assert all(line.startswith("ok") for line in lines[1:])


def test_a_file_keeps_every_bit(golden, tmp_path):
    save(golden, tmp_path / "torch.npz")
    again = load(tmp_path / "torch.npz")
    assert (again.about, again.cases) == (golden.about, golden.cases)
    assert again.parameters.keys() == golden.parameters.keys()
    for key, trace in golden.parameters.items():
        assert trace.tobytes() == again.parameters[key].tobytes()
        assert golden.states[key].tobytes() == again.states[key].tobytes()


def test_a_changed_step_fails(golden, tmp_path, capsys):
    changed = {key: trace.copy() for key, trace in golden.parameters.items()}
    changed["RAdam", "float64"][20, 3] *= 1 + 1e-12
    save(dataclasses.replace(golden, parameters=changed), tmp_path / "torch.npz")
    assert check(tmp_path) == 1
    failed = [x for x in capsys.readouterr().out.splitlines() if x.startswith("FAILED")]
    assert failed == ["FAILED torch RAdam float64: 1.0e-12"]


def test_a_changed_state_fails(golden, tmp_path, capsys):
    changed = {key: moments.copy() for key, moments in golden.states.items()}
    changed["Adamax", "float64"][1, 3] *= 1 + 1e-12
    save(dataclasses.replace(golden, states=changed), tmp_path / "torch.npz")
    assert check(tmp_path) == 1
    failed = [x for x in capsys.readouterr().out.splitlines() if x.startswith("FAILED")]
    assert failed == ["FAILED torch Adamax float64: 1.0e-12"]


@pytest.mark.parametrize("part", PARTS)
def test_another_kind_of_state_fails(golden, tmp_path, capsys, part):
    of_case = {"fields": [], "rest": [], "numbers": {"float64": {}, "float32": {}}}
    states = {**golden.about["states"], part: {**golden.about["states"][part]}}
    states[part]["RAdam"] = of_case[part]
    save(
        dataclasses.replace(golden, about={**golden.about, "states": states}),
        tmp_path / "torch.npz",
    )
    assert check(tmp_path) == 1
    assert "FAILED torch RAdam float64: inf" in capsys.readouterr().out


def test_a_changed_default_fails(golden, tmp_path, capsys):
    about = {**golden.about, "signatures": {**golden.about["signatures"], "AdamW": []}}
    save(dataclasses.replace(golden, about=about), tmp_path / "torch.npz")
    assert check(tmp_path) == 1
    assert "FAILED torch AdamW: its arguments [] became [[" in capsys.readouterr().out


def test_a_case_without_a_trace_fails(golden, monkeypatch, capsys):
    cases = {**golden.cases, "Adam again": golden.cases["Adam"]}
    entry = (cases, *make_traces.FRAMEWORKS["torch"][1:])
    monkeypatch.setitem(make_traces.FRAMEWORKS, "torch", entry)
    assert check(FOLDER) == 1
    assert "FAILED torch: the file was made for other cases" in capsys.readouterr().out


def test_a_framework_must_be_named():
    with pytest.raises(SystemExit):
        make_traces.main(["--check"])
