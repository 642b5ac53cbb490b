"""What each service around an optimizer costs: a step with it over the same step without.

    python benchmarks/services.py

A step is jitted, with parameters and state donated and `adam_jax.compiler_options`. In a pure
optimizer step the gradients are given, so that nothing hides a service's own passes over them; in a
training step they are those of a network. All contestants of a case step on the same large arrays,
in turn, the first one a different one every round. Read the ratios: each is the median over rounds
of a contestant's time over that of the optimizer alone in the same round, quartiles beside it.
"bare, again" is the same program compiled again: what it is off 1 is noise.

Temporaries and bytes accessed are XLA's counts, a parameter. It counts both branches of a
conditional, of which `global_norm` takes the second only out of float32's range: 4 bytes that no
step has.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).parent))

from speed import Contestant, Parser, count, ratios, rotations, show, surroundings

import adam_jax
from adam_jax import average_params, clip_by_global_norm, skip_unstable, storage, with_metrics

BARE = "bare"
LARGE = 1024  # entries, from which on arrays are shared


class Service(NamedTuple):
    """A service around an optimizer, and how many calls of ``update`` it makes a whole step of."""

    wrap: Callable[[Any], Any]
    calls: int = 1


#: A row each: our services, each beside what Optax has for it.
SERVICES: dict[str, Service] = {
    BARE: Service(lambda inner: inner),
    f"{BARE}, again": Service(lambda inner: inner),
    "clip_by_global_norm": Service(lambda inner: optax.chain(clip_by_global_norm(1.0), inner)),
    "optax.clip_by_global_norm": Service(
        lambda inner: optax.chain(optax.clip_by_global_norm(1.0), inner)
    ),
    "skip_unstable": Service(skip_unstable),
    "skip_unstable, threshold": Service(partial(skip_unstable, threshold=6.0)),
    "with_metrics": Service(with_metrics),
    "with_metrics, every 10": Service(partial(with_metrics, every=10)),
    "with_metrics, all": Service(partial(with_metrics, successive=True, paths="")),
    "average_params": Service(lambda inner: optax.chain(inner, average_params(0.999))),
    "optax.apply_if_finite": Service(partial(optax.apply_if_finite, max_consecutive_errors=5)),
}


@dataclass(frozen=True)
class Case:
    """What is trained: parameters, data, and the loss and gradients that these have."""

    name: str
    make: Callable[[], tuple[Any, Any]]
    value_and_grad: Callable[[Any, Any], tuple[Any, Any]]
    moments: Any = None
    steps: int = 3

    def optimizer(self) -> Any:
        return adam_jax.adam(1e-3, mu_dtype=self.moments, nu_dtype=self.moments)


def pure(leaves: int, size: int, moments: Any = None) -> Case:
    """Gradients that are there already."""

    def make() -> tuple[Any, Any]:
        keys = jax.random.split(jax.random.key(0), leaves)
        gradients = [jax.random.normal(key, (size,)) for key in keys]
        return [jnp.zeros_like(g) for g in gradients], gradients

    kind = "float32" if moments is None else str(moments).split("(", maxsplit=1)[0]
    name = f"Optimizer step, {leaves} x {size:,}, {kind} moments"
    return Case(name, make, lambda _, gradients: (jnp.float32(1), gradients), moments)


def network(width: int, layers: int, batch: int) -> Case:
    """A multilayer perceptron that learns the inputs it is given."""

    def make() -> tuple[Any, Any]:
        keys = jax.random.split(jax.random.key(0), layers + 1)
        scale = width**-0.5
        params = [
            {"w": scale * jax.random.normal(key, (width, width)), "b": jnp.zeros(width)}
            for key in keys[1:]
        ]
        return params, jax.random.normal(keys[0], (batch, width))

    def loss(params: Any, x: Any) -> Any:
        y = x
        for layer in params:
            y = jax.nn.gelu(y @ layer["w"] + layer["b"])
        return jnp.mean(jnp.square(y - x))

    name = f"Training step, {layers} layers of {width} x {width}, batch {batch}"
    return Case(name, make, jax.value_and_grad(loss))


EIGHT_BIT = storage.eight_bit(min_size=0)
FULL = (
    pure(1, 2**25),
    pure(32, 2**20),
    pure(1, 2**25, EIGHT_BIT),
    pure(32, 2**20, EIGHT_BIT),
    network(1024, 4, 256),
)
QUICK = (pure(2, 2**12), pure(2, 2**12, EIGHT_BIT), network(32, 2, 8))


def like(wanted: list[Any], found: list[Any]) -> list[int]:
    """Where there are arrays of the shapes and dtypes that are wanted, in this order."""
    places: list[int] = []
    for x in wanted:
        kind = (x.shape, x.dtype)
        begin = places[-1] + 1 if places else 0
        rest = range(begin, len(found))
        places.append(next(i for i in rest if (found[i].shape, found[i].dtype) == kind))
    return places


class Shared:
    """Parameters and moments on which all contestants of a case step in turn."""

    def __init__(self) -> None:
        self.large: list[Any] = []

    def contestant(self, name: str, service: Service, case: Case, data: Any) -> Contestant:
        tx = optax.with_extra_args_support(service.wrap(case.optimizer()))

        def step(params: Any, state: Any, data: Any) -> Any:
            value, gradients = case.value_and_grad(params, data)
            updates, state = tx.update(gradients, state, params, value=value)
            return optax.apply_updates(params, updates), state

        options = adam_jax.compiler_options()
        jitted = jax.jit(step, donate_argnums=(0, 1), compiler_options=options)
        params, _ = case.make()
        leaves, treedef = jax.tree.flatten((params, tx.init(params)))
        start = time.process_time()
        compiled = jitted.lower(*treedef.unflatten(leaves), data).compile()
        seconds = time.process_time() - start
        self.large = self.large or [x for x in leaves if x.size >= LARGE]
        # What only this one has, such as sums of gradients, stays with it.
        places = like(self.large, leaves)
        own = [None if i in places else x for i, x in enumerate(leaves)]

        def run(steps: int) -> None:
            nonlocal own
            for i, x in zip(places, self.large, strict=True):
                own[i] = x
            both, own, self.large = treedef.unflatten(own), [], []
            for _ in range(steps * service.calls):
                both = compiled(*both, data)
            own = jax.tree.leaves(jax.block_until_ready(both))
            self.large = [own[i] for i in places]
            own = [None if i in places else x for i, x in enumerate(own)]

        counts = count(compiled, sum(x.size for x in jax.tree.leaves(params)))
        return Contestant(name, run, seconds, counts)


def measure(case: Case, names: Sequence[str], rounds: int) -> list[Contestant]:
    shared, (_, data) = Shared(), case.make()
    entrants = [shared.contestant(name, SERVICES[name], case, data) for name in names]
    for entrant in entrants:
        entrant.run(2)
    for order in rotations(entrants, rounds):
        for entrant in order:
            calls = case.steps * SERVICES[entrant.name].calls
            entrant.run(1)
            start = time.perf_counter()
            entrant.run(case.steps)
            entrant.seconds.append((time.perf_counter() - start) / calls)
    return entrants


HEADER = ["contestant", "ms a call", "ratio", "quartiles", "temporaries", "bytes", "compile s"]


def rows(case: Case, entrants: list[Contestant]) -> list[list[str]]:
    parameters = sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda: case.make()[0])))
    table = []
    for e in entrants:
        middle, low, high = ratios(e.seconds, entrants[0].seconds)
        assert e.counts is not None
        table.append(
            [
                *(e.name, f"{statistics.median(e.seconds) * 1e3:.2f}"),
                *(f"{middle:.3f}", f"{low:.2f}-{high:.2f}"),
                f"{(e.counts.temporary_bytes or 0) / parameters:.2f}",
                f"{e.counts.bytes_per_parameter:.2f}",
                f"{e.compile_seconds:.2f}",
            ]
        )
    return table


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    names = [name for name in SERVICES if name != BARE]
    parser.add_argument("services", nargs="*", help=f"some of {'; '.join(names)} (default: all)")
    parsed = parser.parse_args(argv)
    for name in parsed.services:
        if name not in names:
            parser.error(f"argument services: must be some of {'; '.join(names)}; got {name!r}")
    return parsed


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    cases, rounds = (QUICK, 3) if options.quick else (FULL, 21)
    names = [BARE, *(options.services or [name for name in SERVICES if name != BARE])]
    about = surroundings()
    print(f"{about['date']}, {about['device']}, {about['cores']} cores, load {about['load']}")
    print(", ".join(f"{name} {number}" for name, number in about["versions"].items()))
    for case in cases:
        title = f"{case.name}: median of {rounds} rounds of {case.steps}, ratio to {BARE}"
        show(title, HEADER, rows(case, measure(case, names, rounds)))


if __name__ == "__main__":
    main()
