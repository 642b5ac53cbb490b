"""The text that results depend on: a file's, and that of the modules it imports from beside it.

What is installed has a version instead.
"""

import ast
import hashlib
import warnings
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

_INSTALLED = {"site-packages", "dist-packages"}


def digest(file: str | Path) -> str:
    """Tells one text of a file, and of its modules, from another."""
    first = Path(file).resolve()
    # Its own folder, and for a module of a package the one that the package is in.
    folders = [each for each in {first.parent, _top(first.parent)} if each.name not in _INSTALLED]
    texts: dict[Path, bytes] = {}
    coming = [first]
    while coming:
        path = coming.pop()
        if path not in texts:
            texts[path] = path.read_bytes()
            coming += _imported(path, texts[path], folders)
    whole = b"\0".join(texts[path] for path in sorted(texts))
    return hashlib.sha256(whole).hexdigest()[:16]


def _imported(path: Path, text: bytes, folders: Iterable[Path]) -> Iterator[Path]:
    """The files in these folders that a file's text imports, wherever in it."""
    with warnings.catch_warnings(action="ignore"):  # it gave them when it was run
        try:
            nodes = list(ast.walk(ast.parse(text)))
        except (SyntaxError, ValueError):  # compiled, or never run
            return
    for node in nodes:
        if isinstance(node, ast.Import):
            bases, names = list(folders), [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            bases = [*path.parents][node.level - 1 : node.level] if node.level else list(folders)
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)]
        else:
            continue
        for base, name in product(bases, names):
            stem = base.joinpath(*name.split("."))
            yield from filter(Path.is_file, (stem.with_suffix(".py"), stem / "__init__.py"))


def _top(folder: Path) -> Path:
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder
