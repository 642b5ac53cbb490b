"""All services around AdamW in one chain, and what is true of a training run under it."""

import functools

import jax
import numpy as np
import optax
from checks import assert_same_kind

import adam_jax
from adam_jax.averaging import average_params, averaged_params
from adam_jax.clipping import clip_by_global_norm
from adam_jax.services.accumulate import accumulate
from adam_jax.services.by_path import by_path
from adam_jax.services.skip_unstable import check_stable, skip_unstable
from adam_jax.services.with_hyperparameters import with_hyperparameters
from adam_jax.services.with_metrics import read_metrics, with_metrics

STEPS, BAD = 120, 61  # steps, and the one whose gradients are not numbers


def around_adamw(rules, stored=None):
    """The mean of two gradients is clipped, and takes one step; no number that is none gets in."""
    adamw = functools.partial(adam_jax.adamw, mu_dtype=stored, nu_dtype=stored)
    schedule = optax.linear_schedule(0.02, 0.0, STEPS)
    inner = with_hyperparameters(adamw, learning_rate=schedule, b2=0.99, weight_decay=0.01)
    step = optax.chain(clip_by_global_norm(1.0), by_path(rules)(inner), average_params(0.9))
    return with_metrics(skip_unstable(accumulate(step, 2), threshold=50.0, max_consecutive=3))


def poisoned(gradients, step):
    """Gradients, but at one step."""
    return jax.tree.map(lambda g: jax.numpy.where(step == BAD, np.nan, g), gradients)


def assert_trained(first, state, losses, fall):
    """Of a state of `around_adamw` before and after training."""
    assert_same_kind(state, first)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < fall * np.mean(losses[:5])
    check_stable(state)
    found = {
        name: int(optax.tree_utils.tree_get(state, name))
        for name in ("skipped_total", "full_steps", "micro_step")
    }
    assert found == {"skipped_total": 1, "full_steps": STEPS // 2 - 1, "micro_step": 1}
    metrics = read_metrics(state)
    assert len(metrics) > 10
    assert all(np.isfinite(value) for value in metrics.values())
    for leaf in jax.tree.leaves(averaged_params(state)):
        assert np.isfinite(leaf).all()
