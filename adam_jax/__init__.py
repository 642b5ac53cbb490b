"""Adam and its family for JAX, as pure ``init`` and ``update`` functions over pytrees."""

from adam_jax import storage
from adam_jax.optimizers import adam, adamw, scale_by_adam
from adam_jax.rule import Moment, Rule
from adam_jax.transform import lift

__all__ = ["Moment", "Rule", "adam", "adamw", "lift", "scale_by_adam", "storage"]
