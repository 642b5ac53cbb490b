"""Who races: a name of the table below, one with a storage format, or a function of the user's own.

An entrant is a function that takes a learning rate and returns an Optax transformation. The rate
arrives as a traced scalar, for all of them are trained at once.

``adamw:eight_bit`` is `adamw` with both moments in `storage.eight_bit`, those of small arrays too:
the race's problems are small, and the name should say what runs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import adam_jax
from adam_jax.race.errors import UsageError, blaming
from adam_jax.race.modules import load_function
from adam_jax.storage import FORMATS, Blockwise, Format

Build = Callable[[Any], optax.GradientTransformation]

# Those that have storage formats.
OURS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": adam_jax.adam,
    "adamw": adam_jax.adamw,
}
BUILT_IN: dict[str, Build] = {
    **OURS,
    "sgd": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9, nesterov=True),
    "adagrad": optax.adagrad,
    "rmsprop": optax.rmsprop,
    "adadelta": optax.adadelta,
}


@dataclass(frozen=True)
class Entrant:
    """One that races.

    Attributes:
      name: as the user wrote it.
      build: `learning_rate -> transformation`.
      file: where it is written, if the user gave a file.
    """

    name: str
    build: Build
    file: Path | None = None


def load(text: str) -> tuple[Entrant, ...]:
    """Reads a comma list of entrants.

    Example:
      >>> [entrant.name for entrant in load("adam,adam:four_bit,sgd")]
      ['adam', 'adam:four_bit', 'sgd']
    """
    specs = [spec.strip() for spec in text.split(",")]
    for spec in specs:
        if specs.count(spec) > 1:
            raise UsageError(
                f"--entrants must name each once, got {spec!r} {specs.count(spec)} times"
            )
    return tuple(_entrant(spec) for spec in specs)


def _entrant(spec: str) -> Entrant:
    if spec in BUILT_IN:
        return Entrant(spec, BUILT_IN[spec])
    # From the right: a Windows path has a colon of its own.
    source, _, name = spec.rpartition(":")
    if source in BUILT_IN:
        return Entrant(spec, _stored(source, name, spec))
    if not source:
        raise UsageError(
            f"entrant must be one of {', '.join(BUILT_IN)}, {' or '.join(OURS)} with :FORMAT, or "
            f"module:function or file.py:function; got {spec!r}"
        )
    build, file = load_function(f"entrant {spec!r}", source, name)
    _check(build, spec, file)
    return Entrant(spec, build, file)


def _stored(optimizer: str, name: str, spec: str) -> Build:
    """One of ours with both moments of every array in a format."""
    if optimizer not in OURS:
        known = " and ".join(OURS)
        raise UsageError(f"entrant {spec!r}: {optimizer} has no storage formats; {known} have")
    if name not in FORMATS:
        known = ", ".join(FORMATS)
        raise UsageError(f"entrant {spec!r}: format must be one of {known}, got {name!r}")
    stored = _whatever_the_size(FORMATS[name]())
    return partial(OURS[optimizer], mu_dtype=stored, nu_dtype=stored)


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
