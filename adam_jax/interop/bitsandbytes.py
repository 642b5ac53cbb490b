"""The 8-bit states of bitsandbytes: codes on Dettmers' map, each 256 of the raveled array scaled.

    exp_avg       qmap1[state1] * absmax1
    exp_avg_sq    qmap2[state2] * absmax2

They are decoded as bitsandbytes decodes them, bit for bit. `storage.eight_bit` has the same codes
in the same order, and the same scales. Where its blocks are the same too, codes and scales keep
their bits, and are not decoded at all: with blocks of 256, where rows are whole blocks or there is
one row, and no layout moves entries. (Ours are computed and not looked up: worth the same to 7e-7.)
Elsewhere the decoded moment is rounded anew, to nearest.

Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", https://arxiv.org/abs/2110.02861.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax.hyperparameters import brief
from adam_jax.interop.arrays import array_of
from adam_jax.interop.moments import Name
from adam_jax.storage import Blocks
from adam_jax.storage.dynamic import DynamicMap
from adam_jax.storage.format import Stored

_NESTED = "__bnb_optimizer_quant_state__"
#: What goes with the codes.
PARTS = ("qmap1", "qmap2", "absmax1", "absmax2")
_BLOCK_SIZES = (256, 2048)  # of today, and of releases before 0.44 for most optimizers

Moments = dict[str, tuple[np.ndarray, Callable[[Stored], Stored | None]]]


def flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What there is of a parameter, without the inner dict in which newer releases have it."""
    inner = entry.get(_NESTED, {})
    if not isinstance(inner, Mapping):
        raise TypeError(f"{_NESTED!r} must be a mapping, got {brief(inner)}")
    return {k: v for k, v in entry.items() if k != _NESTED} | dict(inner)


def is_one(entry: Mapping[str, Any]) -> bool:
    """Whether it is of bitsandbytes."""
    return "state1" in entry


def moments(entry: Mapping[str, Any], name: Name) -> Moments:
    """A parameter's moments by PyTorch's names, each with what keeps its bits.

    Raises:
      ValueError: parts are missing or do not fit together.
    """
    found: Moments = {}
    for number, there in enumerate(("exp_avg", "exp_avg_sq"), start=1):
        if f"state{number}" not in entry:  # Lion's
            continue
        parts = {
            part: array_of(entry[f"{part}{number}"], f"{part}{number} of {name!r}")
            for part in ("state", "qmap", "absmax")
            if entry.get(f"{part}{number}") is not None
        }
        codes = parts["state"]
        if codes.dtype != np.uint8:  # of small tensors, and where it is asked for
            found[there] = codes, lambda _: None
            continue
        values, scales, block_size = _checked(parts, f"state{number} of {name!r}")
        x = values[codes.ravel()] * np.repeat(scales, block_size)[: codes.size]
        at_rest = partial(_carried, codes, values, scales, block_size)
        found[there] = x.reshape(codes.shape), at_rest
    return found


def _checked(parts: Mapping[str, np.ndarray], what: str) -> tuple[np.ndarray, np.ndarray, int]:
    """The code book, the scales, and how many codes share one."""
    size = parts["state"].size
    for part, length in (("qmap", 256), ("absmax", None)):
        x = parts.get(part)
        if x is None or x.dtype != np.float32 or x.ndim != 1 or length not in (None, x.size):
            got = "nothing" if x is None else f"{x.dtype}{list(x.shape)}"
            raise ValueError(f"{what} must come with a float32 {part} of blocks, got {got}")
    for block_size in _BLOCK_SIZES:
        if math.ceil(size / block_size) == parts["absmax"].size:
            return parts["qmap"], parts["absmax"], block_size
    raise ValueError(
        f"{what} has {size} codes, whose blocks of 256 need {math.ceil(size / 256)} scales, got"
        f" {parts['absmax'].size}"
    )


@cache
def _values(book: DynamicMap) -> np.ndarray:
    """What the codes of a book are worth."""
    return np.asarray(jax.jit(book.decode)(jnp.arange(256, dtype=jnp.uint8)))


def _carried(
    codes: np.ndarray, values: np.ndarray, scales: np.ndarray, block_size: int, stored: Stored
) -> Stored | None:
    """Codes and scales as they are, if ``stored`` has the same code book and the same blocks."""
    if not isinstance(stored, Blocks) or stored.block_size != block_size:
        return None
    book, row = stored.book, math.prod(stored.tail)
    if not isinstance(book, DynamicMap) or book.bits != 8 or stored.shape != codes.shape:
        return None
    whole = row % block_size == 0 or row == codes.size
    if not whole or scales.size != stored.scales.size:
        return None
    if np.abs(_values(book) - values).max() > 1e-6:
        return None
    return dataclasses.replace(
        stored, codes=jnp.asarray(codes), scales=jnp.asarray(scales.reshape(stored.scales.shape))
    )
