"""What several files check alike: bits, kinds, donation, and JAX's settings for a while."""

import contextlib

import chex
import jax
import numpy as np
import optax


def assert_same_bits(actual, expected):
    """Structure, shapes, dtypes and every bit."""
    chex.assert_trees_all_equal_structs(actual, expected)
    for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes()


def assert_same_kind(a, b):
    """Structure, shapes, dtypes and weak types."""
    chex.assert_trees_all_equal_structs(a, b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype, x.weak_type) == (y.shape, y.dtype, y.weak_type)


def assert_traced_once_and_donated(tx, params, gradient):
    """Three jitted steps that take the place of their parameters and state."""
    traces = 0

    def step(params, state):
        nonlocal traces
        traces += 1
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    state = tx.init(params)
    for _ in range(3):
        old = [x for x in jax.tree.leaves((params, state)) if x.size]
        params, state = jitted(params, state)
        assert all(x.is_deleted() for x in old)
    assert traces == 1


@contextlib.contextmanager
def configured(settings):
    """JAX's configuration with these settings, and as before after it."""
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
