"""What a micro-step of gradient accumulation costs, beside adding the gradient in place.

The reference is a bare ``accumulator + gradient``, jitted, the accumulator donated: 12 bytes a
parameter. The contestants are micro-steps of `adam_jax.accumulate`, told so before the program is
compiled (``full_step=False``) or by a conditional while it runs, also with `skip_unstable` inside,
where it judges full steps, or outside, where it judges micro-steps, and of `optax.MultiSteps`; with
`optax.apply_updates` (parameters and state donated) and without (gradients and state donated).
"+ options" are `adam_jax.compiler_options`. Twins of one state share their arrays and step on in
turn, in a random order each round, for some leave memory slow for whoever follows; a ratio is the
median over rounds of the ratio to the reference in the same round. "again" is the same addition on
other arrays: what it is off 1 is noise. Bytes and temporaries are XLA's counts, a parameter. Of a
conditional it counts both branches and their temporaries, also where they are not run: there they
say nothing of a micro-step.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).parent))

from speed import Case, Contestant, Counts, Parser, count, ratios, show, surroundings

import adam_jax
from adam_jax import storage
from adam_jax.services.accumulate import accumulate
from adam_jax.services.skip_unstable import skip_unstable

REFERENCE = "bare addition"
MANY = 2**30  # so that no step is ever full
FULL = ((Case(1, 2**25), 2), (Case(32, 2**20), 2))
QUICK = ((Case(1, 2**12), 1), (Case(2, 2**11), 1))
HEADER = ["contestant", "ms", "ratio", "quartiles", "bytes", "temporaries", "copies"]
Tree = list[Any]


class Shared:
    """Arrays that contestants with one kind of state step on in turn."""

    def __init__(self, case: Case, init: Callable[[Tree], Any]) -> None:
        self.params = [jnp.zeros(case.size) for _ in range(case.leaves)]
        self.gradients = gradients(case)
        self.state = init(self.params)

    def contestant(self, name: str, update: Any, applied: bool, options: Any) -> Contestant:
        def step(gradients: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
            updates, state = update(gradients, state, params)
            return (optax.apply_updates(params, updates) if applied else updates), state

        # In the order of what comes out, for JAX gives to each result the first array that fits.
        if applied:
            jitted = jax.jit(
                lambda params, state, gradients: step(gradients, state, params),
                donate_argnums=(0, 1),
                compiler_options=options,
            )
            arguments = self.params, self.state, self.gradients
        else:
            jitted = jax.jit(step, donate_argnums=(0, 1), compiler_options=options)
            arguments = self.gradients, self.state, self.params
        size = sum(p.size for p in self.params)

        def run(steps: int) -> None:
            for _ in range(steps):
                if applied:
                    self.params, self.state = jitted(self.params, self.state, self.gradients)
                else:
                    self.gradients, self.state = jitted(self.gradients, self.state, self.params)
            jax.block_until_ready((self.gradients, self.params, self.state))

        return Contestant(name, run, counts=count(jitted.lower(*arguments).compile(), size))


def gradients(case: Case) -> Tree:
    return [
        jax.random.normal(key, (case.size,))
        for key in jax.random.split(jax.random.key(0), case.leaves)
    ]


def addition(case: Case, name: str) -> Contestant:
    accumulator, fixed = [jnp.zeros(case.size) for _ in range(case.leaves)], gradients(case)
    add = jax.jit(lambda acc, g: [a + b for a, b in zip(acc, g, strict=True)], donate_argnums=0)
    counts = count(add.lower(accumulator, fixed).compile(), case.parameters)

    def run(steps: int) -> None:
        nonlocal accumulator
        for _ in range(steps):
            accumulator = add(accumulator, fixed)
        jax.block_until_ready(accumulator)

    return Contestant(name, run, counts=counts)


def contestants(case: Case, applied: bool) -> list[Contestant]:
    options = adam_jax.compiler_options()
    entrants = [addition(case, REFERENCE)]
    adam, few = adam_jax.adam(1e-3), storage.eight_bit(min_size=0)
    optimizers = {
        "adam": accumulate(adam, MANY),
        "adam, eight_bit": accumulate(adam_jax.adam(1e-3, mu_dtype=few, nu_dtype=few), MANY),
        "skip_unstable inside": accumulate(skip_unstable(adam), MANY),
        "skip_unstable outside": skip_unstable(accumulate(adam, MANY)),
    }
    for name, tx in optimizers.items():
        shared = Shared(case, tx.init)

        def static(g: Any, s: Any, p: Any, tx: Any = tx) -> Any:
            return tx.update(g, s, p, full_step=False)

        for suffix, chosen in (("", None), (" + options", options)):
            for kind, update in ((", static", static), (", dynamic", tx.update)):
                entrant = shared.contestant(f"{name}{kind}{suffix}", update, applied, chosen)
                entrants.append(entrant)
    entrants.append(addition(case, f"{REFERENCE}, again"))
    multi = optax.MultiSteps(optax.adam(1e-3), MANY)
    entrants.append(
        Shared(case, multi.init).contestant("optax.MultiSteps", multi.update, applied, None)
    )
    return entrants


def measure(case: Case, applied: bool, rounds: int, steps: int) -> list[list[str]]:
    entrants = contestants(case, applied)
    for entrant in entrants:
        entrant.run(2)
    orders = random.Random(0)
    for _ in range(rounds):
        for entrant in orders.sample(entrants, len(entrants)):
            entrant.run(1)
            start = time.perf_counter()
            entrant.run(steps)
            entrant.seconds.append((time.perf_counter() - start) / steps)
    return [row(entrant, entrants[0], case) for entrant in entrants]


def row(entrant: Contestant, reference: Contestant, case: Case) -> list[str]:
    middle, low, high = ratios(entrant.seconds, reference.seconds)
    counts = entrant.counts
    assert isinstance(counts, Counts)
    return [
        *(entrant.name, f"{statistics.median(entrant.seconds) * 1e3:.2f}", f"{middle:.2f}"),
        *(f"{low:.2f}-{high:.2f}", f"{counts.bytes_per_parameter:.2f}"),
        *(f"{(counts.temporary_bytes or 0) / case.parameters:.2f}", str(counts.copies)),
    ]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    cases, rounds = (QUICK, 2) if options.quick else (FULL, 11)
    about = surroundings()
    print(f"{about['date']}, {about['device']}, {about['cores']} cores, load {about['load']}")
    print(", ".join(f"{name} {number}" for name, number in about["versions"].items()))
    for case, steps in cases:
        for applied in (True, False):
            what = "and optax.apply_updates" if applied else "alone"
            title = f"Micro-step, `update` {what}, {case}: median of {rounds} rounds of {steps}"
            show(title, HEADER, measure(case, applied, rounds, steps))


if __name__ == "__main__":
    main()
