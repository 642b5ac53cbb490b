"""Adam and its family for JAX, as pure ``init`` and ``update`` functions over pytrees."""

from adam_jax import storage
from adam_jax.compiler import compiler_options
from adam_jax.diagnostics import memory
from adam_jax.optimizers import adam, adamw, scale_by_adam
from adam_jax.precision import kahan_summation, master_weights, stochastic_rounding
from adam_jax.rule import Moment, Rule
from adam_jax.transform import lift

__all__ = [
    "Moment",
    "Rule",
    "adam",
    "adamw",
    "compiler_options",
    "kahan_summation",
    "lift",
    "master_weights",
    "memory",
    "scale_by_adam",
    "stochastic_rounding",
    "storage",
]
