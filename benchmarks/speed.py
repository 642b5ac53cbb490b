"""The time of a step, and the time to compile one: ours, Optax's, torch's, and the memory's limit.

    python benchmarks/speed.py

A step is what a training loop jits: the update and `optax.apply_updates`, with parameters and state
donated. All contestants run in one process. In each round each of them takes its turn, the first
one a different one every round: one step that is not timed, then a few that are, the last of them
waited for. Read the ratios: each is the median over rounds of a contestant's time over Optax's in
the same round, with the quartiles beside it, so that what else the machine does cancels.

Where a program lies in memory makes a difference too: with 1000 leaves the first one compiled in a
process runs up to a sixth faster than the same one compiled third. So two are compiled first that
are not counted, and contestants with the same kind of state, as Optax's and ours of float32, step
on the same arrays. "optax.adam, again" is the same program compiled again: what it is off 1 is
noise.

The counts are XLA's own, of the compiled program, and exact: temporaries in bytes, bytes accessed
and flops a parameter, and how many fusions (loops over memory) and copies it has. Bytes accessed
are what each loop reads and writes: Adam in three loops has 40 a parameter, in one loop 28.

The limit is one pass in place (a negation) over as many bytes as one loop of float32 Adam moves, 28
a parameter: it reads 14 and writes 14. (Adam reads four float32 arrays and writes three.)

"+ options" are `adam_jax.compiler_options`, given to this one ``jit``: on CPUs they let moments of
few bits be overwritten in place. Moments in blocks of few bits stay out of the 1000 leaves, which
are too small for them by default.

The times to trace, lower and compile a step of float32 state are taken with all caches cleared, in
the same rotation; CPU time is of all threads of the process. "compile s", in the other tables, is
the CPU time of all three, once, for every contestant.
"""

import argparse
import gc
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import optax

import adam_jax
from adam_jax import storage

LEARNING_RATE = 1e-3
LIMIT_BYTES = 28  # a parameter: gradient, parameter and two moments read, all but the first written
REFERENCE, OURS = "optax.adam", "adam_jax.adam"
BLOCKWISE = (storage.eight_bit, storage.four_bit, storage.float8)
MOST_LEAVES_IN_BLOCKS = 32
Tree = list[Any]


class Case(NamedTuple):
    """Some leaves of one size, in float32."""

    leaves: int
    size: int

    def __str__(self) -> str:
        return f"{self.leaves} {'leaf' if self.leaves == 1 else 'leaves'} of {self.size:,}"

    @property
    def parameters(self) -> int:
        return self.leaves * self.size


class Plan(NamedTuple):
    """What to measure: each case with the timed steps of one turn, and how often."""

    cases: tuple[tuple[Case, int], ...]
    rounds: int
    compiled: Case
    compile_rounds: int


FULL = Plan(
    cases=((Case(1, 2**25), 3), (Case(32, 2**20), 3), (Case(1000, 1024), 20)),
    rounds=25,
    compiled=Case(1000, 1024),
    compile_rounds=9,
)
QUICK = Plan(
    cases=((Case(1, 2**16), 3), (Case(2, 2**14), 3), (Case(8, 1024), 3)),
    rounds=3,
    compiled=Case(20, 1024),
    compile_rounds=2,
)


@dataclass
class Counts:
    """XLA's counts of a compiled program; a parameter where the name says so."""

    temporary_bytes: int | None
    bytes_per_parameter: float
    flops_per_parameter: float
    fusions: int
    copies: int


@dataclass
class Contestant:
    """One way to take a step, ready to run, and what was measured of it."""

    name: str
    run: Callable[[int], None]  # that many steps, and wait
    compile_seconds: float | None = None
    counts: Counts | None = None
    seconds: list[float] = field(default_factory=list)  # a step, one entry a round


def optimizers(case: Case) -> dict[str, tuple[Any, dict[str, Any] | None]]:
    """The contestants that JAX compiles, each with its compiler options."""
    plain = {REFERENCE: optax.adam(LEARNING_RATE), OURS: adam_jax.adam(LEARNING_RATE)}
    formats = [storage.bfloat16()]
    if case.leaves <= MOST_LEAVES_IN_BLOCKS:
        formats += [make(min_size=0) for make in BLOCKWISE]
    for each in formats:
        name = f"{OURS}, {str(each).split('(')[0]}"
        plain[name] = adam_jax.adam(LEARNING_RATE, mu_dtype=each, nu_dtype=each)
    every: dict[str, tuple[Any, dict[str, Any] | None]] = {}
    for name, tx in plain.items():
        every[name] = tx, None
        if options := adam_jax.compiler_options():
            every[f"{name} + options"] = tx, options
        if name == OURS:
            every[f"{REFERENCE}, again"] = plain[REFERENCE], None
    return every


def training_step(tx: Any, options: Any = None) -> Any:
    def step(params: Tree, gradients: Tree, state: Any) -> tuple[Tree, Any]:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 2), compiler_options=options)


def count(compiled: Any, parameters: int) -> Counts:
    cost = compiled.cost_analysis()
    if isinstance(cost, list):  # one entry a program, until JAX 0.6
        cost = cost[0]
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return Counts(
        temporary_bytes=None if memory is None else memory.temp_size_in_bytes,
        bytes_per_parameter=cost["bytes accessed"] / parameters,
        flops_per_parameter=cost["flops"] / parameters,
        fusions=len(re.findall(r"\bfusion\(", text)),
        copies=len(re.findall(r"\bcopy(?:-start)?\(", text)),
    )


@dataclass
class Training:
    """The arrays that contestants with one kind of state share, and step on in turn."""

    params: Tree
    gradients: Tree
    state: Any

    def contestant(self, name: str, tx: Any, options: Any) -> Contestant:
        step = training_step(tx, options)
        start = time.process_time()
        compiled = step.lower(self.params, self.gradients, self.state).compile()
        compile_seconds = time.process_time() - start

        def run(steps: int) -> None:
            for _ in range(steps):
                self.params, self.state = step(self.params, self.gradients, self.state)
            jax.block_until_ready((self.params, self.state))

        counts = count(compiled, sum(g.size for g in self.gradients))
        return Contestant(name, run, compile_seconds, counts)


def limit(case: Case) -> Contestant:
    """One pass in place over the bytes of one loop: half of them read, half written."""
    arrays = [jnp.ones(case.size * LIMIT_BYTES // 8) for _ in range(case.leaves)]
    step = jax.jit(lambda arrays: [-x for x in arrays], donate_argnums=0)
    counts = count(step.lower(arrays).compile(), case.parameters)

    def run(steps: int) -> None:
        nonlocal arrays
        for _ in range(steps):
            arrays = step(arrays)
        jax.block_until_ready(arrays)

    return Contestant("limit: one pass over 28 bytes", run, counts=counts)


def torch_contestant(case: Case) -> Contestant | None:
    """torch's fused Adam on all cores, where torch is there to be compared on a CPU."""
    if jax.default_backend() != "cpu":
        return None
    # Threads that wait for work by spinning would take the cores from those who run next.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import torch  # noqa: PLC0415 - it is optional
    except ImportError:
        return None
    torch.set_num_threads(cores())
    params = [torch.nn.Parameter(torch.zeros(case.size)) for _ in range(case.leaves)]
    for p in params:
        p.grad = torch.randn(case.size)
    optimizer = torch.optim.Adam(params, lr=LEARNING_RATE, fused=True)

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.step()

    return Contestant("torch Adam(fused=True)", run)


def contestants(case: Case) -> list[Contestant]:
    """All of them, after two that are not counted but must stay in memory."""
    keys = jax.random.split(jax.random.key(0), case.leaves)
    gradients = [jax.random.normal(key, (case.size,)) for key in keys]
    trainings: dict[str, Training] = {}
    entrants = []
    every = optimizers(case)
    uncounted = [(name, every[name]) for name in (OURS, REFERENCE)]
    for name, (tx, options) in (*uncounted, *every.items()):
        params = [jnp.zeros_like(g) for g in gradients]
        state = tx.init(params)
        kind = str(jax.tree.map(jnp.result_type, state))
        training = trainings.setdefault(kind, Training(params, gradients, state))
        entrants.append(training.contestant(name, tx, options))
    others = [torch_contestant(case), limit(case)]
    return entrants + [other for other in others if other is not None]


def rotations(names: Sequence[Any], rounds: int) -> list[list[Any]]:
    """The order of each round; in each the next one is first."""
    return [[*names[k:], *names[:k]] for k in (r % len(names) for r in range(rounds))]


def measure_steps(case: Case, steps: int, rounds: int) -> list[Contestant]:
    everyone = contestants(case)
    entrants = everyone[2:]
    for entrant in everyone:
        entrant.run(2)
    for order in rotations(entrants, rounds):
        for entrant in order:
            entrant.run(1)
            start = time.perf_counter()
            entrant.run(steps)
            entrant.seconds.append((time.perf_counter() - start) / steps)
    return entrants


@dataclass
class Stages:
    """Seconds to trace, lower and compile a step, one entry a round."""

    trace: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    compile: list[float] = field(default_factory=list)

    def total(self) -> list[float]:
        return [sum(parts) for parts in zip(self.trace, self.lower, self.compile, strict=True)]


def measure_compilation(case: Case, rounds: int) -> dict[str, dict[str, Stages]]:
    """The process's CPU time and the wall time, for the two optimizers of float32 state."""
    entrants = {name: optimizers(case)[name][0] for name in (REFERENCE, OURS)}
    measured = {name: {"cpu": Stages(), "wall": Stages()} for name in entrants}
    params = [jax.ShapeDtypeStruct((case.size,), jnp.float32)] * case.leaves
    for number, order in enumerate(rotations(list(entrants), rounds + 1)):
        for name in order:
            times = compile_once(entrants[name], params)
            if number == 0:
                continue  # a warm-up
            for stages, clock in zip(measured[name].values(), times, strict=True):
                stages.trace.append(clock[1] - clock[0])
                stages.lower.append(clock[2] - clock[1])
                stages.compile.append(clock[3] - clock[2])
    return measured


def compile_once(tx: Any, params: Tree) -> list[tuple[float, ...]]:
    """The two clocks before and after each of the three stages."""
    jax.clear_caches()
    state = jax.eval_shape(tx.init, params)
    step = training_step(tx)
    gc.collect()
    clocks = [(time.process_time(), time.perf_counter())]
    stage = step
    for advance in (lambda s: s.trace(params, params, state), lambda s: s.lower(), _compile):
        stage = advance(stage)
        clocks.append((time.process_time(), time.perf_counter()))
    return list(zip(*clocks, strict=True))


def _compile(lowered: Any) -> Any:
    return lowered.compile()


def ratios(seconds: list[float], reference: list[float]) -> tuple[float, float, float]:
    """Median and quartiles of the ratios, round by round."""
    each = [a / b for a, b in zip(seconds, reference, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
    return middle, low, high


def step_rows(entrants: list[Contestant]) -> list[list[str]]:
    reference = next(e for e in entrants if e.name == REFERENCE)
    rows = []
    for e in entrants:
        middle, low, high = ratios(e.seconds, reference.seconds)
        row = [e.name, f"{statistics.median(e.seconds) * 1e3:.2f}", f"{middle:.3f}"]
        row.append(f"{low:.2f}-{high:.2f}")
        if (c := e.counts) is not None:
            row += ["?" if c.temporary_bytes is None else f"{c.temporary_bytes:,}"]
            row += [f"{c.bytes_per_parameter:.2f}", f"{c.flops_per_parameter:.2f}"]
            row += [str(c.fusions), str(c.copies)]
        if e.compile_seconds is not None:
            row.append(f"{e.compile_seconds:.2f}")
        rows.append(row)
    return rows


def compile_rows(measured: dict[str, dict[str, Stages]]) -> list[list[str]]:
    rows = []
    for name, clocks in measured.items():
        for clock, stages in clocks.items():
            middle, low, high = ratios(stages.total(), measured[REFERENCE][clock].total())
            parts = (stages.trace, stages.lower, stages.compile, stages.total())
            medians = [f"{statistics.median(part):.3f}" for part in parts]
            rows.append([name, clock, *medians, f"{middle:.3f}", f"{low:.2f}-{high:.2f}"])
    return rows


STEP_HEADER = ["contestant", "ms", "ratio", "quartiles", "temporaries", "bytes", "flops"]
STEP_HEADER += ["fusions", "copies", "compile s"]
COMPILE_HEADER = ["contestant", "time", "trace s", "lower s", "compile s", "total s", "ratio"]
COMPILE_HEADER += ["quartiles"]


def show(title: str, header: Sequence[str], rows: list[list[str]]) -> None:
    rows = [[*header], *[row + [""] * (len(header) - len(row)) for row in rows]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    print(f"\n{title}\n")
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def surroundings() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in ("adam_jax", "jax", "jaxlib", "optax", "torch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{device.platform} {device.device_kind}",
        "cores": cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements there")
    parsed = parser.parse_args(argv)
    path = parsed.json
    if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
        parser.error(f"argument --json: cannot write {str(path)!r}")
    return parsed


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    plan = QUICK if options.quick else FULL
    jax.config.update("jax_enable_compilation_cache", False)
    about = surroundings()
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    print(f"{about['date']}, {about['device']}, {about['cores']} cores, load {about['load']}")
    print(versions)
    compilation = measure_compilation(plan.compiled, plan.compile_rounds)
    title = f"Compile {plan.compiled}: median of {plan.compile_rounds}, ratio to {REFERENCE}"
    show(title, COMPILE_HEADER, compile_rows(compilation))
    report: dict[str, Any] = {**about, "cases": [], "compile": {"leaves": plan.compiled.leaves}}
    report["compile"]["seconds"] = {
        name: {clock: asdict(stages) for clock, stages in clocks.items()}
        for name, clocks in compilation.items()
    }
    for case, steps in plan.cases:
        entrants = measure_steps(case, steps, plan.rounds)
        title = f"Step, {case}: median of {plan.rounds} rounds of {steps}, ratio to {REFERENCE};"
        show(f"{title} bytes and flops a parameter", STEP_HEADER, step_rows(entrants))
        results = [
            {key: value for key, value in asdict(e).items() if key != "run"} for e in entrants
        ]
        report["cases"].append({"leaves": case.leaves, "size": case.size, "contestants": results})
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
