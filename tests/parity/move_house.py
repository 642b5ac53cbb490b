"""Moves states between this package and the frameworks themselves, and goes on in both.

    python tests/parity/move_house.py --torch --keras

It needs what ``pip install -e '.[parity]'`` installs, and prints a line a case. Into the package
the suite moves states from the golden traces; here they move out of it, into real optimizers, and
through real tensors, variables and files.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from make_traces import run_keras
from traces import DTYPES, FOLDER, Case, call, load, split

import adam_jax
from adam_jax import like_keras, like_torch
from adam_jax.interop.keras import from_keras, to_keras
from adam_jax.interop.torch import from_torch, to_torch
from adam_jax.interop.torch_files import read_torch, write_torch

AT, NEXT = 100, 100
BOUND = {"float64": 1e-12, "float32": 1e-6}
Result = tuple[str, float, float]  # what, how far it is off, and how far it may be


def descend(tx: Any, params: Any, state: Any, gradients: Any) -> Any:
    """Parameters and state after all steps."""

    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry, stream: jax.lax.scan(step, carry, stream)[0])
    return run((params, state), gradients)


def apart(ours: Any, theirs: Any) -> float:
    """The largest relative difference of two trees of parameters."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - b) / np.abs(b))) for a, b in pairs)


def cases(framework: str) -> Iterator[tuple[str, str, Case, Any, Any]]:
    """Of every case and dtype: names, the case, the parameters, and the gradients."""
    traces = load(FOLDER / f"{framework}.npz").first_array()
    for name, case in traces.cases.items():
        if case.optimizer == "SparseAdam":
            continue  # see `with_sparse`
        for dtype in DTYPES:
            jax.config.update("jax_enable_x64", dtype == "float64")
            both = traces.initial, traces.gradients
            yield name, dtype, case, *(split(x.astype(dtype), traces.about["shapes"]) for x in both)


def moved_out(framework: str, module: Any, leave: Callable[..., Any]) -> Iterator[Result]:
    """Every case runs here, moves out, and goes on in both."""
    for name, dtype, case, params, gradients in cases(framework):
        tx = call(module, case)
        first, then = ({"w": gradients["w"][part]} for part in (slice(AT), slice(AT, AT + NEXT)))
        start = jax.tree.map(jnp.asarray, params)
        moved, state = descend(tx, start, tx.init(start), first)
        ours, _ = descend(tx, moved, state, then)
        theirs = leave(case, dtype, state, moved, then)
        yield f"{framework} {name} {dtype}: next {NEXT} steps", apart(ours, theirs), BOUND[dtype]


def into_torch(case: Case, dtype: str, state: Any, params: Any, gradients: Any) -> Any:
    """What PyTorch makes of the parameters from there on."""
    import torch

    torch.set_default_dtype(getattr(torch, dtype))
    leaf = torch.nn.Parameter(torch.tensor(np.array(params["w"])))
    optimizer = getattr(torch.optim, case.optimizer)([("w", leaf)], **case.arguments)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, case.schedule)
    like = optimizer.state_dict()
    moved = to_torch(state, params, {"w": "w"}, like, tensor=torch.from_numpy)
    optimizer.load_state_dict(moved)
    schedule.last_epoch = AT  # schedules are the user's to move
    for group in optimizer.param_groups:
        group["lr"] = schedule.base_lrs[0] * case.schedule**AT
    for g in gradients["w"]:
        leaf.grad = torch.tensor(g)
        optimizer.step()
        schedule.step()
    return {"w": leaf.detach().numpy()}


def into_keras(case: Case, dtype: str, state: Any, params: Any, gradients: Any) -> Any:
    """What Keras makes of the parameters from there on."""

    def move_in(optimizer: Any) -> None:
        like = optimizer.variables
        moved = to_keras(state, params, {"w": "w"}, like, beta_1=0.9)
        for variable, value in zip(like, moved.values(), strict=True):
            variable.assign(value)
        again = from_keras(optimizer.variables, call(like_keras, case), params, {"w": "w"})
        assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(state)))

    *_, (theirs, _) = run_keras(case, dtype, params, gradients, move_in)
    return theirs


def with_tensors() -> Iterator[Result]:
    """Real tensors and files of them are what their arrays are."""
    import torch

    jax.config.update("jax_enable_x64", False)
    torch.set_default_dtype(torch.float32)
    gradients = {"w": np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)}
    tx, params = like_torch.Adam(), {"w": jnp.ones((4, 3))}
    for dtype, exact in (("float32", np.float32), ("bfloat16", ml_dtypes.bfloat16)):
        leaf = torch.nn.Parameter(torch.ones(4, 3, dtype=getattr(torch, dtype)))
        optimizer = torch.optim.Adam([leaf], foreach=False)
        for g in gradients["w"]:
            leaf.grad = torch.tensor(g).to(leaf.dtype)
            optimizer.step()
        state_dict = optimizer.state_dict()
        state = from_torch(state_dict, tx, params, {"w": 0})
        wide = state_dict["state"][0]["exp_avg"].float().numpy()
        yield f"torch tensors of {dtype}", float(np.abs(state[0].mu["w"] - wide).max()), 0.0
        out = to_torch(state, params, {"w": 0}, state_dict)["state"][0]["exp_avg"]
        yield f"and back to {dtype}", float(np.abs(out.astype(exact) - wide).max()), 0.0
    yield from with_files(torch, tx, params, state_dict, wide)


def with_files(torch: Any, tx: Any, params: Any, state_dict: Any, mean: Any) -> Iterator[Result]:
    """Files of PyTorch are read, and those that are written are read by PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.pt"
        torch.save({"model": {}, "optimizer": state_dict}, file)
        state = from_torch(read_torch(file)["optimizer"], tx, params, {"w": 0})
        yield "a file of torch.save", float(np.abs(state[0].mu["w"] - mean).max()), 0.0
        write_torch(file, to_torch(state, params, {"w": 0}, state_dict))
        again = torch.load(file, weights_only=True)["state"][0]["exp_avg"].numpy()
        yield "a file for torch.load", float(np.abs(again - mean).max()), 0.0
        content = file.read_bytes()
        for fault, bad in (("truncated", content[:99]), ("empty", b""), ("foreign", b"\x89PNG")):
            file.write_bytes(bad)
            try:
                read_torch(file)
                said = "nothing"
            except ValueError as error:
                said = str(error)
            yield f"{fault}: {said}", float("must be a file of torch.save" not in said), 0.0


def with_sparse() -> Iterator[Result]:
    """SparseAdam, where every row has a gradient, is Adam with "epsilon hat"."""
    import torch

    jax.config.update("jax_enable_x64", True)
    torch.set_default_dtype(torch.float64)
    gradients = np.random.default_rng(0).normal(size=(2 * NEXT, 4, 3))
    leaf = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = torch.optim.SparseAdam([leaf])
    for step, g in enumerate(gradients):
        if step == NEXT:
            tx = adam_jax.adam(1e-3, eps_hat=True)
            params = {"w": jnp.asarray(leaf.detach().numpy().copy())}
            state = from_torch(optimizer.state_dict(), tx, params, {"w": 0})
            out = to_torch(state, params, {"w": 0}, optimizer.state_dict(), tensor=torch.from_numpy)
            optimizer.load_state_dict(out)
        leaf.grad = torch.tensor(g).to_sparse(1)
        optimizer.step()
    ours, _ = descend(tx, params, state, {"w": gradients[NEXT:]})
    yield f"SparseAdam: next {NEXT} steps", apart(ours, {"w": leaf.detach().numpy()}), 1e-12


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    for framework in ("torch", "keras"):
        parser.add_argument(f"--{framework}", action="store_true")
    chosen = parser.parse_args()
    results: list[Iterator[Result]] = []
    if chosen.torch:
        results += [
            moved_out("torch", like_torch, into_torch),
            with_tensors(),
            with_sparse(),
        ]
    if chosen.keras:
        results += [moved_out("keras", like_keras, into_keras)]
    failed = 0
    for result in results:
        for what, off, bound in result:
            failed += not off <= bound
            print(f"{'ok' if off <= bound else 'FAILED':6} {what}: {off:.1e}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
