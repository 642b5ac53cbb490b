"""Files of PyTorch's state dicts: what ``torch.save`` wrote, and safetensors.

A safetensors file has flat names. Here they are ``state.<parameter>.<field>``, as in the flattened
state dicts of `torch.distributed.checkpoint`, and the groups are JSON in the file's metadata.
"""

import contextlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adam_jax.hyperparameters import brief
from adam_jax.interop.arrays import array_of
from adam_jax.interop.state_dict import Entries

_GROUPS = "param_groups"
_SAFE = ".safetensors"


def read_torch(path: str | os.PathLike[str]) -> Any:
    """What is in a file of PyTorch, its tensors as arrays, for `from_torch`.

    Of a file with more than the optimizer's state dict it is all, in the same dicts and lists:
    ``read_torch("checkpoint.pt")["optimizer"]``. Its bfloat16 tensors become float32.

    Args:
      path: of a file of ``torch.save``, which needs PyTorch, and is read without running what is in
        it (``weights_only``); or ending in ``.safetensors``, which needs that library.

    Raises:
      ImportError: the library is not there.
      OSError: the file cannot be read.
      ValueError: the file is not of its kind: truncated, empty, foreign.
    """
    file = Path(path)
    if file.suffix == _SAFE:
        return _nested(file)
    torch = _library("torch", file)
    with _one_error(file, "torch.save"):
        found = torch.load(file, map_location="cpu", weights_only=True)
    return _arrays(found)


def write_torch(path: str | os.PathLike[str], state_dict: Mapping[str, Any]) -> None:
    """Write what `to_torch` gives to a file, which is there wholly or not at all.

    Args:
      path: ending in ``.safetensors``; any other is for ``torch.load``.
      state_dict: of arrays.

    Raises:
      ImportError: the library is not there.
      OSError: the file cannot be written; one of the same name is as before.
      ValueError: it is no state dict.
      TypeError: what is in it is neither a mapping nor an array, or a group holds no numbers.
    """
    file = Path(path)
    entries = Entries(state_dict)
    for key in entries.state:
        for field, x in entries.entry(key).items():
            if x is not None and not isinstance(x, Mapping):  # as bitsandbytes has
                array_of(x, f"{field} of {key!r}")
    beside = file.with_name(f"{file.name}.part{os.getpid()}")
    try:
        if file.suffix == _SAFE:
            _write_safetensors(beside, state_dict, file)
        else:
            torch = _library("torch", file)
            torch.save(_tensors(state_dict, torch), beside)
        os.replace(beside, file)
    except (OSError, ImportError, TypeError, ValueError):
        raise
    except Exception as error:  # of a library
        raise OSError(f"{file} cannot be written: {_on_one_line(error)}") from error
    finally:
        beside.unlink(missing_ok=True)


def _library(name: str, file: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ImportError(f"{file.name} needs {package}: pip install {package}") from None


@contextlib.contextmanager
def _one_error(file: Path, kind: str) -> Iterator[None]:
    """Whatever a library says of a file that it cannot read, in one line."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{file} must be a file of {kind}, got {_on_one_line(error)}") from None


def _on_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


def _arrays(x: Any) -> Any:
    """The same with arrays in place of tensors."""
    if isinstance(x, Mapping):
        return {key: _arrays(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(map(_arrays, x))
    return array_of(x, "a tensor") if hasattr(x, "detach") else x


def _tensors(x: Any, torch: Any) -> Any:
    """The inverse."""
    if isinstance(x, Mapping):
        return {key: _tensors(value, torch) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(_tensors(value, torch) for value in x)
    return torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray | np.generic) else x


def _nested(file: Path) -> dict[str, Any]:
    """A state dict of flat names."""
    safetensors = _library("safetensors", file)
    state: dict[Any, dict[str, Any]] = {}
    with _one_error(file, "safetensors"), safetensors.safe_open(file, "numpy") as tensors:
        groups = json.loads((tensors.metadata() or {}).get(_GROUPS, "null"))
        for flat in tensors.keys():  # noqa: SIM118 - it is no mapping
            name, _, field = flat.removeprefix("state.").rpartition(".")
            state.setdefault(int(name) if name.isdecimal() else name, {})[field] = (
                tensors.get_tensor(flat)
            )
    return {"state": state, _GROUPS: [{"params": list(state)}] if groups is None else groups}


def _number(x: Any) -> float:
    """A hyperparameter that is an array."""
    try:
        return float(x)
    except (TypeError, ValueError):
        raise TypeError(f"a group must hold numbers and names, got {brief(x)}") from None


def _write_safetensors(beside: Path, state_dict: Mapping[str, Any], file: Path) -> None:
    library = _library("safetensors.numpy", file)
    flat = {
        f"state.{name}.{field}": np.asarray(x)
        for name, entry in state_dict["state"].items()
        for field, x in entry.items()
    }
    groups = json.dumps(state_dict[_GROUPS], default=_number)
    library.save_file(flat, beside, metadata={_GROUPS: groups})
