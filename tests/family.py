"""The one table of members and the one of storage formats: what the contract is tested over.

A new member is a row in `MEMBERS`, with its oracle; a new format is a row in `FORMATS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax.numpy as jnp
import oracle
import oracle_descent
import pytest

import adam_jax
from adam_jax.decay import descent
from adam_jax.rules.adam_atan2 import AdamAtan2
from adam_jax.rules.adam_mini import AdamMini
from adam_jax.rules.laprop import LaProp
from adam_jax.rules.mars import Mars
from adam_jax.rules.nadam import NAdam
from adam_jax.rules.stable_adam import StableAdam


@dataclass(frozen=True)
class Member:
    """A way to call the package, and what it should do.

    Attributes:
      optimizer: takes a learning rate and ``settings``.
      direction: takes ``settings``; the optimizer without learning rate and decay.
      oracle: takes stacked gradients and ``settings``; gives the directions and the moments.
      settings: the hyperparameters of this row, all given by name.
      decay: the weight decay that the optimizer adds by default; ``None`` if it takes none.
      tunable: the scalars that may also be traced.
      variant: a setting of another row, tested where numbers matter and not where dtypes do.
      reduces: whether a step of an entry depends on others of its array.
      drifts: whether it moves a little without a gradient, for its moments do not start at 0.
      descent: the oracle of the parameters, where they do not just descend along the directions.
    """

    optimizer: Callable[..., Any]
    direction: Callable[..., Any]
    oracle: Callable[..., Any]
    settings: dict[str, Any] = field(default_factory=dict)
    decay: float | None = None
    tunable: tuple[str, ...] = ("b1", "b2", "eps", "eps_root")
    variant: bool = False
    reduces: bool = False
    drifts: bool = False
    descent: Callable[..., Any] | None = None

    @property
    def by_decay(self) -> bool:
        """Whether it is a variant by its decay alone, and so has the direction of another row."""
        return self.variant and bool(self.decay)

    @property
    def path(self) -> Callable[..., Any]:
        """Takes stacked gradients, parameters, rates and ``settings``; gives the parameters."""
        return self.descent or partial(oracle_descent.descend, self.oracle)


def lifted(rule: Callable[..., Any]) -> Callable[..., Any]:
    """The direction of a rule for which the package has no name of its own."""

    def direction(
        *, mu_dtype: Any = None, nu_dtype: Any = None, seed: Any = 0, **settings: Any
    ) -> Any:
        return adam_jax.lift(rule(**settings), mu_dtype, nu_dtype, seed=seed)

    return direction


def around(
    wrapper: Callable[..., Any], make: Callable[..., Any], **more: Any
) -> Callable[..., Any]:
    """A wrapper around what ``make`` makes."""
    return lambda *args, **settings: wrapper(make(*args, **settings), **more)


def changed(change: Callable[..., Any], base: Callable[..., Any]) -> Callable[..., Any]:
    """The oracle of a wrapper: ``base``, its directions changed by the gradients."""

    def both(gradients: Any, **settings: Any) -> Any:
        directions, moments = base(gradients, **settings)
        return change(directions, gradients), moments

    return both


def stepping(direction: Callable[..., Any]) -> Callable[..., Any]:
    """An optimizer for a direction for which the package has none."""
    return lambda learning_rate, **settings: descent(direction(**settings), learning_rate)


def without_nu(make: Callable[..., Any]) -> Callable[..., Any]:
    """For who has no mean square to store."""

    def made(*args: Any, nu_dtype: Any = None, **settings: Any) -> Any:
        return make(*args, **settings)

    return made


def one_block(gradients: Any, **settings: Any) -> Any:
    """Adam-mini where all of an array is one block, or each column of a matrix."""
    shape = gradients.shape[1:]
    blocks = (*[1] * (len(shape) - 1), shape[-1] if len(shape) > 1 else 1) if shape else ()
    return oracle.adam_mini(gradients, blocks=blocks, **settings)


_ADAM = (adam_jax.scale_by_adam, oracle.adam)
_DEFAULTS = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0}
_THREE = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
_EPS = ("b1", "b2", "eps")
_NADAM = lifted(
    lambda b1, b2, eps, eps_root, nesterov=True, eps_hat=False, momentum_decay=None: NAdam(
        b1, b2, eps, eps_root, nesterov, eps_hat, momentum_decay=momentum_decay
    )
)
_AMSGRAD = (adam_jax.scale_by_amsgrad, oracle.amsgrad)
_RAW = {"bias_correction_mu": False, "bias_correction_nu": False}
_ADAMAX = (adam_jax.scale_by_adamax, oracle.adamax)
_RADAM = (adam_jax.scale_by_radam, oracle.radam)
_BELIEF = {"b1": 0.9, "b2": 0.999, "eps": 1e-16, "eps_root": 1e-16}
_ADOPT = (adam_jax.scale_by_adopt, oracle.adopt)
_PAST = {"b1": 0.9, "b2": 0.9999, "eps": 1e-6}
_MIX = {**_DEFAULTS, "b3": 0.9999, "alpha": 5.0}

# Whether all tests run, and each member in every format, and not only in some by turns.
exhaustive = False

# Of these every test runs each time, for all that members can be is in them: a maximum, a gradient
# that is kept, blocks, no mean square, coefficients that jump, sums over an array, a wrapper.
OFTEN = ("adam", "amsgrad", "mars", "adam_mini", "lion", "radam", "cautious")


def mostly(often: Any, values: Any) -> list[Any]:
    """Values of a parameter, of which but some are for the exhaustive run alone."""
    values, rare = list(values), pytest.mark.exhaustive
    return [v if v in often else pytest.param(v, marks=rare) for v in values]


MEMBERS: dict[str, Member] = {
    "adam": Member(adam_jax.adam, *_ADAM, _DEFAULTS),
    "adam-nesterov": Member(adam_jax.adam, *_ADAM, {**_DEFAULTS, "nesterov": True}, variant=True),
    "adam-eps_root": Member(adam_jax.adam, *_ADAM, {**_DEFAULTS, "eps_root": 1e-4}, variant=True),
    "adam-eps-0": Member(adam_jax.adam, *_ADAM, {**_DEFAULTS, "eps": 0.0}, variant=True),
    "adam-fast": Member(adam_jax.adam, *_ADAM, {**_DEFAULTS, "b1": 0.0, "b2": 0.4}, variant=True),
    "adam-eps_hat": Member(adam_jax.adam, *_ADAM, {**_DEFAULTS, "eps_hat": True}, variant=True),
    "adam-raw": Member(adam_jax.adam, *_ADAM, {**_DEFAULTS, **_RAW}, variant=True),
    "adamw": Member(adam_jax.adamw, *_ADAM, _DEFAULTS, decay=1e-4, variant=True),
    "nadam": Member(adam_jax.nadam, _NADAM, oracle.nadam, _DEFAULTS),
    "nadam-scheduled": Member(
        adam_jax.nadam,
        _NADAM,
        oracle.nadam,
        {**_DEFAULTS, "momentum_decay": 4e-3},
        tunable=(*_DEFAULTS, "momentum_decay"),
        variant=True,
    ),
    "nadamw": Member(adam_jax.nadamw, _NADAM, oracle.nadam, _DEFAULTS, decay=1e-4, variant=True),
    "amsgrad": Member(adam_jax.amsgrad, *_AMSGRAD, _DEFAULTS),
    "amsgrad-raw": Member(adam_jax.amsgrad, *_AMSGRAD, {**_DEFAULTS, **_RAW}, variant=True),
    "amsgrad-after": Member(
        adam_jax.amsgrad, *_AMSGRAD, {**_DEFAULTS, "correct_after_max": True}, variant=True
    ),
    "amsgradw": Member(adam_jax.amsgradw, *_AMSGRAD, _DEFAULTS, decay=1e-4, variant=True),
    "adamax": Member(adam_jax.adamax, *_ADAMAX, _THREE, tunable=_EPS),
    "adamax-outside": Member(
        adam_jax.adamax, *_ADAMAX, {**_THREE, "eps_inside": False}, tunable=_EPS, variant=True
    ),
    "adamaxw": Member(adam_jax.adamaxw, *_ADAMAX, _THREE, decay=1e-4, tunable=_EPS, variant=True),
    "radam": Member(adam_jax.radam, *_RADAM, _DEFAULTS),
    "radam-nesterov": Member(
        adam_jax.radam, *_RADAM, {**_DEFAULTS, "nesterov": True}, variant=True
    ),
    "radam-eps_hat": Member(adam_jax.radam, *_RADAM, {**_DEFAULTS, "eps_hat": True}, variant=True),
    "radamw": Member(adam_jax.radamw, *_RADAM, _DEFAULTS, decay=1e-4, variant=True),
    "adabelief": Member(adam_jax.adabelief, adam_jax.scale_by_belief, oracle.adabelief, _BELIEF),
    "yogi": Member(
        adam_jax.yogi,
        adam_jax.scale_by_yogi,
        oracle.yogi,
        {"b1": 0.9, "b2": 0.999, "eps": 1e-3},
        tunable=_EPS,
        drifts=True,
    ),
    "adopt": Member(adam_jax.adopt, *_ADOPT, _PAST, tunable=_EPS),
    "adopt-unclipped": Member(
        adam_jax.adopt, *_ADOPT, {**_PAST, "use_clipping": False}, tunable=_EPS, variant=True
    ),
    "adopt-nesterov": Member(
        adam_jax.adopt, *_ADOPT, {**_PAST, "nesterov": True}, tunable=_EPS, variant=True
    ),
    "adoptw": Member(adam_jax.adoptw, *_ADOPT, _PAST, decay=1e-4, tunable=_EPS, variant=True),
    "ademamix": Member(
        adam_jax.ademamix,
        adam_jax.scale_by_ademamix,
        oracle.ademamix,
        _MIX,
        decay=0.0,
        tunable=tuple(_MIX),
    ),
    "ademamix-warm": Member(
        adam_jax.ademamix,
        adam_jax.scale_by_ademamix,
        oracle.ademamix,
        {**_MIX, "warmup_steps": 100},
        decay=0.0,
        tunable=tuple(_MIX),
        variant=True,
    ),
    "adan": Member(
        adam_jax.adan,
        adam_jax.scale_by_adan,
        oracle.adan,
        {"b1": 0.98, "b2": 0.92, "b3": 0.99, "eps": 1e-8, "eps_root": 1e-8},
        decay=0.0,
        tunable=("b1", "b2", "b3", "eps", "eps_root"),
    ),
    "lamb": Member(
        adam_jax.lamb, *_ADAM, _DEFAULTS, decay=0.0, reduces=True, descent=oracle_descent.lamb
    ),
    "adam_atan2": Member(
        adam_jax.adam_atan2,
        lifted(AdamAtan2),
        oracle.adam_atan2,
        {"b1": 0.9, "b2": 0.999, "a": 1.27, "b": 1.0},
        decay=0.0,
        tunable=("b1", "b2", "a", "b"),
    ),
    "stable_adamw": Member(
        adam_jax.stable_adamw,
        lifted(StableAdam),
        oracle.stable_adam,
        _THREE,
        decay=1e-4,
        tunable=_EPS,
        reduces=True,
    ),
    "mars": Member(
        adam_jax.mars,
        lifted(Mars),
        oracle.mars,
        {"b1": 0.95, "b2": 0.99, "gamma": 0.025, "eps": 1e-8},
        decay=0.0,
        tunable=("b1", "b2", "gamma", "eps"),
        reduces=True,
    ),
    "adam_mini": Member(
        adam_jax.adam_mini,
        lifted(AdamMini),
        one_block,
        _THREE,
        decay=0.0,
        tunable=_EPS,
        reduces=True,
    ),
    "lion": Member(
        without_nu(adam_jax.lion),
        without_nu(adam_jax.scale_by_lion),
        oracle.lion,
        {"b1": 0.9, "b2": 0.99},
        decay=1e-3,
        tunable=("b1", "b2"),
    ),
    "lion-refined": Member(
        stepping(without_nu(adam_jax.scale_by_lion)),
        without_nu(adam_jax.scale_by_lion),
        oracle.lion,
        {"b1": 0.9, "b2": 0.99, "mode": "refined"},
        tunable=("b1", "b2"),
        variant=True,
    ),
    "cautious": Member(
        around(adam_jax.cautious, adam_jax.adam),
        around(adam_jax.cautious, adam_jax.scale_by_adam, descends=False),
        changed(oracle_descent.cautious, oracle.adam),
        _DEFAULTS,
        reduces=True,
    ),
    "grams": Member(
        around(adam_jax.grams, adam_jax.adam),
        around(adam_jax.grams, adam_jax.scale_by_adam, descends=False),
        changed(oracle_descent.grams, oracle.adam),
        _DEFAULTS,
    ),
    "laprop": Member(
        adam_jax.laprop,
        lifted(LaProp),
        oracle.laprop,
        {"b1": 0.9, "b2": 0.999, "eps": 1e-15},
        decay=0.0,
        tunable=_EPS,
    ),
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
