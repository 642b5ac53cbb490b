"""The folder of `--out`: checked before the race, written after it, all of it or nothing."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from adam_jax.race.errors import UsageError


def check(folder: Path) -> None:
    """Makes sure that files can be written there, and leaves no trace of having tried."""
    # What does not exist yet is made only when there is something to put in.
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from None


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files by name; each appears whole, and none before all could be written."""
    written: dict[Path, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            written[Path(temporary)] = folder / name
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o644)  # mkstemp's files are the owner's alone
        for temporary_path, target in written.items():
            os.replace(temporary_path, target)
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        for leftover in written:
            leftover.unlink(missing_ok=True)  # those in place have lost this name


def _unwritable(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"--out must be a folder that can be written, got {str(folder)!r}: {error.strerror}"
    )
