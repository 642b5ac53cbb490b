"""The options with which XLA compiles an optimizer's step best."""

from functools import cache
from typing import Any

import jax

# Each with what it is for. On CPUs only: other backends neither know nor need them.
_CPU: dict[str, Any] = {
    # Low-precision moments are overwritten in place, where they would be copied first.
    "xla_cpu_copy_insertion_use_region_analysis": True,
    # The arithmetic of 8-bit and 4-bit moments keeps a core busier than its memory.
    "xla_cpu_prefer_vector_width": 512,
    # Optimization barriers last until operations are scheduled: leaves that are unpacked to memory
    # (4 bits) are so one after another.
    "xla_disable_hlo_passes": "cse_barrier_expander",
}


def compiler_options() -> dict[str, Any]:
    """Options for the ``jit`` of a training step, by which moments of few bits cost less time.

    With them a step on a CPU updates moments of bfloat16, 8 and 4 bits in place, without copies.
    Float32 moments need none of it, and lose nothing. They are for one ``jit``; those that the
    installed JAX does not know are left out.

    Returns:
      Names and values, for `jax.jit`'s ``compiler_options``. Empty but on CPUs.

    Example:
      >>> import jax, jax.numpy as jnp, optax, adam_jax
      >>> tx = adam_jax.adam(1e-3, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16)
      >>> def step(params, state, gradients):
      ...     updates, state = tx.update(gradients, state)
      ...     return optax.apply_updates(params, updates), state
      >>> options = compiler_options()
      >>> step = jax.jit(step, donate_argnums=(0, 1), compiler_options=options)
      >>> params = jnp.zeros(3)
      >>> params, state = step(params, tx.init(params), jnp.ones(3))
    """
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in _CPU.items() if _is_known(name, value)}


@cache
def _is_known(name: str, value: Any) -> bool:
    """Whether a program compiles with it, which is the only way to ask."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except RuntimeError:
        return False
    return True
