"""What a problem's `evaluate` and `samples` may return, checked when they do."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adam_jax.race.errors import UsageError, blaming
from adam_jax.race.feed import Tree

Evaluate = Callable[[Tree], dict[str, float]]
Samples = Callable[[Tree], dict[str, str | np.ndarray]]


def figures(evaluate: Callable[[Tree], Any], where: str, file: Path) -> Evaluate:
    """An `evaluate` that returns plain floats, or says what is wrong."""

    def checked(params: Tree) -> dict[str, float]:
        with blaming(f"{where}: `evaluate` failed", file):
            found = evaluate(params)
        rule = f"{where}: `evaluate` must return a dict of names and numbers"
        if not isinstance(found, Mapping):
            raise UsageError(f"{rule}, got {type(found).__name__}")
        with blaming(rule):
            return {str(name): float(figure) for name, figure in found.items()}

    return checked


def samples(show: Callable[[Tree], Any], where: str, file: Path) -> Samples:
    """A `samples` that returns text and pictures, or says what is wrong."""

    def checked(params: Tree) -> dict[str, str | np.ndarray]:
        with blaming(f"{where}: `samples` failed", file):
            found = show(params)
        rule = f"{where}: `samples` must return a dict of captions and of texts or pictures"
        if not isinstance(found, Mapping):
            raise UsageError(f"{rule}, got {type(found).__name__}")
        return {str(caption): _sample(rule, caption, sample) for caption, sample in found.items()}

    return checked


def _sample(rule: str, caption: str, sample: Any) -> str | np.ndarray:
    if isinstance(sample, str):
        return sample
    with blaming(rule):
        picture = np.asarray(sample, np.float32)
    if picture.ndim != 2 or not picture.size:
        raise UsageError(f"{rule} of two dimensions, got {list(picture.shape)} for {caption!r}")
    return picture
