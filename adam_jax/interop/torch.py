"""PyTorch's optimizer states: moved in, moved out. PyTorch itself is not needed.

What ``optimizer.state_dict()`` of `torch.optim` `Adam`, `AdamW`, `NAdam`, `RAdam`, `Adamax` and
`SparseAdam` holds is, by another name, what ours keep:

    step              count
    exp_avg           mu
    exp_avg_sq        nu; of Adamax exp_inf
    max_exp_avg_sq    nu_max
    mu_product        (NAdam) follows from count, b1 and momentum_decay

Hyperparameters do not travel: build the transformation from ``param_groups``, by `like_torch`;
SparseAdam is, where all rows have gradients, `adam` with ``eps_hat``. A run then goes on as it
would have there: over the next 100 steps parameters are within 1e-14 of PyTorch's in float64, and
within 1e-6 in float32, but for those that come near zero, and where a schedule's rates are float32.

Complex parameters do not travel: in PyTorch each of their parts has a mean square.

The 8-bit optimizers of bitsandbytes have state dicts of this form too. See `bitsandbytes`.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import chex
import jax
import numpy as np
import optax

from adam_jax.hyperparameters import brief, function, optional_function
from adam_jax.interop import bitsandbytes
from adam_jax.interop.arrays import array_of
from adam_jax.interop.moments import (
    Arrival,
    Layout,
    Name,
    count_of,
    laid_out,
    named,
    put,
    require_sound,
    take,
)
from adam_jax.interop.state_dict import Entries, StateDict
from adam_jax.ownership import Path
from adam_jax.parts import shape_of

_FIELDS = {"exp_avg": "mu", "exp_avg_sq": "nu", "exp_inf": "nu", "max_exp_avg_sq": "nu_max"}
# By what tells the optimizers' groups apart, which do not say their names: the first that fits.
_KINDS = (
    ("NAdam", {"momentum_decay"}, ("exp_avg", "exp_avg_sq")),
    ("Adam", {"amsgrad"}, ("exp_avg", "exp_avg_sq")),
    ("RAdam", {"decoupled_weight_decay"}, ("exp_avg", "exp_avg_sq")),
    ("Adamax", {"weight_decay"}, ("exp_avg", "exp_inf")),
    ("SparseAdam", {"betas"}, ("exp_avg", "exp_avg_sq")),
)
_keystr = jax.tree_util.keystr


def from_torch(
    state_dict: StateDict,
    tx: optax.GradientTransformation,
    params: optax.Params,
    names: Any,
    layout: Layout | None = None,
) -> chex.ArrayTree:
    """A state of ``tx`` that goes on where an optimizer of PyTorch stopped.

    Moments take the storage formats of ``tx``, rounded to nearest where these have fewer bits; a
    float64 is never rounded. What ``tx`` has besides, such as an average of parameters, is as new;
    schedules go on from the same step. Moments of bfloat16 and float16, which belong to parameters
    of these dtypes, become float32.

    Args:
      state_dict: ``optimizer.state_dict()``: of tensors, or of arrays, as `read_torch` gives.
      tx: the same optimizer here (whether it is the same cannot be seen from its state), also in a
        chain, under `optax.partition` or in a wrapper.
      params: the parameters, laid out as they are here.
      names: a tree like ``params`` of what PyTorch calls each: its position among the optimizer's
        parameters, from 0; or its name, if the state dict has names, as it does where the optimizer
        was built with ``model.named_parameters()``.
      layout: ``(name, array) -> array``, which lays out an array of PyTorch as its parameter is
        here: the function by which the parameters were moved. It must only move entries. By default
        nothing is moved.

    Returns:
      The state.

    Raises:
      ValueError: parameters or their steps, shapes or values do not fit; the message names one.
      TypeError: an argument is of the wrong kind.

    References:
      https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.state_dict.html

    Example:
      A linear layer, whose weight is (outputs, inputs) there and (inputs, outputs) here.

      >>> import jax.numpy as jnp
      >>> from adam_jax import like_torch
      >>> moments = {"exp_avg": np.ones((2, 3)), "exp_avg_sq": np.ones((2, 3))}
      >>> group = {"lr": 1e-3, "betas": (0.9, 0.999), "amsgrad": False, "params": [0]}
      >>> state_dict = {
      ...     "state": {0: {"step": 7.0} | {k: x.astype("f") for k, x in moments.items()}},
      ...     "param_groups": [group],
      ... }
      >>> order = ["fc.weight"]  # [name for name, _ in model.named_parameters()]
      >>> params, names = {"kernel": jnp.ones((3, 2))}, {"kernel": "fc.weight"}
      >>> tx = like_torch.Adam(1e-3)
      >>> positions = jax.tree.map(order.index, names)
      >>> state = from_torch(state_dict, tx, params, positions, layout=lambda name, x: x.T)
      >>> int(state[0].count), state[0].mu["kernel"].shape
      (7, (3, 2))
    """
    optional_function("layout", layout)
    entries = Entries(state_dict)
    arrivals: dict[Path, dict[str, Arrival]] = {}
    steps: dict[Name, int] = {}
    known = set()
    for path, p, name in named(params, names):
        key = entries.key(name, path)
        known.add(key)
        if key in entries.state:
            entry = bitsandbytes.flat(entries.entry(key))
            steps[name] = _step(entry.pop("step", None), name)
            arrivals[path] = dict(_arrivals(entry, name, layout, path, p))
            _require_momenta(entries.groups[key], entry, name, steps[name])
    for key in entries.state:
        if key not in known:
            raise ValueError(f"`names` must have all parameters, got none for {entries.title(key)}")
    return put(tx, params, _common(steps), arrivals)


def to_torch(
    state: chex.ArrayTree,
    params: optax.Params,
    names: Any,
    like: StateDict,
    layout: Layout | None = None,
    tensor: Callable[[np.ndarray], Any] = lambda x: x,
) -> dict[str, Any]:
    """A state dict with which an optimizer of PyTorch goes on where one of ours stopped.

    ``optimizer.load_state_dict(to_torch(...))`` takes it. Moments of fewer bits are decoded, to
    float32, which PyTorch casts to the parameters' dtype.

    Args:
      state: of the same optimizer here.
      params: the parameters that it belongs to.
      names: see `from_torch`.
      like: ``optimizer.state_dict()``, also of an optimizer that is new: its hyperparameters and
        the order of its parameters are taken, and which optimizer it is.
      layout: the inverse of that of `from_torch`. What it does to shapes is checked where ``like``
        holds moments.
      tensor: what makes a tensor of an array: ``torch.from_numpy``. By default arrays stay.

    Returns:
      The state dict.

    Raises:
      ValueError: parameters, shapes or moments do not fit, or one is not finite; or rows of
        `lazy_adam` have to catch up first, but for ``SparseAdam``, where they wait too.
      TypeError: an argument is of the wrong kind.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> params, names = {"w": jnp.ones(2)}, {"w": 0}
      >>> tx = adam_jax.adam(1e-3)
      >>> _, state = tx.update({"w": jnp.array([1.0, -2.0])}, tx.init(params), params)
      >>> group = {"lr": 1e-3, "betas": (0.9, 0.999), "amsgrad": False, "params": [0]}
      >>> moved = to_torch(state, params, names, like={"state": {}, "param_groups": [group]})
      >>> print(moved["state"][0]["step"], moved["state"][0]["exp_avg"].round(4))
      1.0 [ 0.1 -0.2]
    """
    optional_function("layout", layout)
    function("tensor", tensor)
    entries = Entries(like)
    kinds = {_kind(group)[0] for group in like["param_groups"]}
    count, rows = take(state, params, by_rows=kinds == {"SparseAdam"})
    moved = {}
    for path, _, name in named(params, names):
        key = entries.key(name, path)
        if path not in rows or not count:  # before its first step PyTorch has no state
            continue
        before = entries.entry(key) if key in entries.state else {}
        moved[key] = dict(_leaving(entries.groups[key], count, rows[path], path, name, layout))
        for field, x in moved[key].items():
            if isinstance(x, np.ndarray):
                where, shape = f"{field} of {name!r}", np.shape(before.get(field, x))
                moved[key][field] = tensor(np.array(laid_out(None, name, x, where, shape)))
    groups = [copy.copy(group) for group in like["param_groups"]]
    return {"state": moved, "param_groups": groups}


def _arrivals(
    entry: dict[str, Any], name: Name, layout: Layout | None, path: Path, p: Any
) -> Iterator[tuple[str, Arrival]]:
    """A parameter's moments by the state's fields."""
    quantised = bitsandbytes.is_one(entry)
    known = {"state1", "state2"} if quantised else {*_FIELDS, "mu_product"}
    strange = sorted(set(entry) - known - set(bitsandbytes.PARTS if quantised else ()))
    if strange:
        raise ValueError(f"{name!r} has {brief(strange[0])}, which no Adam of PyTorch keeps")
    if {"exp_avg_sq", "exp_inf"} <= set(entry):
        raise ValueError(f"{name!r} has exp_avg_sq and exp_inf, of which Adams of PyTorch keep one")
    moments = bitsandbytes.moments(entry, name) if quantised else _plain(entry, name)
    for there, (x, at_rest) in moments.items():
        what = f"{there} of {name!r}"
        require_sound(what, x, magnitude=there != "exp_avg")
        y = laid_out(layout, name, x, f"{what}, as params{_keystr(path)},", shape_of(p))
        yield _FIELDS[there], Arrival(what, y) if layout else Arrival(what, y, at_rest)


def _plain(entry: dict[str, Any], name: Name) -> dict[str, Any]:
    return {
        there: (array_of(x, f"{there} of {name!r}"), lambda _: None)
        for there, x in entry.items()
        if there in _FIELDS
    }


def _leaving(
    group: Mapping[str, Any],
    count: int,
    row: Mapping[str, np.ndarray],
    path: Path,
    name: Name,
    layout: Layout | None,
) -> Iterator[tuple[str, Any]]:
    """What PyTorch keeps of a parameter."""
    kind, fields = _kind(group)
    wanted = {_FIELDS[field] for field in fields}
    if set(row) != wanted:
        raise ValueError(
            f"torch.optim.{kind} keeps {sorted(wanted)}, the state {sorted(row)} of"
            f" params{_keystr(path)}"
        )
    dtype = row["mu"].dtype
    yield "step", count if kind == "SparseAdam" else np.array(count, dtype)
    if kind == "NAdam":
        yield "mu_product", np.array(_momenta(group, count), dtype)
    for field in fields:
        x = row[_FIELDS[field]]
        yield field, x if layout is None else np.asarray(layout(name, x))


def _kind(group: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Which optimizer a group of parameters is of, and the moments that it keeps."""
    for kind, keys, fields in _KINDS:
        if {"betas", *keys} <= set(group):
            return kind, (*fields, "max_exp_avg_sq") if group.get("amsgrad") else fields
    raise ValueError(f"`like` must be of an Adam of PyTorch, got groups with {sorted(group)}")


def _momenta(group: Mapping[str, Any], step: int) -> float:
    """The product of NAdam's momenta until a step."""
    t = np.arange(1, step + 1)
    momenta = group["betas"][0] * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"]))
    return float(np.prod(momenta))


def _require_momenta(
    group: Mapping[str, Any], entry: Mapping[str, Any], name: Name, step: int
) -> None:
    """Check that the product of NAdam's momenta is what follows from its arguments."""
    if "mu_product" not in entry or "momentum_decay" not in group:
        return
    expected, found = _momenta(group, step), float(array_of(entry["mu_product"], "mu_product"))
    if not math.isclose(found, expected, rel_tol=1e-3, abs_tol=1e-30):
        raise ValueError(
            f"mu_product of {name!r} must be {expected:.3g}, which follows from betas and"
            f" momentum_decay, got {found:.3g}: did they change during training?"
        )


def _step(step: Any, name: Name) -> int:
    """A count of steps, which PyTorch keeps as a number or as a floating tensor."""
    what = f"step of {name!r}"
    return count_of(what, array_of(step, what), least=1)


def _common(steps: Mapping[Name, int]) -> int:
    """The count of steps of all parameters, for here there is one."""
    if not steps:
        raise ValueError(
            "the state dict must hold the state of a parameter, got none: no step done"
        )
    first, count = next(iter(steps.items()))
    for name, step in steps.items():
        if step != count:
            raise ValueError(
                f"all parameters must have one step, got {count} of {first!r}, {step} of {name!r}"
            )
    return count
