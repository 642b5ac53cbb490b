"""RAdam, for one array: Adam without its root while that is too uncertain, then with a warm-up.

    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * g**2
    rho = rho_inf - 2 * t * b2**t / (1 - b2**t),  rho_inf = 2 / (1 - b2) - 1
    r = sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    mean = mu / (1 - b1**t)
    direction = r * mean / (sqrt(nu / (1 - b2**t) + eps_root) + eps) if rho >= threshold else mean

Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond", Algorithm 2, where it
is rho > 4; its own code and Optax have rho >= 5, PyTorch rho > 5 (``above``). The paper has no eps,
PyTorch "epsilon hat" (``eps_hat``).

In float32 the difference rho has an error of 1e-4 at t = 5, and r of 2e-2 by its own power form.
Here the two parts of 2000 that cancel are taken out first: with a = -log(b2),
rho = t + 2 * F(a) - 2 * t * F(t * a), F(x) = 1 / expm1(x) - 1 / x + 1 / 2.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from adam_jax.hyperparameters import Flag, Scalar, number
from adam_jax.rule import Coefficients, ema, log, quotient, square
from adam_jax.rules.adam import AdamBase

# F(x) = x / 12 - x**3 / 720 + ...: Bernoulli numbers over factorials, enough for x < 1/2.
_SERIES = (
    *(1 / 12, -1 / 720, 1 / 30240, -1 / 1209600),
    *(1 / 47900160, -691 / 1307674368000, 1 / 74724249600),
)


@dataclass(frozen=True)
class RAdam(AdamBase):
    """RAdam, rectified from a threshold on, or above it."""

    threshold: Annotated[Scalar, number(">= 4", lambda x: x >= 4)] = 5.0
    above: Flag = False

    def coefficients(self, t: jax.Array) -> Coefficients:
        """Adam's; those of mu and g times r; and 1 where there is no root yet, else 0."""
        rho, rho_inf = self.length(t)
        reached = rho > self.threshold if self.above else rho >= self.threshold
        ready = reached & (rho_inf > 4)
        top = jnp.where(ready, (rho - 4) * (rho - 2) * rho_inf, 1)
        bottom = jnp.where(ready, (rho_inf - 4) * (rho_inf - 2) * rho, 1)
        of_mu, of_g, eps, eps_root = super().coefficients(t)
        rectifier = jnp.sqrt(top / bottom)
        plain_mu, plain_g = self.factors(t)
        return (
            jnp.where(ready, rectifier * of_mu, plain_mu),
            jnp.where(ready, rectifier * of_g, plain_g),
            eps,
            eps_root,
            (~ready).astype(t.dtype),
        )

    def length(self, t: jax.Array) -> tuple[jax.Array, Scalar]:
        """How many gradients nu averages in effect, until ``t`` and at most."""
        rho_inf = 2 / (1 - self.b2) - 1
        a = jnp.asarray(-log(self.b2), t.dtype)
        # Late, the plain form is the better one: there nothing of it cancels.
        # Held, for the derivative multiplies what overflows by 0; exp(60) is as good as infinity.
        late = rho_inf - 2 * t / jnp.expm1(jnp.clip(t * a, 0.5, 60))
        return jnp.where(t * a < 0.5, t + 2 * _f(a) - 2 * t * _f(t * a), late), rho_inf

    def update(
        self, c: Coefficients, g: jax.Array, mu: jax.Array, nu: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The mean over the root, or the mean."""
        *_, plain = c
        mu = ema(self.b1, mu, g)
        nu = ema(self.b2, nu, square(g))
        size = jnp.where(plain > 0, 1, self.size(c, nu))
        return quotient(self.mean(c, g, mu), size, self.eps), mu, nu


def _f(x: jax.Array) -> jax.Array:
    x = jnp.minimum(x, 0.5)
    return x * jnp.polyval(jnp.asarray(_SERIES[::-1], x.dtype), x * x)
