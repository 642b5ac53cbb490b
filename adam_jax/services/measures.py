"""What can be measured of a training step, and how it is summed up over leaves.

    update_to_param = |u| / |p|
    cosine_update_gradient = u . g / (|u| |g|)
    cosine_successive_updates = u . v / (|u| |v|)

of gradients g, the updates u that answer them, the updates v before these, and the parameters p.
The sums are of all entries, and taken in one pass over a leaf. What `adam_jax.services.samples`
measures of moments comes to it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adam_jax.rule import safe_divide
from adam_jax.rules.adam import Adam
from adam_jax.services.samples import Samples, of_samples, ratio, sample
from adam_jax.states import choose
from adam_jax.storage.native import narrow
from adam_jax.storage.rounding import round_to
from adam_jax.transform import full_beside

# The square of what is above 1.8e19 is infinite. Of entries as they are or times this unit, the sum
# is right up to the largest number, and entries below 1.1e-19 are 0 in it. (A second pass where the
# first has failed would keep all gradients and updates in memory until that is known.)
_UNIT = 2.0**-66
_LARGEST = float(jnp.finfo(jnp.float32).max)

# A first pass sums so many entries or more, one after the other in float32, and a second the rest.
# Of more than so many ones it would not see the next.
_ROW, _LONGEST = 512, 2**20


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Metrics(Mapping[str, jax.Array]):
    """Scalars by their names; as one vector, for a program with many outputs compiles slowly.

    Attributes:
      vector: the scalars, float32, along the last axis.
      names: theirs, in the same order.
    """

    vector: jax.Array
    names: tuple[str, ...] = field(metadata={"static": True})

    def __getitem__(self, name: str) -> jax.Array:
        return self.vector[..., dict(zip(self.names, range(len(self.names)), strict=True))[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    # A tree's node may hold anything, such as dtypes: not a mapping's equality, by numbers.
    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Metrics) and self.names == other.names
        return same and bool(np.all(self.vector == other.vector))  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]


class Row(NamedTuple):
    """What there is of one leaf.

    Attributes:
      g: its gradient.
      u: its update.
      p: the parameter before.
      v: the update before, `at_rest`; or ``None``.
      moments: ``(mu, nu)``, as the state holds them; or ``None``.
      t: the count of steps that the moments have seen; or ``None``.
    """

    g: Any
    u: Any
    p: Any
    v: Any = None
    moments: Any = None
    t: Any = None


def measure(
    names: Sequence[str | None],
    rule: Adam,
    rows: Sequence[Row],
    count: jax.Array,
    last: Metrics | None = None,
    every: int = 1,
) -> Metrics:
    """All metrics, of all leaves together and of each that has a name.

    Args:
      names: for each leaf the name under which it has metrics of its own; ``None`` for none.
      rule: whose corrections and ``eps`` the moments have.
      rows: one a leaf.
      count: the updates before this one.
      last: earlier metrics, whose names these have too, and 0 where there is nothing to measure.
      every: in which of the updates to measure; in between the earlier metrics stay.
    """
    counts = {id(row.t): row.t for row in rows}
    clocks = tuple(list(counts).index(id(row.t)) for row in rows)
    bare = [row._replace(t=None) for row in rows]
    found: Metrics = _measure(
        tuple(names), clocks, every, rule, bare, list(counts.values()), last, count
    )
    return found


# Jitted by itself, so that a step outside of the user's own jit is not one operation at a time.
@partial(jax.jit, static_argnums=(0, 1, 2))
def _measure(
    names: tuple[str | None, ...],
    clocks: tuple[int, ...],
    every: int,
    rule: Adam,
    rows: list[Row],
    counts: list[jax.Array],
    last: Metrics | None,
    count: jax.Array,
) -> Metrics:
    # A metric is not what anyone differentiates.
    rule, rows = lax.stop_gradient((rule, rows))
    known = [i for i, row in enumerate(rows) if row.moments is not None and row.g.size]
    samples, weights = None, None
    with jax.numpy_dtype_promotion("standard"):
        if known:
            samples, weights = sample(
                [rows[i].u for i in known],
                [rows[i].moments for i in known],
                [counts[clocks[i]] for i in known],
            )
        sizes = [row.g.size for row in rows]
        finish = partial(_finish, names, sizes, rule, known, weights, last)
        # Never 1, which XLA does not know. Constants it would take together, and their square is 0.
        never = count < 0
        unit = jnp.where(never, 1, jnp.float32(_UNIT))
        # Always: a branch would keep in memory what it needs, and that takes longer than the sums.
        products = [_products(row, unit) for row in rows]
        if every > 1 and last is not None:
            when = count % every == 0
            found: Metrics = lax.cond(when, finish, lambda *_: last, products, samples)
            return found
        found = finish(products, samples)
        # What a program does not read it does not take when it is donated.
        return found if last is None else choose(never, last, found)


def at_rest(u: Any) -> jax.Array:
    """An update in bfloat16, finite where it is; of a complex one the two parts."""
    parts = [round_to(x, jnp.bfloat16).astype(jnp.bfloat16) for x in _real(u)]
    return jnp.stack(parts) if len(parts) > 1 else parts[0]


def nothing(p: Any) -> jax.Array:
    """What is `at_rest` before the first update to a parameter."""
    zeros: jax.Array = full_beside(at_rest(p), 0)
    return zeros


def _finish(
    names: tuple[str | None, ...],
    sizes: list[int],
    rule: Adam,
    known: list[int],
    weights: Any,
    last: Metrics | None,
    products: list[jax.Array],
    samples: Samples | None,
) -> Metrics:
    """The metrics, from sums and samples."""
    table = jnp.stack(products) if products else jnp.zeros((0, 4, 2), jnp.float32)
    together = _of_products(float(sum(sizes)), jnp.sum(table, axis=0))
    named = [i for i, name in enumerate(names) if name is not None]
    own = jax.vmap(_of_products)(jnp.asarray(sizes, jnp.float32), table) if named else {}
    columns = [(named, named, own)]  # of each leaf, its place in a vector, and the vectors
    if samples is not None:
        of_all, each = of_samples(rule, samples, weights)
        together |= of_all
        place = {leaf: row for row, leaf in enumerate(known)}
        both = [i for i in named if i in place]
        columns.append((both, [place[i] for i in both], each))
    found, values = list(together), [jnp.stack(list(together.values()))]
    for leaves, rows, vectors in columns:
        for key, x in vectors.items():
            if leaves:
                found += [f"{names[i]}/{key}" for i in leaves]
                values.append(x[np.asarray(rows)])
    metrics = Metrics(jnp.concatenate(values), tuple(found))
    return metrics if last is None else _like(last, metrics)


def _like(last: Metrics, found: Metrics) -> Metrics:
    """What was found under the names that there were, and 0 where nothing was."""
    if found.names == last.names:
        return found
    zero = jnp.zeros([], jnp.float32)
    return Metrics(jnp.stack([found.get(name, zero) for name in last]), last.names)


def _of_products(size: Any, products: jax.Array) -> dict[str, jax.Array]:
    """The metrics of some leaves, from their number of entries and the sums of their products."""
    gg, uu, pp, ug, *successive = products
    norms = {"grad": _root(gg), "update": _root(uu), "param": _root(pp)}
    found = {f"{name}_norm": norm for name, norm in norms.items()}
    entries = jnp.sqrt(jnp.maximum(jnp.asarray(size, jnp.float32), 1))
    found |= {f"{name}_rms": norm / entries for name, norm in norms.items()}
    found["update_to_param"] = ratio(norms["update"], norms["param"])
    found["cosine_update_gradient"] = _cosine(ug, norms["update"], norms["grad"])
    if successive:
        vv, uv = successive
        found["cosine_successive_updates"] = _cosine(uv, norms["update"], _root(vv))
    return found


# Jitted by itself, so that leaves of one shape are traced once.
@jax.jit
def _products(row: Row, unit: jax.Array) -> jax.Array:
    """The inner products gg, uu, pp, ug, and vv, uv where there is v; plain, and in the unit."""
    columns = [_real(row.g), _real(row.u), _real(row.p)]
    if row.v is not None:
        v = row.v.astype(jnp.float32)
        columns.append([*v] if jnp.iscomplexobj(row.u) else [v])
    sums = []
    for part in zip(*columns, strict=True):
        terms = []
        for g, u, p, *previous in (part, [x * unit for x in part]):
            terms += [g * g, u * u, p * p, u * g]
            terms += [x for v in previous for x in (v * v, u * v)]
        sums.append(_sums(terms).reshape(2, -1).T)
    return sum(sums[1:], sums[0])


def _sums(terms: Sequence[jax.Array]) -> jax.Array:
    """The sum of each of some arrays of one shape, in one pass over what they are made of."""
    shape = terms[0].shape
    axes = tuple(range(len(shape)))
    while axes and math.prod(shape[axis] for axis in axes[1:]) >= _ROW:
        axes = axes[1:]
    short = math.prod(shape[axis] for axis in axes) <= _LONGEST
    # On a CPU each sum would be a pass, and a temporary. Others join sums, and sums over devices.
    sums: jax.Array = lax.platform_dependent(
        terms, cpu=partial(_together, axes) if short else _apart, default=_apart
    )
    return sums


def _apart(terms: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.sum(x) for x in terms])


def _together(axes: tuple[int, ...], terms: Sequence[jax.Array]) -> jax.Array:
    zeros = [jnp.zeros([], jnp.float32)] * len(terms)
    rows = lax.reduce(terms, zeros, _added, axes)
    return jnp.stack([x.reshape(-1) for x in rows]).sum(axis=1)


def _added(xs: Sequence[jax.Array], ys: Sequence[jax.Array]) -> list[jax.Array]:
    return [x + y for x, y in zip(xs, ys, strict=True)]


def _real(x: Any) -> list[jax.Array]:
    """An array in float32, a complex one as its two parts; finite where it is."""
    x = jnp.asarray(x)
    parts = [x.real, x.imag] if jnp.iscomplexobj(x) else [x]
    return [narrow(part, jnp.float32) for part in parts]


def _root(product: jax.Array) -> jax.Array:
    """A norm; held at the largest number where no entry is infinite."""
    plain, scaled = jnp.sqrt(product)
    large = scaled / _UNIT
    large = jnp.where(jnp.isfinite(scaled), jnp.minimum(large, _LARGEST), large)
    return jnp.where(jnp.isfinite(plain), plain, large)


def _cosine(product: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Of the angle between what has these norms, and this inner product; 0 where one is 0."""
    plain = jnp.isfinite(product[0])
    unit, both = jnp.where(plain, 1, _UNIT), jnp.where(plain, *product)
    return jnp.clip(safe_divide(safe_divide(both, x * unit), y * unit), -1, 1)
