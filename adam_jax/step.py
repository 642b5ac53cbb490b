"""A training step: the lines that everybody writes around an optimizer, with nothing forgotten.

    value, gradients = value_and_grad(loss)(params, batch)
    updates, state = tx.update(gradients, state, params, value=value)
    params = params + updates

in one program, which takes the memory of the parameters and the state that it replaces.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from adam_jax import compiler
from adam_jax.clipping import ClipByGlobalNormState
from adam_jax.hyperparameters import brief, flag, function, optional_steps, transformation
from adam_jax.mismatch import require_float
from adam_jax.norms import precision
from adam_jax.services.running_mean import narrow_like, running_mean, widen
from adam_jax.services.skip_unstable import SkipUnstableState
from adam_jax.services.with_hyperparameters import HyperparametersState
from adam_jax.services.with_metrics import MetricsState, read_metrics
from adam_jax.states import like, only
from adam_jax.transform import full_beside


def train_step(
    loss: Callable[[optax.Params, Any], Any],
    tx: optax.GradientTransformation,
    *,
    has_aux: bool = False,
    micro_batches: int | None = None,
    donate: bool = True,
    compiler_options: dict[str, Any] | None = None,
) -> Any:
    """A jitted ``step(params, state, batch, **extra_args) -> (params, state, info)``.

    It is a `jax.jit` like any other: ``step.lower(...)`` shows its program, and the function in it,
    for a `jax.lax.scan` or a ``jit`` of one's own, is ``step.__wrapped__``. Its gradients are of
    whole arrays: for `Rows` of tables take `value_and_row_grad` in a ``jit`` of one's own.

    ``extra_args`` go to ``tx.update`` by their names, and with them ``value``, the loss.
    ``full_step`` of `accumulate` is static here: ``True`` and ``False`` are two programs. Complex
    parameters descend along the conjugate of what JAX calls their gradient.

    ``info`` is flat: "loss", "aux" if there is one, and what is measured by parts of ``tx`` that
    measure: all of `with_metrics`, "grad_norm" of `clip_by_global_norm`, "skipped_total" and
    "skipped_in_row" of `skip_unstable`; and the step's hyperparameters of `with_hyperparameters`,
    by their names, such as "learning_rate". Of two of a kind, nothing.

    Args:
      loss: ``(params, batch)`` to a real scalar, or with ``has_aux`` to it and anything else.
      tx: any optimizer, but those that want a function of the loss, such as `optax.lbfgs`.
      has_aux: whether ``loss`` returns something else too.
      micro_batches: in how many parts, along the first axis of each of its arrays, the batch comes.
        The loss is of one part at a time, in a `jax.lax.scan`; "loss" is the mean of theirs, and
        "aux" has them all. The optimizer steps once, by the mean of the gradients in float32, or
        wider, and is given it so; its updates and its state keep the dtypes that they would have.
      donate: whether the step takes the place of ``params`` and ``state``, which are then deleted.
        No array may be in them twice; so a state that must begin as the parameters copies them.
      compiler_options: those of `jax.jit`. By default `compiler_options`, which depend on the
        backend; ``{}`` for none.

    Raises:
      TypeError: an argument is of the wrong kind; when called, the loss is no real scalar, or a
        parameter is of integers.
      ValueError: an array of the batch does not come in so many parts.

    Example:
      >>> import adam_jax, jax, jax.numpy as jnp
      >>> def loss(w, batch):
      ...     x, y = batch
      ...     return jnp.mean((x @ w - y) ** 2)
      >>> x = jax.random.normal(jax.random.key(0), (8, 16, 3))
      >>> batch = x, x @ jnp.array([1.0, -2.0, 0.5])  # 8 parts of 16
      >>> tx = adam_jax.adam(0.1)
      >>> step = train_step(loss, tx, micro_batches=8)
      >>> w = jnp.zeros(3)
      >>> state = tx.init(w)
      >>> for _ in range(100):
      ...     w, state, info = step(w, state, batch)
      >>> bool(info["loss"] < 1e-3), [f"{x:.1f}" for x in w]
      (True, ['1.0', '-2.0', '0.5'])
    """
    function("loss", loss)
    tx = optax.with_extra_args_support(transformation("tx", tx))
    parts = optional_steps("micro_batches", micro_batches)
    has_aux, donate = flag("has_aux", has_aux), flag("donate", donate)
    differentiated = jax.value_and_grad(partial(_checked, loss, has_aux), has_aux=True)

    def measure(params: optax.Params, batch: Any) -> tuple[Any, Any, Any]:
        (value, aux), gradients = differentiated(params, batch)
        return value, jax.tree.map(_conjugate, gradients), aux

    def step(params: optax.Params, state: Any, batch: Any, **extra_args: Any) -> Any:
        require_float(params)

        def act(value: jax.Array, gradients: optax.Updates) -> tuple[optax.Updates, Any]:
            return tx.update(gradients, state, params, **{"value": value, **extra_args})  # type: ignore[no-any-return]

        if parts is None:
            value, gradients, aux = measure(params, batch)
            updates, new = act(value, gradients)
        else:
            value, gradients, aux = _mean(measure, parts, params, batch)
            updates, new = _as_for(params, partial(act, value), gradients, state)
        with jax.numpy_dtype_promotion("standard"):
            params = optax.apply_updates(params, updates)
        found = {"loss": value, "aux": aux} if has_aux else {"loss": value}
        return params, new, {**_measured(new), **found}

    if compiler_options is None:
        compiler_options = compiler.compiler_options()
    donated = (0, 1) if donate else ()
    return jax.jit(
        step,
        static_argnames="full_step",
        donate_argnums=donated,
        compiler_options=compiler_options,
    )


def _checked(loss: Any, has_aux: bool, params: optax.Params, batch: Any) -> tuple[Any, Any]:
    """The loss and what comes with it, which is nothing if nothing should."""
    value, aux = loss(params, batch), None
    if has_aux:
        if not isinstance(value, tuple) or len(value) != 2:
            raise TypeError(f"`loss` must return a loss and an aux, got {brief(value)}")
        value, aux = value
    shaped = hasattr(value, "dtype") or isinstance(value, float)
    if not shaped or jnp.shape(value) or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TypeError(f"`loss` must return a real scalar, got {brief(value)}")
    return value, aux


def _conjugate(g: jax.Array) -> jax.Array:
    return g.conj() if jnp.iscomplexobj(g) else g


def _mean(measure: Any, parts: int, params: optax.Params, batch: Any) -> tuple[Any, Any, Any]:
    """The mean loss and the mean gradient over the parts of a batch, and what comes with each."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if jnp.shape(leaf)[:1] != (parts,):
            name = f"batch{jax.tree_util.keystr(path)}"
            raise ValueError(f"{name} must have {parts} micro-batches, got shape {jnp.shape(leaf)}")

    def add(mean: chex.ArrayTree, part: Any) -> tuple[chex.ArrayTree, Any]:
        before, batch = part
        value, gradients, aux = measure(params, batch)
        return running_mean(before, 1.0, mean, gradients), (widen(value), aux)

    zeros = jax.tree.map(lambda p: full_beside(widen(p), 0), params)
    counts = jnp.arange(parts, dtype=precision(params))
    gradients, (values, aux) = lax.scan(add, zeros, (counts, batch))
    return jnp.mean(values), gradients, aux


def _as_for(gradients: optax.Params, act: Any, mean: optax.Updates, state: Any) -> tuple[Any, Any]:
    """Updates by the mean, in the dtypes of those by such gradients, and the state in its own."""
    updates, new = act(mean)
    return narrow_like(updates, jax.eval_shape(act, gradients)[0]), like(new, state)


def _measured(state: chex.ArrayTree) -> dict[str, Any]:
    """What the parts of an optimizer have measured, of which there is one of its kind."""
    measured: dict[str, Any] = {}
    if (changing := _only(state, HyperparametersState)) is not None:
        measured |= changing.hyperparams
    if _only(state, MetricsState) is not None:
        measured |= read_metrics(state)
    # After the metrics, of which the norm may be that of clipped gradients.
    if (clipped := _only(state, ClipByGlobalNormState)) is not None:
        measured["grad_norm"] = clipped.norm
    if (guarded := _only(state, SkipUnstableState)) is not None:
        measured["skipped_total"] = guarded.skipped_total
        measured["skipped_in_row"] = guarded.skipped_in_row
    return measured


def _only(state: chex.ArrayTree, kind: type[Any]) -> Any:
    try:
        return only(state, kind, "")
    except ValueError:
        return None
