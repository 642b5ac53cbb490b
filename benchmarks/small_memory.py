"""What moments of few bits cost in accuracy, and what they save of memory.

    python benchmarks/small_memory.py

Three parts, and `--part` for one of them:

**parity**: the classifier of digits (64-128-10, batch 32), trained with both moments in a format,
every tensor of it, however small. Each moment rounded to the nearest or by chance, in all four
combinations: "nearest / chance" is mu to the nearest and nu by chance. Loss and accuracy are
medians over seeds, with the lowest and the highest; "to float32" is the loss over that of float32
from the same parameters and batches. Two learning rates: Adam's default, at which ten epochs do not
converge, so that the length of steps shows; and the best. (Roundings by chance have one seed.)

**swamping**: averages of 20,000 numbers from [0, 1) with decay rate 0.999; the truth is 0.5. "off"
is the root mean square over lanes of the distance to what float32 averages of the same numbers.
Then, for 20,000 more steps, every other lane has a tenth of such numbers, so that the truth there
is 0.05, in blocks whose largest stays near 0.5.

"four_bit dynamic" is `four_bit` with its mean square on the dynamic map too, for comparison.

**memory**: what XLA allocates for a jitted, donated step on 100M parameters, 24 leaves of 4096 by
1024: `compiled.memory_analysis()`, in bytes a parameter, with `adam_jax.compiler_options()` and
without. Nothing is allocated here. Arguments are parameters, gradients (4 each) and state; the peak
is arguments, outputs that are not written over them, and temporaries. The last column is the
temporaries in units of one leaf's float32 moments (8 bytes for each of its entries).
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from speed import LEARNING_RATE, Parser, show, surroundings

import adam_jax
from adam_jax import storage
from adam_jax.race import problem
from adam_jax.race.entrants import Entrant
from adam_jax.race.results import Failure, Outcome
from adam_jax.race.runner import Settings, race
from adam_jax.storage.blockwise import Blockwise
from adam_jax.storage.dynamic import DynamicMap

FORMATS = ("bfloat16", "eight_bit", "float8", "four_bit")
VARIANT = "four_bit dynamic"
ROUNDINGS = {"nearest": "nearest", "chance": "stochastic"}
FULL_PRECISION = "float32"
DECAY = 0.999
DIVERGED = 1e4  # a loss, in nats
Tree = list[Any]


class Plan(NamedTuple):
    """What to measure."""

    seeds: int
    epochs: int
    learning_rates: tuple[float, ...]
    combinations: tuple[tuple[str, str], ...]  # roundings of mu and nu
    steps: int
    lanes: int
    leaves: int
    shape: tuple[int, int]


FULL = Plan(
    5, 10, (1e-3, 1e-2), tuple(product(ROUNDINGS, ROUNDINGS)), 20_000, 4096, 24, (4096, 1024)
)
QUICK = Plan(2, 1, (1e-3,), (("chance", "chance"),), 1_000, 512, 4, (256, 256))


def stored(name: str, rounding: str) -> storage.Format:
    """A format of every tensor."""
    if name == VARIANT:
        signed, magnitude = (DynamicMap(3, signed=signed) for signed in (True, False))
        return Blockwise(name, signed, magnitude, 128, ROUNDINGS[rounding], min_size=0)
    small = {} if name == "bfloat16" else {"min_size": 0}
    made: storage.Format = getattr(storage, name)(rounding=ROUNDINGS[rounding], **small)
    return made


def adam_in(name: str, mu: str, nu: str) -> Callable[[Any], Any]:
    """From a learning rate to Adam with its moments in a format, rounded so."""
    formats = {"mu_dtype": stored(name, mu), "nu_dtype": stored(name, nu)}
    return lambda rate: adam_jax.adam(rate, **formats)


# --- Parity --------------------------------------------------------------------------------------


def entrants(plan: Plan) -> list[Entrant]:
    every = [Entrant(FULL_PRECISION, adam_jax.adam)]
    for name, (mu, nu) in product((*FORMATS, VARIANT), plan.combinations):
        every.append(Entrant(f"{name}, {mu} / {nu}", adam_in(name, mu, nu)))
    return every


def span(values: Sequence[float]) -> str:
    """The median, and the lowest and highest."""
    if not max(values) < DIVERGED:  # or NaN
        return "diverged"
    middle, low, high = (f"{x:.3g}" for x in (median(values), min(values), max(values)))
    return f"{middle} ({low}-{high})"


def parity_rows(outcomes: Sequence[Outcome], rate: float) -> Iterator[list[str]]:
    reference = [run.final_loss for run in outcomes[0].at(rate)]
    for outcome in outcomes:
        runs = outcome.at(rate)
        losses = [run.final_loss for run in runs]
        accuracy = [run.evaluation["test_accuracy"] if run.evaluation else 0.0 for run in runs]
        ratios = [a / b for a, b in zip(losses, reference, strict=True)]
        yield [
            outcome.entrant,
            span(losses),
            span(ratios),
            span(accuracy),
            f"{outcome.state_bytes:.2f}",
        ]


def show_parity(plan: Plan) -> None:
    settings = Settings(plan.learning_rates, plan.seeds, plan.epochs)
    events = list(race(problem.load("digits"), entrants(plan), settings))
    for failed in [event for event in events if isinstance(event, Failure)]:
        raise SystemExit(f"{failed.entrant} {failed.reason}")
    outcomes = [event for event in events if isinstance(event, Outcome)]
    header = ["moments, mu / nu", "training loss", "to float32", "test accuracy", "state bytes"]
    for rate in plan.learning_rates:
        title = f"Digits, {plan.epochs} epochs at {rate:g}, {plan.seeds} seeds; bytes a parameter"
        show(title, header, list(parity_rows(outcomes, rate)))


# --- Swamping ------------------------------------------------------------------------------------


class Averages(NamedTuple):
    """Both moments of all lanes, after the first numbers and after the change."""

    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]


def averages(mu: storage.Format, nu: storage.Format, plan: Plan) -> Averages:
    """What is stored of the averages of random numbers, of mu directly and of nu as squares."""
    tx = adam_jax.scale_by_adam(b1=DECAY, b2=DECAY, mu_dtype=mu, nu_dtype=nu)
    fallen = jnp.where(jnp.arange(plan.lanes) % 2, 0.1, 1.0)

    def advance(carry: Any, size: Any) -> Any:
        key, state = carry
        key, now = jax.random.split(key)
        x = jax.random.uniform(now, (plan.lanes,)) * size
        return (key, tx.update({"mu": x, "nu": jnp.sqrt(x)}, state)[1]), None

    def kept(state: Any) -> dict[str, jax.Array]:
        both = {"mu": state.mu["mu"], "nu": state.nu["nu"]}
        return {
            name: x.decode() if isinstance(x, storage.Blocks) else x.astype(jnp.float32)
            for name, x in both.items()
        }

    @jax.jit
    def run() -> Averages:
        zeros = {name: jnp.zeros(plan.lanes) for name in ("mu", "nu")}
        carry, found = (jax.random.key(0), tx.init(zeros)), []
        for size in (jnp.ones(plan.lanes), fallen):
            sizes = jnp.broadcast_to(size, (plan.steps, plan.lanes))
            carry, _ = jax.lax.scan(advance, carry, sizes)
            found.append(kept(carry[1]))
        return Averages(*found)

    return jax.device_get(run())


def swamping_rows(plan: Plan) -> Iterator[list[str]]:
    full = averages(storage.float32(), storage.float32(), plan)
    cases = [(FULL_PRECISION, full)]
    roundings = dict.fromkeys(rounding for pair in plan.combinations for rounding in pair)
    for name, rounding in product((*FORMATS, VARIANT), roundings):
        storage_format = stored(name, rounding)
        cases.append((f"{name}, {rounding}", averages(storage_format, storage_format, plan)))
    for name, found in cases:
        row = [name]
        for moment in ("mu", "nu"):
            off = np.sqrt(np.mean((found.before[moment] - full.before[moment]) ** 2))
            low = found.after[moment][1::2].mean()
            row += [f"{found.before[moment].mean():.4f}", f"{off:.3f}", f"{low:.4f}"]
        yield row


def show_swamping(plan: Plan) -> None:
    title = f"Averages of {plan.steps:,} numbers, decay {DECAY}, {plan.lanes:,} lanes: truth 0.5"
    title += ", and 0.05 where they have fallen"
    header = ["stored in", "mu", "off", "mu fallen", "nu", "off", "nu fallen"]
    show(title, header, list(swamping_rows(plan)))


# --- Memory --------------------------------------------------------------------------------------


def memory_row(name: str, options: dict[str, Any], plan: Plan) -> list[str]:
    made = getattr(storage, name)()
    tx = adam_jax.adam(LEARNING_RATE, mu_dtype=made, nu_dtype=made)
    params: Tree = [jax.ShapeDtypeStruct(plan.shape, jnp.float32)] * plan.leaves
    state = jax.eval_shape(tx.init, params)

    def step(params: Tree, gradients: Tree, state: Any) -> tuple[Tree, Any]:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 2), compiler_options=options)
    held = jitted.lower(params, params, state).compile().memory_analysis()
    label = f"{name}, {'with' if options else 'without'}"
    arguments, temporaries = held.argument_size_in_bytes, held.temp_size_in_bytes
    fresh = held.output_size_in_bytes - held.alias_size_in_bytes
    leaf = plan.shape[0] * plan.shape[1]
    sizes = (arguments, held.alias_size_in_bytes, temporaries, arguments + fresh + temporaries)
    rates = [f"{size / leaf / plan.leaves:.3f}" for size in sizes]
    return [
        label,
        f"{state_bytes(state) / leaf / plan.leaves:.4f}",
        *rates,
        f"{temporaries / leaf / 8:.2f}",
    ]


def state_bytes(state: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def show_memory(plan: Plan) -> None:
    rows, columns = plan.shape
    title = f"A step on {plan.leaves} leaves of {rows} by {columns}, bytes a parameter"
    header = ["moments, compiler options", "state", "arguments", "aliased", "temporaries", "peak"]
    given = [adam_jax.compiler_options(), {}] if adam_jax.compiler_options() else [{}]
    every = product((FULL_PRECISION, *FORMATS), given)
    measured = [memory_row(name, options, plan) for name, options in every]
    show(title, [*header, "in leaves"], measured)


PARTS = {"parity": show_parity, "swamping": show_swamping, "memory": show_memory}


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--part", choices=PARTS, help="one of them (default: all)")
    parser.add_argument("--epochs", type=int, metavar="N", help="of digits (default: 10)")
    options = parser.parse_args(argv)
    plan = QUICK if options.quick else FULL
    if options.epochs is not None:
        plan = plan._replace(epochs=options.epochs)
    about = surroundings()
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    print(f"{about['date']}, {about['device']}, {about['cores']} cores; {versions}")
    for name, part in PARTS.items():
        if options.part in (None, name):
            part(plan)


if __name__ == "__main__":
    main()
