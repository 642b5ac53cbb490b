"""Adam and its family for JAX, as pure ``init`` and ``update`` functions over pytrees."""

from adam_jax import (
    checkpoint,
    decay,
    interop,
    leaves,
    like_keras,
    like_torch,
    sharding,
    storage,
)
from adam_jax.averaging import average_params, averaged_params
from adam_jax.clipping import clip_by_global_norm
from adam_jax.compiler import compiler_options
from adam_jax.convert import convert_state
from adam_jax.diagnostics import memory
from adam_jax.optimizers.adabelief import adabelief, scale_by_belief
from adam_jax.optimizers.adam import adam, adamw, scale_by_adam
from adam_jax.optimizers.adam_atan2 import adam_atan2
from adam_jax.optimizers.adam_mini import adam_mini
from adam_jax.optimizers.adamax import adamax, adamaxw, scale_by_adamax
from adam_jax.optimizers.adan import adan, scale_by_adan
from adam_jax.optimizers.ademamix import ademamix, scale_by_ademamix
from adam_jax.optimizers.adopt import adopt, adoptw, scale_by_adopt
from adam_jax.optimizers.amsgrad import amsgrad, amsgradw, scale_by_amsgrad
from adam_jax.optimizers.lamb import lamb
from adam_jax.optimizers.laprop import laprop
from adam_jax.optimizers.lazy_adam import lazy_adam
from adam_jax.optimizers.lion import lion, scale_by_lion
from adam_jax.optimizers.mars import mars
from adam_jax.optimizers.nadam import nadam, nadamw
from adam_jax.optimizers.radam import radam, radamw, scale_by_radam
from adam_jax.optimizers.stable_adamw import stable_adamw
from adam_jax.optimizers.yogi import scale_by_yogi, yogi
from adam_jax.precision import kahan_summation, master_weights, stochastic_rounding
from adam_jax.row_gradients import lookup, value_and_row_grad
from adam_jax.rows import Rows
from adam_jax.rule import Moment, Rule
from adam_jax.services.accumulate import accumulate
from adam_jax.services.by_path import by_path
from adam_jax.services.path_rules import FREEZE, Scale
from adam_jax.services.skip_unstable import check_stable, skip_unstable
from adam_jax.services.with_hyperparameters import set_hyperparameters, with_hyperparameters
from adam_jax.services.with_metrics import read_metrics, with_metrics
from adam_jax.step import train_step
from adam_jax.surgery import grow, reset
from adam_jax.transform import lift
from adam_jax.wrappers.cautious import cautious
from adam_jax.wrappers.grams import grams

__all__ = [
    "FREEZE",
    "Moment",
    "Rows",
    "Rule",
    "Scale",
    "accumulate",
    "adabelief",
    "adam",
    "adam_atan2",
    "adam_mini",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "ademamix",
    "adopt",
    "adoptw",
    "amsgrad",
    "amsgradw",
    "average_params",
    "averaged_params",
    "by_path",
    "cautious",
    "check_stable",
    "checkpoint",
    "clip_by_global_norm",
    "compiler_options",
    "convert_state",
    "decay",
    "grams",
    "grow",
    "interop",
    "kahan_summation",
    "lamb",
    "laprop",
    "lazy_adam",
    "leaves",
    "lift",
    "like_keras",
    "like_torch",
    "lion",
    "lookup",
    "mars",
    "master_weights",
    "memory",
    "nadam",
    "nadamw",
    "radam",
    "radamw",
    "read_metrics",
    "reset",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adan",
    "scale_by_ademamix",
    "scale_by_adopt",
    "scale_by_amsgrad",
    "scale_by_belief",
    "scale_by_lion",
    "scale_by_radam",
    "scale_by_yogi",
    "set_hyperparameters",
    "sharding",
    "skip_unstable",
    "stable_adamw",
    "stochastic_rounding",
    "storage",
    "train_step",
    "value_and_row_grad",
    "with_hyperparameters",
    "with_metrics",
    "yogi",
]
