"""The norm of a tree against float64, over the whole range."""

import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits, configured
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from adam_jax import norms
from adam_jax.norms import global_norm

BF16, F16, F32 = jnp.bfloat16, jnp.float16, jnp.float32
LARGEST = float(jnp.finfo(F32).max)
STRICT = {
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_debug_nans": True,
    "jax_check_tracer_leaks": True,
}

if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:  # its older place
    from jax.experimental.shard_map import shard_map


def f64(x):
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def oracle(tree):
    """In float64, exactly summed."""
    return math.sqrt(
        math.fsum(float(abs(x)) ** 2 for leaf in jax.tree.leaves(tree) for x in f64(leaf).flat)
    )


def noise(shape, dtype=F32, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 10.0 ** rng.uniform(-2, 2, shape) * scale
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = x + 1j * rng.normal(size=shape) * scale
    return jnp.asarray(x, dtype)


def many(count, value, dtype):
    return [jnp.asarray(value, dtype)] * count


USUAL = {
    "float32": noise((3, 50)),
    "mixed": {"a": [noise((7,), BF16), None], "b": noise((2, 3), F16), "c": noise(())},
    "complex": [noise((5, 2), jnp.complex64), noise((3,))],
    "an empty leaf": [noise((0, 3)), noise(4)],
    "none": [None, {}],
    "numbers": [3, 4.0],
    "integers": jnp.arange(5),
    "a large leaf": jnp.full(2**20, 0.3),
    "at the edge": jnp.full(4, 1.1e-10),
}
# Where Optax is wrong.
RARE = {
    "many of bfloat16": many(400, 1, BF16),
    "large float16": many(100, 6e4, F16),
    "small float16": many(100, 6e-8, F16),
    "1e30": noise((3, 50), scale=1e30),
    "1e-30": noise((3, 50), scale=1e-30),
    "bfloat16, 1e30": noise((200,), BF16, 1e30),
    "complex, 1e30": noise((9,), jnp.complex64, 1e30),
    "a scalar, 1e30": jnp.float32(1e30),
    "a scalar, 1e-30": jnp.float32(1e-30),
    "one entry": [jnp.full((1, 1), 1e30), jnp.full((1,), 3e30)],
    "one large one small": [noise((9,), scale=1e25), noise((9,), scale=1e-25)],
}


@pytest.mark.costly
@pytest.mark.parametrize("tree", [*USUAL.values(), *RARE.values()], ids=[*USUAL, *RARE])
def test_is_the_norm(tree):
    norm = global_norm(tree)
    assert (norm.dtype, norm.shape, norm.weak_type) == (F32, (), False)
    np.testing.assert_allclose(float(norm), oracle(tree), rtol=1e-6)


@pytest.mark.costly
@pytest.mark.parametrize("tree", RARE.values(), ids=RARE)
def test_optax_is_off_there(tree):
    assert not np.isclose(float(optax.tree.norm(tree)), oracle(tree), rtol=1e-3, atol=0)


def test_is_the_norm_of_a_thousand_leaves():
    """One operation after the other, for to compile so many takes 17 s."""
    tree = many(1000, 1, BF16)
    with jax.disable_jit():
        norm = float(global_norm(tree))
    np.testing.assert_allclose(norm, math.sqrt(1000), rtol=1e-6)
    assert float(optax.tree.norm(tree)) == 16  # its sum stands still


@pytest.mark.costly
@pytest.mark.parametrize("tree", [USUAL["mixed"], *RARE.values()], ids=["mixed", *RARE])
def test_is_the_norm_without_a_conditional_too(tree, monkeypatch):
    """As on other platforms than CPUs."""
    monkeypatch.setattr(lax, "platform_dependent", lambda *, cpu, default: default())
    plain = inspect.unwrap(norms._norm)
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(tree)]
    # In a function of its own, for JAX knows the other one's trace.
    stage = jax.jit(lambda *x: plain(list(x))).lower(*leaves)
    assert "stablehlo.case" not in stage.as_text()
    np.testing.assert_allclose(float(stage.compile()(*leaves)), oracle(tree), rtol=1e-6)


def test_holds_finite_and_passes_on_what_is_not():
    inf, nan = jnp.inf, jnp.nan
    assert float(global_norm(many(4, LARGEST, F32))) == LARGEST
    assert float(global_norm(jnp.full(9, 3e38, BF16))) == LARGEST
    assert float(global_norm(jnp.array([1.0, -inf]))) == inf
    assert float(global_norm([jnp.array(1e30), jnp.array(inf, BF16)])) == inf
    assert float(global_norm(jnp.array([1.0, complex(0, inf)]))) == inf
    for bad in ([nan, 1.0], [inf, nan], [1e30, nan], [nan, 0.0]):
        assert np.isnan(float(global_norm(jnp.array(bad))))
    tiny = jnp.full(4, 1e-40)  # subnormal: a device may flush it
    assert np.isclose(float(global_norm(tiny)), 2e-40, rtol=1e-3) or global_norm(tiny) == 0


@pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200, 1e30])
def test_is_float64_where_a_leaf_is(x64, scale):
    tree = [noise((9,), jnp.float64) * scale, noise((3,), BF16)]
    assert global_norm(tree).dtype == np.float64
    exact = math.hypot(*f64(tree[0]), *f64(tree[1]))
    np.testing.assert_allclose(float(global_norm(tree)), exact, rtol=1e-14)
    assert global_norm([noise((9,))]).dtype == np.float32


@pytest.mark.parametrize("tree", [USUAL["mixed"], RARE["1e30"]], ids=["usual", "rare"])
def test_runs_under_the_strictest_settings(tree):
    with configured(STRICT):
        np.testing.assert_allclose(float(jax.jit(global_norm)(tree)), oracle(tree), rtol=1e-6)
        assert float(global_norm(jax.tree.map(jnp.zeros_like, tree))) == 0


def test_under_vmap_each_member_has_its_own():
    x = jnp.stack([noise((5,)), noise((5,), scale=1e30), jnp.zeros(5), jnp.full(5, jnp.inf)])
    alone = [float(global_norm(row)) for row in x]
    np.testing.assert_array_equal(jax.jit(jax.vmap(global_norm))(x), np.asarray(alone, F32))


def test_inside_shard_map_it_is_the_shards_own():
    mesh = Mesh(np.array(jax.devices()), ("x",))
    split = [noise((16, 3)), noise((8,), scale=1e20)]
    whole = noise((4,))

    def own(split, whole):
        norm = global_norm([split, whole])
        return norm[None], lax.psum(global_norm(split), "x")

    specs = {"in_specs": ([P("x")] * 2, P()), "out_specs": (P("x"), P())}
    each, total = jax.jit(shard_map(own, mesh=mesh, **specs))(split, whole)
    shards = [[split[0][2 * i : 2 * i + 2], split[1][i], whole] for i in range(8)]
    np.testing.assert_allclose(each, [oracle(shard) for shard in shards], rtol=1e-6)
    parts = [oracle([shard[:2]]) for shard in shards]
    np.testing.assert_allclose(float(total), sum(parts), rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_of_sharded_arrays_it_is_the_whole_norm_and_moves_none(scale):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    tree = [noise((8, 6), scale=scale), noise((4,))]
    specs = [P("x", "y"), P("y")]
    laid = [jax.device_put(x, NamedSharding(mesh, p)) for x, p in zip(tree, specs, strict=True)]
    compiled = jax.jit(global_norm).lower(laid).compile()
    np.testing.assert_allclose(float(compiled(laid)), oracle(tree), rtol=1e-6)
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not re.search("all-gather|all-to-all|collective-permute", text)


@pytest.mark.exhaustive
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_its_derivative_is_the_direction(scale):
    x = [noise((4,), scale=scale), noise((2, 2), BF16, scale)]
    norm, (dx, dy) = jax.jit(jax.value_and_grad(global_norm))(x)
    np.testing.assert_allclose(dx, f64(x[0]) / oracle(x), rtol=1e-5)
    np.testing.assert_allclose(f64(dy), f64(x[1]) / oracle(x), rtol=1e-2)
    moved = jax.jvp(global_norm, (x,), (x,))[1]
    np.testing.assert_allclose(float(moved), float(norm), rtol=1e-6)
    z = noise((3,), jnp.complex64, scale)
    (dz,) = jax.vjp(global_norm, z)[1](jnp.float32(1))
    np.testing.assert_allclose(dz, np.conj(f64(z)) / oracle(z), rtol=1e-5)


def test_its_derivatives_are_finite_at_zero():
    zero = [jnp.zeros(3), jnp.zeros((), BF16)]
    assert_same_bits(jax.grad(global_norm)(zero), zero)
    second = jax.hessian(lambda x: global_norm(x) ** 2)(jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(second, 2 * np.eye(2), atol=1e-6)
    assert np.isnan(jax.grad(optax.tree.norm)(jnp.zeros(3))).all()  # the twin


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="XLA fused fewer sums then")
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_puts_no_array_in_memory(dtype):
    leaves = [jax.ShapeDtypeStruct((2**22,), dtype)] * 3

    def temporaries(f):
        return jax.jit(f).lower(leaves).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(global_norm) < 2**16
    twice = temporaries(lambda x: global_norm(jax.tree.map(jnp.tanh, x)) + jnp.tanh(x[0])[0])
    assert twice > 2**20  # what it would be
