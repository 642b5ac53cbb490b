"""States in checkpoints, by Orbax: every member in every format, back with the same bits or not.

    checkpoint.save(path, state)
    state = checkpoint.restore(path, tx, params)

Beside the state a checkpoint holds a description of it, in a layout with a version: a state that
one release of this package has saved, later ones restore. `restore` compares it with what ``tx``
wants before it reads any array, so that no dtype changes silently, and no state of another member
is taken for its own.

What is compared is each array, by its path in the state, and the classes of the states around it.
What holds no array, such as the state of weight decay, is of no account: a stage without a state
may be added after the others, and `adam`'s state restored for `adamw`. A stage put before them
moves the paths, and is refused. Members that have one state, most in Optax too, cannot be told
apart, as Adam, LAMB and Adamax, though Adamax's ``nu`` is a maximum: that ``tx`` is the member is
for its user.

To write, whole or not at all, on one machine or many, is Orbax's. A training run saves its
parameters and its state in one step of an `orbax.checkpoint.CheckpointManager`: `items` are what
its ``Composite`` takes for the state, and `restore` reads that step's folder:

    args = ocp.args.Composite(params=ocp.args.StandardSave(params), **checkpoint.items(state))
    manager.save(step, args=args)
    state = checkpoint.restore(manager.directory / str(step), tx, params)

Orbax comes with ``pip install 'adam_jax[checkpoint]'``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.checkpoint.arrays import named, numbered, with_arrays
from adam_jax.checkpoint.description import VERSION, describe, require_like
from adam_jax.checkpoint.template import template
from adam_jax.diagnostics import require_known
from adam_jax.hyperparameters import brief, transformation
from adam_jax.ownership import walk

__all__ = ["VERSION", "describe", "items", "require_finite", "require_like", "restore", "save"]

_ARRAYS = (jax.Array, np.ndarray, np.generic, int, float, complex)
_MOMENTS = {"mu", "nu"}
_STATE, _DESCRIPTION = "optimizer_state", "optimizer_state_description"


def save(path: Any, state: chex.ArrayTree) -> None:
    """Write a state to a new folder: all of it, or, after an error, nothing of that name.

    Args:
      path: of the folder, which must not exist; a string or a path, also of a bucket.
      state: of an optimizer, sharded or not.

    Raises:
      FileExistsError: there is something at ``path``.
      OSError: it cannot be written, for example for want of space.
      ValueError: two arrays of the state have one path.
      TypeError: a leaf of the state is no array; of `save`, ``path`` is no path.
      ImportError: Orbax is not installed.
    """
    ocp, folder = _orbax(), _folder(path)
    if folder.exists():
        raise FileExistsError(f"`path` must be new, and there is something at {folder}")
    args = ocp.args.Composite(**items(state))
    with (
        _one_line(OSError, f"the state cannot be saved to {folder}"),
        ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer,
    ):
        checkpointer.save(folder, args=args)


def items(state: chex.ArrayTree) -> dict[str, Any]:
    """What an `orbax.checkpoint.args.Composite` takes to save a state, beside items of one's own.

    Args:
      state: of an optimizer, sharded or not.

    Returns:
      The state and its description, by their names in the checkpoint.

    Raises:
      ValueError: two arrays of the state have one path.
      TypeError: a leaf of the state is no array; of `save`, ``path`` is no path.
      ImportError: Orbax is not installed.
    """
    args = _orbax().args
    for path, x in named(state).items():
        require_known(f"state{path}", x, isinstance(x, _ARRAYS))
    return {
        _STATE: args.StandardSave(numbered(state, list(named(state)))),
        _DESCRIPTION: args.JsonSave(describe(state)),
    }


def restore(
    path: Any, tx: optax.GradientTransformation, params: optax.Params, *, shardings: Any = None
) -> Any:
    """The state in a checkpoint, on the devices of the parameters.

    Moments lie as their parameters do, codes and scales too, whatever mesh they were saved from;
    the rest is on all of these devices. No state is made to be restored into.

    Args:
      path: the folder that `save` wrote, or that of a manager's step.
      tx: the optimizer whose state it is.
      params: the parameters, or `jax.ShapeDtypeStruct` in their places, with shardings or without.
      shardings: a tree like the state, of a sharding for each array, for another placement.

    Returns:
      The state, with the bits that it was saved with, also where they are of no number; see
      `require_finite`.

    Raises:
      FileNotFoundError: there is nothing at ``path``.
      ValueError: what is there is damaged, or no state of this optimizer; the leaf is named.
      TypeError: an argument is of the wrong kind.
      ImportError: Orbax is not installed.
    """
    ocp, folder = _orbax(), _folder(path)
    wanted = template(transformation("tx", tx), params, shardings)
    if not folder.exists():
        raise FileNotFoundError(f"there is no checkpoint at {folder}")
    for name in (_DESCRIPTION, _STATE):
        if not (folder / name).exists():
            raise ValueError(f"{folder} holds no state that adam_jax has saved: no {name} is in it")
    args, damaged = ocp.args, f"the checkpoint at {folder} cannot be read"
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        with _one_line(ValueError, damaged):
            asked = {_DESCRIPTION: args.JsonRestore()}
            found = checkpointer.restore(folder, args=args.Composite(**asked))[_DESCRIPTION]
        with _one_line(ValueError, f"the checkpoint at {folder} is another"):
            require_like(found, wanted)
        with _one_line(ValueError, damaged):
            asked = {_STATE: args.StandardRestore(numbered(wanted, found["arrays"]))}
            state = checkpointer.restore(folder, args=args.Composite(**asked))[_STATE]
    return with_arrays(wanted, state, found["arrays"])


def require_finite(state: chex.ArrayTree, params: optax.Params) -> None:
    """Check that all that a state holds of parameters is finite: a checkpoint worth to be kept.

    A NaN in a moment never leaves it again, and the best checkpoint is the last one without.

    Args:
      state: of any Optax transformation.
      params: the parameters, or `jax.ShapeDtypeStruct` in their places.

    Raises:
      ValueError: an entry is not; the leaf is named.
      TypeError: an array is traced.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx, params = adam_jax.adam(1e-3), {"w": jnp.ones(3)}
      >>> _, state = tx.update({"w": jnp.array([1.0, jnp.nan, 1.0])}, tx.init(params))
      >>> require_finite(state, params)
      Traceback (most recent call last):
      ValueError: state[0].mu['w'] is not finite in 1 of its 3 entries
    """
    for path, leaf, owned in walk(state, params):
        # Of other parameters, or of these in another form, as `optax.flatten` makes of them.
        apart = not _MOMENTS.isdisjoint(getattr(key, "name", None) for key in path)
        for place, part in owned or ([((), leaf)] if apart else []):
            for key, x in jax.tree_util.tree_leaves_with_path(part):
                _require_finite(jax.tree_util.keystr(path + place + key), x)


def _require_finite(where: str, x: Any) -> None:
    if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
        return
    require_known(f"state{where}", x)
    bad = int(jnp.sum(~jnp.isfinite(x)))
    if bad:
        raise ValueError(f"state{where} is not finite in {bad} of its {x.size} entries")


@contextmanager
def _one_line(kind: type[Exception], what: str) -> Iterator[None]:
    """Whatever is raised, as an error of one line that says of what."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise kind(f"{what}: {lines[0] if lines else type(error).__name__}") from error


def _orbax() -> Any:
    try:
        import orbax.checkpoint as ocp  # noqa: PLC0415 - an extra, wanted for this alone
    except ImportError:
        raise ImportError("checkpoints need Orbax: pip install 'adam_jax[checkpoint]'") from None
    return ocp


def _folder(path: Any) -> Any:
    from etils import epath  # noqa: PLC0415 - comes with Orbax

    try:
        return epath.Path(path).absolute()
    except TypeError:
        raise TypeError(f"`path` must be a string or a path, got {brief(path)}") from None
