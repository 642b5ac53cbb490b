"""States that come from elsewhere, and go there."""

from adam_jax.interop.optax import from_optax, to_optax

__all__ = ["from_optax", "to_optax"]
