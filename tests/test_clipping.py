"""Gradients clipped by their norm: to the limit, in one direction, no bit below it."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits, assert_same_kind, configured
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from test_norms import BF16, F16, F32, LARGEST, RARE, STRICT, f64, noise, oracle, shard_map
from training import descend, gradients, parameters, stepper

import adam_jax
from adam_jax.clipping import ClipByGlobalNormState, clip_by_global_norm
from adam_jax.norms import global_norm

DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16, jnp.complex64])
PRECISION = {F32: 4e-7, BF16: 2**-7, F16: 2**-10, jnp.complex64: 4e-7}


def clip(updates, max_norm, **extra):
    tx = clip_by_global_norm(max_norm)
    return tx.update(updates, tx.init(updates), **extra)


@DTYPES
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_clips_to_the_norm(dtype, scale):
    scale = 1.0 if dtype == F16 else scale
    tree = {"a": noise((3, 5), dtype, scale), "b": [noise((), dtype, scale, seed=1), None]}
    limit = oracle(tree) / 7
    clipped, state = jax.jit(clip)(tree, jnp.float32(limit))
    assert jax.tree.map(lambda x: x.dtype, clipped) == jax.tree.map(lambda x: x.dtype, tree)
    np.testing.assert_allclose(float(state.norm), oracle(tree), rtol=1e-6)
    for new, old in zip(*map(jax.tree.leaves, (clipped, tree)), strict=True):
        atol = 6e-8 if dtype == F16 else 0
        np.testing.assert_allclose(f64(new), f64(old) / 7, rtol=PRECISION[dtype], atol=atol)


@DTYPES
def test_at_or_below_the_norm_no_bit_changes(dtype):
    values = [-0.0, 0.0, 1.5, -3.0, 6e-8 if dtype == F16 else 1e-40]
    tree = [jnp.asarray(values, dtype), None, jnp.asarray(2.0, dtype)]
    norm = float(global_norm(tree))
    for limit in (norm, 2 * norm, LARGEST):
        clipped, _ = clip(tree, limit)
        assert_same_bits(clipped, tree)
    clipped, _ = clip(tree, norm * 0.9)
    assert not np.array_equal(clipped[0], tree[0])


def test_many_leaves_of_16_bits_where_optax_is_wrong():
    for tree in (RARE["many of bfloat16"], RARE["large float16"]):
        ours, state = clip(tree, 1.0)
        theirs, _ = optax.clip_by_global_norm(1.0).update(tree, optax.EmptyState())
        np.testing.assert_allclose(float(state.norm), oracle(tree), rtol=1e-6)
        np.testing.assert_allclose(oracle(ours), 1, rtol=4e-3)
        assert not 0.9 < oracle(theirs) < 1.1
    assert oracle(theirs) == 0  # an infinite norm


def test_huge_gradients_keep_their_direction():
    for dtype in (F32, BF16, jnp.complex64):
        clipped, _ = clip(jnp.asarray([2e38, -2e38], dtype), 1.0)
        np.testing.assert_allclose(f64(clipped), np.array([1, -1]) / math.sqrt(2), rtol=5e-3)
    assert float(jnp.float32(1) / jnp.float32(3e38)) == 0  # the twin: one factor for all


def test_what_is_not_finite_stays_loud_as_in_optax():
    for bad in (jnp.inf, -jnp.inf, jnp.nan):
        tree = [jnp.array([1.0, bad, -2.0]), jnp.array(3.0)]
        clipped, state = clip(tree, 1.0)
        theirs, _ = optax.clip_by_global_norm(1.0).update(tree, optax.EmptyState())
        for a, b in zip(clipped, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
        assert not np.isfinite(state.norm)


def test_a_given_norm_is_taken():
    g = jnp.array([3.0, 4.0])
    for given in (10.0, np.float64(10), jnp.asarray(10, BF16), jnp.int32(10)):
        clipped, state = clip(g, 5.0, grad_norm=given, value=1.0)
        np.testing.assert_allclose(clipped, g / 2, rtol=1e-6)
        assert_same_kind(state, ClipByGlobalNormState(jnp.zeros([])))
    given = jnp.float32(10)
    assert clip(g, 5.0, grad_norm=given)[1].norm is not given  # for a state may be donated
    for wrong in (jnp.ones(2), "10", 1j):
        with pytest.raises(TypeError, match="`grad_norm` must be a real scalar, got "):
            clip(g, 5.0, grad_norm=wrong)


def test_over_shards_the_norm_is_given():
    mesh = Mesh(np.array(jax.devices()), ("x",))
    g, tx = noise((16,)), clip_by_global_norm(1.0)

    def step(given, g):
        norm = jnp.sqrt(lax.psum(jnp.square(global_norm(g)), "x"))
        return tx.update(g, tx.init(g), grad_norm=norm if given else None)[0]

    given, own = [
        jax.jit(shard_map(partial(step, x), mesh=mesh, in_specs=P("x"), out_specs=P("x")))(g)
        for x in (True, False)
    ]
    np.testing.assert_allclose(given, clip(g, 1.0)[0], rtol=1e-6)
    assert oracle(own) > 2  # the twin: each shard has a norm of 1


def test_keeps_the_contract_of_a_transformation():
    params = parameters(BF16)
    tx = optax.chain(clip_by_global_norm(0.5), adam_jax.adam(1e-2))
    step, state = jax.jit(stepper(tx), donate_argnums=(0, 1)), tx.init(params)
    params, state = descend(step, params, state, gradients(3, parameters()))
    params = parameters(BF16)
    state = clip_by_global_norm(0.5).init(params)
    abstract = jax.eval_shape(clip_by_global_norm(0.5).init, params)
    assert (abstract.norm.shape, abstract.norm.dtype) == (state.norm.shape, state.norm.dtype)
    assert clip({}, 1.0)[0] == {}
    both = jax.tree.map(lambda *x: jnp.stack(x), *gradients(2, params))
    members, states = jax.vmap(partial(clip, max_norm=1.0))(both)
    alone = [clip(jax.tree.map(lambda x, i=i: x[i], both), 1.0) for i in range(2)]
    assert_same_bits((members, states), jax.tree.map(lambda *x: jnp.stack(x), *alone))
    with configured(STRICT):
        jax.jit(partial(clip, max_norm=1e-3))(params)


def test_a_limit_may_be_traced_and_is_checked_where_it_is_not():
    traces = []
    f = jax.jit(lambda g, limit: (traces.append(1), clip(g, limit)[0])[1])
    for limit in (0.0, 1.0, 2.5):
        np.testing.assert_allclose(oracle(f(jnp.array([3.0, 4.0]), limit)), limit, rtol=1e-6)
    assert len(traces) == 1
    slope = jax.grad(lambda limit: clip(jnp.array([3.0, 4.0]), limit)[0].sum())(1.0)
    np.testing.assert_allclose(slope, 1.4, rtol=1e-6)
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`max_norm` must be a finite number >= 0, got "):
            clip_by_global_norm(wrong)
    with pytest.raises(TypeError, match="`max_norm` must be a finite number >= 0, got '1'"):
        clip_by_global_norm("1")


def test_a_norm_of_wide_gradients_of_narrow_parameters(x64):
    gradient = jnp.array([3e200, 4e200])
    tx = clip_by_global_norm(1.0)
    clipped, state = tx.update(gradient, tx.init(jnp.ones(2, F32)))
    np.testing.assert_allclose(clipped, [0.6, 0.8])
    assert state.norm.dtype == F32
    assert np.isfinite(state.norm)
    guarded = adam_jax.skip_unstable(optax.sgd(1.0), threshold=6.0)
    _, state = guarded.update(gradient, guarded.init(jnp.ones(2, F32)))
    assert int(state.skipped_total) == 0
    assert state.norm.dtype == state.norms.dtype == F32
