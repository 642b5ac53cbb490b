"""The folder of `--out`: checked before the race, written after it, all of it or nothing."""

import importlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from adam_jax.race.errors import UsageError


def check(folder: Path) -> None:
    """Makes sure that files can be written there, and leaves no trace of having tried."""
    with writing(folder):
        whole = folder.absolute()
        # What does not exist yet is made only when there is something to put in.
        parent = next(path for path in (whole, *whole.parents) if path.exists())
        with tempfile.TemporaryFile(dir=parent):
            pass


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files by name; each appears whole, and none before all could be written."""
    written: dict[Path, Path] = {}
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
                written[Path(temporary)] = folder / name
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(descriptor)  # or a crash could leave the name without the content
                os.chmod(temporary, 0o644)  # mkstemp's files are the owner's alone
            for temporary_path, target in written.items():
                os.replace(temporary_path, target)
    finally:
        for leftover in written:
            leftover.unlink(missing_ok=True)  # those in place have lost this name


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Says in a line why something cannot be done there."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"--out must be a folder that can be written, got {str(folder)!r}: {error.strerror}"
        ) from None


class Lock:
    """Keeps a second race out of a folder; it leaves no file, and goes with the process.

    Where a system or a file system has no such locks, a second race is not kept out.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Takes it, and returns whether it was not held before.

        Raises:
          UsageError: if another race has it.
        """
        if self._descriptor is not None or os.name != "posix":
            return False
        fcntl = importlib.import_module("fcntl")
        self._descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.give_back()
            raise UsageError(
                f"--out must be a folder of its own, got {str(self._folder)!r}, "
                "where another race is writing"
            ) from None
        except OSError:
            pass
        return True

    def give_back(self) -> None:
        """Lets another race take it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
