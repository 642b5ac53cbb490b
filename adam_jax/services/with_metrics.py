"""Metrics of a training step, measured in it: what an optimizer sees and does not say.

The formulas are in `adam_jax.services.measures`. Here they are hung on an optimizer, which stays as
it is, to the bit.
"""

import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.hyperparameters import Scalar, brief, flag, transformation, whole
from adam_jax.leaves import Predicate, path_name
from adam_jax.mismatch import require_gradients
from adam_jax.rows import Rows, gathered, is_rows, rows_of, values_of
from adam_jax.rule import divides
from adam_jax.rules.adam import Adam
from adam_jax.services.measures import Metrics, Row, at_rest, measure, nothing
from adam_jax.states import like, only
from adam_jax.storage.at_rest import is_stored

_NEVER = r"(?!)"


class MetricsState(NamedTuple):
    """The inner state, the count of updates, what was measured last, and the last updates."""

    inner_state: Any
    count: Any
    metrics: Metrics
    previous: Any


def with_metrics(
    inner: optax.GradientTransformation,
    *,
    every: int = 1,
    paths: str | re.Pattern[str] | Predicate | None = None,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    successive: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, to the bit, and in its state what a training step is like.

    `read_metrics` gives a flat dict of scalars: of gradients, updates and parameters the norms
    (``grad_norm``, ``update_norm``, ``param_norm``) and root mean squares (``grad_rms``...), and

    * ``update_to_param``: the ratio of their norms; a step is often about 1e-3 of what it changes;
    * ``cosine_update_gradient``: -1 where an update goes straight down its gradient, 0 where the
      gradient says nothing of it;
    * ``cosine_successive_updates``: near 1 steps go on, near -1 each undoes the one before;
    * ``eps_share``: where eps decides, and steps are short; entries never seen are among them;
    * ``signal_to_noise``: 1 where gradients repeat themselves, 0.2 and less where they are noise;
    * ``effective_learning_rate_05``, ``_50``, ``_95``: quantiles of what the optimizer multiplies
      the mean gradient with, over the entries where it is not 0.

    The last three read moments. They are there where the state holds ``mu``, ``nu`` and ``count``,
    ours in any format or Optax's, one of each for a leaf; with two Adams in a chain they are left
    out. They mean what they say where the moments are Adam's (so not in Adamax), and are estimates:
    of larger leaves they see a sample, 256 to 2048 entries of each.

    What is divided by 0 is 0, so of finite gradients all is finite; what is not finite is seen in
    the norms, to which entries below 1.1e-19 are 0. Leaves without a gradient do not count, nor do
    rows of a table that `Rows` leave out. Inside ``shard_map`` all is a shard's own, and JAX's
    types say so after the first step only: there ``every`` is 1, and no scan of steps.

    Around `lazy_adam` compile with `compiler_options`, or XLA copies tables on CPUs.

    What `accumulate` makes of many gradients is measured inside of it, ``accumulate(with_metrics(
    tx), k)``, where only full steps are counted. Around it each micro-batch is an update, and where
    ``every`` and k have a divisor in common, no full step is ever measured.

    Args:
      inner: any Optax transformation. What is outside of it is not seen: wrap the whole chain.
      every: measure in the first update and then in each so many; in between the last values stay.
        What it saves is little: sums are always taken, for to keep updates for a branch is slower.
      paths: leaves to have metrics of their own, under ``path/metric``: a regular expression that
        is searched for in the leaf's path (``layers/0/kernel``), or a function ``(path, leaf) ->
        bool`` as in `adam_jax.leaves`.
      b1: the decay rate of ``mu`` in ``inner``.
      b2: the decay rate of ``nu`` in ``inner``.
      eps: that of ``inner``.
      successive: whether to keep the updates until the next step, in bfloat16: 2 bytes a parameter.

    Returns:
      An Optax transformation, whose ``update`` needs ``params``.

    Raises:
      ValueError: an argument is out of its range; from ``update``, there are no parameters, or the
        state is of another tree or made with other arguments.
      TypeError: an argument is of the wrong kind.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = with_metrics(adam_jax.adam(0.1), paths="bias")
      >>> params = {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}
      >>> gradients = {"kernel": jnp.full((3, 4), 2.0), "bias": jnp.zeros(4)}
      >>> updates, state = tx.update(gradients, tx.init(params), params)
      >>> metrics = read_metrics(state)
      >>> for name in ["update_to_param", "eps_share", "bias/eps_share"]:
      ...     print(f"{name} {metrics[name]:.2f}")
      update_to_param 0.10
      eps_share 0.25
      bias/eps_share 1.00
    """
    inner = optax.with_extra_args_support(transformation("inner", inner))
    every = whole("every", every, "a positive integer", lambda n: n > 0)
    rule, taken, successive = Adam(b1, b2, eps), _taken(paths), flag("successive", successive)

    def init(params: optax.Params) -> MetricsState:
        inner_state = inner.init(params)
        previous = jax.tree.map(nothing, params) if successive else None
        names, rows = _leaves(taken, params, params, params, previous, inner_state)
        count = jnp.zeros([], jnp.int32)
        kinds = jax.eval_shape(partial(measure, names, rule), rows, count)
        metrics = Metrics(jnp.zeros(kinds.vector.shape, jnp.float32), kinds.names)
        return MetricsState(inner_state, count, metrics, previous)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, MetricsState]:
        if params is None:
            raise ValueError("with_metrics needs `params`: update(updates, state, params)")
        require_gradients(values_of(updates), rows_of(params, updates))
        if successive and any(map(is_rows, jax.tree.leaves(updates, is_leaf=is_rows))):
            raise ValueError("`successive` is of whole arrays; the gradients have Rows")
        if (state.previous is None) is successive:
            raise ValueError("`state` was made with another `successive`")
        steps, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        inner_state = like(inner_state, state.inner_state)
        names, rows = _leaves(taken, updates, steps, params, state.previous, inner_state)
        _require_names(state, names, updates)
        metrics = measure(names, rule, rows, state.count, state.metrics, every)
        count = optax.safe_increment(state.count)
        previous = jax.tree.map(at_rest, steps) if successive else None
        return steps, MetricsState(inner_state, count, metrics, previous)

    return optax.GradientTransformationExtraArgs(init, update)


def read_metrics(state: chex.ArrayTree) -> dict[str, Any]:
    """What was measured last, as a flat dict that any logger takes.

    Args:
      state: of `with_metrics`, or one that has such a state anywhere inside.

    Returns:
      Floats, NaN before the first update; arrays under ``vmap``; what is traced as it is, for
      `jax.lax.scan` to stack. On devices that still work it waits for them.

    Raises:
      ValueError: there is no such state, or more than one.
    """
    found = only(state, MetricsState, "with_metrics")
    if any(isinstance(x, jax.core.Tracer) for x in (found.count, found.metrics.vector)):
        return dict(found.metrics)
    values, count = jax.device_get((found.metrics.vector, found.count))
    known = np.where(np.expand_dims(count, -1) == 0, np.nan, values)
    scalars = dict(zip(found.metrics, np.moveaxis(known, -1, 0), strict=True))
    return {name: x if x.ndim else x.item() for name, x in scalars.items()}


def _taken(paths: Any) -> Predicate:
    """Which leaves have metrics of their own."""
    if callable(paths):
        return lambda path, leaf: flag("paths(path, leaf)", paths(path, leaf))
    try:
        regex = re.compile(_NEVER if paths is None else paths)
    except TypeError:
        rule = "None, a regular expression or a function (path, leaf) -> bool"
        raise TypeError(f"`paths` must be {rule}, got {brief(paths)}") from None
    except re.error as error:
        raise ValueError(f"`paths` must be a regular expression, got {paths!r}: {error}") from None
    return lambda path, _: regex.search(path_name(path)) is not None


def _leaves(
    taken: Predicate, updates: Any, steps: Any, params: Any, previous: Any, inner_state: Any
) -> tuple[list[str | None], list[Row]]:
    """The leaves that have a gradient, with their names where these are for metrics."""
    leaves: tuple[Any, Any] = jax.tree_util.tree_flatten_with_path(
        updates, lambda x: x is None or is_rows(x)
    )
    flat, treedef = leaves
    before = [None] * len(flat) if previous is None else treedef.flatten_up_to(previous)
    each = (treedef.flatten_up_to(tree) for tree in (steps, params))
    moments = _moments(inner_state)
    names, rows = [], []
    for (path, g), u, p, v in zip(flat, *each, before, strict=True):
        if g is not None:
            shape = g.shape if is_rows(g) else jnp.shape(g)
            leaf = jax.ShapeDtypeStruct(shape, jnp.result_type(g.values if is_rows(g) else g))
            both, t = moments.get(jax.tree_util.keystr(path), (None, None))
            both = both if _fits(both, leaf) else None
            names.append(path_name(path) if taken(path, leaf) else None)
            if is_rows(g):
                g, u, p, both = _touched(g, u, p, both)  # noqa: PLW2901
            rows.append(Row(jnp.asarray(g), u, p, v, both, t))
    for name, following in pairwise(sorted(filter(None, names))):
        if name == following:
            raise ValueError(f"two leaves have the path {name!r}, by which metrics are named")
    return names, rows


def _touched(g: Rows, u: Rows, p: Any, moments: Any) -> tuple[Any, Any, Any, Any]:
    """Of a table all that there is of the rows that a step touches."""
    rows, steps = g.summed(), u.summed()
    return rows.values, steps.values, gathered(jnp.asarray(p), rows), gathered(moments, rows)


def _require_names(state: MetricsState, names: Sequence[str | None], updates: Any) -> None:
    """Check that the state has these leaves' metrics, and others' only if gradients are missing."""
    there = {name.rpartition("/")[0] for name in state.metrics if "/" in name}
    named = {name for name in names if name is not None}
    frozen = any(g is None for g in jax.tree.leaves(updates, is_leaf=lambda x: x is None))
    other = named - there or (set() if frozen else there - named)
    if other:
        raise ValueError(f"`state` was made with other `paths` or leaves, such as {min(other)!r}")


def _moments(state: Any) -> dict[str, tuple[Any, Any]]:
    """By leaves' paths (mu, nu) and the count; of no leaf if one has several."""

    def is_it(part: Any) -> bool:
        return {"mu", "nu", "count"} <= set(getattr(part, "_fields", ()))

    found: dict[str, tuple[Any, Any]] = {}
    for holder in filter(is_it, jax.tree.leaves(state, is_leaf=is_it)):
        mus, nus = _by_path(holder.mu), _by_path(holder.nu)
        for path in [path for path in mus if path in nus]:
            if path in found:
                return {}
            found[path] = ((mus[path], nus[path]), holder.count)
    return found


def _by_path(tree: Any) -> dict[str, Any]:
    stored = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_stored)
    return {jax.tree_util.keystr(path): x for path, x in stored}


def _fits(stored: Any, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether there are moments of a leaf's shape, or a mean square for each of its blocks."""
    mu, nu = (tuple(getattr(x, "shape", ())) for x in stored or (None, None))
    return stored is not None and mu == leaf.shape and divides(nu, leaf.shape)
