"""States of other libraries' optimizers, moved in and out.

None of the frameworks is needed: what comes and goes are arrays.
"""

from adam_jax.interop.keras import from_keras, to_keras
from adam_jax.interop.optax import from_optax, to_optax
from adam_jax.interop.torch import from_torch, to_torch
from adam_jax.interop.torch_files import read_torch, write_torch

__all__ = [
    "from_keras",
    "from_optax",
    "from_torch",
    "read_torch",
    "to_keras",
    "to_optax",
    "to_torch",
    "write_torch",
]
