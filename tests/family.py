"""The one table of members and the one of storage formats: what the contract is tested over.

A new member is a row in `MEMBERS`, with its oracle; a new format is a row in `FORMATS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import oracle

import adam_jax


@dataclass(frozen=True)
class Member:
    """A way to call the package, and what it should do.

    Attributes:
      optimizer: takes a learning rate and ``settings``.
      direction: takes ``settings``; the optimizer without learning rate and decay.
      oracle: takes stacked gradients and ``settings``; gives the directions and the moments.
      settings: the hyperparameters of this row, all given by name.
      decay: the weight decay that the optimizer adds, 0 for none.
      tunable: the scalars that may also be traced.
      variant: a setting of another row, tested where numbers matter and not where dtypes do.
    """

    optimizer: Callable[..., Any]
    direction: Callable[..., Any]
    oracle: Callable[..., Any]
    settings: dict[str, Any] = field(default_factory=dict)
    decay: float = 0.0
    tunable: tuple[str, ...] = ("b1", "b2", "eps", "eps_root")
    variant: bool = False


_ADAM = (adam_jax.scale_by_adam, oracle.adam)
_DEFAULTS = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0}

MEMBERS: dict[str, Member] = {
    "adam": Member(adam_jax.adam, *_ADAM, _DEFAULTS),
    "adam-nesterov": Member(adam_jax.adam, *_ADAM, {**_DEFAULTS, "nesterov": True}, variant=True),
    "adam-eps_root": Member(adam_jax.adam, *_ADAM, {**_DEFAULTS, "eps_root": 1e-4}, variant=True),
    "adam-eps-0": Member(adam_jax.adam, *_ADAM, {**_DEFAULTS, "eps": 0.0}, variant=True),
    "adam-fast": Member(adam_jax.adam, *_ADAM, {**_DEFAULTS, "b1": 0.0, "b2": 0.4}, variant=True),
    "adamw": Member(adam_jax.adamw, *_ADAM, _DEFAULTS, decay=1e-4),
}


@dataclass(frozen=True)
class Format:
    """A storage format: how to ask for it, and how far one step may be from float32's.

    Attributes:
      arguments: the keywords that ask for it.
      precision: the largest relative error of one stored moment.
      complex: whether complex moments can be stored.
      dtypes: what the stored moments' leaves look like for a float32 parameter.
      variant: a setting of another row, tested where numbers matter and not where trees do.
    """

    arguments: dict[str, Any]
    precision: float
    complex: bool
    dtypes: tuple[Any, ...]
    variant: bool = False


_BLOCKWISE = (
    ("eight_bit", adam_jax.storage.eight_bit, 0.02, jnp.uint8),
    ("four_bit", adam_jax.storage.four_bit, 0.3, jnp.uint8),
    ("float8", adam_jax.storage.float8, 0.1, jnp.float8_e4m3fn),
)

FORMATS: dict[str, Format] = {
    "default": Format({}, 1e-6, True, (jnp.float32,)),
    "float32": Format(
        {"mu_dtype": jnp.float32, "nu_dtype": adam_jax.storage.float32()},
        1e-6,
        True,
        (jnp.float32,),
        variant=True,
    ),
    "bfloat16": Format(
        {"mu_dtype": jnp.bfloat16, "nu_dtype": adam_jax.storage.bfloat16()},
        2**-7,
        False,
        (jnp.bfloat16,),
    ),
    "bfloat16-nearest": Format(
        {
            "mu_dtype": adam_jax.storage.bfloat16("nearest"),
            "nu_dtype": adam_jax.storage.bfloat16("nearest"),
        },
        2**-8,
        False,
        (jnp.bfloat16,),
        variant=True,
    ),
    # Small leaves too, and blocks that do not divide the rows.
    **{
        f"{kind}{'' if rounding == 'stochastic' else '-' + rounding}": Format(
            dict.fromkeys(("mu_dtype", "nu_dtype"), make(4, rounding=rounding, min_size=0)),
            precision,
            False,
            (codes, jnp.float32),
            variant=rounding == "nearest",
        )
        for kind, make, precision, codes in _BLOCKWISE
        for rounding in ("stochastic", "nearest")
    },
}
