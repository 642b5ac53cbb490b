"""Files of state dicts: through their libraries, whole or not at all, with errors of one line."""

import json
import sys
import types

import numpy as np
import pytest

from adam_jax.interop import torch_files
from adam_jax.interop.torch_files import read_torch, write_torch

STATE_DICT = {
    "state": {
        0: {"step": np.float32(3), "exp_avg": np.ones((2, 3), np.float32)},
        1: {"step": np.float32(3), "exp_avg": np.zeros(())},
    },
    "param_groups": [{"lr": 1e-3, "betas": [0.9, 0.999], "params": [0, 1]}],
}
KINDS = ("pt", "safetensors")


class Torch(types.ModuleType):
    """PyTorch's two functions, with files of JSON. The real one runs in `parity/move_house.py`."""

    @staticmethod
    def load(file, map_location, weights_only):
        assert (map_location, weights_only) == ("cpu", True)
        return json.loads(file.read_text())

    @staticmethod
    def save(state_dict, file):
        file.write_text(json.dumps(state_dict))

    from_numpy = staticmethod(np.ndarray.tolist)


@pytest.fixture(autouse=True)
def _torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", Torch("torch"))


@pytest.fixture(params=KINDS)
def file(request, tmp_path):
    if request.param == "safetensors":
        pytest.importorskip("safetensors")
    return tmp_path / f"optimizer.{request.param}"


def test_safetensors_keep_everything(tmp_path):
    pytest.importorskip("safetensors")
    file = tmp_path / "optimizer.safetensors"
    write_torch(file, STATE_DICT)
    again = read_torch(file)
    assert again["param_groups"] == STATE_DICT["param_groups"]
    assert again["state"].keys() == STATE_DICT["state"].keys()
    for position, entry in STATE_DICT["state"].items():
        for field, x in entry.items():
            assert again["state"][position][field].dtype == x.dtype
            np.testing.assert_array_equal(again["state"][position][field], x)


def test_safetensors_of_others_have_names(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    file = tmp_path / "optimizer.safetensors"
    numpy.save_file({"fc.weight.exp_avg": np.ones(2), "fc.weight.step": np.ones(1)}, file)
    again = read_torch(file)
    assert again["param_groups"] == [{"params": ["fc.weight"]}]
    assert again["state"]["fc.weight"].keys() == {"exp_avg", "step"}


def test_files_of_pytorch_go_through_it(tmp_path):
    file = tmp_path / "optimizer.pt"
    write_torch(file, {"state": {"0": {"exp_avg": np.ones(2)}}, "param_groups": []})
    assert read_torch(file) == {"state": {"0": {"exp_avg": [1.0, 1.0]}}, "param_groups": []}


FAULTS = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "foreign": lambda content: b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_refused_in_one_line(file, fault):
    write_torch(file, STATE_DICT)
    file.write_bytes(FAULTS[fault](file.read_bytes()))
    with pytest.raises(ValueError, match=r"must be a file of .*, got") as info:
        read_torch(file)
    assert file.name in str(info.value)
    assert "\n" not in str(info.value)


def test_no_file_is_no_bad_file(file):
    with pytest.raises(FileNotFoundError, match="optimizer"):
        read_torch(file)


def test_what_fails_leaves_the_file_before(file, monkeypatch):
    write_torch(file, STATE_DICT)
    before = file.read_bytes()

    def full(*args, **kwargs):
        args[1].write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Torch, "save", staticmethod(full))
    monkeypatch.setattr(torch_files, "_write_safetensors", lambda beside, *rest: full(None, beside))
    with pytest.raises(OSError, match="No space left"):
        write_torch(file, STATE_DICT)
    assert file.read_bytes() == before
    assert [x.name for x in file.parent.iterdir()] == [file.name]


def test_what_a_library_cannot_write_is_the_systems_error(tmp_path):
    pytest.importorskip("safetensors")
    with pytest.raises(
        OSError, match=r"nowhere.*optimizer.safetensors cannot be written: "
    ) as info:
        write_torch(tmp_path / "nowhere" / "optimizer.safetensors", STATE_DICT)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("state_dict", "message"),
    [
        ({"state": {}}, "a state dict must have 'state' and 'param_groups', got"),
        ({"state": {0: 3}, "param_groups": []}, "the state of 0 of a state dict must be a mapping"),
        ({"state": {0: {"step": "a"}}, "param_groups": []}, "step of 0 must be an array, got 'a'"),
        ({"state": {}, "param_groups": [{"lr": ["a"]}]}, None),
        (
            {"state": {}, "param_groups": [{"lr": object}]},
            "a group must hold numbers and names, got",
        ),
    ],
)
def test_what_is_no_state_dict_is_not_written(state_dict, message, tmp_path):
    pytest.importorskip("safetensors")
    file = tmp_path / "optimizer.safetensors"
    if message is None:  # of text JSON makes no more of it
        write_torch(file, state_dict)
        assert read_torch(file) == {"state": {}, "param_groups": [{"lr": ["a"]}]}
        return
    with pytest.raises((TypeError, ValueError), match=message):
        write_torch(file, state_dict)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "library"), [("pt", "torch"), ("safetensors", "safetensors")])
def test_without_its_library_one_is_told(kind, library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.numpy", None)
    with pytest.raises(ImportError, match=f"needs {library}: pip install {library}"):
        read_torch(tmp_path / f"optimizer.{kind}")
    with pytest.raises(ImportError, match=f"needs {library}: pip install {library}"):
        write_torch(tmp_path / f"optimizer.{kind}", STATE_DICT)
