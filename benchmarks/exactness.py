"""How far float32 Adam is from the true one: ours and Optax's, against a float64 oracle.

    python benchmarks/exactness.py

The oracle is Kingma & Ba 2015, Algorithm 1, with the averages as the sums that their equation (1)
unrolls to, in float64; mpmath checks it at 50 digits. Gradients are one-signed, so that the mean
does not cancel and a relative error of it has a meaning: in each of 256 lanes a magnitude from 30
decades, times a uniform factor in [0.5, 1.5) at every step. Decay rates are static.

The error budget, in units of rounding u = 2**-24 = 6.0e-8 and to first order:

* The correction ``-expm1(t * log b)``: u for log b, u for the product, at most 2u for expm1, whose
  condition number ``|z| / expm1(|z|)`` is at most 1. The factor ``sqrt(1 - b2**t) / (1 - b1**t)``:
  4u + (4u / 2 + u) + u = 8u. All lanes of a step share it: it is their bias.
* An average, ``x + (1 - b) * (new - x)``: the sum rounds once a step, and what it loses decays like
  all else in the average; so after t steps it is off by at most
      u * S_t + 4u,  S_t = sum over k <= t of b**(t - k) * x_k / x_t,
  the 4u for the square, the difference, 1 - b and the product, which weigh like the increment.
  (Where a large x decays they weigh 3 * (1 - b) a step more.) S_t is about t while the average
  fills, and 1 / (1 - b) once it is full of steady gradients.
* Noise in the gradients makes the roundings independent: each has standard deviation 0.42u (the
  mean over mantissas of u / sqrt(3) / m), and they add up as a random walk without a drift, to
      0.42u * sqrt(t / 3)  while it fills,  0.30u / sqrt(1 - b)  once full.
  256 lanes reach 3 to 4 standard deviations. The product form ``b * x + (1 - b) * new`` has the
  same walk and drifts besides, because fl(b) + fl(1 - b) is not 1.
* The update: 8u, the mean's error, half that of nu, and 4u for ``scale * eps``, the product, the
  root with its sum, and the quotient.

What no plain float32 average can do: a constant |g| makes the increments alike, the roundings are
no longer independent, and nu stops where its increment is under half a unit of rounding, up to
u / (1 - b2) of its value too low. After a spike nu decays by increments that also round the same
way, within u * t. Both are measured below.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax

import adam_jax
from adam_jax.rules.adam import Adam

B1 = (0.0, 0.9, 0.99)
B2 = (0.9, 0.99, 0.999, 0.9999, 0.99999, 1 - 1e-6)
GRID = tuple(product(B1, B2))
EPS = 1e-8
LANES = 256
SHORT = tuple(range(1, 101))
LIBRARIES = {"ours": adam_jax.scale_by_adam, "Optax": optax.scale_by_adam}


class Step(NamedTuple):
    """The update and the moments at some steps, each of shape (steps, lanes)."""

    update: Any
    mu: Any
    nu: Any


def average(b: float, x: np.ndarray, steps: Sequence[int], block: int = 10_000) -> np.ndarray:
    """``(1 - b) * sum_k b**(t - k) * x_k`` at each t of ``steps``, in float64."""
    t, total = np.asarray(steps)[:, None], np.zeros((len(steps), x.shape[1]))
    for start in range(0, steps[-1], block):
        age = t - np.arange(start + 1, min(start + block, len(x)) + 1)
        weights = np.where(age >= 0, (1 - b) * np.float64(b) ** np.maximum(age, 0), 0)
        if weights.max() > 1e-30:  # else all that it weighs has decayed away
            total += weights @ x[start : start + block].astype(np.float64)
    return total


def oracle(g: np.ndarray, steps: Sequence[int]) -> Iterator[Step]:
    """The truth for each pair of the grid."""
    t = np.asarray(steps, np.float64)[:, None]
    means = {b1: average(b1, g, steps) for b1 in B1}
    squares = np.square(g, dtype=np.float64)
    mean_squares = {b2: average(b2, squares, steps) for b2 in B2}
    for b1, b2 in GRID:
        mu, nu = means[b1], mean_squares[b2]
        yield Step(mu / (1 - b1**t) / (np.sqrt(nu / (1 - b2**t)) + EPS), mu, nu)


def oracle_by_mpmath(g: Sequence[float], b1: float, b2: float) -> Step:
    """The same at the last step of one lane, by Algorithm 1 as it is printed, with 50 digits."""
    with mpmath.workdps(50):
        b1, b2, mu, nu = mpmath.mpf(b1), mpmath.mpf(b2), mpmath.mpf(0), mpmath.mpf(0)
        for x in map(mpmath.mpf, g):
            mu, nu = b1 * mu + (1 - b1) * x, b2 * nu + (1 - b2) * x**2
        t = len(g)
        update = mu / (1 - b1**t) / (mpmath.sqrt(nu / (1 - b2**t)) + mpmath.mpf(EPS))
        return Step(float(update), float(mu), float(nu))


def runner(make: Callable[..., Any], steps: Sequence[int]) -> Callable[..., list[Step]]:
    """A jitted function from gradients to a `Step` for each pair of the grid."""
    transforms = [make(b1, b2, EPS) for b1, b2 in GRID]

    def advance(carry: Any, g: Any) -> Any:
        new = [tx.update(g, state) for tx, (_, state) in zip(transforms, carry, strict=True)]
        return new, None

    def run(g: Any) -> list[Step]:
        carry, seen = [(g[0], tx.init(g[0])) for tx in transforms], []
        for start, stop in zip((0, *steps), steps, strict=False):
            carry, _ = jax.lax.scan(advance, carry, g[start:stop])
            seen.append([Step(u, state.mu, state.nu) for u, state in carry])
        return [jax.tree.map(lambda *x: jnp.stack(x), *pair) for pair in zip(*seen, strict=True)]

    def run_every_step(g: Any) -> list[Step]:
        def advance_and_keep(carry: Any, g: Any) -> Any:
            new, _ = advance(carry, g)
            return new, [Step(u, state.mu, state.nu) for u, state in new]

        return jax.lax.scan(advance_and_keep, [(g[0], tx.init(g[0])) for tx in transforms], g)[1]

    return jax.jit(run_every_step if steps == SHORT else run)


def magnitudes(rng: np.random.Generator) -> np.ndarray:
    return 10 ** rng.uniform(-15, 15, LANES)


def steady(rng: np.random.Generator, steps: int) -> np.ndarray:
    factors = rng.random((steps, LANES), dtype=np.float32) + np.float32(0.5)
    return magnitudes(rng).astype(np.float32) * factors


def constant(rng: np.random.Generator, steps: int) -> np.ndarray:
    return np.broadcast_to(magnitudes(rng).astype(np.float32), (steps, LANES))


def spiky(rng: np.random.Generator, steps: int) -> np.ndarray:
    """Every gradient of every step has a magnitude of its own from the 30 decades."""
    return (10 ** rng.uniform(-15, 15, (steps, LANES))).astype(np.float32)


def errors(
    gradients: Callable[..., np.ndarray], steps: Sequence[int], seeds: int
) -> Iterator[tuple[str, tuple[float, float], Step]]:
    """Signed relative errors: (library, (b1, b2), a `Step` of shape (steps, seeds * lanes))."""
    runs = {name: runner(make, steps) for name, make in LIBRARIES.items()}
    found: dict[Any, list[Step]] = {}
    for seed in range(seeds):
        g = gradients(np.random.default_rng(seed), steps[-1])
        got = {name: jax.device_get(run(jnp.asarray(g))) for name, run in runs.items()}
        for index, (pair, want) in enumerate(zip(GRID, oracle(g, steps), strict=True)):
            for name in runs:
                error = jax.tree.map(lambda x, y: x / y - 1, got[name][index], want)
                found.setdefault((name, pair), []).append(error)
    for (name, pair), parts in found.items():
        yield name, pair, jax.tree.map(lambda *x: np.concatenate(x, axis=-1), *parts)


def table(
    gradients: Callable[..., np.ndarray], steps: Sequence[int], seeds: int, statistic: Any
) -> dict[tuple[str, float], Step]:
    """By library and b2: the statistic of each quantity, the worst over b1, for each step."""
    rows: dict[tuple[str, float], Step] = {}
    for name, (_, b2), error in errors(gradients, steps, seeds):
        new = jax.tree.map(statistic, error)
        old = rows.setdefault((name, b2), new)
        rows[name, b2] = jax.tree.map(lambda x, y: np.where(abs(y) > abs(x), y, x), old, new)
    return rows


def largest(error: np.ndarray) -> np.ndarray:
    return abs(error).max(axis=-1)


def mean_and_largest(error: np.ndarray) -> np.ndarray:
    return np.stack([error.mean(axis=-1), largest(error)], axis=-1)


def show(title: str, head: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def columns(*quantities: str) -> list[str]:
    return [f"{quantity}, {name}" for quantity in quantities for name in LIBRARIES]


def show_short(title: str, gradients: Callable[..., np.ndarray], seeds: int) -> None:
    rows = table(gradients, SHORT, seeds, lambda error: largest(error).max())

    def cells(b2: float) -> Iterator[str]:
        yield f"{b2:.7g}"
        for quantity in Step._fields:
            for name in LIBRARIES:
                yield f"{getattr(rows[name, b2], quantity):.1e}"

    show(title, ["b2", *columns(*Step._fields)], map(list, map(cells, B2)))


def show_long(
    title: str, gradients: Callable[..., np.ndarray], steps: Sequence[int], seeds: int
) -> None:
    rows = table(gradients, steps, seeds, mean_and_largest)

    def cells(b2: float, index: int) -> Iterator[str]:
        yield from (f"{b2:.7g}", f"{steps[index]:.0e}")
        for quantity in ("update", "nu"):
            for name in LIBRARIES:
                mean, most = getattr(rows[name, b2], quantity)[index]
                yield f"{mean:+.1e} / {most:.1e}"

    every = product(B2, range(len(steps)))
    show(title, ["b2", "t", *columns("update", "nu")], (list(cells(*row)) for row in every))


def show_coefficients(most: int) -> None:
    """The factor of mu, which all lanes share, at every step: static and dynamic decay rates."""
    t = np.arange(1, most + 1)

    def error(make: Callable[[float], Any], b1: float, b2: float) -> float:
        rule = Adam(make(b1), make(b2), EPS, 0.0, False)
        got = jax.jit(lambda t: rule.coefficients(t)[0])(jnp.asarray(t, jnp.float32))
        b1, b2 = float(make(b1)), float(make(b2))
        true1, true2 = (-np.expm1(t * np.log(b)) if b > 0 else 1.0 for b in (b1, b2))
        return abs(np.asarray(got, np.float64) / (np.sqrt(true2) / true1) - 1).max()

    def cells(b2: float) -> list[str]:
        kinds: tuple[Any, ...] = (float, jnp.float32)
        return [f"{b2:.7g}", *(f"{max(error(kind, b1, b2) for b1 in B1):.1e}" for kind in kinds)]

    title = f"Coefficients: the factor sqrt(1 - b2^t) / (1 - b1^t), largest error, t = 1 to {most}"
    show(title, ["b2", "static", "dynamic, of fl(b)"], map(cells, B2))


def show_oracle() -> None:
    """How far the oracle itself is from 50 digits."""
    g, worst = steady(np.random.default_rng(0), 100), 0.0
    for t in (1, 2, 100):
        for (b1, b2), got in zip(GRID, oracle(g[:t], [t]), strict=True):
            want = oracle_by_mpmath(g[:t, 0].tolist(), b1, b2)
            worst = max(worst, *(abs(x[0, 0] / y - 1) for x, y in zip(got, want, strict=True)))
    print(f"The oracle differs from mpmath by at most {worst:.1e}.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Relative errors against a float64 oracle.")
    parser.add_argument("--seeds", type=int, default=4, help="256 lanes each (default: 4)")
    parser.add_argument("--steps", type=float, default=1e5, help="up to which t (default: 1e5)")
    arguments = parser.parse_args()
    seeds, most = arguments.seeds, int(arguments.steps)
    steps = [t for t in (1_000, 10_000, 100_000, 1_000_000) if t <= most]
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "optax"))
    print(f"{packages}, {jax.default_backend()}; {seeds * LANES} lanes; the worst of b1 in {B1}.")
    show_oracle()
    show_short("Largest relative error, t = 1 to 100", steady, 4 * seeds)
    if steps:
        show_long("Mean signed / largest relative error at t", steady, steps, seeds)
        show_long("Constant gradients: nu stops u / (1 - b2) short", constant, steps, 1)
    show_short("Gradients that span 30 decades within a lane, t = 1 to 100", spiky, seeds)
    show_coefficients(max(most, 100))


if __name__ == "__main__":
    main()
