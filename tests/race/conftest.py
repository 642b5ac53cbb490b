"""Problems as files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_problem import LINE


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a Python file, the small problem unless told otherwise, and gives its path."""

    def write(source: str = LINE, name: str = "line.py") -> str:
        path = tmp_path / name
        path.write_text(source)
        return str(path)

    return write
