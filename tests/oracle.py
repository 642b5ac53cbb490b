"""The members written out from their papers in float64 numpy, as slow and plain as they read.

Nothing here comes from the package. Each takes the gradients of all steps, stacked, and returns the
directions of all steps and the moments after the last, by their names in the state. Of complex
gradients the mean is complex, the mean square that of |g|, and what bounds a size keeps the phase.
"""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

Array = Any
Moments = dict[str, Array]


def double(x: Array) -> Array:
    """The array in complex128 if it is complex, else in float64."""
    return np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64)


def start(gradients: Array) -> tuple[Array, Array, Array]:
    """The gradients in double precision, and zeros for a mean and for a mean square of them."""
    g = double(gradients)
    return g, np.zeros_like(g[0]), np.zeros(g.shape[1:])


def at(x: Any, count: int) -> Any:
    """The value at this count of a schedule, or of a constant."""
    return x(count) if callable(x) else x


def ema(b: float, average: Array, new: Array) -> Array:
    """The exponential moving average that keeps the fraction b of the old."""
    return b * average + (1 - b) * new


def debias(b: float, t: int, average: Array) -> Array:
    """The average over the sum of its weights, after t steps from zero."""
    return average / (1 - b**t)


def ratio(x: Array, y: Array) -> Array:
    """x/y, where 0/0 is 0."""
    return x / np.where(x == 0, 1.0, y)


def sign(x: Array) -> Array:
    """x/|x|, and 0 at 0."""
    return ratio(x, np.abs(x))


def first_moment(b1: float, t: int, mu: Array, g: Array, nesterov: bool) -> Array:
    """The corrected mean; with nesterov, that of the next step as far as it is known now."""
    if nesterov:
        return b1 * debias(b1, t + 1, mu) + (1 - b1) * debias(b1, t, g)
    return debias(b1, t, mu)


def over_root(
    mu_hat: Array, nu: Array, weight: float, eps: float, eps_root: float, eps_hat: bool
) -> Array:
    """The mean over the root of nu/weight; eps_hat: eps joins the root before it is corrected."""
    if eps_hat:
        return ratio(math.sqrt(weight) * mu_hat, np.sqrt(nu + eps_root) + eps)
    return ratio(mu_hat, np.sqrt(nu / weight + eps_root) + eps)


def adam(
    gradients: Array,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    nesterov: bool = False,
    eps_hat: bool = False,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> tuple[Array, Moments]:
    """Kingma & Ba 2015, Algorithm 1; with eps_hat, the order at the end of its section 2.

    With nesterov, Dozat 2016, Algorithm 2, for constant b1 and without its factor b2 on nu.
    """
    g, mu, nu = start(gradients)
    directions = []
    for t, x in enumerate(g, 1):
        mu, nu = ema(b1, mu, x), ema(b2, nu, np.abs(x) ** 2)
        if bias_correction_mu:
            mu_hat = first_moment(b1, t, mu, x, nesterov)
        else:
            mu_hat = ema(b1, mu, x) if nesterov else mu
        weight = 1 - b2**t if bias_correction_nu else 1.0
        directions.append(over_root(mu_hat, nu, weight, eps, eps_root, eps_hat))
    return np.stack(directions), {"mu": mu, "nu": nu}


def nadam(
    gradients: Array,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    nesterov: bool = True,
    momentum_decay: float | None = None,
    eps_hat: bool = False,
) -> tuple[Array, Moments]:
    """Dozat 2016, Algorithm 2, with mu_t = b1 (1 - .5 * .96^(t psi)), psi its 1/250.

    As in PyTorch and Keras, the mean keeps b1 at every step, where the paper's keeps mu_t; and nu
    is without the paper's factor b2. Without nesterov it is Adam, which has no mu_t.
    """
    if not nesterov:
        return adam(gradients, b1=b1, b2=b2, eps=eps, eps_root=eps_root, eps_hat=eps_hat)

    def kept(t: int) -> float:
        return b1 if momentum_decay is None else b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))

    g, mu, nu = start(gradients)
    directions, product = [], 1.0
    for t, x in enumerate(g, 1):
        mu, nu = ema(b1, mu, x), ema(b2, nu, np.abs(x) ** 2)
        product *= kept(t)
        ahead = kept(t + 1) * mu / (1 - product * kept(t + 1))
        mu_hat = ahead + (1 - kept(t)) * x / (1 - product)
        directions.append(over_root(mu_hat, nu, 1 - b2**t, eps, eps_root, eps_hat))
    return np.stack(directions), {"mu": mu, "nu": nu}


def amsgrad(
    gradients: Array,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    correct_after_max: bool = False,
    eps_hat: bool = False,
) -> tuple[Array, Moments]:
    """Reddi et al. 2018, Algorithm 2, which corrects neither moment.

    As in Optax, nu is corrected before the maximum; with correct_after_max, as in PyTorch, after.
    """
    g, mu, nu = start(gradients)
    nu_max, directions = nu, []
    for t, x in enumerate(g, 1):
        mu, nu = ema(b1, mu, x), ema(b2, nu, np.abs(x) ** 2)
        weight = 1 - b2**t if bias_correction_nu else 1.0
        nu_max = np.maximum(nu_max, nu if correct_after_max else nu / weight)
        raw = nu_max if correct_after_max else nu_max * weight
        mu_hat = debias(b1, t, mu) if bias_correction_mu else mu
        directions.append(over_root(mu_hat, raw, weight, eps, eps_root, eps_hat))
    return np.stack(directions), {"mu": mu, "nu": nu, "nu_max": nu_max}


def adamax(
    gradients: Array,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_inside: bool = True,
) -> tuple[Array, Moments]:
    """Kingma & Ba 2015, Algorithm 2, which has no eps: PyTorch's is inside, Keras' outside."""
    g, mu, nu = start(gradients)
    directions = []
    for t, x in enumerate(g, 1):
        mu = ema(b1, mu, x)
        nu = np.maximum(b2 * nu, np.abs(x) + (eps if eps_inside else 0.0))
        directions.append(ratio(debias(b1, t, mu), nu + (0.0 if eps_inside else eps)))
    return np.stack(directions), {"mu": mu, "nu": nu}


def rectification(b2: float, t: int) -> tuple[float, float]:
    """RAdam's rho_t, and its r_t, NaN where rho_t is at most 4; to 60 digits, for they cancel."""
    with localcontext(prec=60):
        b = Decimal(float(b2))
        rho_inf = 2 / (1 - b) - 1
        rho = rho_inf - 2 * t * b**t / (1 - b**t) if b else rho_inf
        if rho <= 4:
            return float(rho), math.nan
        r2 = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
        return float(rho), float(r2.sqrt())


def radam(
    gradients: Array,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    threshold: float = 5.0,
    nesterov: bool = False,
    eps_hat: bool = False,
) -> tuple[Array, Moments]:
    """Liu et al. 2020, Algorithm 2, whose threshold is 4; the authors' code has 5, and eps_hat."""
    g, mu, nu = start(gradients)
    directions = []
    for t, x in enumerate(g, 1):
        mu, nu = ema(b1, mu, x), ema(b2, nu, np.abs(x) ** 2)
        mu_hat = first_moment(b1, t, mu, x, nesterov)
        rho, r = rectification(b2, t)
        if rho >= threshold:
            mu_hat = r * over_root(mu_hat, nu, 1 - b2**t, eps, eps_root, eps_hat)
        directions.append(mu_hat)
    return np.stack(directions), {"mu": mu, "nu": nu}


def adabelief(
    gradients: Array,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    nesterov: bool = False,
) -> tuple[Array, Moments]:
    """Zhuang et al. 2020, Algorithm 2, whose eps is both eps and eps_root."""
    g, mu, nu = start(gradients)
    directions = []
    for t, x in enumerate(g, 1):
        mu = ema(b1, mu, x)
        nu = ema(b2, nu, np.abs(x - mu) ** 2) + eps_root
        mu_hat = first_moment(b1, t, mu, x, nesterov)
        directions.append(ratio(mu_hat, np.sqrt(debias(b2, t, nu)) + eps))
    return np.stack(directions), {"mu": mu, "nu": nu}


def yogi(
    gradients: Array,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-3,
    eps_root: float = 0.0,
    initial_accumulator_value: float = 1e-6,
) -> tuple[Array, Moments]:
    """Zaheer et al. 2018, Algorithm 2, with both moments begun and corrected as in Optax."""
    g, mu, nu = start(gradients)
    mu, nu, directions = mu + initial_accumulator_value, nu + initial_accumulator_value, []
    for t, x in enumerate(g, 1):
        mu = ema(b1, mu, x)
        nu = nu - (1 - b2) * np.sign(nu - np.abs(x) ** 2) * np.abs(x) ** 2
        root = np.sqrt(debias(b2, t, nu) + eps_root)
        directions.append(ratio(debias(b1, t, mu), root + eps))
    return np.stack(directions), {"mu": mu, "nu": nu}


def laprop(
    gradients: Array, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-15
) -> tuple[Array, Moments]:
    """Ziyin et al. 2020, Algorithm 1, with the learning rate outside the mean."""
    g, mu, nu = start(gradients)
    directions = []
    for t, x in enumerate(g, 1):
        nu = ema(b2, nu, np.abs(x) ** 2)
        mu = ema(b1, mu, ratio(x, np.sqrt(debias(b2, t, nu)) + eps))
        directions.append(debias(b1, t, mu))
    return np.stack(directions), {"mu": mu, "nu": nu}


def adopt(
    gradients: Array,
    *,
    b1: float = 0.9,
    b2: float = 0.9999,
    eps: float = 1e-6,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[int], float] = lambda count: count**0.25,
) -> tuple[Array, Moments]:
    """Taniguchi et al. 2024, Algorithm 2; without clipping, Algorithm 1. Nesterov as in Optax."""
    g, mu, nu = start(gradients)
    scaled, directions = mu, []
    for count, x in enumerate(g):
        if count > 0:  # the first gradient makes only nu
            limit = clip_value_fn(count) if use_clipping else math.inf
            size = ratio(np.abs(x), np.maximum(np.sqrt(nu), eps))
            scaled = np.minimum(size, limit) * sign(x)
            mu = ema(b1, mu, scaled)
        directions.append(ema(b1, mu, scaled) if nesterov else mu)
        nu = ema(b2 if count > 0 else 0.0, nu, np.abs(x) ** 2)
    return np.stack(directions), {"mu": mu, "nu": nu}


def slow_decay(b1: float, b3: float, share: float) -> float:
    """Pagliardini et al. 2024, beta_3 after this share of the warm-up: 1/log is linear from b1."""
    fast = 1 / math.log(b1) if b1 > 0 else 0.0
    return min(math.exp(1 / ((1 - share) * fast + share / math.log(b3))), b3)


def ademamix(
    gradients: Array,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float | Callable[[int], float] = 0.9999,
    alpha: float | Callable[[int], float] = 5.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    warmup_steps: int | None = None,
) -> tuple[Array, Moments]:
    """Pagliardini et al. 2024, Algorithm 1; b3 and alpha warm up over warmup_steps, or by t - 1."""
    g, m1, nu = start(gradients)
    m2, directions = m1, []
    for t, x in enumerate(g, 1):
        keep, mix = at(b3, t - 1), at(alpha, t - 1)
        if warmup_steps is not None:
            share = min(t / warmup_steps, 1.0)
            keep, mix = slow_decay(b1, keep, share), share * mix
        m1, m2, nu = ema(b1, m1, x), ema(keep, m2, x), ema(b2, nu, np.abs(x) ** 2)
        root = np.sqrt(debias(b2, t, nu) + eps_root)
        directions.append(ratio(debias(b1, t, m1) + mix * m2, root + eps))
    return np.stack(directions), {"m1": m1, "m2": m2, "nu": nu}


def adan(
    gradients: Array,
    *,
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> tuple[Array, Moments]:
    """Xie et al. 2022, Algorithm 1, corrected as in its code; the paper's betas are 1 - b."""
    g, m, n = start(gradients)
    v, previous, directions = m, g[0], []
    for t, x in enumerate(g, 1):
        d, previous = x - previous, x
        m, v, n = ema(b1, m, x), ema(b2, v, d), ema(b3, n, np.abs(x + b2 * d) ** 2)
        ahead = debias(b1, t, m) + b2 * debias(b2, t, v)
        directions.append(ratio(ahead, np.sqrt(debias(b3, t, n) + eps_root) + eps))
    return np.stack(directions), {"m": m, "v": v, "n": n, "g": previous}


def adam_atan2(
    gradients: Array, *, b1: float = 0.9, b2: float = 0.999, a: float = 1.27, b: float = 1.0
) -> tuple[Array, Moments]:
    """Everett et al. 2024: atan2 in place of the quotient, and no eps."""
    g, mu, nu = start(gradients)
    directions = []
    for t, x in enumerate(g, 1):
        mu, nu = ema(b1, mu, x), ema(b2, nu, np.abs(x) ** 2)
        mu_hat, root = debias(b1, t, mu), np.sqrt(debias(b2, t, nu))
        directions.append(a * np.arctan2(np.abs(mu_hat), b * root) * sign(mu_hat))
    return np.stack(directions), {"mu": mu, "nu": nu}


def stable_adam(
    gradients: Array, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> tuple[Array, Moments]:
    """Wortsman et al. 2023, Algorithm 2, the debiased betas of which are the corrected means."""
    g, mu, nu = start(gradients)
    directions = []
    for t, x in enumerate(g, 1):
        mu, nu = ema(b1, mu, x), ema(b2, nu, np.abs(x) ** 2)
        nu_hat = debias(b2, t, nu)
        rms = np.sqrt(np.mean(ratio(np.abs(x) ** 2, np.maximum(nu_hat, eps**2))))
        directions.append(ratio(debias(b1, t, mu), np.sqrt(nu_hat) + eps) / max(1.0, rms))
    return np.stack(directions), {"mu": mu, "nu": nu}


def mars(
    gradients: Array,
    *,
    b1: float = 0.95,
    b2: float = 0.99,
    gamma: float = 0.025,
    eps: float = 1e-8,
) -> tuple[Array, Moments]:
    """Yuan et al. 2024, MARS-AdamW with the approximate gradient: Adam on the clipped c_t."""
    g = double(gradients)
    corrected, previous = [], g[0]
    for x in g:
        c, previous = x + gamma * b1 / (1 - b1) * (x - previous), x
        corrected.append(c / max(1.0, np.sqrt(np.sum(np.abs(c) ** 2))))
    directions, moments = adam(np.stack(corrected), b1=b1, b2=b2, eps=eps)
    return directions, {**moments, "g": previous}


def adam_mini(
    gradients: Array,
    *,
    blocks: tuple[int, ...],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> tuple[Array, Moments]:
    """Zhang et al. 2024, Adam-mini; blocks is the shape of nu, which divides the gradient's."""
    g, mu, _ = start(gradients)
    nu, directions = np.zeros(blocks), []
    for t, x in enumerate(g, 1):
        square = np.abs(x) ** 2
        for axis, count in enumerate(blocks):
            parts = [part.mean(axis) for part in np.split(square, count, axis)]
            square = np.stack(parts, axis)
        mu, nu = ema(b1, mu, x), ema(b2, nu, square)
        nu_hat = debias(b2, t, nu)
        for axis, count in enumerate(blocks):
            nu_hat = np.repeat(nu_hat, x.shape[axis] // count, axis)
        directions.append(ratio(debias(b1, t, mu), np.sqrt(nu_hat) + eps))
    return np.stack(directions), {"mu": mu, "nu": nu}


def lion(
    gradients: Array,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    mode: str = "hard",
    smooth_beta: float = 1.0,
) -> tuple[Array, Moments]:
    """Chen et al. 2023, Algorithm 2; the modes other than "hard" are Optax's."""
    g, mu, _ = start(gradients)
    sizes = {
        "hard": lambda size: 1.0,
        "smooth": lambda size: np.tanh(smooth_beta * size),
        "refined": lambda size: np.minimum(size, 1.0),
    }
    directions = []
    for x in g:
        c = ema(b1, mu, x)
        directions.append(sizes[mode](np.abs(c)) * sign(c))
        mu = ema(b2, mu, x)
    return np.stack(directions), {"mu": mu}
