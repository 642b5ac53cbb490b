"""What a step on some rows of a table costs, beside a step on all of it.

The reference is `adam_jax.adam` on the whole table, its gradient an array. The contestants are
`adam_jax.lazy_adam` in each of its ways to catch up, the touched rows drawn anew for each of a few
steps, in turn. They are distinct, as `adam_jax.value_and_row_grad` gives them; where they are not,
the step sums what is there twice. All are donated, with `optax.apply_updates`, and run one after
another in a random order each round; a ratio is the median over rounds of the ratio in the same
round. The limit is what each must do at least: it adds the gradient to these rows of the table and
of two moments. Temporaries are XLA's count.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).parent))

from speed import Parser, show, surroundings

import adam_jax

WIDTH, TURNS = 64, 4
# Rows of the table, and rows touched: the first is the target, the others how it grows.
FULL = ((1_000_000, 10_000), (1_000_000, 1_000), (100_000, 1_000))
QUICK = ((1_000, 10),)
HEADER = ["contestant", "ms", "ratio", "temporaries, bytes", "of the table"]


class Entrant:
    """A donated step, and gradients for it to take in turn."""

    def __init__(self, name: str, tx: Any, size: int, gradients: Sequence[Any]) -> None:
        def step(table: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
            updates, state = tx.update(gradient, state, table)
            return optax.apply_updates(table, updates), state

        self.name, self.gradients, self.seconds = name, gradients, list[float]()
        self.table = jnp.zeros((size, WIDTH))
        self.state = tx.init(self.table)
        options = adam_jax.compiler_options()
        jitted = jax.jit(step, donate_argnums=(0, 1), compiler_options=options)
        self.step = jitted.lower(self.table, self.state, gradients[0]).compile()
        self.temporaries = self.step.memory_analysis().temp_size_in_bytes
        self.run()

    def run(self) -> None:
        start = time.perf_counter()
        for gradient in self.gradients:
            self.table, self.state = self.step(self.table, self.state, gradient)
        jax.block_until_ready(self.table)
        self.seconds.append((time.perf_counter() - start) / len(self.gradients))


def limit() -> optax.GradientTransformation:
    """The rows of a table and of two moments, read and written; no Adam."""

    def init(table: Any) -> Any:
        return jnp.zeros_like(table), jnp.zeros_like(table)

    def update(rows: Any, state: Any, table: Any = None) -> tuple[Any, Any]:
        del table
        return rows, tuple(moment + rows for moment in state)

    return optax.GradientTransformation(init, update)


def every_leaf(path: Any, leaf: Any) -> bool:
    del path, leaf
    return True


def measure(size: int, touched: int, rounds: int) -> list[list[str]]:
    keys = jax.random.split(jax.random.key(0), TURNS)
    given = [
        adam_jax.Rows(
            jax.random.choice(key, size, (touched,), replace=False).astype(jnp.int32),
            jax.random.normal(key, (touched, WIDTH)),
            size,
        )
        for key in keys
    ]
    rows = [each.summed() for each in given]
    whole = [jax.random.normal(keys[0], (size, WIDTH))] * TURNS
    entrants = [Entrant("adam, the whole table", adam_jax.adam(1e-3), size, whole)]
    for catch_up in ("none", "decay", "exact"):
        tx = adam_jax.lazy_adam(1e-3, catch_up=catch_up, tables=every_leaf)
        entrants.append(Entrant(f"lazy_adam, {catch_up}", tx, size, rows))
        if catch_up == "none":
            entrants.append(Entrant("the same, not distinct", tx, size, given))
    entrants.append(Entrant("limit: three tables' rows", limit(), size, rows))
    for entrant in entrants:
        entrant.seconds.clear()
    orders = random.Random(0)
    for _ in range(rounds):
        for entrant in orders.sample(entrants, len(entrants)):
            entrant.run()
    return [row(entrant, entrants[0], size) for entrant in entrants]


def row(entrant: Entrant, reference: Entrant, size: int) -> list[str]:
    ratios = [a / b for a, b in zip(entrant.seconds, reference.seconds, strict=True)]
    return [
        *(entrant.name, f"{statistics.median(entrant.seconds) * 1e3:.2f}"),
        *(f"{statistics.median(ratios):.3f}", str(entrant.temporaries)),
        f"{entrant.temporaries / (size * WIDTH * 4):.4f}",
    ]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    cases, rounds = (QUICK, 2) if options.quick else (FULL, 7)
    about = surroundings()
    print(f"{about['date']}, {about['device']}, {about['cores']} cores, load {about['load']}")
    print(", ".join(f"{name} {number}" for name, number in about["versions"].items()))
    for size, touched in cases:
        title = f"{touched} rows of {size}, {WIDTH} wide: median of {rounds} rounds of {TURNS}"
        show(title, HEADER, measure(size, touched, rounds))


if __name__ == "__main__":
    main()
