"""What a storage format is.

To make one's own: subclass `Format` as a frozen dataclass (it must be hashable, for it is static
under ``jit``) and pass an instance as ``mu_dtype`` or ``nu_dtype``. What it stores may be an array,
or any registered pytree node of arrays with a ``shape``.
"""

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import chex
import jax

from adam_jax.rule import Moment

Stored: TypeAlias = chex.ArrayTree

ROUNDINGS = ("nearest", "stochastic")


class Format(ABC):
    """How one moment of one array rests between two steps."""

    #: One of `ROUNDINGS`.
    rounding: str = "nearest"

    @property
    def stochastic(self) -> bool:
        """Whether `encode` rounds by chance, and so wants random bits at every step."""
        return self.rounding == "stochastic"

    @property
    def sequential(self) -> bool:
        """Whether `decode` writes to memory, so that leaves should be updated one after another."""
        return False

    @abstractmethod
    def encode(self, x: jax.Array, moment: Moment, bits: jax.Array | None) -> Stored:
        """The moment ``x`` as the state holds it.

        Args:
          x: the new moment, float32 or wider (complex where the parameter is and it is signed).
          moment: which moment it is; a code book may follow its sign.
          bits: uint32 of the shape of ``x``, uniformly random, if the format is `stochastic`;
            ``None`` before the first step, where nothing needs rounding by chance.
        """

    @abstractmethod
    def decode(self, stored: Stored) -> jax.Array:
        """The moment again, in any floating dtype; the arithmetic widens it."""

    @abstractmethod
    def holds(self, stored: Stored) -> bool:
        """Whether ``stored`` is of this format, as a state from elsewhere may not be."""

    def fit(self, shape: tuple[int, ...]) -> "Format":  # noqa: ARG002 - for formats that override it
        """The format for a parameter of this shape: itself, or another that suits it better."""
        return self

    def accepts(self, dtype: Any) -> bool:  # noqa: ARG002 - for formats that override it
        """Whether a moment of this dtype (float32, float64 or complex) can be stored."""
        return True
