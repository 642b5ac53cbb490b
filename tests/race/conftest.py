"""Problems as files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_problem import LINE

from adam_jax.race.cli import main


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a Python file, the small problem unless told otherwise, and gives its path."""

    def write(source: str = LINE, name: str = "line.py") -> str:
        path = tmp_path / name
        path.write_text(source)
        return str(path)

    return write


@pytest.fixture
def refused_by(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[[str], Callable[..., str]]:
    """Of a command, what asks it for what must be refused, and returns the line that says why."""

    def refused_by(command: str) -> Callable[..., str]:
        def refused(*arguments: str) -> str:
            assert main([command, "--out", str(tmp_path / "out"), *arguments]) == 2
            printed = capsys.readouterr()
            assert printed.out == ""
            assert printed.err.startswith("adam-jax: error: ")
            assert printed.err.count("\n") == 1
            assert not (tmp_path / "out").exists()
            return printed.err

        return refused

    return refused_by
