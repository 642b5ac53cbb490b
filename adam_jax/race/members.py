"""The family: every optimizer of the package, found and not listed, and what its docstring tells.

An optimizer is a public function whose first argument is the learning rate. A wrapper, which is a
public function of `adam_jax.wrappers`, stands around `adam` here.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from itertools import takewhile
from typing import Any

import optax

import adam_jax
from adam_jax import wrappers

Build = Callable[..., optax.GradientTransformation]

# As the docstrings cite: Kingma & Ba 2015, "Adam: ...", Algorithm 1, https://...; or ..., as `adam`
_CITED = re.compile(
    r'(?:^|; )(?P<authors>[^`"\d]+) (?P<year>\d{4}), '
    r'(?:"(?P<title>[^"]+)"[^";]*?(?P<url>https://[^\s;]+[^\s;.])|as `(?P<other>\w+)`)'
)


@dataclass(frozen=True)
class Paper:
    """A paper, as a docstring cites it.

    Attributes:
      authors: as they are cited.
      year: of publication.
      title: the whole of it.
      url: where it can be read.
    """

    authors: str
    year: int
    title: str
    url: str

    @property
    def short(self) -> str:
        """The first author, or the first two if there are no more, and the year."""
        first, *others = self.authors.split(", ")
        return f"{first} et al. {self.year}" if others else f"{first} {self.year}"


@dataclass(frozen=True)
class Member:
    """One optimizer.

    Attributes:
      name: of the function in `adam_jax`.
      build: takes a learning rate and, by name, what the function takes.
      does: what it does, in a line.
      papers: that it is from, the first one first.
    """

    name: str
    build: Build
    does: str
    papers: tuple[Paper, ...]


def _members() -> dict[str, Member]:
    public = {name: getattr(adam_jax, name) for name in adam_jax.__all__}
    functions = {name: each for name, each in public.items() if inspect.isfunction(each)}
    found = {}
    for name, function in functions.items():
        if next(iter(inspect.signature(function).parameters), None) == "learning_rate":
            found[name] = Member(name, function, _does(name, function), _papers(function))
    for name, function in functions.items():
        if function.__module__.startswith(f"{wrappers.__name__}."):
            line = _does(name, function)
            does = f"around adam: {line[:1].lower()}{line[1:]}"
            found[name] = Member(name, _around_adam(function), does, _papers(function))
    return found


def _around_adam(wrapper: Build) -> Build:
    @wraps(adam_jax.adam)  # its signature too
    def build(*args: Any, **kwargs: Any) -> optax.GradientTransformation:
        return wrapper(adam_jax.adam(*args, **kwargs))

    return build


def _does(name: str, function: Build) -> str:
    """The docstring's first line, without the optimizer's name in front."""
    line = _doc(function).partition("\n")[0].replace("`", "").removesuffix(".")
    head, _, rest = line.partition(": ")
    return rest if _letters(head) == _letters(name) else line


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _papers(function: Build) -> tuple[Paper, ...]:
    found = []
    for cited in _CITED.finditer(_references(function)):
        authors, year = cited["authors"], int(cited["year"])
        if cited["other"]:
            others = _papers(getattr(adam_jax, cited["other"]))
            found += [paper for paper in others if (paper.authors, paper.year) == (authors, year)]
        else:
            found.append(Paper(authors, year, cited["title"], cited["url"]))
    return tuple(found)


def _references(function: Build) -> str:
    lines = _doc(function).partition("\nReferences:\n")[2].splitlines()
    return " ".join(" ".join(takewhile(lambda line: line[:1] in ("", " "), lines)).split())


def _doc(function: Build) -> str:
    return inspect.getdoc(function) or ""


MEMBERS = _members()
