"""How arrays lie on meshes with Explicit axes, which JAX has in their types and wants to be told.

On meshes with Auto axes, and on none, there is nothing to know and nothing to tell: XLA decides.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def spec_of(x: Any) -> tuple[Any, ...]:
    """Over which axes of an Explicit mesh each axis of an array is sharded; ``None`` if over none.

    >>> spec_of(np.zeros((3, 2)))
    (None, None)
    """
    sharding = getattr(getattr(x, "aval", None), "sharding", None)
    return tuple(getattr(sharding, "spec", None) or [None] * np.ndim(x))


def names_of(entry: Any) -> tuple[str, ...]:
    """The axes of a mesh in an entry of a spec.

    >>> names_of(None), names_of("x"), names_of(("x", "y"))
    ((), ('x',), ('x', 'y'))
    """
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def shards(x: Any, axis: int) -> int:
    """Over how many devices of an Explicit mesh an axis of an array is divided."""
    return math.prod(x.aval.sharding.mesh.shape[name] for name in names_of(spec_of(x)[axis]))


def laid(spec: Sequence[Any], *arrays: Any) -> dict[str, Any]:
    """How the result of a gather or a scatter shall lie, if one of its arrays is sharded so.

    Returns:
      Arguments for ``.at[...].get``, ``set`` and ``add``.
    """
    meshes = [x.aval.sharding.mesh for x in arrays if any(spec_of(x))]
    return {"out_sharding": NamedSharding(meshes[0], PartitionSpec(*spec))} if meshes else {}


def together(x: jax.Array, axes: int = 1) -> jax.Array:
    """An array of which each device of an Explicit mesh has all along the first axes."""
    spec = spec_of(x)
    if not any(spec[:axes]):
        return x
    sharding = laid([*[None] * axes, *spec[axes:]], x)["out_sharding"]
    resharded: jax.Array = jax.sharding.reshard(x, sharding)
    return resharded
