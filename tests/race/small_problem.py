"""A problem that trains in no time; tests race it, and break it."""

LINE = '''
"""A line through points; the loss is exactly quadratic, so large learning rates diverge."""
import jax
import jax.numpy as jnp

x = jax.random.normal(jax.random.key(0), (40, 3))
data = (x, x @ jnp.array([1.0, -2.0, 3.0]) + 0.5)
batch_size = 8
epochs = 3
learning_rates = [0.01, 0.1]

def init(key):
    return {"w": jax.random.normal(key, (3,)), "b": jnp.zeros(())}

def loss(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

def evaluate(params):
    return {"bias_error": abs(float(params["b"]) - 0.5)}
'''
