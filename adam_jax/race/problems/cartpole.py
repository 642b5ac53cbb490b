"""A pole to balance on a cart: policy gradient with a baseline on the classic dynamics.

The cart and pole are those of Barto, Sutton & Anderson, "Neuronlike adaptive elements that can
solve difficult learning control problems" (1983), https://doi.org/10.1109/TSMC.1983.6313077, with
the limits of later versions: 12 degrees, 2.4 metres, 200 steps of 20 ms. The policy learns by
REINFORCE (Williams 1992, https://doi.org/10.1007/BF00992696).
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, jax.Array]

epochs = 10
learning_rates = "1e-3:1:7"
target = 0.05
seconds = 13

_steps = 200
_carts = 16  # at once, a batch
_hidden = 32
_gravity, _cart_mass, _pole_mass, _half_length = 9.8, 1.0, 0.1, 0.5
_force, _seconds = 10.0, 0.02
_farthest = jnp.array([2.4, jnp.inf, 12 * np.pi / 180, jnp.inf])


def batches(key: jax.Array) -> Iterable[jax.Array]:
    """Ten keys, each for the rollouts of a step."""
    return jax.random.split(key, 10)


def init(key: jax.Array) -> Params:
    """4 numbers, 32 tanh, a logit for pushing to the right."""
    glorot = jax.nn.initializers.glorot_normal()
    hidden, output = jax.random.split(key)
    return {
        "w1": glorot(hidden, (4, _hidden)),
        "b1": jnp.zeros(_hidden),
        "w2": 0.01 * glorot(output, (_hidden, 1)),
        "b2": jnp.zeros(1),
    }


def loss(params: Params, batch: jax.Array) -> jax.Array:
    """The share of the time that the pole is down: one minus the mean return over 200.

    That is the value. The gradient is the policy's: of the chances of what was done, weighted by
    how much longer the pole stayed up from then on than it did on average over the carts,
    itself among them.
    """
    states, right, up = jax.lax.stop_gradient(_rollout(params, batch))
    to_go = jnp.cumsum(up[::-1], 0)[::-1]
    running = jnp.maximum(1, up.sum(1, keepdims=True))
    advantage = up * (to_go - to_go.sum(1, keepdims=True) / running)
    chance = jax.nn.log_sigmoid(jnp.where(right, 1, -1) * _logit(params, states))
    gain = (advantage * chance).sum(0).mean() / _steps
    return 1 - up.mean() - (gain - jax.lax.stop_gradient(gain))


def evaluate(params: Params) -> dict[str, float]:
    """For how many of 200 steps the pole stays up, a mean of 160 carts."""
    keys = jax.random.split(jax.random.key(0), 10)
    return {"mean_return": float(_steps * (1 - np.mean([_loss(params, key) for key in keys])))}


def samples(params: Params) -> dict[str, np.ndarray]:
    """How the poles of 16 carts lean, a strip each; black where one is down."""
    states, _, up = _rollout(params, jax.random.key(0))
    lean = jnp.where(up, 0.55 + 0.45 * states[..., 2] / _farthest[2], 0)
    strips = np.repeat(np.asarray(lean.T), 6, axis=0)
    return {"16 poles over 200 steps: grey upright, darker and lighter aslant, black down": strips}


_loss = jax.jit(loss)


def _rollout(params: Params, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """States, whether it pushed right, and whether the pole was up then, by time and cart."""

    def step(carry: tuple[jax.Array, jax.Array], chance: jax.Array) -> Any:
        state, up = carry
        right = chance < jax.nn.sigmoid(_logit(params, state))
        moved = _moved(state, jnp.where(right, _force, -_force))
        still = up & jnp.all(jnp.abs(moved) < _farthest, -1)
        # One that has fallen rests, where its numbers stay small.
        return (jnp.where(still[:, None], moved, state), still), (state, right, up)

    start, chances = jax.random.split(key)
    state = jax.random.uniform(start, (_carts, 4), minval=-0.05, maxval=0.05)
    chance = jax.random.uniform(chances, (_steps, _carts))
    _, seen = jax.lax.scan(step, (state, jnp.ones(_carts, bool)), chance)
    states, right, up = seen
    return states, right, up


def _logit(params: Params, states: jax.Array) -> jax.Array:
    hidden = jnp.tanh(states @ params["w1"] + params["b1"])
    return (hidden @ params["w2"] + params["b2"])[..., 0]


def _moved(state: jax.Array, force: jax.Array) -> jax.Array:
    """The state 20 ms later, by Euler's method: position, speed, angle and its speed."""
    _, speed, angle, turning = state.T
    mass = _cart_mass + _pole_mass
    push = (force + _pole_mass * _half_length * turning**2 * jnp.sin(angle)) / mass
    inertia = _half_length * (4 / 3 - _pole_mass * jnp.cos(angle) ** 2 / mass)
    turn = (_gravity * jnp.sin(angle) - jnp.cos(angle) * push) / inertia
    pull = push - _pole_mass * _half_length * turn * jnp.cos(angle) / mass
    return state + _seconds * jnp.stack([speed, pull, turning, turn], -1)
