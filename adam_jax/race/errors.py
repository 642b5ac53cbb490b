"""The one kind of failure that the command line reports: a line for the user, no traceback."""

import importlib
import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import dropwhile
from pathlib import Path
from types import ModuleType

import jax

_EXTRA = ("matplotlib", "rich", "sklearn")


class UsageError(Exception):
    """What the user gave cannot be used. The message is one line: argument, rule, value."""


def require(name: str) -> ModuleType:
    """Imports one of our modules that stands on the extra `race`, or says how to install that."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        raise UsageError(
            f"the race needs {package}, which is not installed: pip install 'adam_jax[race]'"
        ) from None


@contextmanager
def printing() -> Iterator[None]:
    """Says so in one line if stdout takes nothing more, as a full disk does.

    A reader that has closed the pipe, as ``head`` does, has seen enough: that is no failure.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # what its encoding lacks, such as µ in ASCII
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        # What is still buffered would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return
        raise UsageError(f"cannot print the results: {error.strerror}") from error


@contextmanager
def blaming(what: str, file: Path | None = None) -> Iterator[None]:
    """Turns any failure of the user's own code into one line that says where it happened.

    Args:
      what: what was being done, such as "`loss` failed".
      file: the user's file; the line named is the last one of it that was being run.
    """
    try:
        yield
    except (UsageError, KeyboardInterrupt):
        raise
    # A script that calls sys.exit() when it is imported must not end the race in silence, and a
    # test's `skip` is no Exception either.
    except BaseException as error:
        raise UsageError(f"{what}: {_where(error, file)}{_summary(error)}") from error


@contextmanager
def running(what: str) -> Iterator[None]:
    """Says in a line what the device, or a callback that it makes, has against a program."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:  # out of memory, or a callback's
        if "KeyboardInterrupt" in str(error):  # while a callback ran
            raise KeyboardInterrupt from None
        gist = brief(str(error)) or "out of memory"
        raise UsageError(f"{what} cannot be run: {gist}") from error


def brief(message: str) -> str:
    r"""The first line of a message, and the next one where the first leaves the sentence open.

    A traceback inside the message, which JAX puts there when a callback raises, is left out.

    Example:
      >>> brief("the two must be equal, but they differ:\n\nint32 and float32\nRevise them.")
      'the two must be equal, but they differ: int32 and float32'
      >>> brief("it failed: Traceback (most recent call last):\n  File ...\nValueError: boom")
      'ValueError: boom'
    """
    message = message.strip().rpartition("Traceback (most recent call last):")[2]
    lines = list(dropwhile(_indented, filter(str.strip, message.splitlines())))
    open_ended = len(lines) > 1 and (lines[0].rstrip().endswith(":") or _indented(lines[1]))
    return " ".join(line.strip() for line in lines[: 1 + open_ended])


def _indented(line: str) -> bool:
    return line[0].isspace()


def _where(error: BaseException, file: Path | None) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}: "
    if file is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == file]
    return f"{file.name}:{lines[-1]}: " if lines else ""


def _summary(error: BaseException) -> str:
    """The exception's type and the gist of its message."""
    try:
        gist = brief(error.msg if isinstance(error, SyntaxError) else str(error))
    except Exception:  # one whose own text fails
        gist = ""
    return f"{type(error).__name__}: {gist}" if gist else type(error).__name__
