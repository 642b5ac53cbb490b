"""Moments of few bits against those of bitsandbytes and torchao: loss, memory, and time.

    pip install -e '.[bench]' && python benchmarks/peers.py

**Loss and memory**: a classifier of digits, 64-256-256-10, batch 32, ten epochs at 1e-3, from the
same parameters and the same batches. Its two large matrices are quantised (of at least 4096
elements, which is the default of all three), the rest is float32. "to float32" is the loss over
that of our float32 Adam from the same seed. State bytes a parameter are those of the arrays that
the optimizer holds for one tensor of 4M elements, code books included.

**Time**: a step on one tensor, with a gradient that is given, as `speed.py` takes it: all
contestants in one process, in turn, in each round another one first. The ratio is ours over the
peer's, the median over rounds of the two times in one round, with the quartiles. Ours is jitted,
donated, and compiled with `adam_jax.compiler_options()`. torchao compiles its own step with
`torch.compile`, which needs a C++ compiler; bitsandbytes has its own library.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

# Threads that wait for work by spinning would take the cores from those who run next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import bitsandbytes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torchao.optim
from small_memory import span
from speed import Parser, cores, ratios, rotations, show, surroundings

import adam_jax
from adam_jax import storage
from adam_jax.race import problem

LEARNING_RATE = 1e-3
WIDTHS = (64, 256, 256, 10)
Params = dict[str, Any]
OURS: dict[str, Callable[[], Any]] = {
    "ours, float32": storage.float32,
    "ours, bfloat16": storage.bfloat16,
    "ours, eight_bit": storage.eight_bit,
    "ours, float8": storage.float8,
    "ours, four_bit": storage.four_bit,
}
PEERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "torch Adam": lambda params: torch.optim.Adam(params, lr=LEARNING_RATE, fused=True),
    "bitsandbytes Adam8bit": lambda params: bitsandbytes.optim.Adam8bit(params, lr=LEARNING_RATE),
    "torchao Adam8bit": lambda params: torchao.optim.Adam8bit(params, lr=LEARNING_RATE),
    "torchao AdamFp8": lambda params: torchao.optim.AdamFp8(params, lr=LEARNING_RATE),
    "torchao Adam4bit": lambda params: torchao.optim.Adam4bit(params, lr=LEARNING_RATE),
}
# Whose step is compared with whose.
PAIRS = {
    "torch Adam": ("ours, float32", "ours, bfloat16"),
    "bitsandbytes Adam8bit": ("ours, eight_bit", "ours, float8", "ours, bfloat16"),
    "torchao Adam8bit": ("ours, eight_bit", "ours, float8", "ours, bfloat16"),
    "torchao AdamFp8": ("ours, float8",),
    "torchao Adam4bit": ("ours, four_bit",),
}


class Plan(NamedTuple):
    """What to measure."""

    seeds: int
    epochs: int
    sizes: tuple[int, ...]
    rounds: int


FULL = Plan(5, 10, (2**22, 2**24), 11)
QUICK = Plan(1, 1, (2**16,), 3)


def adam_in(name: str) -> Any:
    return adam_jax.adam(LEARNING_RATE, mu_dtype=OURS[name](), nu_dtype=OURS[name]())


# --- Loss ----------------------------------------------------------------------------------------


class Course(NamedTuple):
    """What everyone starts from and sees, of one seed."""

    params: Params
    batches: np.ndarray  # rows of the data: (epochs * steps, batch)


def course(seed: int, plan: Plan) -> Course:
    """Glorot-uniform matrices, zero biases, and the data in a new order each epoch."""
    rng = np.random.default_rng(seed)
    params = {}
    for i, (rows, columns) in enumerate(pairwise(WIDTHS)):
        limit = np.sqrt(6 / (rows + columns))
        params[f"w{i}"] = rng.uniform(-limit, limit, (rows, columns)).astype(np.float32)
        params[f"b{i}"] = np.zeros(columns, np.float32)
    size, batch = len(DIGITS.feed.data[0]), 32
    epochs = [rng.permutation(size)[: size // batch * batch] for _ in range(plan.epochs)]
    return Course(params, np.stack(epochs).reshape(-1, batch))


DIGITS = problem.load("digits")
IMAGES, LABELS = (np.asarray(array) for array in DIGITS.feed.data)


def logits(params: Params, x: Any, relu: Callable[[Any], Any]) -> Any:
    """The network's outputs; the same code for JAX's arrays and torch's tensors."""
    for i in range(len(WIDTHS) - 1):
        x = x @ params[f"w{i}"] + params[f"b{i}"]
        x = relu(x) if i < len(WIDTHS) - 2 else x
    return x


def our_losses(name: str, courses: Sequence[Course]) -> list[float]:
    """The mean loss over the training data after the last step, for each course."""
    tx = adam_in(name)

    def loss(params: Params, images: Any, labels: Any) -> Any:
        outputs = logits(params, images, jax.nn.relu)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))

    def advance(carry: Any, rows: Any) -> Any:
        params, state = carry
        gradients = jax.grad(loss)(params, jnp.asarray(IMAGES)[rows], jnp.asarray(LABELS)[rows])
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params: Params, batches: Any) -> Any:
        (params, _), _ = jax.lax.scan(advance, (params, tx.init(params)), batches)
        return loss(params, IMAGES, LABELS)

    return [float(train(each.params, each.batches)) for each in courses]


def peer_losses(name: str, courses: Sequence[Course]) -> list[float]:
    """The same in torch."""
    images, labels = torch.tensor(IMAGES), torch.tensor(LABELS).long()
    losses = []
    for each in courses:
        params = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in each.params.items()}
        optimizer = PEERS[name](list(params.values()))

        def loss(rows: Any, params: Params = params) -> Any:
            outputs = logits(params, images[rows], torch.relu)
            return torch.nn.functional.cross_entropy(outputs, labels[rows])

        for rows in torch.from_numpy(each.batches):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
        with torch.no_grad():
            losses.append(float(loss(slice(None))))
    return losses


def loss_rows(plan: Plan) -> Iterator[list[str]]:
    courses = [course(seed, plan) for seed in range(plan.seeds)]
    found = {name: our_losses(name, courses) for name in OURS}
    found |= {name: peer_losses(name, courses) for name in PEERS}
    reference = found["ours, float32"]
    for name, losses in found.items():
        compared = [a / b for a, b in zip(losses, reference, strict=True)]
        bytes_ = our_bytes(name) if name in OURS else peer_bytes(name)
        yield [name, span(losses), span(compared), f"{bytes_:.3f}"]


# --- Memory --------------------------------------------------------------------------------------


def our_bytes(name: str, size: int = 2**22) -> float:
    state = adam_in(name).init(jnp.zeros(size))
    return sum(array.nbytes for array in jax.tree.leaves(state)) / size


def peer_bytes(name: str, size: int = 2**22) -> float:
    param = torch.nn.Parameter(torch.zeros(size))
    param.grad = torch.ones(size)
    optimizer = PEERS[name]([param])
    optimizer.step()
    return sum(map(tensor_bytes, optimizer.state[param].values())) / size


def tensor_bytes(value: Any) -> int:
    """Of a tensor, or of the tensors that one of torchao's consists of."""
    if not isinstance(value, torch.Tensor):
        return 0
    if hasattr(value, "__tensor_flatten__"):
        return sum(tensor_bytes(getattr(value, part)) for part in value.__tensor_flatten__()[0])
    return value.nbytes


# --- Time ----------------------------------------------------------------------------------------


def our_step(name: str, gradient: np.ndarray) -> Callable[[], None]:
    tx = adam_in(name)

    def step(params: Any, gradient: Any, state: Any) -> Any:
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 2), compiler_options=adam_jax.compiler_options())
    given, params = jnp.asarray(gradient), jnp.zeros(gradient.shape)
    carry = params, tx.init(params)

    def run() -> None:
        nonlocal carry
        params, state = carry
        carry = jax.block_until_ready(jitted(params, given, state))

    return run


def peer_step(name: str, gradient: np.ndarray) -> Callable[[], None]:
    param = torch.nn.Parameter(torch.zeros(gradient.shape))
    param.grad = torch.from_numpy(gradient)
    optimizer = PEERS[name]([param])

    def run() -> None:
        optimizer.step()

    return run


def seconds(size: int, rounds: int) -> dict[str, list[float]]:
    """A step of each contestant in each round, after two that are not counted."""
    gradient = np.random.default_rng(0).standard_normal(size, np.float32)
    runs = {name: our_step(name, gradient) for name in OURS}
    runs |= {name: peer_step(name, gradient) for name in PEERS}
    for run in runs.values():
        for _ in range(2):
            run()
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for order in rotations(list(runs), rounds):
        for name in order:
            start = time.perf_counter()
            runs[name]()
            measured[name].append(time.perf_counter() - start)
    return measured


def show_times(size: int, rounds: int) -> None:
    measured = seconds(size, rounds)
    rows = [[name, f"{median(times) * 1e3:.2f}"] for name, times in measured.items()]
    show(f"Step on one tensor of {size:,}: median of {rounds} rounds", ["", "ms"], rows)
    rows = []
    for peer, ours in PAIRS.items():
        for name in ours:
            middle, low, high = ratios(measured[name], measured[peer])
            rows.append([f"{name} / {peer}", f"{middle:.3f}", f"{low:.2f}-{high:.2f}"])
    show("Ours over theirs", ["", "ratio", "quartiles"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    plan = QUICK if parser.parse_args(argv).quick else FULL
    torch.set_num_threads(cores())
    about = surroundings()
    about["versions"] |= {name: version(name) for name in ("bitsandbytes", "torchao")}
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    print(f"{about['date']}, {about['device']}, {about['cores']} cores, load {about['load']}")
    print(versions)
    title = f"Digits, 64-256-256-10, {plan.epochs} epochs, {plan.seeds} seeds; bytes a parameter"
    show(title, ["", "training loss", "to float32", "state bytes"], list(loss_rows(plan)))
    for size in plan.sizes:
        show_times(size, plan.rounds)


if __name__ == "__main__":
    main()
