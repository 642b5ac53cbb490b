"""The Euclidean norm of a whole tree, in float32 and one pass, whatever its leaves' dtypes.

    norm = sqrt(sum(|x|**2)), over all entries of all leaves

Squares leave float32 where entries are above 1.8e19 or below 1.1e-19, so that the plain sum is
right for norms from 1.2e-10 to 1.8e19. Others are of entries that were scaled by a power of two
(Blue 1978, "A Portable Fortran Program to Find the Euclidean Norm of a Vector").
"""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from adam_jax.hyperparameters import brief
from adam_jax.rows import values_of
from adam_jax.rule import inner_product, root, safe_divide, square
from adam_jax.storage.native import cast


def global_norm(tree: chex.ArrayTree) -> jax.Array:
    """The square root of the sum of the squares of all entries of all leaves.

    Of finite entries it is finite, to float32's precision: one that is itself too large is held at
    the largest number. Infinite entries make it infinite, and NaN ones NaN. What is below 1.2e-38,
    devices may flush to zero. Its derivative is finite, and taken as 0 where it is 0. Inside
    ``shard_map`` it is the norm of what a shard holds: add up its squares over the axes.

    Args:
      tree: of arrays of any dtypes and shapes, or of `adam_jax.Rows`, whose duplicates are summed
        first; ``None`` is no leaf.

    Returns:
      A float32 scalar, float64 where a leaf is (or complex128). 0 where there are no leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> f"{global_norm([jnp.bfloat16(1)] * 400):.4f}"  # summed in bfloat16: 16
      '20.0000'
      >>> f"{global_norm(jnp.array([3e30, 4e30])):.4g}"  # the squares are infinite
      '5e+30'
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(values_of(tree))]
    dtype = precision(leaves)
    if not leaves:
        return jnp.zeros([], dtype)
    inexact = [x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(dtype) for x in leaves]
    norm: jax.Array = _norm(inexact)
    return norm


def precision(tree: chex.ArrayTree) -> Any:
    """The dtype of a tree's norm: float64 where any leaf is (or complex128), else float32."""
    dtypes = [jnp.result_type(x) for x in jax.tree.leaves(tree)]
    wide = any(jnp.issubdtype(d, jnp.inexact) and jnp.finfo(d).bits == 64 for d in dtypes)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def given_norm(grad_norm: Any, updates: chex.ArrayTree, dtype: Any) -> jax.Array:
    """The extra argument ``grad_norm``, or, where it is ``None``, the norm; a scalar of ``dtype``.

    >>> given_norm("large", [], jnp.float32)
    Traceback (most recent call last):
    TypeError: `grad_norm` must be a real scalar, got 'large'
    """
    if grad_norm is None:
        return global_norm(updates).astype(dtype)
    return real_scalar("grad_norm", grad_norm, dtype)


def real_scalar(name: str, value: Any, dtype: Any) -> jax.Array:
    """Check a number given at each step, such as the loss, and cast it.

    Raises:
      TypeError: it is no real scalar.

    >>> real_scalar("value", jnp.zeros(3), jnp.float32)
    Traceback (most recent call last):
    TypeError: `value` must be a real scalar, got float32[3]
    """
    shaped = hasattr(value, "shape") and hasattr(value, "dtype")
    if not (shaped or isinstance(value, int | float)):
        raise TypeError(f"`{name}` must be a real scalar, got {brief(value)}")
    if jnp.shape(value) or jnp.issubdtype(jnp.result_type(value), jnp.complexfloating):
        raise TypeError(f"`{name}` must be a real scalar, got {brief(value)}")
    # A copy, for it may lie in a state, and be donated.
    return jnp.array(value, dtype)


@jax.custom_jvp
@jax.jit
def _norm(leaves: list[jax.Array]) -> jax.Array:
    dtype = precision(leaves)
    info = jnp.finfo(dtype)
    low, up = float(info.tiny) * 2.0**60, 2.0 ** (info.maxexp * 3 // 4)
    parts = [_sum_of_squares(dtype, x) for x in leaves]
    total = _sum(parts)
    usual = (total >= low) & (total < jnp.inf)

    def plain() -> jax.Array:
        return root(total)

    def scaled(scale: Any, parts: list[Any]) -> jax.Array:
        squares = [_sum_of_squares(dtype, x, scale, p) for x, p in zip(leaves, parts, strict=True)]
        size = root(_sum(squares))
        # It is infinite only where an entry is.
        return jnp.where(jnp.isinf(size), size, jnp.minimum(size / scale, float(info.max)))

    def by_one() -> jax.Array:
        return scaled(jnp.where(total < 1, up, 1 / up), parts)

    def by_either() -> jax.Array:
        small, large = [scaled(scale, [None] * len(leaves)) for scale in (up, 1 / up)]
        return jnp.where(total < 1, small, large)

    # On CPUs each sum is a pass over memory, and a conditional is nothing. Others read the entries
    # once for all three sums, but GPUs wait for the host at a conditional.
    norm: jax.Array = lax.platform_dependent(
        cpu=lambda: lax.cond(usual, plain, by_one),
        default=lambda: jnp.where(usual, plain(), by_either()),
    )
    return norm


# `x / n` is at most 1 where `2 * x * dx` would overflow, and it passes no conditional.
@_norm.defjvp
def _norm_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (leaves,), (moves,) = primals, tangents
    norm = _norm(leaves)
    with jax.numpy_dtype_promotion("standard"):
        parts = [
            jnp.sum(inner_product(safe_divide(cast(x, norm.dtype), norm), cast(dx, norm.dtype)))
            for x, dx in zip(leaves, moves, strict=True)
        ]
    return norm, _sum(parts)


# Jitted by itself, so that leaves of one shape are traced once. The cast is here, where XLA fuses
# it: arrays that pass a conditional lie in memory.
@partial(jax.jit, static_argnums=0)
def _sum_of_squares(dtype: Any, x: jax.Array, scale: Any = None, part: Any = None) -> jax.Array:
    """Of all entries, each times ``scale``; ``part`` is the sum without it, where it is known."""
    x = cast(x, dtype)
    if scale is None:
        return jnp.sum(square(x))
    # Never of use. But one number for all leaves XLA would write to memory in the leaves' shape;
    # and of a scalar leaf and a constant it would make (x * x) * (c * c).
    never = jnp.isnan(x.real) if part is None else part < 0
    factor = jnp.where(never, 1, jnp.asarray(scale, dtype))
    # In parts, for a complex product makes NaN of infinite ones.
    parts = lax.complex(x.real * factor, x.imag * factor) if jnp.iscomplexobj(x) else x * factor
    return jnp.sum(square(parts))


def _sum(parts: list[jax.Array]) -> jax.Array:
    """Added in pairs, by which rounding errors of many grow as those of a few."""
    while len(parts) > 1:
        pairs = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(parts) - len(parts) % 2 :]
    return parts[0]
