"""What a step of each member costs, beside the same member in Optax.

Members are those of `adam-jax optimizers`, all of them; each with a namesake in Optax is timed
against it, a ``w`` that Optax lacks against the same without decay, and the others, which have no
twin there, against `optax.adam`. Each is compiled twice, in the order ours, theirs, theirs, ours,
for the place in that order may matter more than the optimizer; the ratio in a round is of the sums
of both. Twins of one state share their arrays and step on in turn, forwards and backwards by round,
so that noise meets all; the ratio printed is the median over the rounds.
Temporaries and bytes are XLA's counts, and exact.
"""

import argparse
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

from speed import Parser, Training, surroundings

from adam_jax.race.members import MEMBERS

LEARNING_RATE = 1e-3
# Steps that look at a whole array cannot be one loop.
WHOLE = ("adam_mini", "cautious", "lamb", "mars", "stable_adamw")


def twin(name: str) -> tuple[str, Any] | None:
    """The optimizer of Optax of this name, or the same without decay, which costs no pass."""
    names = (name, name.removesuffix("w"))
    found = [(each, getattr(m, each, None)) for each in names for m in (optax, optax.contrib)]
    return next(((each, optimizer) for each, optimizer in found if optimizer), None)


def measure(name: str, leaves: int, size: int, rounds: int, steps: int) -> list[str]:
    beside, theirs = twin(name) or ("adam (no twin)", optax.adam)
    keys = jax.random.split(jax.random.key(0), leaves)
    gradients = [jax.random.normal(key, (size,)) for key in keys]

    def training(tx: Any) -> Training:
        params = [jnp.zeros_like(g) for g in gradients]
        return Training(params, gradients, tx.init(params))

    ours, reference = MEMBERS[name].build(LEARNING_RATE), theirs(LEARNING_RATE)
    first = training(ours)
    # One and the same arrays, if they fit both.
    alike = jax.tree.structure(first.state) == jax.tree.structure(reference.init(gradients))
    second = first if twin(name) and alike else training(reference)
    both = [(first, ours), (second, reference)]
    entrants = [training.contestant("", tx, None) for training, tx in both + both[::-1]]
    for entrant in entrants:
        entrant.run(2)
    for number in range(rounds):
        for entrant in entrants[:: 1 if number % 2 else -1]:
            entrant.run(1)
            start = time.perf_counter()
            entrant.run(steps)
            entrant.seconds.append((time.perf_counter() - start) / steps)
    mine, other = entrants[:2]
    rows = zip(*[entrant.seconds for entrant in entrants], strict=True)
    ratios = [(a + d) / (b + c) for a, b, c, d in rows]
    low, middle, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
    parameters = leaves * size
    assert mine.counts
    assert other.counts
    temporaries = [(c.temporary_bytes or 0) / parameters for c in (mine.counts, other.counts)]
    accessed = [c.bytes_per_parameter for c in (mine.counts, other.counts)]
    kind = "whole array" if name in WHOLE else "elementwise"
    return [
        *(name, kind, f"optax.{beside}"),
        f"{middle:.2f} ({low:.2f}-{high:.2f})",
        *(f"{ours:.2f} / {theirs:.2f}" for ours, theirs in (temporaries, accessed)),
    ]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("members", nargs="*", help=f"some of {', '.join(MEMBERS)} (default: all)")
    parsed = parser.parse_args(argv)
    for name in parsed.members:
        if name not in MEMBERS:
            parser.error(f"argument members: must be some of {', '.join(MEMBERS)}; got {name!r}")
    return parsed


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    leaves, size, rounds, steps = (2, 2**12, 2, 1) if options.quick else (8, 2**21, 15, 3)
    about = surroundings()
    print(f"{about['date']}, {about['device']}, {about['cores']} cores, load {about['load']}")
    print(", ".join(f"{name} {number}" for name, number in about["versions"].items()))
    print(f"Step of {leaves} leaves of {size}, donated: median of {rounds} rounds of {steps}")
    print("| member | | beside | time, ratio (quartiles) | temporaries, bytes | bytes accessed |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in options.members or MEMBERS:
        print(f"| {' | '.join(measure(name, leaves, size, rounds, steps))} |", flush=True)


if __name__ == "__main__":
    main()
