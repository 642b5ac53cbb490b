"""A small tree and a fixed stream of gradients for it, which any transformation can be run over."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def parameters(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {"dense": {"w": (3, 4), "b": (4,)}, "scale": ()}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def gradients(steps, like):
    """A list of trees like ``like``, of no symmetry and 4 decades."""
    rng = np.random.default_rng(1)

    def noise(leaf):
        size = 10.0 ** rng.uniform(-3, 1, leaf.shape)
        return jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype)

    return [jax.tree.map(noise, like) for _ in range(steps)]


def stepper(tx):
    """A jitted ``(params, state, gradient) -> (params, state)`` that fails if traced twice."""
    traces = []

    @jax.jit
    def step(params, state, gradient):
        traces.append(1)
        assert len(traces) == 1
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return step


def descend(step, params, state, stream):
    """Parameters and state after one step a gradient."""
    for gradient in stream:
        params, state = step(params, state, gradient)
    return params, state


def moved(tx, params, stream):
    """Parameters and state after one step a gradient, from a fresh state."""
    return descend(stepper(tx), params, tx.init(params), stream)


def assert_close(actual, desired, atol=0.0, rtol=0.0):
    """Two trees of one structure, shapes and dtypes, whose arrays differ by no more."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, d in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        assert (a.shape, a.dtype) == (d.shape, d.dtype)
        # Old versions of numpy compare no dtypes that are not their own.
        own = a.dtype.kind != "V"
        wide = [np.asarray(x if own else x.astype(jnp.float32)) for x in (a, d)]
        np.testing.assert_allclose(*wide, atol=atol, rtol=rtol)
