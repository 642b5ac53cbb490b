"""The text that results depend on: a file's, and that of the modules it imports from beside it.

What is installed has a version instead.
"""

import ast
import hashlib
import warnings
from collections.abc import Iterable, Iterator
from itertools import accumulate, product
from pathlib import Path

_INSTALLED = {"site-packages", "dist-packages"}


def digest(file: str | Path) -> str:
    """Tells one text of a file, and of its modules, from another."""
    first = Path(file).resolve()
    # Its own folder, and for a module of a package the one that the package is in.
    folders = [first.parent, _top(first.parent)]
    # Of the packages that it is in itself: these import all of theirs.
    above = {folder / "__init__.py" for folder in first.parents}
    texts: dict[Path, bytes] = {}
    coming = [first]
    while coming:
        path = coming.pop()
        if path not in texts:
            texts[path] = path.read_bytes()
            found = _imported(path, texts[path], folders)
            coming += [each for each in found if each not in above and _is_own(each)]
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
            # What is above a module in its package runs too.
            for stem in accumulate(name.split("."), Path.joinpath, initial=base):
                yield from filter(Path.is_file, (stem / "__init__.py", Path(f"{stem}.py")))


def _is_own(path: Path) -> bool:
    return _INSTALLED.isdisjoint(path.parts)


def _top(folder: Path) -> Path:
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder
