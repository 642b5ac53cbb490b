"""Who races: a built-in optimizer, one with a storage format, or a function of the user's own.

An entrant is a function that takes a learning rate and returns an Optax transformation. The rate
arrives as a traced scalar, for all of them are trained at once.

``adamw:eight_bit`` is `adamw` with both moments in `storage.eight_bit`, those of small arrays too:
the race's problems are small, and the name should say what runs.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.race.errors import UsageError, blaming
from adam_jax.race.members import MEMBERS
from adam_jax.race.modules import load_function
from adam_jax.race.sources import digest
from adam_jax.storage import FORMATS, Blockwise, Format

Build = Callable[[Any], optax.GradientTransformation]

# Those that have storage formats.
OURS = {name: member.build for name, member in MEMBERS.items()}
OPTAX: dict[str, Build] = {
    "sgd": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9, nesterov=True),
    "adagrad": optax.adagrad,
    "rmsprop": optax.rmsprop,
    "adadelta": optax.adadelta,
}
# Who races if nobody is named: few enough for a first look.
DEFAULT = ("adam", "adamw", *OPTAX)
BUILT_IN: dict[str, Build] = {name: (OURS | OPTAX)[name] for name in (*DEFAULT, *OURS)}
ALL = "all"

# Kingma & Ba 2015, Algorithm 1: "good default settings for the tested machine learning problems".
_ADAM = 1e-3
# Of the others what their papers or the two frameworks have as the default:
# https://keras.io/api/optimizers, https://docs.pytorch.org/docs/stable/optim.html
_DEFAULT_RATES = {
    "adamax": 2e-3,  # Kingma & Ba 2015, Algorithm 2
    "adamaxw": 2e-3,
    "nadam": 2e-3,  # PyTorch
    "nadamw": 2e-3,
    "lion": 1e-4,  # a tenth of AdamW's: Chen et al. 2023, section 5
    "sgd": 1e-2,  # Keras
    "momentum": 1e-2,  # Keras's SGD
    "adagrad": 1e-2,  # PyTorch
    "rmsprop": 1e-3,  # Keras
    "adadelta": 1.0,  # PyTorch, and Zeiler 2012, which has no learning rate
}

_KINDS = (
    f"it must be {ALL}, one of `adam-jax optimizers` with or without :FORMAT, one of Optax's "
    f"{', '.join(OPTAX)}, or module:function or file.py:function"
)


@dataclass(frozen=True)
class Entrant:
    """One that races.

    Attributes:
      name: as the user wrote it.
      build: `learning_rate -> transformation`.
      file: where it is written, if the user gave a file.
      digest: of the user's file, and of what it imports from beside it; empty for a built-in one.
    """

    name: str
    build: Build
    file: Path | None = None
    digest: str = ""


def load(text: str) -> tuple[Entrant, ...]:
    """Reads a comma list of entrants; ``all`` in it is every built-in one that it does not name.

    Example:
      >>> [entrant.name for entrant in load("adam,adam:four_bit,sgd")]
      ['adam', 'adam:four_bit', 'sgd']
    """
    specs = _specs(text)
    for spec in specs:
        if specs.count(spec) > 1:
            raise UsageError(
                f"--entrants must name each once, got {spec!r} {specs.count(spec)} times"
            )
    return tuple(_entrant(spec) for spec in _expanded(specs))


def are_built_in(text: str) -> bool:
    """Whether a comma list names no one that is the user's own."""
    return all(spec.partition(":")[0] in (ALL, *BUILT_IN) for spec in _specs(text))


def _specs(text: str) -> list[str]:
    return [spec.strip() for spec in text.split(",")]


def _expanded(specs: list[str]) -> Iterator[str]:
    for spec in specs:
        if spec == ALL:
            yield from (name for name in BUILT_IN if name not in specs)
        else:
            yield spec


def _entrant(spec: str) -> Entrant:
    if spec in BUILT_IN:
        return Entrant(spec, BUILT_IN[spec])
    # From the right: a Windows path has a colon of its own.
    source, _, name = spec.rpartition(":")
    if source in BUILT_IN:
        return Entrant(spec, _stored(source, name, spec))
    if not source:
        raise UsageError(f"no entrant {spec!r}; {_meant(spec) or _KINDS}")
    try:
        build, file = load_function(f"entrant {spec!r}", source, name)
    except UsageError as error:
        meant = _meant(source, f":{name}") if name in FORMATS else ""
        raise UsageError(f"{error}; {meant}" if meant else str(error)) from error
    _check(build, spec, file)
    written = file or getattr(sys.modules.get(source), "__file__", None)
    return Entrant(spec, build, file, digest(written) if written else "")


def default_rate(entrant: str) -> float:
    """The learning rate to begin with, if nothing is known of the problem."""
    return _DEFAULT_RATES.get(entrant.partition(":")[0], _ADAM)


def _meant(name: str, suffix: str = "") -> str:
    """A question that names those that are written much alike, if there are any."""
    known = OURS if suffix else (ALL, *BUILT_IN)
    near = [each + suffix for each in get_close_matches(name.lower().replace("-", "_"), known)]
    *first, last = near or [""]
    return f"did you mean {', '.join(first)}{' or ' * bool(first)}{last}?" if near else ""


def _stored(optimizer: str, name: str, spec: str) -> Build:
    """One of ours with both moments, or the one that it has, of every array in a format."""
    if optimizer not in OURS:
        raise UsageError(
            f"entrant {spec!r}: {optimizer} has no storage formats; "
            "those of `adam-jax optimizers` have"
        )
    if name not in FORMATS:
        known = ", ".join(FORMATS)
        raise UsageError(f"entrant {spec!r}: format must be one of {known}, got {name!r}")
    stored = _whatever_the_size(FORMATS[name]())
    taken = inspect.signature(OURS[optimizer]).parameters
    moments = [moment for moment in ("mu_dtype", "nu_dtype") if moment in taken]
    return partial(OURS[optimizer], **dict.fromkeys(moments, stored))


def _whatever_the_size(stored: Format) -> Format:
    return replace(stored, min_size=0) if isinstance(stored, Blockwise) else stored


def _check(build: Build, spec: str, file: Path | None) -> None:
    def made(learning_rate: jax.Array) -> None:
        transformation = build(learning_rate)
        if not hasattr(transformation, "init") or not hasattr(transformation, "update"):
            raise UsageError(
                f"entrant {spec!r} must return an Optax transformation, "
                f"got {type(transformation).__name__}"
            )

    with blaming(f"entrant {spec!r} must take a (traced) learning rate", file):
        jax.eval_shape(made, jnp.ones(()))
