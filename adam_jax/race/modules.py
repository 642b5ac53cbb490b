"""Importing what the user names: a Python file, or a module."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from adam_jax.race.errors import UsageError, blaming


def existing(file: str | Path) -> Path:
    """The path of a file.

    Raises:
      UsageError: if there is none.
    """
    if not os.path.isfile(file):  # Path's own raises where a name is too long
        raise UsageError(f"no such file: {Path(file).absolute()}")
    return Path(file)


def load_file(path: Path) -> ModuleType:
    """Runs a Python file as a module; its own folder is importable, as it is for a script."""
    path = existing(path).resolve()
    _importable(path.parent)
    # The name cannot clash with an installed module, and two folders may use the same file name.
    name = f"_adam_jax_race_{abs(hash(path))}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"not a Python file (.py): {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is being run
    with blaming(f"cannot import {path.name}", path):
        spec.loader.exec_module(module)
    return module


def load_module(name: str) -> ModuleType:
    """Imports a module by its dotted name; the current folder counts, as with `python -m`."""
    _importable(Path.cwd())
    with blaming(f"cannot import {name}"):
        return importlib.import_module(name)


def load_function(what: str, source: str, name: str) -> tuple[Callable[..., Any], Path | None]:
    """A function of the user's own, and the file that it is in, if that is how it is named.

    Args:
      what: what the user asked for, for the error, such as "entrant 'mine.py:make'".
      source: a file ending in .py, or a module's dotted name.
      name: the function's.
    """
    file = existing(source).resolve() if source.endswith(".py") else None
    function = getattr(load_file(file) if file else load_module(source), name, None)
    if not callable(function):
        raise UsageError(f"{what}: no function {name!r} there")
    return function, file


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
